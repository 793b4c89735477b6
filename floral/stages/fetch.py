"""Stage fetch: verify the raw files of a data set, and store its arrays and its card.json in results/data/<name>."""

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
from floral.data.stored import ARRAYS, CLIENT_NAMES, CLIENTS, arrays_digest, stored_arrays
from floral.io.files import atomic
from floral.io.locks import held

READERS = {**readers.READERS, **custom.READERS, **text.READERS}


def fetch(
    data: str | CustomData, results: Path, data_dir: Path | None = None, report: sources.Report | None = None
) -> Path:
    """Store a data set in results/data/<name> and return this folder. A folder that is already valid is not changed.

    Args:
        data: the name of a data set in data.lock, or the custom data of a task.
        data_dir: the folder in which raw files are looked for before any download. The default is the folder that the
            environment variable FLORAL_DATA names.
        report: a function that is called with messages about the progress.

    Raises:
        ConfigError: `data` is not in data.lock, or the folder `data_dir` does not exist.
        DataError: a raw file is missing, truncated or altered, or the disk is full.
    """
    if isinstance(data, str) and data not in (accepted := data_sets.data_lock()):
        raise reading.suggest("data set", data, accepted, str(paths.CONFIG_FOLDER / "data.lock"))
    name, dataset = str(data_sets.stored_data(data)), data_sets.data_set(data)
    folder = results / "data" / name
    if dataset.reader not in READERS:
        raise reading.suggest("reader", dataset.reader, READERS, data_sets.place(str(data)))
    with held(folder / ".lock", "fetching it"):
        if not _is_valid(folder, dataset):
            _make(folder, name, dataset, data_folder(data_dir), report)
    return folder


Availability = Literal["no files needed", "fetched", "found", "to download", "missing"]


def availability(data: Data, results: Path, data_dir: Path | None = None) -> tuple[Availability, str]:
    """Return whether the data of a task are available, and what to do if they are missing.

    This is fast, because only the names of files are checked. A later `fetch` can still fail if a file has wrong
    content or a URL does not answer.
    """
    name = data_sets.stored_data(data)
    if not isinstance(name, str) or name == NOTHING:
        return "no files needed", ""
    folder, raw_folder = results / "data" / name, data_folder(data_dir)
    if (folder / "card.json").exists():
        return "fetched", ""
    if isinstance(data, CustomData):
        why = data_sets.why_unreadable(data)
        return ("found", "") if why is None else ("missing", why)
    assert isinstance(data, str), "synthetic data are not stored"
    files = data_sets.data_lock()[data].files
    absent = [file for file in files if not sources.is_there(file, folder / "raw", raw_folder)]
    no_url = [file for file in absent if not any(map(sources.on_the_network, file.urls))]
    if no_url:
        return "missing", f"{', '.join(file.path for file in no_url)}; {sources.advice(no_url[0])}"
    return ("to download", "") if absent else ("found", "")


def _make(folder: Path, name: str, dataset: DataSet, data_dir: Path | None, report: sources.Report | None) -> None:
    """Find or download the raw files of a data set, read them, and store the arrays and card.json."""
    raw = folder / "raw"
    record = raw / sources.RECORD
    recorded: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    files = [sources.obtain(file, raw, data_dir, recorded.get(file.path), report) for file in dataset.files]
    try:
        arrays = READERS[dataset.reader](files, **dataset.options)
    except MemoryError:
        paths_read = ", ".join(str(file.location) for file in files)
        raise sources.DataError(
            f"{paths_read}: these data do not fit into memory; remove samples, or use a machine with more memory"
        ) from None
    if dataset.classes not in (None, arrays.classes):
        raise sources.DataError(
            f"{data_sets.place(name)}: this entry has `classes: {dataset.classes}`, but the "
            f"files have {arrays.classes} classes; correct the entry, or check that these are the right files"
        )
    named = {} if arrays.names is None else {"class_names": list(arrays.names)}
    natural = {} if arrays.natural_clients is None else {"natural_clients": arrays.natural_clients}
    manifest = {
        "name": name,
        **_locked_values(dataset),
        "files": [
            {"path": raw_file.file.path, "sha256": raw_file.sha256, "verified": raw_file.verified} for raw_file in files
        ],
        "digest": arrays_digest([getattr(arrays, side) for side in stored_arrays(natural)]),
        "classes": arrays.classes,
        "scale": arrays.scale,
        "shape": list(arrays.train_x.shape[1:]),
        "rows": {"train": len(arrays.train_x), "test": len(arrays.test_x)},
        **named,
        **natural,
    }
    unverified = {raw_file.file.path: raw_file.sha256 for raw_file in files if not raw_file.verified}
    try:
        if unverified != recorded:
            atomic(record, json.dumps(unverified, indent=1).encode())
        _store(folder, arrays, manifest)
    except OSError as error:
        if sources.full_disk(error):
            raise sources.DataError(sources.disk_is_full(folder)) from None
        raise


