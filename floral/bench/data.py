"""`floral bench data`: what reading a data set and dividing its rows takes, in processor seconds and in memory.

Processor seconds and not those of a clock, which other work on the machine stretches; in a process of its own each.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from floral.bench.processes import in_own_process
from floral.bench.scale import resident
from floral.config import data_sets, paths
from floral.config.reading import ConfigError, suggest
from floral.config.schema.data import DataSet
from floral.config.schema.task import Partition
from floral.data import sources
from floral.data.partition import client_table
from floral.stages.fetch import READERS, data_folder

DATA = ("digits", "mnist", "cifar10_jpeg90")
SECONDS: Mapping[str, float] = {"mnist": 3.0, "cifar10": 15.0, "cifar10_jpeg90": 15.0}
"""Limits for reading a data set; others have none."""
MEMORY = 2.5
"""Limit for the most memory while reading, to that of the arrays."""
ROWS, CLIENTS, DIVIDED = 60_000, 300, 1.0
"""Rows and clients of the partitions that are timed, and the limit in seconds of each."""
PARTITIONS = (
    Partition(kind="iid"),
    Partition(kind="dirichlet", alpha=0.1),
    Partition(kind="pathological", classes_per_client=2),
)


def data(names: Iterable[str], *, results: Path, data_dir: Path | None) -> list[dict[str, Any]]:
    """A row for each figure: case, value, unit, and limit (None: it has none).

    Raises:
        ConfigError: a name is unknown, or raw files are missing; nothing is downloaded.
    """
    names, place = list(names), data_folder(data_dir)
    for name in names:
        if name not in (known := data_sets.data_lock()):
            raise suggest("data set", name, known, str(paths.CONFIG / "data.lock"))
        for file in known[name].files:
            if not sources.is_there(file, results / "data" / name / "raw", place):
                raise ConfigError(f"{file.path}: missing ({name}); {sources.advice(file)}")
    rows = []
    for name in names:
        entry = data_sets.data_lock()[name]
        seconds, memory = in_own_process(reading, entry, results / "data" / name / "raw", place)
        rows += [
            row(f"{name}: from its files to arrays", seconds, "s", SECONDS.get(name)),
            row(f"{name}: most memory to that of its arrays", memory, "", MEMORY if name in SECONDS else None),
        ]
    for rule in PARTITIONS:
        seconds = in_own_process(dividing, rule)
        rows.append(row(f"{rule.kind}: {ROWS:,} rows over {CLIENTS} clients", seconds, "s", DIVIDED))
    return rows


def reading(entry: DataSet, raw: Path, data_dir: Path | None) -> tuple[float, float]:
    """Processor seconds from raw files, verified, to arrays, and the most memory beside what there was, to theirs."""
    before, began = resident("VmRSS"), time.process_time()
    files = [sources.obtain(file, raw, data_dir) for file in entry.files]
    made = READERS[entry.reader](files, **entry.options)
    seconds = time.process_time() - began
    held = sum(array.nbytes for array in (made.train_x, made.train_y, made.test_x, made.test_y))
    return seconds, (resident("VmHWM") - before) / held


def dividing(rule: Partition) -> float:
    """Processor seconds of one partition of rows of ten classes; a smaller one comes first, for it imports."""
    client_table(np.arange(400) % 10, np.arange(400) % 10, 10, 4, rule, 0)
    labels = np.random.default_rng(0).integers(0, 10, ROWS)
    began = time.process_time()
    client_table(labels, labels[: ROWS // 6], CLIENTS, 4, rule, 0)
    return time.process_time() - began


def row(case: str, value: float, unit: str, limit: float | None) -> dict[str, Any]:
    return {"case": case, "value": value, "unit": unit, "limit": limit}


def line(found: Mapping[str, Any]) -> str:
    unit, limit = found["unit"] and f" {found['unit']}", found["limit"]
    verdict = "holds" if limit is not None and found["value"] <= limit else "MISSED"
    told = "" if limit is None else f" (limit ≤ {limit:g}{unit}: {verdict})"
    return f"{found['case']}: {found['value']:.3g}{unit}{told}"
