"""Natural clients: whose each row is, from the data to the partition's table."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import made, write_writers

from floral.config import catalogue, data_sets
from floral.config.reading import ConfigError
from floral.config.run import PartitionJob, Run
from floral.config.schema.data import DataFile, DataSet
from floral.config.schema.partition import Partition, Unseen
from floral.data import readers
from floral.data.partition_kinds import natural_table
from floral.data.readers import Labelled, select_test
from floral.data.sources import DataError, RawFile
from floral.stages import fetch as fetch_stage
from floral.stages.partition import partition

WHOLE = Partition(kind="natural", min_rows=1, validation=0)


def rows(table, split):
    chosen = table.filter(pl.col("split") == split)
    return chosen["client"].to_numpy(), chosen["row"].to_numpy()


@settings(deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(0, 2**40))
def test_a_client_holds_all_rows_of_one_natural_client_and_nobody_elses(data, min_rows, seed):
    natural = data.draw(st.integers(1, 8))
    sides = [np.array(data.draw(st.lists(st.integers(0, natural - 1), max_size=60)), np.int32) for _ in "ab"]
    train, test = (np.bincount(side, minlength=natural) for side in sides)
    fit = np.flatnonzero((train >= min_rows) & (test > 0))
    rule = WHOLE.model_copy(update={"min_rows": min_rows})
    with pytest.raises(ConfigError, match=f"set `clients` to at most {len(fit)}"):
        natural_table(*sides, len(fit) + 1, 1, rule, seed)
    for clients in range(1, len(fit) + 1):
        table = natural_table(*sides, clients, 2, rule, seed)
        assert (table["cluster"] == table["client"] % 2).all()
        owners = []
        for split, side in zip(("train", "test"), sides, strict=True):
            client, row = rows(table, split)
            owner = np.full(clients, -1)
            owner[client] = side[row]
            assert (owner[client] == side[row]).all() and len(set(owner)) == clients
            assert len(row) == np.isin(side, owner).sum()
            owners.append(owner.tolist())
        assert owners[0] == owners[1] == sorted(owners[0])
        assert set(owners[0]) <= set(fit)


def test_a_seed_chooses_the_clients_and_share_thins_their_rows():
    train, test = np.repeat(np.arange(50, dtype=np.int32), 40), np.repeat(np.arange(50, dtype=np.int32), 10)

    def chosen(seed, rule=WHOLE, clients=10):
        table = natural_table(train, test, clients, 4, rule, seed)
        return table, set(train[rows(table, "train")[1]])

    assert chosen(0)[0].equals(chosen(0)[0]) and chosen(0)[1] != chosen(1)[1]
    assert chosen(0, clients=50)[1] == set(range(50))
    thinned, same = chosen(0, Partition(kind="natural", share=0.5, min_rows=5, validation=0.2))
    assert same == chosen(0)[1]
    sizes = {split: np.bincount(rows(thinned, split)[0]).tolist() for split in ("train", "validation", "test")}
    assert sizes == {"train": [16] * 10, "validation": [4] * 10, "test": [10] * 10}


def test_clients_without_enough_rows_or_a_test_row_are_left_out():
    train, test = np.array([0] * 5 + [1] + [2] * 5 + [3] * 5, np.int32), np.array([0, 1, 3], np.int32)
    table = natural_table(train, test, 2, 1, Partition(kind="natural", min_rows=5, validation=0), 0)
    assert set(train[rows(table, "train")[1]]) == {0, 3}
    one_sample = natural_table(train, test, 3, 1, Partition(kind="natural", min_rows=1, validation=0.5), 0)
    assert (np.bincount(rows(one_sample, "train")[0]) > 0).all(), "the only row of a client is never held out"
    message = "`clients: 3`: only 2 of 4 natural clients have a test sample and at least 5 training"
    with pytest.raises(
        ConfigError, match=f"{message} samples; set `clients` to at most 2, or a smaller `partition.min_rows`"
    ):
        natural_table(train, test, 3, 1, Partition(kind="natural", min_rows=5), 0)


def test_unseen_natural_clients_are_others_with_all_of_their_rows_and_change_nothing_else():
    random = np.random.default_rng(0)
    train, test = random.integers(0, 12, 300), random.integers(0, 12, 80)
    rule, unseen = Partition(kind="natural", min_rows=3, share=0.5), Unseen(seen_cluster=4)
    table = natural_table(train, test, 5, 1, rule, 0, unseen)
    assert table.filter(pl.col("client") < 5).equals(natural_table(train, test, 5, 1, rule, 0))
    later = table.filter(pl.col("client") >= 5)
    assert later["client"].unique().sort().to_list() == [5, 6, 7, 8]
    seen = set(train[table.filter((pl.col("client") < 5) & (pl.col("split") != "test"))["row"].to_numpy()].tolist())
    for client in range(5, 9):
        for split, side in (("train", train), ("test", test)):
            row = later.filter((pl.col("client") == client) & (pl.col("split") == split))["row"].to_numpy()
            (whose,) = set(side[row].tolist())
            assert whose not in seen and len(row) == (side == whose).sum(), "neither thinned nor held out"
    with pytest.raises(ConfigError, match="4 unseen clients are needed, but only 2 natural clients remain"):
        natural_table(train, test, 10, 1, rule, 0, unseen)


# --------------------------------------------------------------------------------- from the reader on


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Makes a data set `toy`, with natural clients or without, as the reader of data.lock would."""

    def fetched(natural: bool):
        client = {side: np.arange(8, dtype=np.int32) % 4 for side in ("train_client", "test_client")}
        x, y = np.zeros((8, 2, 2), np.uint8), np.arange(8) % 3
        made = Labelled(
            train_x=x, train_y=y, test_x=x, test_y=y, classes=3, scale=255, **(client if natural else {})
        )  # fmt: skip
        monkeypatch.setitem(fetch_stage.READERS, "toy", lambda files: made)
        lock = {"toy": DataSet(title="Toy", reader="toy", note=f"natural: {natural}")}
        monkeypatch.setattr(data_sets, "data_lock", lambda: lock)
        return fetch_stage.fetch("toy", tmp_path)

    return fetched


