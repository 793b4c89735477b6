import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.run import PartitionJob
from floral.config.schema.data import Synthetic
from floral.config.schema.partition import Partition, Unseen
from floral.config.schema.task import Model, Task
from floral.data.partition import digest
from floral.data.partition_kinds import consecutive_table, iid_table, skewed_table
from floral.data.partition_steps import SCHEMA, concepts_of, reduce_rows
from floral.stages.partition import partition

sizes = st.tuples(st.integers(1, 12), st.integers(0, 60), st.integers(0, 60))
rules = st.builds(
    Partition,
    share=st.one_of(st.just(1.0), st.floats(1e-6, 1.0)),
    min_rows=st.integers(1, 20),
    validation=st.one_of(st.just(0.0), st.floats(1e-6, 0.999)),
)


def counts(table, split, clients):
    return np.bincount(table.filter(pl.col("split") == split)["client"].to_numpy(), minlength=clients)


@settings(deadline=None)
@given(sizes, st.integers(1, 5), rules, st.integers(0, 2**40))
def test_every_row_is_dealt_at_most_once_and_shards_have_their_sizes(size, clusters, rule, seed):
    clients, more_train, more_test = size
    train_rows, test_rows = clients + more_train, clients + more_test
    table = iid_table(train_rows, test_rows, clients, clusters, rule, seed)
    assert table.schema == SCHEMA
    assert table.equals(table.sort("client", "split", "row"))
    assert (table["cluster"] == table["client"] % clusters).all()
    is_test = table["split"] == "test"
    assert not table.filter(~is_test)["row"].is_duplicated().any()
    assert table.filter(~is_test)["row"].is_between(0, train_rows - 1).all()
    assert table.filter(is_test)["row"].sort().to_list() == list(range(test_rows))
    for client in range(clients):
        shard = train_rows // clients + (client < train_rows % clients)
        kept = shard if rule.share == 1 else min(shard, max(rule.min_rows, round(rule.share * shard)))
        held_out = min(kept - 1, max(1, round(rule.validation * kept))) if rule.validation else 0
        assert counts(table, "train", clients)[client] == kept - held_out
        assert counts(table, "validation", clients)[client] == held_out
        assert counts(table, "test", clients)[client] == test_rows // clients + (client < test_rows % clients)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000))
def test_equal_seeds_give_equal_tables_and_others_do_not(seed):
    made = [iid_table(200, 50, 5, 2, Partition(share=0.5), s) for s in (seed, seed, seed + 1)]
    assert digest(made[0]) == digest(made[1]) != digest(made[2])


def test_the_digest_is_that_of_the_content_alone(tmp_path):
    table = iid_table(200, 50, 5, 2, Partition(), 0)
    table.write_parquet(tmp_path / "a.parquet", compression="uncompressed")
    assert digest(pl.read_parquet(tmp_path / "a.parquet")) == digest(table) == digest(table.with_columns(pl.col("row")))
    for change in (
        {"row": pl.col("row") + 1},
        {"cluster": pl.col("cluster") + 1},
        {"split": pl.col("split").replace("validation", "train")},
    ):
        assert digest(table.with_columns(**change)) != digest(table)


def test_the_table_of_a_seed_is_frozen():
    expected = "346b3200894c21ade832923a39ae0bec14daab87d4dafe461d9045dbee0c92a1"
    assert digest(iid_table(1437, 360, 20, 4, Partition(share=0.5), 0)) == expected


def test_a_smaller_share_keeps_a_subset_and_every_purpose_another():
    full = iid_table(2000, 500, 10, 4, Partition(validation=0), 3)
    rows = {
        (share, name): set(reduce_rows(full, share, 10, 3, name).filter(pl.col("split") == "train")["row"])
        for share in (0.05, 0.5)
        for name in ("subset fedavg", "subset ensemble")
    }
    assert rows[0.05, "subset fedavg"] < rows[0.5, "subset fedavg"]
    assert rows[0.05, "subset fedavg"] != rows[0.05, "subset ensemble"]
    reduced = reduce_rows(full, 0.05, 10, 3, "subset fedavg")
    assert reduced.filter(pl.col("split") == "test").equals(full.filter(pl.col("split") == "test"))
    assert counts(reduced, "train", 10).tolist() == [10] * 10


def test_a_share_of_the_test_samples_leaves_the_other_samples_alone():
    full = iid_table(2000, 504, 12, 4, Partition(), 3)
    made = {share: iid_table(2000, 504, 12, 4, Partition(test_share=share), 3) for share in (0.001, 0.25, 0.5)}
    is_test = pl.col("split") == "test"
    for table in made.values():
        assert table.filter(~is_test).equals(full.filter(~is_test))
    assert counts(made[0.25], "test", 12).tolist() == [round(504 / 12 * 0.25)] * 12
    assert counts(made[0.001], "test", 12).tolist() == [1] * 12
    rows = {share: set(table.filter(is_test)["row"]) for share, table in made.items()}
    assert rows[0.25] < rows[0.5] < set(full.filter(is_test)["row"])


