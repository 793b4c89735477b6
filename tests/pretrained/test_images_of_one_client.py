"""No image is held by two clients or by two splits, in any task whose data are stored images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from floral.config import catalogue
from floral.config.run import Run
from floral.data.stored import read_data
from floral.stages.partition import partition


def run_of(name: str) -> Run:
    variant, fidelity = catalogue.variant("fedavg"), catalogue.fidelity("corrected")
    return Run(task=catalogue.task(name), variant=variant, seed=0, fidelity=fidelity)


IMAGES = [
    name for name in catalogue.names("tasks")
    if isinstance(data := catalogue.task(name).data, str) and data not in ("nothing", "cifar10", "cifar100", "femnist")
    and catalogue.task(name).per is None and catalogue.task(name).model.kind != "bert"
]  # fmt: skip
PARTITIONS = list({run_of(name).partition.folder: name for name in IMAGES}.values())
"""A task of each partition. Several tasks have the same partition."""

REPEATED = {"cifar100_jpeg90": 26}
"""Data set → images that its publishers have in several rows, some with different labels."""


def images(train_x: np.ndarray, test_x: np.ndarray) -> pl.DataFrame:
    """A number for each row of both arrays; equal images have equal numbers."""
    numbers: dict[bytes, int] = {}
    rows = [
        (of_test, row, numbers.setdefault(image.tobytes(), len(numbers)))
        for of_test, x in ((False, train_x), (True, test_x))
        for row, image in enumerate(x)
    ]
    return pl.DataFrame(rows, schema=["of_test", "row", "image"], orient="row")


@cache
def images_of(data: str, results: Path) -> pl.DataFrame:
    _, arrays = read_data(data, results)
    return images(arrays["train_x"], arrays["test_x"])


def held_twice(table: pl.DataFrame, images: pl.DataFrame) -> list[set[tuple[int, str]]]:
    """The clients and splits of each image that several of them hold."""
    rows = table.with_columns(of_test=pl.col("split") == "test", row=pl.col("row").cast(pl.Int64))
    held = rows.join(images, on=["of_test", "row"]).group_by("image").agg(pl.struct("client", "split").unique())
    several = held.filter(pl.col("client").list.len() > 1)
    return [{(place["client"], place["split"]) for place in places} for places in several["client"].to_list()]


@pytest.mark.parametrize("name", PARTITIONS)
def test_no_image_is_held_by_two_clients_or_two_splits(name: str, stored: Callable[[str], Path]) -> None:
    run = run_of(name)
    task, results = run.task, stored(str(run.task.data))
    folder = partition(run.partition, results, task)
    table = pl.read_parquet(folder / "partition.parquet")
    twice = held_twice(table, images_of(str(task.data), results))
    assert len(twice) <= REPEATED.get(str(task.data), 0), f"{len(twice)} images are held twice, such as {twice[0]}"


def test_an_image_of_two_clients_or_two_splits_is_noticed() -> None:
    x = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    rows = [(0, "train", 0), (0, "validation", 1), (1, "train", 2), (1, "test", 0)]
    table = pl.DataFrame(rows, schema=["client", "split", "row"], orient="row")
    assert held_twice(table, images(x, x + 100)) == []
    assert held_twice(table, images(x, x)) == [{(0, "train"), (1, "test")}]
    x[1] = x[0]
    assert held_twice(table, images(x, x + 100)) == [{(0, "train"), (0, "validation")}]
