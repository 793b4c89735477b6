"""Define the format of a run's files, for runs with and without training.

This module does not import torch, so that runs without training start fast.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from floral.config import code, data_sets
from floral.config.run import RESULTS_VERSION, Run
from floral.config.schema.data import Synthetic
from floral.io.files import atomic

METRICS = {
    "round": pl.Int32,
    "split": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "bytes": pl.Int64,
    "client_samples": pl.Int64,
    "client_passes": pl.Float64,
}
"""Columns of metrics.parquet."""


def values_of(run: Run) -> dict[str, Any]:
    """Return all values of a run, as run.yaml has them."""
    values = run.model_dump(mode="json")
    values["task"]["model"] = run.task.model.all_keys
    return values


def write_run(folder: Path, run: Run, partition_digest: str | None, data_digest: str | None = None) -> None:
    """Write run.yaml, which has every value that determines the results of the run.

    The file is written before round 1. The digests are hashes of the partition and of the data set; both are None for
    a run without data.
    """
    resolved = values_of(run) | {
        "hash8": run.hash8,
        "results_version": RESULTS_VERSION,
        "partition": {"folder": str(run.partition.folder), "digest": partition_digest},
    }
    if versions := code.versions(run.variant.method, run.task.model.kind):
        resolved["versions"] = versions
    if not isinstance(run.task.data, Synthetic) and not run.task.noop:
        origin = data_sets.data_set(run.task.data).model_dump(include={"exact", "note", "own"})
        resolved["data"] = {"name": data_sets.stored_data(run.task.data), **origin, "digest": data_digest}
    atomic(folder / "run.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).encode())


def identifying_columns(run: Run) -> dict[str, Any]:
    """Return the values that identify a run, such as its task, variant, seed and hash.

    summary.json and the report's table contain these values.
    """
    return {
        "task": run.task.name,
        "variant": run.variant.name,
        "title": run.variant.title,
        "method": run.variant.method,
        "family": run.variant.family,
        "fidelity": run.fidelity.name,
        "optimal_router": run.variant.optimal_router,
        "oracle": run.variant.oracle,
        "seed": run.seed,
        "hash8": run.hash8,
    }


def parquet_bytes(table: pl.DataFrame) -> bytes:
    """Return the content of a Parquet file with this table. Equal tables give equal bytes."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def json_bytes(value: dict[str, Any]) -> bytes:
    """Return the value as indented JSON. NaN and infinity become null, because JSON has no such numbers."""
    return (json.dumps(_finite(value), indent=1) + "\n").encode()


def _finite(value: Any) -> Any:
    """Return the value, with every NaN and infinite number replaced by None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
