"""The names of a user's clients, from the data to the files of a run. No hash depends on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from floral.cluster.stops import Stop
from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.data.stored import CLIENT_NAMES
from floral.stages.execute import execute
from floral.stages.export_partition import export_partition
from floral.stages.fetch import fetch
from floral.stages.partition import partition

SITES = ["Zürich", "Aden", "Oslo", "Lima", "Kyoto"]
CLIENTS = 3


def made(folder: Path, client: np.ndarray, **task) -> Run:
    """A run on custom data, whose data and partition are stored in folder/results."""
    random = np.random.default_rng(0)
    x = random.integers(0, 256, (len(client), 4, 4)).astype(np.uint8)
    np.savez(folder / "mine.npz", x=x, y=np.arange(len(client)) % 2, client=client)
    values = {
        "data": {"kind": "arrays", "path": str(folder / "mine.npz")}, "shift": {"kind": "none"}, "clients": CLIENTS,
        "clusters": 1, "rounds": 1, "batch": 4, "partition": {"kind": "natural", "min_rows": 1}, **task,
    }  # fmt: skip
    run = Run(
        task=catalogue.task("digits_rotate", values), variant=catalogue.variant("fedavg"), seed=0,
        fidelity=catalogue.fidelity("corrected"),
    )  # fmt: skip
    fetch(run.task.data, folder / "results")
    partition(run.partition, folder / "results", run.task)
    return run


def train(run: Run, results: Path) -> Path:
    how = {"backend": "loop", "threads": 1, "checkpoint_seconds": 1e9, "stop": Stop()}
    execute(run, results, torch.device("cpu"), **how)
    return results / run.folder


def card(run: Run, results: Path) -> dict:
    return json.loads((results / run.partition.folder / "card.json").read_text())


def owners(folder: Path, run: Run) -> list[str]:
    """The name of each client of the partition, found by the samples that it holds."""
    results = folder / "results"
    table = pl.read_parquet(results / run.partition.folder / "partition.parquet").filter(pl.col("split") == "train")
    stored, mine = np.load(results / "data" / run.partition.data / "train_x.npy"), np.load(folder / "mine.npz")
    site_of = {image.tobytes(): site for image, site in zip(mine["x"], mine["client"].tolist(), strict=True)}
    rows = dict(table.unique("client").select("client", "row").iter_rows())
    return [site_of[stored[rows[client]].tobytes()] for client in sorted(rows)]


def test_names_reach_the_manifest_and_the_run(tmp_path: Path) -> None:
    run = made(tmp_path, np.repeat(SITES, 10))
    results = tmp_path / "results"
    names = owners(tmp_path, run)
    assert len(names) == CLIENTS and card(run, results)["client_names"] == names
    clients = pl.read_parquet(train(run, results) / "clients.parquet")
    assert clients["name"].to_list() == names


def test_names_of_clients_that_join_later(tmp_path: Path) -> None:
    run = made(tmp_path, np.repeat(SITES, 10), unseen={"seen_cluster": 2, "samples": [0, 1]})
    names = owners(tmp_path, run)
    assert len(names) == CLIENTS + 2 and card(run, tmp_path / "results")["client_names"] == names
    joined = pl.read_parquet(train(run, tmp_path / "results") / "unseen.parquet")
    assert set(joined.select("client", "name").iter_rows()) == {(3, names[3]), (4, names[4])}


@pytest.mark.parametrize(
    ("client", "names"),
    [
        (np.repeat([30, 7, 12], 10), ["7", "12", "30"]),
        (np.repeat(np.array(["ada", "bob", "eve"], "S"), 10), ["ada", "bob", "eve"]),
    ],
)
def test_numbers_and_bytes_are_names_too(tmp_path: Path, client: np.ndarray, names: list[str]) -> None:
    run = made(tmp_path, client)
    assert card(run, tmp_path / "results")["client_names"] == names


def test_names_are_in_no_hash_and_data_without_names_still_work(tmp_path: Path) -> None:
    """An earlier version stored no names."""
    run = made(tmp_path, np.repeat(SITES, 10))
    results = tmp_path / "results"
    before, hashes = card(run, results), (run.hash8, run.partition.hash8)
    (results / "data" / run.partition.data / CLIENT_NAMES).unlink()
    partition(run.partition, results, run.task)
    assert {**card(run, results), "client_names": before["client_names"]} == before
    assert "client_names" not in card(run, results) and hashes == (run.hash8, run.partition.hash8)
    clients = pl.read_parquet(train(run, results) / "clients.parquet")
    assert clients["name"].to_list() == [None] * CLIENTS


def test_a_damaged_file_of_names_is_made_again(tmp_path: Path) -> None:
    run = made(tmp_path, np.repeat(SITES, 10))
    path = tmp_path / "results" / "data" / run.partition.data / CLIENT_NAMES
    whole = path.read_bytes()
    path.write_text("[")
    fetch(run.task.data, tmp_path / "results")
    assert path.read_bytes() == whole


def test_other_partitions_have_no_names(tmp_path: Path) -> None:
    run = made(tmp_path, np.repeat(SITES, 10), partition={"kind": "iid", "min_rows": 1})
    assert "client_names" not in card(run, tmp_path / "results")


def test_an_exported_partition_names_each_sample_and_its_client(tmp_path: Path) -> None:
    run = made(tmp_path, np.repeat(SITES, 10))
    results, path = tmp_path / "results", tmp_path / "of" / "mine.parquet"
    export_partition(run, results, path)
    table, source = pl.read_parquet(path), np.load(tmp_path / "mine.npz")
    site_of = {image.tobytes(): site for image, site in zip(source["x"], source["client"].tolist(), strict=True)}
    class_of = {image.tobytes(): label for image, label in zip(source["x"], source["y"].tolist(), strict=True)}
    stored = {name: np.load(results / "data" / run.partition.data / f"{name}.npy") for name in ("train_x", "test_x")}
    assert set(table["split"]) == {"train", "validation", "test"} and len(table) == 30
    for row in table.iter_rows(named=True):
        assert row["array"] == ("test_x" if row["split"] == "test" else "train_x")
        sample = stored[row["array"]][row["row"]].tobytes()
        assert site_of[sample] == row["client_name"] and class_of[sample] == row["class"]
    with pytest.raises(ConfigError, match=r"--export .*mine\.csv: .* ends in \.parquet"):
        export_partition(run, results, tmp_path / "mine.csv")
    with pytest.raises(ConfigError, match=r"--export .*x\.parquet: this file cannot be written: .*; name another"):
        export_partition(run, results, path / "x.parquet")
