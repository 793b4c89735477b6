"""Stage fetch: the raw files of a data set, verified, become results/data/<name>/*.npy and a card."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from floral.config import data_sets, paths, reading
from floral.config.reading import ConfigError
from floral.config.schema.data import NOTHING, CustomData, Data, DataSet
from floral.data import custom, readers, sources, text
from floral.data.readers import Labelled
from floral.data.stored import ARRAYS, CLIENTS, arrays_digest, stored_arrays
from floral.io.files import atomic
from floral.io.locks import held

READERS = {**readers.READERS, **custom.READERS, **text.READERS}


def fetch(
    data: str | CustomData, results: Path, data_dir: Path | None = None, report: sources.Report | None = None
) -> Path:
    """Make results/data/<name> and return it; a folder that is valid already is left as it is.

    Args:
        data: a name in data.lock, or a task's own.
        data_dir: a folder with raw files, looked into before any download; by default the one that FLORAL_DATA names.

    Raises:
        ConfigError: `data` or `data_dir` does not exist.
        DataError: a raw file is missing, truncated or altered, or the disk is full.
    """
    if isinstance(data, str) and data not in (accepted := data_sets.data_lock()):
        raise reading.suggest("data set", data, accepted, str(paths.CONFIG_FOLDER / "data.lock"))
    name, dataset = str(data_sets.stored_data(data)), data_sets.data_set(data)
    folder = results / "data" / name
    if dataset.reader not in READERS:
        raise reading.suggest("reader", dataset.reader, READERS, f"{paths.CONFIG_FOLDER / 'data.lock'}: {name}")
    with held(folder / ".lock", "fetching it"):
        if not _is_valid(folder, dataset):
            _make(folder, name, dataset, data_folder(data_dir), report)
    return folder


AtHand = Literal["no files needed", "fetched", "found", "to download", "missing"]


def at_hand(data: Data, results: Path, data_dir: Path | None = None) -> tuple[AtHand, str]:
    """Whether a task's data are there, and what to do where they are missing; by names alone, so at once.

    A file that is found may still have the wrong content, and a URL may not answer: only `fetch` knows.
    """
    name = data_sets.stored_data(data)
    if not isinstance(name, str) or name == NOTHING:
        return "no files needed", ""
    folder, place = results / "data" / name, data_folder(data_dir)
    if (folder / "card.json").exists():
        return "fetched", ""
    if isinstance(data, CustomData):
        why = data_sets.why_unreadable(data)
        return ("found", "") if why is None else ("missing", f"{why}; {data_sets.CUSTOM_ADVICE}")
    assert isinstance(data, str), "what is drawn is stored under no name"
    files = data_sets.data_lock()[data].files
    lacking = [file for file in files if not sources.is_there(file, folder / "raw", place)]
    without = [file for file in lacking if not any(map(sources.on_the_network, file.urls))]
    if without:
        return "missing", f"{', '.join(file.path for file in without)}; {sources.advice(without[0])}"
    return ("to download", "") if lacking else ("found", "")


def _make(folder: Path, name: str, dataset: DataSet, data_dir: Path | None, report: sources.Report | None) -> None:
    raw = folder / "raw"
    record = raw / sources.RECORD
    recorded: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    files = [sources.obtain(file, raw, data_dir, recorded.get(file.path), report) for file in dataset.files]
    arrays = READERS[dataset.reader](files, **dataset.options)
    if dataset.classes not in (None, arrays.classes):
        raise sources.DataError(
            f"{paths.CONFIG_FOLDER / 'data.lock'}: {name}: classes: {dataset.classes}, but the files have "
            f"{arrays.classes}; mend the entry, or see whether these are the right files"
        )
    named = {} if arrays.names is None else {"class_names": list(arrays.names)}
    natural = {} if arrays.natural_clients is None else {"natural_clients": arrays.natural_clients}
    manifest = {
        "name": name,
        **_promise(dataset),
        "files": [{"path": found.file.path, "sha256": found.sha256, "verified": found.verified} for found in files],
        "digest": arrays_digest([getattr(arrays, side) for side in stored_arrays(natural)]),
        "classes": arrays.classes,
        "scale": arrays.scale,
        "shape": list(arrays.train_x.shape[1:]),
        "rows": {"train": len(arrays.train_x), "test": len(arrays.test_x)},
        **named,
        **natural,
    }
    new = {found.file.path: found.sha256 for found in files if not found.verified}
    try:
        if new != recorded:
            atomic(record, json.dumps(new, indent=1).encode())
        _store(folder, arrays, manifest)
    except OSError as error:
        if sources.full_disk(error):
            raise sources.DataError(sources.disk_is_full(folder)) from None
        raise


def _store(folder: Path, arrays: Labelled, manifest: dict[str, Any]) -> None:
    """Write everything beside its place, then move it there; the card goes first and comes last, so it never lies."""
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        for side in stored_arrays(manifest):
            _save(new / f"{side}.npy", np.ascontiguousarray(getattr(arrays, side)))
        (new / "card.json").write_text(json.dumps(manifest, indent=1))
        (folder / "card.json").unlink(missing_ok=True)
        for side in (*ARRAYS, *CLIENTS):
            (folder / f"{side}.npy").unlink(missing_ok=True)  # another version's natural clients
        for file in (*(f"{side}.npy" for side in stored_arrays(manifest)), "card.json"):
            (new / file).replace(folder / file)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    """As np.save, which reports a full disk as an OSError without its errno."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with path.open("wb") as file:
        file.write(header.getbuffer())
        file.write(array.data)


def _is_valid(folder: Path, dataset: DataSet) -> bool:
    """Whether the card says what data.lock promises and the arrays are those of the card."""
    try:
        manifest = json.loads((folder / "card.json").read_text())
        arrays = [np.load(folder / f"{side}.npy", mmap_mode="r") for side in stored_arrays(manifest)]
        found = [(file["path"], file["sha256"] if file["verified"] else None) for file in manifest["files"]]
    except (FileNotFoundError, ValueError, EOFError, KeyError, TypeError):  # never made, or damaged: made again
        return False
    return (
        {key: manifest.get(key) for key in _promise(dataset)} == _promise(dataset)
        and found == [(file.path, file.sha256) for file in dataset.files]
        and manifest.get("digest") == arrays_digest(arrays)
    )


def _promise(dataset: DataSet) -> dict[str, Any]:
    more = {"options"} if dataset.options else set()
    return dataset.model_dump(include={"title", "reader", "exact", "note"} | more)


def data_folder(data_dir: Path | None) -> Path | None:
    """The folder that is looked into before any download: `data_dir`, or the one that FLORAL_DATA names."""
    value, key = (data_dir, "data_dir") if data_dir else (os.environ.get("FLORAL_DATA"), "FLORAL_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{key}: {folder.absolute()} is no folder; name the folder that holds the raw data files, or unset {key}"
        )
    return folder
