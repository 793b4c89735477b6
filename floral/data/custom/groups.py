"""Read custom data from one file or folder per client, or per domain, in any other form of custom data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from floral.data.custom.arrays import read_arrays
from floral.data.custom.images import folder_places, read_folders
from floral.data.custom.parts import Place, entries_of, file_type
from floral.data.custom.table import read_tables, table_places
from floral.data.readers import Labelled
from floral.data.sources import DataError, RawFile


def array_places(root: Path) -> list[Place]:
    """Return `root` itself, because arrays of training and test samples are in one file or folder."""
    return [Place(root)]


FORMS: dict[str, tuple[Callable[[Path], list[Place]], Callable[..., Labelled]]] = {
    "folder": (folder_places, read_folders),
    "table": (table_places, read_tables),
    "arrays": (array_places, read_arrays),
}
"""Form of the files of a client or domain → functions that list the places of its samples, and that read all places."""


def clients(files: Sequence[RawFile], *, each: str, **options: Any) -> Labelled:
    """Read one file or folder per client: <path>/<client>, or <path>/<client>.csv and similar files.

    `each` is the form of the samples of one client: folder, table or arrays. The other options are those of this form.
    The samples of all clients, or of none, are split into train and test.

    Raises:
        DataError: there are no clients, two clients have the same name, or the samples of a client are wrong.
    """
    return _read(files, "client", each, options)


def domains(files: Sequence[RawFile], *, each: str, **options: Any) -> Labelled:
    """Read one file or folder per domain, such as the source of the images: <path>/<domain>, or <path>/<domain>.csv.

    See `clients`. Domains are numbered in the order of their names. The samples may also have clients, in the arrays or
    in a column of the tables.

    Raises:
        DataError: there are no domains, two domains have the same name, or the samples of a domain are wrong.
    """
    return _read(files, "domain", each, options)


def _read(files: Sequence[RawFile], word: str, each: str, options: dict[str, Any]) -> Labelled:
    """Read one file or folder per client or per domain; `word` is "client" or "domain"."""
    root = files[0].location
    entries = entries_of(root)
    paths: dict[str, Path] = {}
    for path in entries:
        name = path.name if path.is_dir() else path.name.removesuffix(".gz").removesuffix(file_type(path))
        if name in paths:
            raise DataError(f"{path}: {paths[name].name} is of the same {word} {name!r}; rename one of them")
        paths[name] = path
    if not paths:
        raise DataError(f"{root}: there are no {word}s here; add one file or folder for each {word}")
    places_of, read = FORMS[each]
    if len(files) > 1:
        options["tokenizer"] = files[1:]  # of the texts of tables
    places = [
        replace(place, client=name) if word == "client" else replace(place, domain=name)
        for name, path in paths.items()
        for place in places_of(path)
    ]
    return read(places, **options)
