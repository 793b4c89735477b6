import json
import os
import shutil
import xml.etree.ElementTree as ET

import numpy as np
import polars as pl
import pytest
import torch

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.method import Variant
from floral.config.schema.shift import Shift
from floral.config.schema.suite import Fidelity
from floral.config.schema.task import Task
from floral.data.federation import load
from floral.stages.assemble import assemble
from floral.stages.fetch import fetch
from floral.stages.partition import partition


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    fetch("digits", folder)
    return folder


def make_run(fidelity="corrected", variant="fedavg", seed=0, switches=None, **change):
    values = {
        "name": "toy", "title": "Toy", "data": "digits", "clients": 20, "clusters": 4, "participation": 0.5,
        "rounds": 1, "batch": 16, "lr": 0.1, "router_lr": 0.1, "model": {"kind": "mlp"}, **change,
    }  # fmt: skip
    official = fidelity == "official"
    switches = {
        "subset": "per_variant" if official else "shared",
        "validation": "none" if official else "held_out",
        "partition": "one" if official else "per_seed",
    } | (switches or {})
    return Run(
        task=Task.model_validate(values), seed=seed, fidelity=Fidelity(name=fidelity, switches=switches),
        variant=Variant(
            name=variant, method="fedavg", title="", family="", source="", what=("", ""), oracle=False, server_sees=(),
            params={},
        ),
    )  # fmt: skip


def made(run, results):
    partition(run.partition, results, run.task)
    return load(run, results)


def held(federation, split, client):
    return federation.rows[split][client, : federation.counts[split][client]]


def raw(results, name):
    return np.load(results / "data" / "digits" / f"{name}.npy")


def test_rows_are_those_of_the_table_under_the_shift_of_their_client(results):
    run = make_run(shift={"kind": "rotate"}, partition={"share": 0.5})
    federation = made(run, results)
    table = pl.read_parquet(results / run.partition.folder / "partition.parquet")
    assert federation.cluster.tolist() == [k % 4 for k in range(20)]
    for split in ("train", "validation", "test"):
        side = "test" if split == "test" else "train"
        images, labels = raw(results, f"{side}_x"), raw(results, f"{side}_y")
        assert federation.rows[split].shape == (20, federation.counts[split].max())
        for client in range(20):
            rows = table.filter((pl.col("client") == client) & (pl.col("split") == split))["row"].to_numpy()
            mine = np.sort(held(federation, split, client))
            expected = np.rot90(images[rows], client % 4, axes=(1, 2))
            assert np.array_equal(getattr(federation, f"{side}_x")[mine], expected)
            assert np.array_equal(getattr(federation, f"{side}_y")[mine], labels[rows])
    used = sum(int(federation.counts[split].sum()) for split in ("train", "validation"))
    assert len(federation.train_x) == len(federation.train_y) == used
    assert federation.train_x.dtype == np.uint8 and federation.train_x.flags.writeable
    assert type(federation.train_x) is np.ndarray
    assert (federation.classes, federation.scale, federation.exact, federation.shape) == (10, 16, True, (8, 8))


def test_a_clients_rows_are_in_random_order_the_same_each_time(results):
    """Sorted, a client's short last batch would hold its last rows alone, and MNIST's last test rows are harder."""
    first, again = (made(make_run(), results) for _ in range(2))
    orders = [held(first, "test", client) for client in range(20)]
    assert sum(bool((np.diff(order) < 0).any()) for order in orders) == 20
    assert all(np.array_equal(order, held(again, "test", client)) for client, order in enumerate(orders))


def test_the_population_is_the_whole_test_set_under_every_shift(results):
    images, labels = raw(results, "test_x"), raw(results, "test_y")
    turned = made(make_run(shift={"kind": "rotate"}), results)
    assert turned.global_test_x.shape == (4, 360, 8, 8) and turned.global_test_y.shape == (4, 360)
    assert np.array_equal(turned.global_test_x[3], np.rot90(images, 3, axes=(1, 2)))
    assert (turned.global_test_y == labels).all()
    relabelled = made(make_run(shift={"kind": "label_shift"}), results)
    assert (relabelled.global_test_x == images).all()
    assert np.array_equal(relabelled.global_test_y[2], (labels + 2) % 10)
    own = held(relabelled, "test", 6)
    assert np.array_equal(np.sort(relabelled.test_y[own]), np.sort((labels[rows_of(relabelled, results, 6)] + 2) % 10))


