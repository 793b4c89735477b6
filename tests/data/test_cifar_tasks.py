"""What the CIFAR tasks add: class groups, evaluation on training shards, augmented rows, VGG8."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from federations import CPU
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import made, write

from floral.config import catalogue, data_sets, reading
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import DataFile, DataSet
from floral.config.schema.partition import Partition
from floral.config.schema.task import Task
from floral.core.spec import Refused
from floral.core.streams import Stream
from floral.data.augment import DRAWS, flip_crop
from floral.data.federation import load
from floral.data.partition import digest
from floral.data.partition_kinds import grouped_table
from floral.data.partition_steps import SCHEMA
from floral.models import vgg8
from floral.nn.layers import Conv2d, Dropout
from floral.stages.assemble import build_method, client_data, make_problem
from floral.stages.fetch import fetch
from floral.stages.partition import partition

# -------------------------------------------------------------------------------------- class groups


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 400), st.sampled_from([0.05, 0.5, 1.0]), st.integers(0, 99))
def test_a_cluster_s_clients_share_the_rows_of_its_classes(clusters, more_clients, more_rows, share, seed):
    random = np.random.default_rng(seed)
    clients, classes = clusters + more_clients, clusters + 3
    every = np.tile(np.arange(classes), 2 * clients)  # enough rows of every class
    labels = {
        side: random.permutation(np.r_[every, random.integers(0, classes, more_rows)]) for side in ("train", "test")
    }
    rule = Partition(kind="class_groups", share=share, min_rows=3, validation=0.2)
    table = grouped_table(labels["train"], labels["test"], clients, clusters, rule, seed)
    assert table.schema == SCHEMA and table.equals(table.sort("client", "split", "row"))
    assert (table["cluster"] == table["client"] % clusters).all()
    for side, splits in (("train", ["train", "validation"]), ("test", ["test"])):
        held = table.filter(pl.col("split").is_in(splits))
        assert not held["row"].is_duplicated().any()
        assert (labels[side][held["row"].to_numpy()] % clusters == held["cluster"].to_numpy()).all()
        sizes = np.bincount(held["client"].to_numpy(), minlength=clients)
        for c in range(clusters):
            assert np.ptp(sizes[c::clusters]) <= 1
            if side == "test" or share == 1.0:
                assert sizes[c::clusters].sum() == (labels[side] % clusters == c).sum()
    same, other = (grouped_table(labels["train"], labels["test"], clients, clusters, rule, s) for s in (seed, seed + 1))
    assert digest(same) == digest(table) != digest(other)


def test_the_shards_of_cifar100_have_the_published_sizes():
    """500 training and 100 test images of ten classes; 25 training images in the reduced task."""
    train_y, test_y = np.arange(50_000) % 100, np.arange(10_000) % 100
    for name, kept in (("cifar100", 500), ("cifar100_reduced", 25)):
        task = catalogue.task(name)
        rule = task.partition.model_copy(update={"validation": 0.0})
        table = grouped_table(train_y, test_y, task.clients, task.clusters, rule, 42)
        sizes = table.group_by("client", "split").len()
        assert set(sizes.filter(pl.col("split") == "train")["len"]) == {kept}
        assert set(sizes.filter(pl.col("split") == "test")["len"]) == {100}


@pytest.mark.parametrize(("clients", "clusters"), [(9, 2), (4, 4)])
def test_a_cluster_with_fewer_rows_than_clients_is_a_mistake_of_the_user(clients, clusters):
    labels = np.arange(24) % 3  # with four clusters, cluster 3 has no class
    few = np.array([0, 1, 1, 1, 1, 0, 2])
    message = r"class_groups`: cluster \d has \d clients, but its classes \(class mod \d = \d\) have only \d .* samples"
    with pytest.raises(ConfigError, match=message):
        grouped_table(labels, few, clients, clusters, Partition(kind="class_groups"), 0)


# ---------------------------------------------------------------------------------- runs on class groups


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Results with a data set `toy` of 6×6 RGB images in 6 classes, whose first pixel is the row's number."""
    for name, count in (("train", 240), ("test", 70)):
        images, _ = made(0, count)
        images[:, 0, 0, 0] = np.arange(count)
        write(tmp_path / f"{name}.parquet", images, np.arange(count) % 6)
    files = tuple(DataFile(path=f"{name}.parquet") for name in ("train", "test"))
    lock = {"toy": DataSet(title="Toy", reader="image_parquet", files=files)}
    monkeypatch.setattr(data_sets, "data_lock", lambda: lock)
    fetch("toy", tmp_path, tmp_path)
    return tmp_path


def made_run(results, fidelity="corrected", **change):
    values = {
        "name": "toy", "title": "Toy", "data": "toy", "clients": 6, "clusters": 3, "participation": 1.0, "rounds": 1,
        "batch": 4, "lr": 0.1, "router_lr": 0.1, "model": {"kind": "linear"}, **change,
    }  # fmt: skip
    run = Run(
        task=reading.parse(Task, values, "toy.yaml"), variant=catalogue.variant("fedavg"), seed=0,
        fidelity=catalogue.fidelity(fidelity),
    )  # fmt: skip
    partition(run.partition, results)
    return run, load(run, results)