def _store(folder: Path, arrays: Labelled, manifest: dict[str, Any]) -> None:
    """Write the arrays and card.json to a temporary folder, then move them to the folder of the data set.

    The old card.json is removed first, and the new card.json is moved last. So if the process is killed in between,
    there is no card.json, and the data set counts as missing.
    """
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir()
        for side in stored_arrays(manifest):
            _save(new / f"{side}.npy", np.ascontiguousarray(getattr(arrays, side)))
        (new / "card.json").write_text(json.dumps(manifest, indent=1))
        names = [CLIENT_NAMES] if arrays.client_names is not None else []
        for file in names:
            (new / file).write_text(json.dumps(arrays.client_names, ensure_ascii=False), encoding="utf-8")
        (folder / "card.json").unlink(missing_ok=True)
        for file in (*(f"{side}.npy" for side in (*ARRAYS, *CLIENTS)), CLIENT_NAMES):
            (folder / file).unlink(missing_ok=True)  # an earlier version may have had natural clients
        for file in (*(f"{side}.npy" for side in stored_arrays(manifest)), *names, "card.json"):
            (new / file).replace(folder / file)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as a .npy file.

    np.save is not used, because its OSError has no errno if the disk is full.
    """
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    with path.open("wb") as file:
        file.write(header.getbuffer())
        file.write(array.data)


def _is_valid(folder: Path, dataset: DataSet) -> bool:
    """Return whether card.json agrees with data.lock, and whether the stored arrays agree with card.json."""
    try:
        manifest = json.loads((folder / "card.json").read_text())
        arrays = [np.load(folder / f"{side}.npy", mmap_mode="r") for side in stored_arrays(manifest)]
        if (folder / CLIENT_NAMES).exists():
            json.loads((folder / CLIENT_NAMES).read_text(encoding="utf-8"))
        files = [(file["path"], file["sha256"] if file["verified"] else None) for file in manifest["files"]]
    except (FileNotFoundError, ValueError, EOFError, KeyError, TypeError):  # not made yet, or damaged
        return False
    return (
        {key: manifest.get(key) for key in _locked_values(dataset)} == _locked_values(dataset)
        and files == [(file.path, file.sha256) for file in dataset.files]
        and manifest.get("digest") == arrays_digest(arrays)
    )


def _locked_values(dataset: DataSet) -> dict[str, Any]:
    """Return the values of a data.lock entry that must also be in card.json, such as the title and the reader."""
    options = {"options"} if dataset.options else set()
    return dataset.model_dump(include={"title", "reader", "exact", "note"} | options)


def data_folder(data_dir: Path | None) -> Path | None:
    """Return the folder in which raw files are looked for before any download.

    This is `data_dir`, or else the folder that the environment variable FLORAL_DATA names. Return None without either.

    Raises:
        ConfigError: the folder does not exist.
    """
    value, key = (data_dir, "data_dir") if data_dir else (os.environ.get("FLORAL_DATA"), "FLORAL_DATA")
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"{key}: {folder.absolute()} is not a folder; set {key} to the folder that has the raw data "
            f"files, or unset {key}"
        )
    return folder