def rows_of(federation, results, client):
    folder = next(
        path.parent
        for path in results.glob("partition/toy/*/card.json")
        if json.loads(path.read_text())["digest"] == federation.partition_digest
    )
    table = pl.read_parquet(folder / "partition.parquet")
    return table.filter((pl.col("client") == client) & (pl.col("split") == "test"))["row"].to_numpy()


def test_every_variant_of_a_corrected_task_has_the_same_rows(results):
    a, b = (made(make_run(variant=name, partition={"share": 0.2}), results) for name in ("fedavg", "ensemble"))
    assert a.partition_digest == b.partition_digest and np.array_equal(a.train_x, b.train_x)
    other_seed = made(make_run(seed=1, partition={"share": 0.2}), results)
    assert other_seed.partition_digest != a.partition_digest


def test_official_runs_share_the_partition_and_draw_their_own_subset(results):
    rule = {"share": 0.2, "min_rows": 10}
    names = ("fedavg", "ensemble", "fedavg")
    a, b, c = (
        made(make_run("official", name, seed, partition=rule), results)
        for name, seed in zip(names, (0, 0, 1), strict=True)
    )
    assert a.partition_digest == b.partition_digest == c.partition_digest
    assert a.counts["validation"].sum() == 0 and a.rows["validation"].shape == (20, 0)
    assert set(a.counts["train"]) == {14}
    for other in (b, c):
        assert not np.array_equal(a.train_x, other.train_x) and np.array_equal(a.test_x, other.test_x)


def test_a_subset_per_variant_leaves_the_validation_rows_as_they_are(results):
    rule, switches = {"share": 0.2, "min_rows": 5}, {"subset": "per_variant"}
    a, b = (made(make_run(variant=name, partition=rule, switches=switches), results) for name in ("fedavg", "ensemble"))
    full = made(make_run(), results)
    for thinned in (a, b):
        assert np.array_equal(thinned.counts["validation"], full.counts["validation"])
        assert np.array_equal(thinned.counts["train"], np.rint(0.2 * full.counts["train"]))
        assert np.array_equal(*(validation_images(federation) for federation in (thinned, full)))
    assert not np.array_equal(a.train_x, b.train_x)


def validation_images(federation):
    return np.concatenate([federation.train_x[held(federation, "validation", client)] for client in range(20)])


def test_synthetic_rows_belong_to_their_clients(results):
    spec = {"kind": "linear", "samples_per_client": 8, "population": 32}
    run = make_run(data=spec, clusters=2, loss="mse")
    federation = made(run, results)
    assert federation.classes is None and federation.scale == 1 and federation.exact
    assert set(federation.counts["train"] + federation.counts["validation"]) == {7} and set(
        federation.counts["test"]
    ) == {1}
    assert federation.global_test_x.shape == (2, 32, 10) and federation.global_test_y.shape == (2, 32, 3)
    for client in (0, 1, 7):
        global_test = np.c_[federation.global_test_x[client % 2], np.ones(32)]
        teacher = np.linalg.lstsq(global_test, federation.global_test_y[client % 2], rcond=None)[0]
        mine = held(federation, "train", client)
        np.testing.assert_allclose(
            np.c_[federation.train_x[mine], np.ones(len(mine))] @ teacher, federation.train_y[mine], atol=1e-4
        )
    shifted = run.task.model_copy(update={"shift": Shift(kind="label_shift")})
    with pytest.raises(ConfigError, match="label_shift` is not for synthetic data"):
        made(run.model_copy(update={"task": shifted}), results)