def held(federation, split, client):
    side = federation.test_x if split == "test" else federation.train_x
    return side[federation.rows[split][client, : federation.counts[split][client]], 0, 0, 0]


GROUPS = {"kind": "class_groups", "share": 0.1, "min_rows": 3}


def test_the_population_of_a_class_group_is_its_test_rows(toy):
    _, federation = made_run(toy, partition=GROUPS)
    for c in range(3):
        expected = np.flatnonzero(np.arange(70) % 6 % 3 == c)
        assert federation.global_test_x[c][:, 0, 0, 0].tolist() == expected.tolist()
        assert federation.global_test_y[c].tolist() == (expected % 6).tolist()
        mine = np.concatenate([held(federation, "test", client) for client in (c, c + 3)])
        assert sorted(mine.tolist()) == expected.tolist()


def test_the_published_cifar100_numbers_are_of_the_training_shards(toy):
    """Whole shards, also where training keeps a part of them; the arrays are shared, and other tasks are untouched."""
    _, federation = made_run(toy, "official", partition=GROUPS, published_split="train")
    assert federation.test_x is federation.train_x and federation.test_y is federation.train_y
    assert federation.counts["train"].tolist() == [4] * 6 and federation.counts["test"].tolist() == [40] * 6
    assert federation.counts["validation"].sum() == 0
    for client in range(6):
        shard = set(held(federation, "test", client).tolist())
        assert len(shard) == 40 and {row % 3 for row in shard} == {client % 3}
        assert set(held(federation, "train", client).tolist()) < shard
    c = 1
    assert len(federation.global_test_x[c]) == 80 and set(federation.global_test_y[c].tolist()) == {1, 4}
    for how in ({"published_split": "test"}, {}):
        _, other = made_run(toy, "official", partition=GROUPS, **how)
        assert len(other.test_x) == 70 and other.counts["test"].sum() == 70


def test_a_corrected_run_is_evaluated_on_test_rows(toy):
    kept, plain = (
        made_run(toy, "corrected", partition=GROUPS, published_split=split)[1] for split in ("train", "test")
    )
    assert np.array_equal(kept.test_x, plain.test_x) and np.array_equal(kept.train_x, plain.train_x)
    assert len(kept.test_x) == 70


def test_training_rows_are_augmented_before_their_rotation_and_no_others(toy):
    run, federation = made_run(toy, clusters=2, clients=4, shift={"kind": "rotate"}, augmentation="flip_crop")
    _, plain = made_run(toy, clusters=2, clients=4, shift={"kind": "rotate"})
    assert np.array_equal(federation.train_x, plain.train_x) and plain.train_turns is None
    method = build_method(run, make_problem(run, federation, CPU, torch.float32))
    data = client_data(federation, method, CPU, torch.float32)
    assert data.train.augment is not None and dict(data.train.augment_draws) == dict(DRAWS)
    for rows in (data.test, data.validation, client_data(plain, method, CPU, torch.float32).train):
        assert rows.augment is None and rows.augment_draws == {}
    index = torch.from_numpy(federation.rows["train"][:, :5].copy())
    noise = {name: torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) for name in DRAWS}
    x, y = data.train.gather(index, noise)
    still, labels = data.train.gather(index)
    assert torch.equal(y, labels) and not torch.equal(x, still)
    for client in range(4):
        turns = torch.full((5,), 2 * (client % 2))  # two clusters: half a turn
        stored = data.train.x[index[client]]
        expected = flip_crop(stored, {name: uniform[client] for name, uniform in noise.items()}, turns)
        assert torch.equal(x[client], data.train.decode(expected))
    assert torch.equal(plain_gather(plain, method, index), still)


def plain_gather(federation, method, index):
    return client_data(federation, method, CPU, torch.float32).train.gather(index)[0]


def test_a_task_s_normalisation_reaches_every_split(toy):
    channels = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    run, federation = made_run(toy, normalise=channels)
    method = build_method(run, make_problem(run, federation, CPU, torch.float32))
    data = client_data(federation, method, CPU, torch.float32)
    for rows, stored in (
        (data.train, federation.train_x),
        (data.test, federation.test_x),
        (data.validation, federation.train_x),
    ):
        x, _ = rows.gather(torch.tensor([0]))
        raw = torch.from_numpy(np.array(stored[:1]))  # the training rows may be decoded already
        expected = (raw.float() / 255 - torch.tensor(channels["mean"])) / torch.tensor(channels["std"])
        torch.testing.assert_close(x, expected)
    with pytest.raises(ConfigError, match=r"'toy': `normalise` has 1 value.* but samples of shape \[6, 6, 3\] have 3"):
        made_run(toy, normalise={"mean": [0.5], "std": [0.2]})


# ------------------------------------------------------------------------------------------ the tasks