def job(**change):
    values = {
        "task": "toy", "data": "toy", "data_digest": None, "data_seed": None, "clients": 3, "clusters": 1,
        "partition": WHOLE, "seed": 0, **change,
    }  # fmt: skip
    return PartitionJob(**values)


def test_natural_clients_are_stored_where_there_are_any(toy, tmp_path):
    with_clients = toy(natural=True)
    manifest = json.loads((with_clients / "card.json").read_text())
    assert manifest["natural_clients"] == 4
    assert np.load(with_clients / "train_client.npy").dtype == np.int32
    np.save(with_clients / "train_client.npy", np.zeros(8, np.int32))
    assert np.load(toy(natural=True) / "train_client.npy").tolist() == [0, 1, 2, 3] * 2, "damaged: made again"
    without = toy(natural=False)
    assert sorted(path.name for path in without.iterdir() if path.suffix == ".npy") == [
        "test_x.npy", "test_y.npy", "train_x.npy", "train_y.npy",
    ]  # fmt: skip
    other = json.loads((without / "card.json").read_text())
    assert "natural_clients" not in other and other["digest"] != manifest["digest"]


def test_the_stage_deals_rows_to_natural_clients(toy, tmp_path):
    toy(natural=True)
    folder = partition(job(), tmp_path)
    table = pl.read_parquet(folder / "partition.parquet")
    client, row = rows(table, "train")
    assert all(len(set(row[client == k] % 4)) == 1 for k in range(3))
    assert json.loads((folder / "card.json").read_text())["rows"]["train"]["total"] == 6


def test_data_without_natural_clients_cannot_be_dealt_to_them(toy, tmp_path):
    toy(natural=False)
    message = "`partition.kind: natural` needs data that name the client of each sample, but 'toy' has no train_client"
    with pytest.raises(ConfigError, match=message):
        partition(job(), tmp_path)


# ------------------------------------------------------------------------------------ images by writer


def raw(path):
    return RawFile(file=DataFile(path=path.name), location=path, sha256="", verified=False)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.floats(0.01, 0.99))
def test_every_client_of_two_rows_has_training_and_test_rows(client, share):
    client = np.array(client)
    test = select_test(client, share, "toy")
    for k in np.unique(client):
        rows, aside = (client == k).sum(), test[client == k].sum()
        assert aside == (0 if rows == 1 else min(max(1, round(share * rows)), rows - 1))
    assert np.array_equal(test, select_test(client, share, "toy"))


def test_images_are_read_with_their_writers_in_the_order_of_names(tmp_path):
    images, labels = made(0, 30, (5, 5))
    names = [f"f{row % 3:04}" for row in range(30)][::-1]
    parts = [
        write_writers(tmp_path / f"{at}.parquet", images[at:end], labels[at:end], names[at:end])
        for at, end in ((0, 13), (13, 30))
    ]  # fmt: skip
    found = readers.writer_parquet([raw(path) for path in parts])
    assert (found.natural_clients, found.classes, found.scale) == (3, labels.max() + 1, 255)
    assert found.client_names == ("f0000", "f0001", "f0002")
    assert np.bincount(found.train_client).tolist() == [8, 8, 8]
    assert np.bincount(found.test_client).tolist() == [2, 2, 2]
    rows = {image.tobytes(): (label, int(name[1:])) for image, label, name in zip(images, labels, names, strict=True)}
    for side in ("train", "test"):
        x, y, client = (getattr(found, f"{side}_{part}") for part in ("x", "y", "client"))
        assert all(rows.pop(image.tobytes()) == row for image, row in zip(x, zip(y, client, strict=True), strict=True))
    assert not rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop("writer_id"),
            r"expected the columns image \(struct of bytes and path\), writer_id \(strings\)",
        ),
        (lambda table: table.with_columns(character=pl.lit("a")), r"character \(integers\)"),
        (lambda table: table.with_columns(character=pl.lit(-1)), "a value that is not a class"),
        (lambda table: table.with_columns(writer_id=pl.lit(None, pl.String)), "a row has no writer_id; remedy"),
        (lambda table: table.unique("writer_id"), "no writer has two images, so there are no test samples"),
    ],
)
def test_a_table_of_writers_that_is_not_what_it_should_be_is_named(tmp_path, change, message):
    path = write_writers(tmp_path / "a.parquet", *made(0, 6, (5, 5)), ["f1", "f2"] * 3)
    change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(DataError, match=rf"(?s)a\.parquet: .*{message}"):
        readers.writer_parquet([raw(path)])


def test_digits_by_writer_are_enough_for_their_task(stored):
    run = Run(
        task=catalogue.task("emnist_digits"), variant=catalogue.variant("fedavg"), seed=0,
        fidelity=catalogue.fidelity("corrected"),
    )  # fmt: skip
    results = stored("emnist_digits")
    manifest = json.loads((results / "data" / "emnist_digits" / "card.json").read_text())
    assert manifest["natural_clients"] == 836 and sum(manifest["rows"].values()) == 70_000 and not manifest["exact"]
    manifest = json.loads((partition(run.partition, results) / "card.json").read_text())
    assert manifest["rows"]["train"]["min"] >= 8 and manifest["rows"]["test"]["min"] >= 2 and manifest["clients"] == 500