def test_the_card_counts_what_the_table_has(results):
    run = make_run(partition={"share": 0.5, "validation": 0.2}, epochs=2)
    folder = partition(run.partition, results, run.task)
    manifest = json.loads((folder / "card.json").read_text())
    table = pl.read_parquet(folder / "partition.parquet")
    assert (
        manifest["rows"]["train"]["total"]
        == (table["split"] == "train").sum()
        == sum(manifest["rows_of_cluster"]["train"])
    )
    counts = np.array(manifest["class_counts"]["train"])
    assert counts.shape == (20, 10) and counts.sum() == manifest["rows"]["train"]["total"]
    labels = raw(results, "train_y")
    rows = table.filter((pl.col("client") == 3) & (pl.col("split") == "train"))["row"].to_numpy()
    assert np.array_equal(counts[3], np.bincount(labels[rows], minlength=10))
    per_client = counts.sum(axis=1)
    assert manifest["local_steps_per_round"]["max"] == 2 * -(-per_client.max() // 16)
    assert ET.parse(folder / "card.svg").getroot().tag.endswith("svg")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".svg"}
    partition(run.partition, results, run.task)
    assert before == {name: (folder / name).read_bytes() for name in ("partition.parquet", "card.json")}


def test_the_card_shows_clusters_skew_mixtures_and_steps(results):
    shares = [0.6, 0.25, 0.1, 0.05]
    rule = {"kind": "pathological", "classes_per_client": 1, "cluster_shares": shares, "mixed": 0.1, "label_noise": 0.1}
    run = make_run(shift={"kind": "rotate"}, partition=rule, steps_per_epoch=3)
    folder = partition(run.partition, results, run.task)
    manifest = json.loads((folder / "card.json").read_text())
    assert sum(manifest["clients_of_cluster"]) == 20 and manifest["clients_of_cluster"][0] >= 10
    assert 0.85 < manifest["label_skew"]["min"] < manifest["label_skew"]["max"] < 0.95  # one class of ten
    assert 0.25 < manifest["main_concept_share"]["min"] <= manifest["main_concept_share"]["max"] <= 1
    picture = (folder / "card.svg").read_text()
    for words in (
        "in 4 clusters (of ",
        "label skew 0.9",
        "belong to its main concept",
        "10% of the training",
        "3 local steps",
    ):
        assert words in picture
    even = make_run(shift={"kind": "rotate"})
    manifest = json.loads((partition(even.partition, results, even.task) / "card.json").read_text())
    assert manifest["clients_of_cluster"] == [5] * 4 and "main_concept_share" not in manifest
    assert 0 < manifest["label_skew"]["max"] < 0.4


def test_what_is_missing_or_altered_is_named_with_the_command_that_makes_it(results, tmp_path):
    run = make_run(seed=9)
    with pytest.raises(ConfigError, match=r"seed9-.*is missing; make it with: floral partition .*--task toy --seed 9"):
        load(run, results)
    with pytest.raises(ConfigError, match=r"'digits' is missing; make it with: floral fetch digits"):
        partition(run.partition, tmp_path)
    folder = partition(run.partition, results)
    shutil.copytree(folder, tmp_path / run.partition.folder)
    with pytest.raises(ConfigError, match=r"data.digits.*make it with: floral fetch digits"):
        load(run, tmp_path)
    pl.read_parquet(folder / "partition.parquet").with_columns(pl.col("row") + 1).write_parquet(
        folder / "partition.parquet"
    )
    with pytest.raises(
        ConfigError, match=r"partition.parquet: this partition was altered after it was made; make it again with"
    ):
        load(run, results)
    (folder / "partition.parquet").write_bytes(b"PAR1 truncated")
    with pytest.raises(ConfigError, match=r"partition.parquet: this partition is damaged .*make it again with"):
        load(run, results)


def test_a_partition_of_other_data_is_refused(results):
    run = make_run(seed=10)
    folder = partition(run.partition, results)
    manifest = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**manifest, "data_digest": "0" * 64}))
    with pytest.raises(ConfigError, match="made for other samples than those that are now in"):
        load(run, results)
    with pytest.raises(
        ConfigError,
        match=r"(?s)made from other files of 'digits'.*remedy: restore the old files; or copy the new sha256",
    ):
        partition(run.partition, results)
    (folder / "card.json").write_text(json.dumps(manifest))
    partition(run.partition, results)
    assert load(run, results).data_digest == manifest["data_digest"]


JOINING = {"seen_cluster": 3, "new_concept": 2}


