"""Read the data sets and partitions that `floral fetch` and `floral partition` have stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.data import partition
from floral.data.fit import unfit_thresholds

Array = npt.NDArray[Any]

ARRAYS = ("train_x", "train_y", "test_x", "test_y")
CLIENTS = ("train_client", "test_client")
"""Arrays of a data set with natural clients: the natural client of each sample, or -1 if it has none."""
DOMAINS = ("train_domain", "test_domain")
"""Arrays of a data set with domains: the number of the domain of each sample, such as the genre of a text."""
CLIENT_NAMES = "client_names.json"
"""File with the names of the natural clients, as they are in the data. Names are part of no hash."""


def read_data(
    name: str, results: Path, sides: Sequence[str] | None = None, thresholds: Sequence[float] | None = None
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read a stored data set: its manifest (card.json) and its arrays.

    The arrays are memory-mapped. `sides` names the arrays to read; by default, all are read. With `thresholds`, the
    ratings of the samples become classes (see `rated_classes`).

    Raises:
        ConfigError: the data set is missing or damaged, or its samples have no ratings, or no classes.
    """
    folder = results / "data" / name
    try:
        manifest = json.loads((folder / "card.json").read_text())
        arrays: dict[str, Array] = {
            side: np.load(folder / f"{side}.npy", mmap_mode="r") for side in sides or stored_arrays(manifest)
        }
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.filename}: the data set {name!r} is missing; make it with: floral fetch {name}"
        ) from None
    except (ValueError, EOFError) as error:
        raise ConfigError(
            f"{folder}: this data set is damaged ({error}); make it again with: floral fetch {name}"
        ) from None
    if why := unfit_thresholds(manifest, thresholds):
        raise ConfigError(f"{folder}: {why}")
    if thresholds is None:
        return manifest, arrays
    rated = {side: rated_classes(arrays[side], thresholds) for side in ("train_y", "test_y") if side in arrays}
    return {**manifest, "classes": len(thresholds) + 1}, {**arrays, **rated}


def rated_classes(ratings: Array, thresholds: Sequence[float]) -> npt.NDArray[np.int64]:
    """Return the class [N] of each rating [N]: the number of thresholds below it.

    A rating that equals a threshold belongs to the class that is nearer to 0.
    """
    bounds = np.asarray(thresholds, ratings.dtype)
    values = np.asarray(ratings)[:, None]
    return ((values > bounds) | ((values == bounds) & (bounds < 0))).sum(1)


def stored_arrays(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the arrays in a stored data set.

    The manifest says whether arrays of natural clients and of domains are among them.
    """
    clients = CLIENTS if "natural_clients" in manifest else ()
    domains = DOMAINS if "domains" in manifest else ()
    return (*ARRAYS, *clients, *domains)


def client_names(name: str, results: Path) -> tuple[str, ...] | None:
    """Return the names of the natural clients of a stored data set, by number. Return None if it has no names.

    A data set that an earlier version stored has no names.

    Raises:
        ConfigError: the file of the names is damaged.
    """
    path = results / "data" / name / CLIENT_NAMES
    if not path.exists():
        return None
    try:
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: this file is damaged ({error}); make it again with: floral fetch {name}") from None


def arrays_digest(arrays: Sequence[Array]) -> str:
    """Return the SHA-256 of the types, shapes and bytes of arrays, which identifies the content of a data set."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype.str}{array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def read_partition(run: Run, results: Path) -> tuple[dict[str, Any], pl.DataFrame]:
    """Read the manifest (card.json) and the table of a run's partition.

    Raises:
        ConfigError: the partition is missing, damaged or altered.
    """
    folder = results / run.partition.folder
    try:
        manifest = json.loads((folder / "card.json").read_text())
        table = pl.read_parquet(folder / "partition.parquet")
        intact = partition.digest(table) == manifest["digest"]
    except FileNotFoundError:
        raise ConfigError(f"{folder}: this partition is missing; make it with: {partition_command(run)}") from None
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'partition.parquet'}: this partition is damaged ({error}); make it again with: "
            f"{partition_command(run)}"
        ) from None
    if not intact:
        raise ConfigError(
            f"{folder / 'partition.parquet'}: this partition was altered after it was made; make it again with: "
            f"{partition_command(run)}"
        )
    return manifest, table


def partition_command(run: Run) -> str:
    """Return the command that makes the partition of a run, as text for an error message."""
    return f"floral partition --suite <the run's suite> --task {run.task.name} --seed {run.seed}"