def test_the_tasks_are_those_of_the_paper():
    names = ("cifar10_rotate", "cifar10_label_shift", "cifar100")
    for name in (*names, *(f"{name}_reduced" for name in names)):
        task, reduced, hundred = catalogue.task(name), name.endswith("_reduced"), "100" in name
        assert (task.clients, task.clusters, task.participation) == ((100, 10, 0.5) if hundred else (20, 4, 1.0))
        assert (task.rounds, task.router_lr) == ((1500, 0.3) if reduced else (500, 0.1))
        assert (task.partition.share, task.partition.min_rows) == ((0.05 if reduced else 1.0), 10)
        assert (task.batch, task.lr, task.epochs) == (64, 0.001 if hundred else 0.03, 1)
        assert (task.server.optimiser, task.server.lr) == (("adam", 0.001) if hundred else ("sgd", 1.0))
        assert (task.model.kind, task.data) == (("vgg8", "cifar100_jpeg90") if hundred else ("cnn", "cifar10_jpeg90"))
        assert (task.published_split, task.partition.kind) == (
            ("train", "class_groups") if hundred else ("test", "iid")
        )
        assert task.augmentation == "flip_crop" and task.normalise is not None
        assert task.normalise.mean == (0.4914, 0.4822, 0.4465) and task.normalise.std == (0.2023, 0.1994, 0.2010)
        assert task.shift.kind == {"cifar10_rotate": "rotate", "cifar10_label_shift": "label_shift"}.get(
            name.removesuffix("_reduced"), "none"
        )


# ----------------------------------------------------------------------------------------------- VGG8


def test_vgg8_has_the_published_layers_and_start():
    model = vgg8.build((32, 32, 3), 100)
    params = model.init(Stream(0, "model"))
    shapes = {name: tuple(tensor.shape) for name, tensor in params.items() if name.endswith("weight")}
    assert shapes == {
        "conv1.weight": (16, 3, 3, 3), "conv2.weight": (32, 16, 3, 3), "conv3.weight": (64, 32, 3, 3),
        "conv4.weight": (128, 64, 3, 3), "conv5.weight": (512, 128, 3, 3), "hidden1.weight": (512, 512),
        "hidden2.weight": (512, 512), "out.weight": (100, 512),
    }  # fmt: skip
    assert model.size == sum(tensor.numel() for tensor in params.values()) == 1_264_388
    for name, layer in model.layers.items():
        if isinstance(layer, Conv2d):
            weight, deviation = params[f"{name}.weight"], math.sqrt(2 / (9 * layer.outputs))
            assert not params[f"{name}.bias"].any()
            assert float(weight.std()) == pytest.approx(deviation, rel=5 / math.sqrt(2 * weight.numel()))
            assert abs(float(weight.mean())) < 5 * deviation / math.sqrt(weight.numel())
            assert float(weight.abs().max()) > 2 * deviation  # no uniform distribution reaches that far
    dropouts = [layer for layer in model.layers.values() if isinstance(layer, Dropout)]
    assert dropouts == [Dropout((512,), 0.5)] * 2 and list(model.noise.values()) == [("batch", 512)] * 2


def test_vgg8_is_the_plain_network():
    torch.manual_seed(0)
    nn = torch.nn
    model = vgg8.build((32, 32, 3), 7, channels=(3, 4, 5, 6, 8), hidden=9)
    params = {name: tensor.double() for name, tensor in model.init(Stream(1, "model")).items()}
    noise = {"drop1": torch.rand(5, 8).double(), "drop2": torch.rand(5, 9).double()}
    x = torch.rand(5, 32, 32, 3).double()

    def reference(x, noise):
        x = x.permute(0, 3, 1, 2)
        for i in range(1, 6):
            x = nn.functional.conv2d(x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], padding=1)
            x = nn.functional.max_pool2d(x.relu(), 2)
        x = x.flatten(1)
        for i in (1, 2):
            if noise is not None:
                x = torch.where(noise[f"drop{i}"] < 0.5, 0.0, 2 * x)
            x = nn.functional.linear(x, params[f"hidden{i}.weight"], params[f"hidden{i}.bias"]).relu()
        return nn.functional.linear(x, params["out.weight"], params["out.bias"])

    for drawn in (noise, None):
        outputs, _ = model(params, {}, x, drawn, None)
        torch.testing.assert_close(outputs, reference(x, drawn), rtol=0, atol=1e-12)


def test_vgg8_widens_and_refuses_small_images():
    wide = vgg8.build((32, 32, 3), 10, width=1.5)
    assert (wide.layers["conv1"].outputs, wide.layers["conv5"].outputs, wide.layers["out"].inputs) == (24, 768, 768)
    assert vgg8.build((64, 32), 10).layers["hidden1"].inputs == 1024
    with pytest.raises(Refused, match="28×28 pixels are too small for this network, which needs at least 32×32"):
        vgg8.build((28, 28), 10)


def test_the_size_of_a_model_costs_neither_time_nor_memory():
    """A search for a width looks at models of billions of parameters."""
    assert vgg8.build((32, 32, 3), 100, width=64).size > 4e9
