"""Write a partition for other programs: which sample is in which client and split, as one parquet table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import Synthetic
from floral.data.stored import read_data, read_partition
from floral.io.files import atomic


def export_partition(run: Run, results: Path, path: Path) -> None:
    """Write the partition of a run to `path`, a parquet file with one row per sample.

    The columns are client, cluster, split (train, validation or test), array and row. The sample is `array`[row], where
    `array` is train_x or test_x of the stored data set. If samples have one class each, the column class has it. If
    the data have named clients, the column client_name has the name.

    Raises:
        ConfigError: the path does not end in .parquet or cannot be written, the samples are generated and have no
            stored data set, or the partition is missing.
    """
    if path.suffix != ".parquet":
        raise ConfigError(f"--export {path}: the partition is written as parquet; give a name that ends in .parquet")
    data = run.partition.data
    if isinstance(data, Synthetic):
        raise ConfigError(
            f"--export: the samples of the task {run.task.name!r} are generated, so there is no stored data set whose "
            "rows could be named; name another task"
        )
    manifest, table = read_partition(run, results)
    table = table.with_columns(
        array=pl.when(pl.col("split") == "test").then(pl.lit("test_x")).otherwise(pl.lit("train_x"))
    ).select("client", "cluster", "split", "array", "row")
    _, labels = read_data(data, results, ["train_y", "test_y"], run.task.thresholds)
    if labels["train_y"].ndim == 1:
        in_test, row = (table["split"] == "test").to_numpy(), table["row"].to_numpy()
        classes = np.empty(len(table), np.int64)
        for side, of_side in (("train_y", ~in_test), ("test_y", in_test)):
            classes[of_side] = labels[side][row[of_side]]
        table = table.with_columns(pl.Series("class", classes))
    if "client_names" in manifest:
        names = dict(enumerate(manifest["client_names"]))
        table = table.with_columns(pl.col("client").replace_strict(names, default=None).alias("client_name"))
    parquet = io.BytesIO()
    table.write_parquet(parquet)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic(path, parquet.getvalue())
    except OSError as error:
        raise ConfigError(f"--export {path}: this file cannot be written: {error.strerror}; name another") from None