@pytest.mark.parametrize("fidelity", ["corrected", "official"])
def test_unseen_clients_are_a_federation_of_their_own_under_their_concepts(results, fidelity):
    run = make_run(fidelity, shift={"kind": "label_shift"}, unseen=JOINING, partition={"share": 0.5})
    federation = made(run, results)
    unseen = federation.unseen
    assert unseen is not None and unseen.clients == 5 and federation.clients == 20
    assert unseen.cluster.tolist() == [0, 1, 2, 4, 5]
    assert unseen.counts["train"].sum() == round(0.2 * 1437) and unseen.counts["validation"].sum() == 0
    table = pl.read_parquet(results / run.partition.folder / "partition.parquet")
    for split in ("train", "test"):
        images, labels = raw(results, f"{split}_x"), raw(results, f"{split}_y")
        for client in range(5):
            rows = table.filter((pl.col("client") == 20 + client) & (pl.col("split") == split))["row"].to_numpy()
            mine = np.sort(held(unseen, split, client))
            assert np.array_equal(getattr(unseen, f"{split}_x")[mine], images[rows])
            shifted = (labels[rows] + unseen.cluster[client]) % 10
            assert np.array_equal(getattr(unseen, f"{split}_y")[mine], shifted)
    assert np.array_equal(unseen.global_test_y[5], (raw(results, "test_y") + 5) % 10)
    assert len(federation.global_test_y) == 4


def test_poisoned_rows_of_unseen_clients_leave_training_as_it_is(results, tmp_path):
    """Bit for bit, over two rounds of FLoRAL, metrics and state."""
    run = make_run(variant="floral_1", shift={"kind": "rotate"}, unseen=JOINING, model={"kind": "mlp", "hidden": 8})
    run = run.model_copy(update={"variant": catalogue.variant("floral_1"), "fidelity": catalogue.fidelity("corrected")})
    partition(run.partition, results)
    shutil.copytree(results / "data", tmp_path / "data")
    shutil.copytree(results / run.partition.folder, tmp_path / run.partition.folder)
    table = pl.read_parquet(results / run.partition.folder / "partition.parquet").filter(pl.col("client") >= 20)
    for side in ("train", "test"):
        rows = table.filter(pl.col("split") == side)["row"].to_numpy()
        for name in (f"{side}_x", f"{side}_y"):
            array = raw(results, name).copy()
            array[rows] = 0
            np.save(tmp_path / "data" / "digits" / f"{name}.npy", array)

    def trained(folder):
        simulation, data, state = assemble(run, folder, torch.device("cpu"))
        losses = [simulation.train(state, round)[0] for round in (1, 2)]
        return losses, simulation.evaluate(state, 2, 0.0).metrics, state.tensors(), data.unseen.train_x

    (losses, metrics, state, rows), (*poisoned, zeros) = trained(results), trained(tmp_path)
    assert rows.any() and not zeros.any()
    assert [losses, metrics] == poisoned[:2]
    assert all(torch.equal(tensor, poisoned[2][name]) for name, tensor in state.items())


def test_the_card_and_the_digest_know_unseen_clients(results):
    without, run = (make_run(shift={"kind": "rotate"}, **more) for more in ({}, {"unseen": JOINING}))
    assert without.partition.folder != run.partition.folder
    manifest = json.loads((partition(run.partition, results) / "card.json").read_text())
    assert {key: manifest["unseen"][key] for key in JOINING} == JOINING and manifest["unseen"]["first_client"] == 20
    assert manifest["unseen"]["rows"]["train"]["total"] + manifest["rows"]["train"]["total"] + manifest["rows"][
        "validation"
    ]["total"] == len(raw(results, "train_y"))
    assert len(manifest["class_counts"]["train"]) == 20 and len(manifest["rows_of_cluster"]["train"]) == 4
    longer = make_run(shift={"kind": "rotate"}, unseen={**JOINING, "epochs": 99, "samples": [2]})
    assert longer.partition.folder == run.partition.folder


def test_a_label_shift_that_a_cluster_has_is_no_new_concept(results):
    run = make_run(shift={"kind": "label_shift"}, clusters=8, unseen={"new_concept": 3})
    with pytest.raises(
        ConfigError, match=r"10 classes leave only 2 label shifts that no cluster has, .* set `unseen.new_con"
    ):
        made(run, results)
    assert made(make_run(shift={"kind": "label_shift"}, clusters=8, unseen={"new_concept": 2}), results).unseen


