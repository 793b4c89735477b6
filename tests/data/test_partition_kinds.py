"""What holds for every kind of partition, and what a user may get wrong."""

import os
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floral.config import catalogue
from floral.config.reading import ConfigError, parse
from floral.config.schema.partition import Partition
from floral.config.schema.task import Task
from floral.data.partition import client_table, digest, main_concepts, noisy_labels
from floral.data.partition_kinds import iid_table
from floral.data.partition_steps import SCHEMA, cluster_of_clients

KINDS = {
    "iid": {},
    "size_skew": {"alpha": st.floats(1e-300, 1e300)},
    "dirichlet": {"alpha": st.floats(1e-300, 1e300)},
    "pathological": {"classes_per_client": st.integers(1, 4)},
    "class_groups": {"groups": st.one_of(st.none(), st.just(((1, 3), (2, 0))))},
}
"""kind → its own keys."""


@st.composite
def rules(draw):
    """A rule of any kind; of three clients or more, two clusters and four classes."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    own = {key: draw(values) for key, values in KINDS[kind].items()}
    mixed = None if kind == "class_groups" else draw(st.one_of(st.none(), st.floats(1e-300, 1e300)))
    return Partition(
        kind=kind, mixed=mixed, cluster_shares=draw(st.sampled_from([None, (0.7, 0.3), (0.5, 0.5)])),
        share=draw(st.one_of(st.just(1.0), st.floats(1e-6, 1.0))), min_rows=draw(st.integers(1, 6)),
        validation=draw(st.one_of(st.just(0.0), st.floats(1e-6, 0.999))), **own,
    )  # fmt: skip


def labels(seed, each, classes=4):
    return np.random.default_rng(seed).permutation(np.arange(classes * each) % classes)


def per_client(table, clients, *splits):
    return np.bincount(table.filter(pl.col("split").is_in(splits))["client"].to_numpy(), minlength=clients)


@settings(deadline=None, max_examples=120)
@given(rules(), st.integers(4, 9), st.integers(0, 2**40))
def test_every_kind_deals_each_row_once_and_leaves_every_client_training_and_test_rows(rule, clients, seed):
    train_y, test_y = labels(seed, 30), labels(seed, 12)
    table = client_table(train_y, test_y, clients, 2, rule, seed)
    assert table.schema == SCHEMA and table.equals(table.sort("client", "split", "row"))
    is_test = table["split"] == "test"
    for rows, size in ((table.filter(is_test)["row"], 48), (table.filter(~is_test)["row"], 120)):
        assert not rows.is_duplicated().any() and rows.is_between(0, size - 1).all()
    assert is_test.sum() == 48 and (rule.share < 1 or (~is_test).sum() == 120)
    train, held_out = (per_client(table, clients, split) for split in ("train", "validation"))
    assert train.min() >= 1 and per_client(table, clients, "test").min() >= 1
    kept = train + held_out
    assert (held_out == (0 if rule.validation == 0 else np.clip(np.rint(rule.validation * kept), 1, kept - 1))).all()
    full = client_table(train_y, test_y, clients, 2, rule.model_copy(update={"share": 1.0}), seed)
    dealt = per_client(full, clients, "train", "validation")
    least = np.minimum(dealt, np.maximum(rule.min_rows, np.rint(rule.share * dealt)))
    assert (kept == (dealt if rule.share == 1 else least)).all()
    assert set(zip(table["client"], table["row"], is_test, strict=True)) <= set(
        zip(full["client"], full["row"], full["split"] == "test", strict=True)
    )


@settings(deadline=None, max_examples=60)
@given(rules(), st.integers(4, 9), st.integers(0, 2**40))
def test_a_seed_has_one_table_and_another_seed_another(rule, clients, seed):
    train_y, test_y = labels(0, 30), labels(1, 12)
    first, again, other = (client_table(train_y, test_y, clients, 2, rule, s) for s in (seed, seed, seed + 1))
    assert digest(first) == digest(again) != digest(other)


@pytest.mark.parametrize("kind", [kind for kind in sorted(KINDS) if kind != "class_groups"])
def test_clusters_are_client_mod_c_or_as_large_as_their_shares(kind):
    own = {"size_skew": {"alpha": 1.0}, "dirichlet": {"alpha": 1.0}, "pathological": {"classes_per_client": 2}}
    for shares, expected in (
        (None, [k % 4 for k in range(20)]),
        ((0.6, 0.25, 0.1, 0.05), [0] * 12 + [1] * 5 + [2, 2, 3]),
    ):
        rule = Partition(kind=kind, cluster_shares=shares, **own.get(kind, {}))
        assert cluster_of_clients(rule, 20, 4).tolist() == expected
        table = client_table(labels(0, 300, 10), labels(1, 60, 10), 20, 4, rule, 0)
        assert main_concepts(table, 20).tolist() == expected
        assert (table["cluster"].to_numpy() == np.array(expected)[table["client"].to_numpy()]).all()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 50))
def test_every_client_is_of_one_cluster_whatever_the_shares(weights, clients):
    rule = Partition(cluster_shares=tuple(np.array(weights) / sum(weights)))
    members = rule.members(clients, len(weights))
    assert sum(members) == clients
    assert all(abs(n - share * clients) < 1 for n, share in zip(members, rule.cluster_shares, strict=True))


# --------------------------------------------------------------------------------------------- each kind


def test_a_pathological_client_has_its_classes_and_every_class_as_many_clients():
    train_y, test_y = labels(0, 200, 10), labels(1, 50, 10)
    rule = Partition(kind="pathological", classes_per_client=3)
    table = client_table(train_y, test_y, 20, 4, rule, 0)
    train, test = (
        table.filter(is_test == (pl.col("split") == "test")).with_columns(
            label=pl.Series(y)[table.filter(is_test == (pl.col("split") == "test"))["row"]]
        )
        for is_test, y in ((False, train_y), (True, test_y))
    )
    held = {client: set(rows["label"]) for (client,), rows in train.group_by("client")}
    assert {len(classes) for classes in held.values()} == {3}
    assert held == {client: set(rows["label"]) for (client,), rows in test.group_by("client")}
    assert len({tuple(sorted(classes)) for classes in held.values()}) > 10  # not a few fixed sets
    holders = np.bincount([f for classes in held.values() for f in classes])
    assert holders.max() - holders.min() <= 1
    assert train.group_by("label", "client").len().group_by("label").agg(
        (pl.col("len").max() - pl.col("len").min()).alias("uneven")
    )["uneven"].max() <= 1  # fmt: skip


def test_sizes_are_skewed_and_labels_are_not():
    y = labels(0, 2000, 10)
    table = client_table(y, labels(1, 400, 10), 20, 4, Partition(kind="size_skew", alpha=0.3, min_rows=10), 0)
    sizes = per_client(table, 20, "train", "validation")
    assert sizes.min() >= 10 and sizes.max() > 5 * np.median(sizes)
    large = table.filter((pl.col("client") == sizes.argmax()) & (pl.col("split") == "train"))
    share = np.bincount(y[large["row"].to_numpy()]) / len(large)
    assert np.abs(share - 0.1).max() < 0.03
    assert np.corrcoef(sizes, per_client(table, 20, "test"))[0, 1] > 0.99


def test_class_groups_may_be_listed():
    train_y, test_y = labels(0, 30), labels(1, 10)
    rule = Partition(kind="class_groups", groups=((3,), (0, 1, 2)), cluster_shares=(0.25, 0.75))
    table = client_table(train_y, test_y, 8, 2, rule, 0)
    for split, y in (("train", train_y), ("validation", train_y), ("test", test_y)):
        some = table.filter(pl.col("split") == split)
        assert ((y[some["row"].to_numpy()] != 3) == some["cluster"].to_numpy()).all()
        assert ((some["client"].to_numpy() >= 2) == some["cluster"].to_numpy()).all()
    modulo = Partition(kind="class_groups", groups=((0, 2), (1, 3)))
    plain = client_table(train_y, test_y, 8, 2, Partition(kind="class_groups"), 0)
    assert client_table(train_y, test_y, 8, 2, modulo, 0).equals(plain)


def test_the_coarse_classes_of_cifar100_are_those_of_its_files(missing):
    path = Path(os.environ.get("FLORAL_DATA", "")) / "cifar100/cifar100/test-00000-of-00001.parquet"
    if not path.is_file():
        missing(f"{path}: CIFAR-100 is missing")
    table = pl.read_parquet(path, columns=["fine_label", "coarse_label"]).unique()
    groups = catalogue.task("cifar100_coarse").partition.groups
    assert sorted(table.iter_rows()) == sorted((f, c) for c, group in enumerate(groups) for f in group)


def test_concepts_are_mixed_and_in_the_limit_each_client_has_one():
    plain = iid_table(4000, 1000, 20, 4, Partition(), 0)
    assert iid_table(4000, 1000, 20, 4, Partition(mixed=1e-9), 0).equals(plain)
    for alpha, low, high in ((0.1, 0.7, 0.99), (1.0, 0.4, 0.7), (1e6, 0.25, 0.35)):
        table = iid_table(4000, 1000, 20, 4, Partition(mixed=alpha), 0)
        assert table.drop("cluster").equals(plain.drop("cluster"))
        parts = {"train": np.zeros((20, 4)), "test": np.zeros((20, 4))}
        for client, concept, split in table.select("client", "cluster", "split").iter_rows():
            parts["test" if split == "test" else "train"][client, concept] += 1
        assert (main_concepts(table, 20) == parts["train"].argmax(1)).all()
        shares = {side: counts / counts.sum(1, keepdims=True) for side, counts in parts.items()}
        assert low <= shares["train"].max(1).mean() <= high
        assert np.abs(shares["train"] - shares["test"]).max() < 0.35  # 50 test rows
    assert (main_concepts(iid_table(4000, 1000, 20, 4, Partition(mixed=0.1), 0), 20) == np.arange(20) % 4).all()


def test_label_noise_replaces_its_share_of_each_clients_labels_by_other_classes():
    table = iid_table(2000, 100, 10, 2, Partition(), 0).filter(pl.col("split") != "test")
    y = labels(0, 200, 10)[table["row"].to_numpy()]
    noisy = noisy_labels(y, table, 0.3, 10, 0)
    client = table["client"].to_numpy()
    assert np.bincount(client, noisy != y).tolist() == [60] * 10
    assert noisy.min() == 0 and noisy.max() == 9
    assert len(np.unique((noisy - y)[noisy != y] % 10)) == 9
    assert np.array_equal(noisy, noisy_labels(y, table, 0.3, 10, 0))
    assert not np.array_equal(noisy, noisy_labels(y, table, 0.3, 10, 1))
    assert (noisy_labels(y, table, 1.0, 10, 0) != y).all()


@pytest.mark.parametrize(
    "rule",
    [
        {}, {"mixed": 0.1}, {"kind": "size_skew", "alpha": 0.01}, {"kind": "dirichlet", "alpha": 0.1},
        {"kind": "dirichlet", "alpha": 1e-3}, {"kind": "class_groups"},
        {"kind": "pathological", "classes_per_client": 2},
    ],
    ids=str,
)  # fmt: skip
def test_sixty_thousand_rows_over_three_hundred_clients_take_less_than_a_second(rule):
    y = np.random.default_rng(0).integers(0, 10, 70_000)
    began = time.process_time()
    table = client_table(y[:60_000], y[60_000:], 300, 4, Partition(**rule), 0)
    assert time.process_time() - began < 2  # a loaded machine
    assert per_client(table, 300, "train", "validation").min() >= 10


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "dirichlet", "alpha": 0}, "alpha: must be greater than 0"),
        ({"kind": "dirichlet", "alpha": 1e-305}, "alpha: 1e-305 is too close to 0; set at least 1e-300"),
        ({"mixed": 1e-305}, "mixed: 1e-305 is too close to 0"),
        ({"kind": "size_skew"}, "size_skew` needs `alpha`"),
        ({"kind": "iid", "alpha": 1.0}, "iid` has no `alpha`; remove the key `alpha`"),
        ({"kind": "pathological"}, "pathological` needs `classes_per_client`"),
        ({"kind": "dirichlet", "alpha": 1, "classes_per_client": 2}, "dirichlet` has no `classes_per_client`"),
        ({"groups": [[0], [1]]}, "iid` has no `groups`"),
        ({"kind": "class_groups", "groups": [[0, 1], [1]]}, "class 1 is listed twice"),
        ({"kind": "class_groups", "groups": [[0, 1], []]}, "groups.1: "),
        ({"kind": "class_groups", "mixed": 0.5}, "mixed` cannot be used with `kind: class_groups`"),
        ({"mixed": 0}, "mixed: must be greater than 0"),
        ({"cluster_shares": [0.5, 0.4]}, r"\[0.5, 0.4\] sum to 0.9; give shares that sum to 1"),
        ({"cluster_shares": [60, 40]}, "sum to 100; give shares that sum to 1"),
        ({"cluster_shares": [1.0, 0.0]}, "cluster_shares.1: must be greater than 0"),
        ({"label_noise": 1.5}, "label_noise: must be less than or equal to 1"),
    ],
)
def test_a_wrong_rule_is_named_with_its_remedy(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(Partition, values, "partition")


def task(**change):
    values = {
        "name": "toy", "title": "Toy", "data": "digits", "clients": 10, "clusters": 2, "participation": 0.5,
        "rounds": 1, "batch": 16, "lr": 0.1, "router_lr": 0.1, "model": {"kind": "mlp"}, "shift": {"kind": "rotate"},
    }  # fmt: skip
    return parse(Task, values | change, "toy.yaml")


SYNTHETIC = {"data": {"kind": "linear", "samples_per_client": 8}, "loss": "mse", "shift": {"kind": "none"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"partition": {"cluster_shares": [0.5, 0.3, 0.2]}}, "3 shares, but `clusters` is 2"),
        ({"partition": {"cluster_shares": [0.99, 0.01]}}, "10 clients leave cluster 1 without a client; raise"),
        ({"partition": {"cluster_shares": [0.5, 0.5]}, "shift": {}}, "cluster_shares` needs clusters"),
        ({"partition": {"mixed": 0.5}, "shift": {}}, "mixed` needs clusters"),
        ({"partition": {"kind": "class_groups", "groups": [[0], [1], [2]]}}, "3 lists, but `clusters` is 2"),
        ({"partition": {"mixed": 0.5}, "unseen": {"seen_cluster": 1}}, "`unseen` cannot be used .* `partition.mixed`"),
        ({"partition": {"label_noise": 0.1}, **SYNTHETIC}, "label_noise` is not for synthetic data; set"),
        ({"partition": {"mixed": 0.1}, **SYNTHETIC}, "mixed` needs a data set"),
        ({"partition": {"label_noise": 0.1}, "published_split": "train"}, "train` evaluates on these"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: must be greater than or equal to 1"),
    ],
)
def test_a_rule_that_does_not_fit_its_task_is_named_with_its_remedy(change, message):
    assert task()
    with pytest.raises(ConfigError, match=message):
        task(**change)


Y = np.arange(40) % 4


@pytest.mark.parametrize(
    ("rule", "clients", "train_y", "test_y", "message"),
    [
        ({}, 50, Y, Y, "clients: 50` is more than the number of training samples, 40"),
        (
            {"kind": "size_skew", "alpha": 1, "min_rows": 5},
            9,
            Y,
            Y,
            "9`: there are 40 training samples, but each client",
        ),
        ({"kind": "dirichlet", "alpha": 1, "min_rows": 1}, 50, Y, Y, "50`: there are 40 training samples, but"),
        ({"kind": "pathological", "classes_per_client": 5}, 8, Y, Y, "5` does not fit 8 clients and 4 classes; set"),
        ({"kind": "pathological", "classes_per_client": 1}, 3, Y, Y, "1` does not fit 3 clients and 4 classes; set"),
        ({"kind": "pathological", "classes_per_client": 2}, 22, Y, Y, "11 clients have class .* 10 training samples"),
        ({"kind": "pathological", "classes_per_client": 2}, 8, Y, Y[:8], "4 clients have class .* 2 test samples"),
        ({"kind": "class_groups", "groups": ((0, 1), (2,))}, 8, Y, Y, "class 3 of the data is in no list"),
        (
            {"kind": "class_groups"},
            50,
            Y,
            Y,
            r"cluster 0 has 25 clients, but its classes .* have only 20 training samples",
        ),
    ],
)
def test_a_rule_that_the_rows_cannot_meet_is_named_with_its_remedy(rule, clients, train_y, test_y, message):
    with pytest.raises(ConfigError, match=message):
        client_table(train_y, test_y, clients, 2, Partition(**rule), 0)


@pytest.mark.parametrize("kind", ["iid", "size_skew"])
def test_clients_of_one_sample_train_on_it_and_hold_nothing_out(kind):
    rule = Partition(kind=kind, min_rows=1, **({"alpha": 1.0} if kind == "size_skew" else {}))
    table = client_table(Y[:8], Y[:8], 8, 2, rule, 0)
    assert per_client(table, 8, "train").tolist() == per_client(table, 8, "test").tolist() == [1] * 8
    assert "validation" not in table["split"].to_list()


def test_a_class_without_test_rows_is_no_mistake_where_it_is_only_missing():
    """Dirichlet and IID clients may lack a class; what their test rows have is what the data have."""
    for rule in (Partition(), Partition(kind="dirichlet", alpha=0.1, min_rows=1)):
        table = client_table(Y, Y[Y != 3], 5, 2, rule, 0)
        assert (table["split"] == "test").sum() == 30 and per_client(table, 5, "train").min() >= 1