def test_the_hash_and_the_evaluation_follow_the_share_of_the_test_samples():
    whole, part = (catalogue.task("digits_rotate", {"partition": {"test_share": share}}) for share in (1.0, 0.5))
    assert whole == catalogue.task("digits_rotate") and "test_share" not in whole.partition.model_dump()
    assert part.partition.model_dump()["test_share"] == 0.5
    assert part.skewed and not whole.skewed


def test_the_reduced_tasks_of_the_paper_have_their_sizes():
    table = iid_table(60_000, 10_000, 300, 4, Partition(share=0.05, min_rows=10, validation=0), 42)
    assert (counts(table, "train", 300) == 10).all()
    assert set(counts(table, "test", 300)) == {33, 34}


def test_more_clients_than_rows_is_a_mistake_of_the_user():
    with pytest.raises(
        ConfigError, match="`clients: 30` is more than the number of training samples, 20; set `clients` to at most 20"
    ):
        iid_table(20, 100, 30, 2, Partition(), 0)
    with pytest.raises(ConfigError, match="30` is more than the number of test samples, 20"):
        iid_table(100, 20, 30, 2, Partition(), 0)


def test_synthetic_rows_are_consecutive():
    table = consecutive_table(7, 1, 3, 2, Partition(validation=0), 0)
    of_client = table.filter((pl.col("client") == 1) & (pl.col("split") == "train"))
    assert of_client["row"].to_list() == list(range(7, 14))
    assert table.filter(pl.col("split") == "test")["row"].to_list() == [0, 1, 2]
    assert table.filter(pl.col("client") == 2)["cluster"].unique().to_list() == [0]


def test_the_card_says_of_which_training_its_local_steps_are(tmp_path):
    data = Synthetic(kind="linear", samples_per_client=50)
    job = PartitionJob(
        task="toy", data=data, data_digest=None, data_seed=0, clients=4, clusters=2, partition=Partition(validation=0),
        seed=0,
    )  # fmt: skip

    def manifest(batch=None, epochs=1, rule=job.partition, **values):
        task = batch and Task(
            name="toy", title="", data=data, clients=4, clusters=2, participation=1, rounds=1, lr=0.1, router_lr=0.1,
            model=Model(kind="linear"), loss="mse", batch=batch, epochs=epochs, partition=rule, **values,
        )  # fmt: skip
        return json.loads((partition(job, tmp_path, task) / "card.json").read_text())

    assert "local_steps_per_round" not in manifest()
    steps = {"batch": 16, "epochs": 2, "min": 6, "median": 6, "max": 6}
    assert manifest(16, 2)["local_steps_per_round"] == steps  # 2·⌈41 / 16⌉
    table = (tmp_path / job.folder / "partition.parquet").read_bytes()
    assert manifest(41, 1)["local_steps_per_round"] == {"batch": 41, "epochs": 1, "min": 1, "median": 1, "max": 1}
    assert "thinned_at_training" not in manifest(16, 2, Partition(validation=0))
    thinned = manifest(16, 2, Partition(share=0.25, min_rows=4))
    assert thinned["thinned_at_training"] == {"share": 0.25, "min_rows": 4}
    assert thinned["local_steps_per_round"] == {"batch": 16, "epochs": 2, "min": 2, "median": 2, "max": 2}
    assert thinned["rows"]["train"]["max"] == 41  # of the table
    fixed = {"batch": 16, "epochs": 2, "steps_per_epoch": 5, "min": 10, "median": 10, "max": 10}
    assert manifest(16, 2, steps_per_epoch=5)["local_steps_per_round"] == fixed
    assert (tmp_path / job.folder / "partition.parquet").read_bytes() == table


# ------------------------------------------------------------------------------------------ unseen clients