def test_without_a_shift_all_clients_are_of_one_concept(results):
    run = make_run(partition={"kind": "dirichlet", "alpha": 0.1})
    federation = made(run, results)
    assert federation.cluster.tolist() == [0] * 20 and federation.clusters == 4 and len(federation.global_test_x) == 1
    assert federation.counts["test"].min() >= 1
    labels = [np.unique(federation.train_y[held(federation, "train", client)]).size for client in range(20)]
    assert np.median(labels) <= 5
    shifted = made(make_run(partition={"kind": "dirichlet", "alpha": 0.1}, shift={"kind": "rotate"}), results)
    assert shifted.cluster.tolist() == [k % 4 for k in range(20)]


def test_rows_of_mixed_clients_are_each_under_their_own_concept(results):
    run = make_run(shift={"kind": "label_shift"}, partition={"mixed": 0.5, "share": 0.5})
    federation = made(run, results)
    table = pl.read_parquet(results / run.partition.folder / "partition.parquet")
    assert run.task.skewed and table.n_unique(["client", "cluster"]) > 40
    for client in (0, 7, 19):
        for split, side in (("train", "train"), ("validation", "train"), ("test", "test")):
            mine = table.filter((pl.col("client") == client) & (pl.col("split") == split)).sort("row")
            expected = (raw(results, f"{side}_y")[mine["row"]] + mine["cluster"].to_numpy()) % 10
            found = getattr(federation, f"{side}_y")[np.sort(held(federation, split, client))]
            assert np.array_equal(found, expected)
        most = table.filter((pl.col("client") == client) & (pl.col("split") != "test"))["cluster"].mode()
        assert federation.cluster[client] in most.to_list()


def test_noisy_labels_are_those_of_training_rows_alone(results):
    rules = ({}, {"label_noise": 0.25})
    plain, noisy = (made(make_run(partition=rule, shift={"kind": "rotate"}), results) for rule in rules)
    assert np.array_equal(plain.train_x, noisy.train_x) and np.array_equal(plain.test_y, noisy.test_y)
    assert np.array_equal(plain.global_test_y, noisy.global_test_y)
    wrong = plain.train_y != noisy.train_y
    for client in range(20):
        own = np.concatenate([held(plain, split, client) for split in ("train", "validation")])
        assert wrong[own].sum() == round(0.25 * len(own))
    assert 0 < wrong[held(plain, "validation", 0)].sum() < plain.counts["validation"][0]


def test_unbalanced_clusters_reach_the_clients_the_concepts_and_the_teachers(results):
    shares = {"cluster_shares": [0.6, 0.25, 0.1, 0.05]}
    run = make_run(shift={"kind": "label_shift"}, partition=shares, unseen={"seen_cluster": 1, "new_concept": 1})
    federation = made(run, results)
    assert np.bincount(federation.cluster).tolist() == [12, 5, 2, 1] and federation.unseen.cluster.tolist() == [0, 4]
    assert make_run(shift={"kind": "label_shift"}).partition.hash8 != run.partition.hash8
    spec = {"kind": "linear", "samples_per_client": 8, "population": 32}
    teachers = made(make_run(data=spec, clusters=2, loss="mse", partition={"cluster_shares": [0.9, 0.1]}), results)
    assert np.bincount(teachers.cluster).tolist() == [18, 2]
    for client in (1, 17, 19):
        global_test = np.c_[teachers.global_test_x[teachers.cluster[client]], np.ones(32)]
        teacher = np.linalg.lstsq(global_test, teachers.global_test_y[teachers.cluster[client]], rcond=None)[0]
        mine = held(teachers, "train", client)
        predicted = np.c_[teachers.train_x[mine], np.ones(len(mine))] @ teacher
        np.testing.assert_allclose(predicted, teachers.train_y[mine], atol=1e-4)


def test_mnist_reduced_under_official_fidelity(tmp_path, missing):
    if not os.environ.get("FLORAL_DATA"):
        missing("FLORAL_DATA is not set: MNIST's files are missing")
    fetch("mnist", tmp_path)
    run = make_run(
        "official", data="mnist", clients=300, partition={"share": 0.05, "min_rows": 10}, shift={"kind": "rotate"}
    )
    federation = made(run, tmp_path)
    assert federation.train_x.shape == (3000, 28, 28) and set(federation.counts["train"]) == {10}
    assert federation.test_x.shape == (10_000, 28, 28)
