"""No image is held by two clients or by two splits, in any task whose data are stored images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
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


def held_twice(table: pl.DataFrame, train_x: np.ndarray, test_x: np.ndarray) -> list[set[tuple[int, str]]]:
    """The clients and splits of each image that several of them hold."""
    holders: dict[bytes, set[tuple[int, str]]] = defaultdict(set)
    for client, split, row in table.select("client", "split", "row").iter_rows():
        holders[(test_x if split == "test" else train_x)[row].tobytes()].add((client, split))
    return [places for places in holders.values() if len(places) > 1]


@pytest.mark.parametrize("name", PARTITIONS)
def test_no_image_is_held_by_two_clients_or_two_splits(name: str, stored: Callable[[str], Path]) -> None:
    run = run_of(name)
    task, results = run.task, stored(str(run.task.data))
    folder = partition(run.partition, results, task)
    table = pl.read_parquet(folder / "partition.parquet")
    _, arrays = read_data(str(task.data), results)
    twice = held_twice(table, arrays["train_x"], arrays["test_x"])
    assert len(twice) <= REPEATED.get(str(task.data), 0), f"{len(twice)} images are held twice, such as {twice[0]}"


def test_an_image_of_two_clients_or_two_splits_is_noticed() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    rows = [(0, "train", 0), (0, "validation", 1), (1, "train", 2), (1, "test", 0)]
    table = pl.DataFrame(rows, schema=["client", "split", "row"], orient="row")
    assert held_twice(table, images, images + 100) == []
    assert held_twice(table, images, images) == [{(0, "train"), (1, "test")}]
    images[1] = images[0]
    assert held_twice(table, images, images + 100) == [{(0, "train"), (0, "validation")}]
