"""Read custom data from images in one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from floral.data.custom.parts import Part, Place, check_kind, entries_of, labelled, split_or_not
from floral.data.images import pixels
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile
from floral.io.files import visible


def folder(files: Sequence[RawFile], *, test_share: float, resize: Sequence[int] | None = None) -> Labelled:
    """Read images from one folder per class.

    The paths are <path>/<class>/<image>. If the data have a training and a test part, the paths are
    <path>/train/<class>/<image> and <path>/test/<class>/<image>.

    Classes are numbered in the order of their names. All images must have the same size, or are resized to the height
    and width `resize`. The result is [N, H, W] if all images are grey, otherwise [N, H, W, 3]. Images are read as a
    viewer shows them on white (`floral.data.images`).

    Raises:
        DataError: the folders have another structure, or images are unreadable or differ in size.
    """
    return read_folders(folder_places(files[0].location), test_share=test_share, resize=resize)


def folder_places(root: Path) -> list[Place]:
    """Return the folders train and test in `root`, or `root` itself if it has neither."""
    check_kind(root, "folder")
    return split_or_not(root, {path.name: path for path in entries_of(root)})


def read_folders(places: Sequence[Place], *, test_share: float, resize: Sequence[int] | None = None) -> Labelled:
    """Read images from folders that contain one folder for each class. See `folder`."""
    paths = [_image_files(place.path) for place in places]
    every = [path for side in paths for path in side]
    decoded = pixels(((str(path), path) for path in every), len(every), resize)
    arrays = np.split(decoded, np.cumsum([*map(len, paths)])[:-1])
    parts = [
        Part(
            where=place.path, x=x, labels=np.array([path.parent.name for path in side]), side=place.side,
            client=place.of_client(len(side)), domain=place.domain,
        )
        for place, side, x in zip(places, paths, arrays, strict=True)
    ]  # fmt: skip
    return labelled(parts, test_share, scale=255)


def _image_files(root: Path) -> list[Path]:
    """Return the paths of the images of all classes, class by class."""
    paths: list[Path] = []
    for entry in entries_of(root):
        if not entry.is_dir():
            raise DataError(f"{entry}: this file is next to the class folders; move it into one of them, or remove it")
        of_class = visible(entry)
        if not of_class or any(path.parent != entry for path in of_class):
            raise DataError(
                f"{entry}: a class folder must contain at least one image, and images only; add images, remove other "
                "files and folders, or remove the class folder"
            )
        paths += of_class
    if not paths:
        raise DataError(f"{root}: this folder has no class folders; add images as <class>/<image>")
    return paths
