import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floral.config import ConfigError, PartitionJob
from floral.data.partition import SCHEMA, consecutive_table, digest, partition_table, reduce_rows
from floral.schema import Partition, Synthetic
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
    table = partition_table(train_rows, test_rows, clients, clusters, rule, seed)
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
    made = [partition_table(200, 50, 5, 2, Partition(share=0.5), s) for s in (seed, seed, seed + 1)]
    assert digest(made[0]) == digest(made[1]) != digest(made[2])


def test_the_digest_is_that_of_the_content_alone(tmp_path):
    table = partition_table(200, 50, 5, 2, Partition(), 0)
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
    assert digest(partition_table(1437, 360, 20, 4, Partition(share=0.5), 0)) == expected


def test_a_smaller_share_keeps_a_subset_and_every_purpose_another():
    full = partition_table(2000, 500, 10, 4, Partition(validation=0), 3)
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


def test_the_reduced_tasks_of_the_paper_have_their_sizes():
    table = partition_table(60_000, 10_000, 300, 4, Partition(share=0.05, min_rows=10, validation=0), 42)
    assert (counts(table, "train", 300) == 10).all()
    assert set(counts(table, "test", 300)) == {33, 34}


def test_more_clients_than_rows_is_a_mistake_of_the_user():
    with pytest.raises(
        ConfigError, match="clients: 30 is more than the 20 training rows of the data; set clients to at most 20"
    ):
        partition_table(20, 100, 30, 2, Partition(), 0)
    with pytest.raises(ConfigError, match="30 is more than the 20 test rows"):
        partition_table(100, 20, 30, 2, Partition(), 0)


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

    def card(*values):
        return json.loads((partition(job, tmp_path, *values) / "card.json").read_text())

    assert "local_steps_per_round" not in card()
    steps = {"batch": 16, "epochs": 2, "min": 6, "median": 6, "max": 6}
    assert card(16, 2)["local_steps_per_round"] == steps  # 2·⌈41 / 16⌉
    table = (tmp_path / job.folder / "partition.parquet").read_bytes()
    assert card(41, 1)["local_steps_per_round"] == {"batch": 41, "epochs": 1, "min": 1, "median": 1, "max": 1}
    assert "thinned_at_training" not in card(16, 2, Partition(validation=0))
    thinned = card(16, 2, Partition(share=0.25, min_rows=4))
    assert thinned["thinned_at_training"] == {"share": 0.25, "min_rows": 4}
    assert thinned["local_steps_per_round"] == {"batch": 16, "epochs": 2, "min": 2, "median": 2, "max": 2}
    assert thinned["rows"]["train"]["max"] == 41  # of the table
    assert (tmp_path / job.folder / "partition.parquet").read_bytes() == table
