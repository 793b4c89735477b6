"""Read custom data from one file or folder per client, in any other form of custom data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from floral.data.custom.arrays import read_arrays
from floral.data.custom.images import folder_places, read_folders
from floral.data.custom.parts import Place, entries_of, file_type
from floral.data.custom.table import read_tables, table_places
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile


def array_places(root: Path, client: str | None = None) -> list[Place]:
    """Return `root` itself, because arrays of training and test samples are in one file or folder."""
    return [Place(root, client=client)]


FORMS: dict[str, tuple[Callable[..., list[Place]], Callable[..., Labelled]]] = {
    "folder": (folder_places, read_folders),
    "table": (table_places, read_tables),
    "arrays": (array_places, read_arrays),
}
"""Form of a client's files → functions that list the places of its samples, and that read the places of all clients."""


def clients(files: Sequence[RawFile], *, each: str, **options: Any) -> Labelled:
    """Read one file or folder per client: <path>/<client>, or <path>/<client>.csv and similar files.

    `each` is the form of the samples of one client: folder, table or arrays. The other options are those of this form.
    The samples of all clients, or of none, are split into train and test.

    Raises:
        DataError: there are no clients, two clients have the same name, or the samples of a client are wrong.
    """
    root = files[0].location
    entries = entries_of(root)
    paths: dict[str, Path] = {}
    for path in entries:
        name = path.name if path.is_dir() else path.name.removesuffix(".gz").removesuffix(file_type(path))
        if name in paths:
            raise DataError(f"{path}: {paths[name].name} is of the same client {name!r}; rename one of them")
        paths[name] = path
    if not paths:
        raise DataError(f"{root}: there are no clients here; add one file or folder for each client")
    places_of, read = FORMS[each]
    if len(files) > 1:
        options["tokenizer"] = files[1:]  # of the texts of tables
    return read([place for name, path in paths.items() for place in places_of(path, name)], **options)