joining = st.builds(
    Unseen, seen_cluster=st.integers(0, 5), new_concept=st.integers(1, 5), share=st.floats(0.1, 0.5)
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(sizes, st.integers(1, 5), rules, joining, st.integers(0, 2**40))
def test_unseen_clients_have_rows_of_their_own_and_all_of_them(size, clusters, rule, unseen, seed):
    clients, more_train, more_test = size
    train_rows, test_rows = 120 + clients + more_train, 120 + clients + more_test
    table = iid_table(train_rows, test_rows, clients, clusters, rule, seed, unseen)
    assert table.schema == SCHEMA and table.equals(table.sort("client", "split", "row"))
    is_test = table["split"] == "test"
    for side in (table.filter(is_test), table.filter(~is_test)):
        assert not side["row"].is_duplicated().any()
    later = table.filter(pl.col("client") >= clients)
    assert later["client"].unique().sort().to_list() == list(range(clients, clients + unseen.clients))
    assert "validation" not in later["split"].to_list()
    for split, rows in (("train", train_rows), ("test", test_rows)):
        held = np.bincount(later.filter(pl.col("split") == split)["client"].to_numpy() - clients)
        assert held.sum() == round(unseen.share * rows) and held.max() - held.min() <= 1
    concept = concepts_of(unseen, clusters)
    assert (later["cluster"].to_numpy() == concept[later["client"].to_numpy() - clients]).all()
    assert (concept[: unseen.seen_cluster] < clusters).all() and (concept[unseen.seen_cluster :] >= clusters).all()


def test_more_unseen_clients_than_rows_is_a_mistake_of_the_user():
    with pytest.raises(
        ConfigError, match=r"there are 30 unseen clients, but only 20 training samples for them; .*above 0.3"
    ):
        iid_table(100, 300, 5, 2, Partition(), 0, Unseen(seen_cluster=30))
    with pytest.raises(ConfigError, match="30 unseen clients, but only 20 test samples"):
        iid_table(300, 100, 5, 2, Partition(), 0, Unseen(new_concept=30))
    with pytest.raises(ConfigError, match="clients: 90` is more than the number of training samples, 80"):
        iid_table(100, 300, 90, 2, Partition(), 0, Unseen(seen_cluster=2))


# ------------------------------------------------------------------------------------------ few classes per client


def labels(random, rows, classes):
    return np.concatenate([np.arange(classes), random.integers(0, classes, rows)])


skewed = st.builds(
    Partition, kind=st.just("dirichlet"), alpha=st.floats(1e-300, 1e300), min_rows=st.integers(1, 6),
    validation=st.one_of(st.just(0.0), st.floats(1e-6, 0.9)),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(2, 8), skewed, st.integers(0, 2**40))
def test_skewed_rows_are_all_dealt_once_and_every_client_has_some(clients, clusters, classes, rule, seed):
    random = np.random.default_rng(seed)
    train_y, test_y = labels(random, 90, classes), labels(random, 20, classes)
    table = skewed_table(train_y, test_y, clients, clusters, rule, seed)
    assert table.schema == SCHEMA and table.equals(table.sort("client", "split", "row"))
    assert (table["cluster"] == table["client"] % clusters).all()
    is_test = table["split"] == "test"
    assert sorted(table.filter(is_test)["row"]) == list(range(len(test_y)))
    assert sorted(table.filter(~is_test)["row"]) == list(range(len(train_y)))
    both = counts(table, "train", clients) + counts(table, "validation", clients)
    assert both.min() >= rule.min_rows and counts(table, "test", clients).min() >= 1
    assert counts(table, "train", clients).min() >= 1
    assert digest(skewed_table(train_y, test_y, clients, clusters, rule, seed)) == digest(table)


def frequencies(table, split, y, clients):
    chosen = table.filter(pl.col("split") == split)
    found = np.zeros((clients, 10))
    np.add.at(found, (chosen["client"].to_numpy(), y[chosen["row"].to_numpy()]), 1)
    return found / found.sum(1, keepdims=True)


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.01, 0.75, 1.0), (0.1, 0.4, 0.75), (1000.0, 0.1, 0.14)])
def test_a_small_alpha_is_few_classes_per_client_and_a_large_one_is_even(alpha, low, high):
    """The mean over the clients of the share of their most frequent class."""
    y = np.arange(20_000) % 10
    rule = Partition(kind="dirichlet", alpha=alpha, validation=0)
    table = skewed_table(y, y[:5000], 20, 1, rule, 0)
    train, test = (frequencies(table, split, y, 20) for split in ("train", "test"))
    assert low <= train.max(1).mean() <= high
    many = counts(table, "test", 20) >= 100
    assert many.sum() >= 10 and np.abs(train - test)[many].max() < 0.03


def test_too_few_rows_for_the_floor_is_a_mistake_of_the_user():
    y = np.arange(50) % 10
    rule = Partition(kind="dirichlet", alpha=0.1, min_rows=10)
    with pytest.raises(
        ConfigError,
        match=r"`clients: 6`: there are 50 training samples, but each client needs at least 10; set `clients` to at",
    ):
        skewed_table(y, y, 6, 1, rule, 0)
    with pytest.raises(
        ConfigError, match=r"there are 3 test samples, but each client needs at least 1; set `clients` to at most 3$"
    ):
        skewed_table(y, y[:3], 5, 1, rule, 0)
