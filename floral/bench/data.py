"""`floral bench data`: measure processor time and memory for reading data sets and partitioning samples.

Processor time is used instead of wall-clock time, because other programs on the machine do not change it. Each
measurement runs in a new process.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floral.bench.processes import in_new_process, memory_bytes
from floral.config import data_sets, networks, paths
from floral.config.reading import ConfigError, suggest
from floral.config.schema.data import DataSet
from floral.config.schema.partition import Partition
from floral.data import sources
from floral.data.partition import client_table
from floral.stages.fetch import READERS, data_folders

DATA = ("digits", "mnist", "cifar10_jpeg90")
READING_LIMITS_S: Mapping[str, float] = {"mnist": 3.0, "cifar10": 15.0, "cifar10_jpeg90": 15.0}
"""Limits in seconds for reading a data set. Other data sets have no limit."""
MEMORY_LIMIT = 2.5
"""Limit of the peak memory while reading, divided by the memory of the arrays."""
SAMPLES, CLIENTS, PARTITION_LIMIT_S = 60_000, 300, 1.0
"""Size of the timed partitions, and the limit in seconds of each."""
PARTITIONS = (
    Partition(kind="iid"),
    Partition(kind="dirichlet", alpha=0.1),
    Partition(kind="pathological", classes_per_client=2),
)


def data(names: Iterable[str], *, results: Path, data_dir: Path | None) -> list[dict[str, Any]]:
    """Measure how these data sets are read and how samples are partitioned. Return the rows of the result.

    A row has a case, a value, a unit and a limit. The limit is None if the value is not limited.

    Raises:
        ConfigError: a name is unknown, or raw files are missing. Nothing is downloaded.
    """
    names, places = list(names), data_folders(data_dir)
    for name in names:
        if name not in (accepted := networks.data_names()):
            raise suggest("data set", name, accepted, str(paths.CONFIG_FOLDER / "data.lock"))
        for file in data_sets.data_lock()[name].files:
            if not sources.is_there(file, results / "data" / name / "raw", places):
                raise ConfigError(f"{file.path}: this file of the data set {name} is missing; {sources.advice(file)}")
    rows = []
    for name in names:
        entry = data_sets.data_lock()[name]
        seconds, memory = in_new_process(measure_reading, entry, results / "data" / name / "raw", places)
        memory_limit = MEMORY_LIMIT if name in READING_LIMITS_S else None
        rows += [
            row(f"{name}: read raw files into arrays", seconds, "s", READING_LIMITS_S.get(name)),
            row(f"{name}: peak memory / memory of the arrays", memory, "", memory_limit),
        ]
    for rule in PARTITIONS:
        seconds = in_new_process(measure_partition, rule)
        rows.append(row(f"{rule.kind}: {SAMPLES:,} samples over {CLIENTS} clients", seconds, "s", PARTITION_LIMIT_S))
    return rows


def measure_reading(entry: DataSet, raw: Path, places: Sequence[Path]) -> tuple[float, float]:
    """Read raw files into arrays, and return processor seconds and relative peak memory.

    The relative peak memory is the peak that reading adds to the memory of the process, divided by the memory of the
    arrays. The seconds include checking the files' hashes.
    """
    before, began = memory_bytes("VmRSS"), time.process_time()
    files = [sources.obtain(file, raw, places) for file in entry.files]
    arrays = READERS[entry.reader](files, **entry.options)
    seconds = time.process_time() - began
    array_bytes = sum(array.nbytes for array in (arrays.train_x, arrays.train_y, arrays.test_x, arrays.test_y))
    return seconds, (memory_bytes("VmHWM") - before) / array_bytes


def measure_partition(rule: Partition) -> float:
    """Return the processor seconds for partitioning SAMPLES samples of ten classes over CLIENTS clients.

    A small partition is made before, so that imports are not timed.
    """
    client_table(np.arange(400) % 10, np.arange(400) % 10, 10, 4, rule, 0)
    labels = np.random.default_rng(0).integers(0, 10, SAMPLES)
    began = time.process_time()
    client_table(labels, labels[: SAMPLES // 6], CLIENTS, 4, rule, 0)
    return time.process_time() - began


def row(case: str, value: float, unit: str, limit: float | None) -> dict[str, Any]:
    """Return one row of the result."""
    return {"case": case, "value": value, "unit": unit, "limit": limit}


def line(row: Mapping[str, Any]) -> str:
    """Return one row of the result as a line of text."""
    unit, limit = row["unit"] and f" {row['unit']}", row["limit"]
    verdict = "holds" if limit is not None and row["value"] <= limit else "MISSED"
    with_limit = "" if limit is None else f" (limit ≤ {limit:g}{unit}: {verdict})"
    return f"{row['case']}: {row['value']:.3g}{unit}{with_limit}"
