"""Read custom data from images in one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from floral.data.custom_parts import Part, entries_of, labelled, split_or_not
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile
from floral.io.files import visible

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
"""Pillow modes with at most 8 bits per channel. Conversion of other modes to RGB would clip values."""


def folder(files: Sequence[RawFile], *, test_share: float) -> Labelled:
    """Read images from one folder per class.

    The paths are <path>/<class>/<image>. If the data have a training and a test part, the paths are
    <path>/train/<class>/<image> and <path>/test/<class>/<image>.

    Classes are numbered in the order of their names. All images must have the same size. The result is [N, H, W] if all
    images are grey, otherwise [N, H, W, 3]. Images with a palette or transparency are converted to RGB.

    Raises:
        DataError: the folders have another structure, or images are unreadable or differ in size.
    """
    root = files[0].location
    places = split_or_not(root, {path.name: path for path in entries_of(root)})
    images = [(place, _image_files(place)) for place in places]
    headers = [header for _, paths in images for header in map(_header, paths)]
    first, (width, height), _ = headers[0]
    for path, size, mode in headers:
        if size != (width, height):
            raise DataError(
                f"{path}: this image has {size[0]}×{size[1]} pixels, but {first} has {width}×{height}; resize all "
                "images to one size"
            )
        if mode not in MODES:
            raise DataError(f"{path}: this image has the mode {mode}; save it with at most 8 bits per channel")
    mode = "L" if all(mode in ("1", "L") for _, _, mode in headers) else "RGB"
    parts = [
        Part(where=place, x=_pixels(paths, mode), labels=np.array([path.parent.name for path in paths]))
        for place, paths in images
    ]
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


def _header(path: Path) -> tuple[Path, tuple[int, int], str]:
    """Return the path, the size (width, height) and the colour mode of an image, without decoding it."""
    try:
        with Image.open(path) as image:
            return path, image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _undecodable(path, error) from None


def _pixels(paths: Sequence[Path], mode: str) -> npt.NDArray[np.uint8]:
    """Decode images of equal size to an array [N, H, W] (mode L, grey) or [N, H, W, 3] (mode RGB)."""
    decoded = np.empty(0, np.uint8)
    for row, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        except (OSError, SyntaxError, ValueError) as error:
            raise _undecodable(path, error) from None
        if not row:
            decoded = np.empty((len(paths), *pixels.shape), np.uint8)
        decoded[row] = pixels
    return decoded


def _undecodable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: the image cannot be decoded ({error}); remedy: replace or remove it")
