"""Stage fetch: verify the raw files of a data set, and store its arrays and its card.json in results/data/<name>.

The files of a pretrained network are stored as they are.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from floral.config import data_sets, networks, paths, reading
from floral.config.reading import ConfigError
from floral.config.schema.data import NOTHING, CustomData, Data, DataSet
from floral.data import custom, domains, labelled_texts, rated, readers, sources, text
from floral.data.readers import Labelled
from floral.data.stored import ARRAYS, CLIENT_NAMES, CLIENTS, DOMAINS, arrays_digest, stored_arrays
from floral.io.files import atomic
from floral.io.locks import held
from floral.stages import fetch_weights

READERS = {
    **readers.READERS, **custom.READERS, **text.READERS, **rated.READERS, **labelled_texts.READERS, **domains.READERS,
}  # fmt: skip


def fetch(
    data: str | CustomData, results: Path, data_dir: Path | None = None, report: sources.Report | None = None
) -> Path:
    """Store a data set or a network in results/data/<name>, and return this folder. A valid folder is not changed.

    Args:
        data: the name of a data set or network in data.lock, or the custom data of a task.
        data_dir: the folder in which raw files are looked for before any download, or several folders (see
            `data_folders`). The default are the folders that the environment variable FLORAL_DATA names.
        report: a function that is called with messages about the progress.

    Raises:
        ConfigError: `data` is not in data.lock, or the folder `data_dir` does not exist.
        DataError: a raw file is missing, truncated or altered, or the disk is full.
    """
    if isinstance(data, str) and data not in (accepted := data_sets.data_lock()):
        raise reading.suggest("data set", data, accepted, str(paths.CONFIG_FOLDER / "data.lock"))
    name, dataset = str(data_sets.stored_data(data)), data_sets.data_set(data)
    folder = results / "data" / name
    if dataset.reader not in (readers_and_networks := (*READERS, networks.READER)):
        raise reading.suggest("reader", dataset.reader, readers_and_networks, data_sets.place(str(data)))
    with held(folder / ".lock", "fetching it"):
        if not _is_valid(folder, dataset):
            _make(folder, name, dataset, data_folders(data_dir), report)
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
    folder, raw_folders = results / "data" / name, data_folders(data_dir)
    if (folder / "card.json").exists():
        return "fetched", ""
    if isinstance(data, CustomData):
        why = data_sets.why_unreadable(data)
        return ("found", "") if why is None else ("missing", why)
    assert isinstance(data, str), "synthetic data are not stored"
    files = data_sets.data_lock()[data].files
    absent = [file for file in files if not sources.is_there(file, folder / "raw", raw_folders)]
    no_url = [file for file in absent if not any(map(sources.on_the_network, file.urls))]
    if no_url:
        return "missing", f"{', '.join(file.path for file in no_url)}; {sources.advice(no_url[0])}"
    return ("to download", "") if absent else ("found", "")


def _make(
    folder: Path, name: str, dataset: DataSet, data_folders: tuple[Path, ...], report: sources.Report | None
) -> None:
    """Find or download the raw files of a data set or a network, read them, and store them with card.json."""
    raw = folder / "raw"
    record = raw / sources.RECORD
    recorded: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    files = [sources.obtain(file, raw, data_folders, recorded.get(file.path), report) for file in dataset.files]
    manifest = {
        "name": name,
        **_locked_values(dataset),
        "files": [
            {"path": raw_file.file.path, "sha256": raw_file.sha256, "verified": raw_file.verified} for raw_file in files
        ],
    }
    arrays = None if dataset.reader == networks.READER else _arrays(name, dataset, files)
    unverified = {raw_file.file.path: raw_file.sha256 for raw_file in files if not raw_file.verified}
    try:
        if unverified != recorded:
            atomic(record, json.dumps(unverified, indent=1).encode())
        if arrays is None:
            fetch_weights.store(folder, files, manifest)
        else:
            _store(folder, arrays, {**manifest, **_facts(arrays)})
    except OSError as error:
        if sources.full_disk(error):
            raise sources.DataError(sources.disk_is_full(folder)) from None
        raise


def _arrays(name: str, dataset: DataSet, files: Sequence[sources.RawFile]) -> Labelled:
    """Read the files of a data set.

    Raises:
        DataError: a file is damaged, the data do not fit into memory, or have another number of classes than the entry.
    """
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
    return arrays


def _facts(arrays: Labelled) -> dict[str, Any]:
    """Return what card.json says about the arrays of a data set."""
    optional = {
        "class_names": None if arrays.names is None else list(arrays.names),
        "natural_clients": arrays.natural_clients,
        "domains": None if arrays.domains is None else list(arrays.domains),
    }
    present = {key: value for key, value in optional.items() if value is not None}
    return {
        "digest": arrays_digest([getattr(arrays, side) for side in stored_arrays(present)]),
        "classes": arrays.classes,
        "scale": arrays.scale,
        "shape": list(arrays.train_x.shape[1:]),
        "rows": {"train": len(arrays.train_x), "test": len(arrays.test_x)},
        **present,
    }


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
        for file in (*(f"{side}.npy" for side in (*ARRAYS, *CLIENTS, *DOMAINS)), CLIENT_NAMES):
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
    """Return whether card.json agrees with data.lock, and the stored files with card.json."""
    try:
        manifest = json.loads((folder / "card.json").read_text())
        files = [(file["path"], file["sha256"] if file["verified"] else None) for file in manifest["files"]]
        is_whole = (
            fetch_weights.is_complete(folder, manifest)
            if dataset.reader == networks.READER
            else manifest["digest"] == _stored_digest(folder, manifest)
        )
    except (FileNotFoundError, ValueError, EOFError, KeyError, TypeError):  # not made yet, or damaged
        return False
    return (
        is_whole
        and {key: manifest.get(key) for key in _locked_values(dataset)} == _locked_values(dataset)
        and files == [(file.path, file.sha256) for file in dataset.files]
    )


def _stored_digest(folder: Path, manifest: dict[str, Any]) -> str:
    """Return the digest of the arrays in the folder, and check that the names of the clients can be read."""
    if (folder / CLIENT_NAMES).exists():
        json.loads((folder / CLIENT_NAMES).read_text(encoding="utf-8"))
    return arrays_digest([np.load(folder / f"{side}.npy", mmap_mode="r") for side in stored_arrays(manifest)])


def _locked_values(dataset: DataSet) -> dict[str, Any]:
    """Return the values of a data.lock entry that must also be in card.json, such as the title and the reader."""
    options = {"options"} if dataset.options else set()
    return dataset.model_dump(include={"title", "reader", "exact", "note"} | options)


def data_folders(data_dir: Path | None) -> tuple[Path, ...]:
    """Return the folders in which raw files are looked for before any download.

    They are those that `data_dir` names, or else those that the environment variable FLORAL_DATA names. Several folders
    are separated by `:` (on Windows by `;`), as in PATH. The result is empty without either.

    Raises:
        ConfigError: a folder does not exist.
    """
    value, key = (data_dir, "data_dir") if data_dir else (os.environ.get("FLORAL_DATA"), "FLORAL_DATA")
    folders = tuple(Path(part).expanduser() for part in str(value or "").split(os.pathsep) if part)
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"{key}: {folder.absolute()} is not a folder; set {key} to the folder that has the raw data "
                f"files, or unset {key}"
            )
    return folders
