"""The limiting cases that tie each method to a simpler one, named in its docstring."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federations import (
    FIRST,
    SHALLOW,
    SHAPES,
    SIZES,
    TEXT,
    VARIANTS,
    assert_close,
    buildable,
    make_data,
    simulate,
    train,
    trained,
)

from floral.config.reading import ConfigError
from floral.toolkit.routes import fixed_logits

EXACT = 1e-12
CLUSTERS_AS_CLIENTS = {"data": make_data(clusters=len(SIZES)), "clusters": len(SIZES)}


def with_group(name, **values):
    """A change of method: one group with other values."""
    return lambda method: replace(method, groups={**method.groups, name: replace(method.groups[name], **values)})


def rows(params, row):
    return {key: tensor[row] for key, tensor in params.items()}


@pytest.mark.parametrize(
    "model", [m for m in SHALLOW if m != "dropout"]
)  # its masks have an axis of models: other draws
@pytest.mark.parametrize("variant", ["ensemble", "ensemble_optimal"])
def test_an_ensemble_of_one_model_is_fedavg(variant, model):
    how = {"model": model, "clusters": 1}
    ensemble, fedavg = trained(variant, **how).values, trained("fedavg", **how).values
    for group in fedavg:
        assert_close(rows(ensemble[group], 0), fedavg[group], EXACT)


@pytest.mark.parametrize("fidelity", ["corrected", "official"])
@pytest.mark.parametrize("model", SHALLOW)
@pytest.mark.parametrize(
    ("variant", "group"), [("floral_1", "adaptors"), ("floral_10_optimal", "adaptors"), ("local_adaptor", "adaptor")]
)
def test_adaptors_frozen_at_zero_are_fedavg(variant, group, model, fidelity):
    how = {"model": model, "fidelity": fidelity, "switches": {"bias_init": "zero"}}
    frozen = simulate(variant, change=with_group(group, lr=0.0), **how)
    start, end = frozen.start(), train(frozen)
    fedavg = trained("fedavg", **how)
    assert_close(end.values["base"], fedavg.values["base"], EXACT)
    assert_close(end.values[group], start.values[group], EXACT)


def test_floral_with_one_client_per_cluster_and_a_fixed_route_is_local_adaptor():
    common = {
        key: t[:, 0] for key, t in simulate("local_adaptor", **CLUSTERS_AS_CLIENTS).start().values["adaptor"].items()
    }
    floral = trained("floral_1_optimal", change=with_group("adaptors", init=lambda: common), **CLUSTERS_AS_CLIENTS)
    local = trained("local_adaptor", **CLUSTERS_AS_CLIENTS)
    assert_close(floral.values["adaptors"], {key: t[:, 0] for key, t in local.values["adaptor"].items()}, EXACT)
    assert_close(floral.values["base"], local.values["base"], EXACT)


def test_with_one_cluster_every_router_is_the_same():
    """π = 1 whatever the logits, and the gradient of the router is zero."""
    learned, *others = (trained(v, clusters=1) for v in ("floral_1", "floral_1_optimal", "floral_1_random"))
    assert_close(learned.values["router"], {"logits": torch.zeros(len(SIZES), 1).double()}, 0.0)
    for other in others:
        for group in ("base", "adaptors"):
            assert_close(other.values[group], learned.values[group], EXACT)


@pytest.mark.parametrize("clusters", [2, 3])
def test_ensemble_optimal_is_the_ensemble_whose_router_names_the_true_cluster(clusters):
    """A member's slice is what the whole ensemble with logits 0 and -100 trains, also in rounds without a cluster."""
    true = torch.arange(len(SIZES)) % clusters
    fixed = with_group("router", fixed=True, init=lambda: {"logits": fixed_logits(true, clusters)})
    how = {"clusters": clusters, "participation": 0.3, "rounds": 8}
    whole = simulate("ensemble", change=fixed, **how)
    seen = [set(whole.cohort(round) % clusters) for round in range(1, 9)]
    assert set.union(*seen) == set(range(clusters)) and set.intersection(*seen) == set()
    full, slices = train(whole, 8), train(simulate("ensemble_optimal", **how), 8)
    assert_close(full.values["base"], slices.values["base"], EXACT)


def test_ensemble_optimal_is_fedavg_of_each_true_cluster_alone():
    """Full participation, one federation per cluster from that cluster's start."""
    data = make_data(clusters=2)
    ensemble = simulate("ensemble_optimal", data=data, participation=1.0)
    start, end = ensemble.start(), train(ensemble)
    for c in range(2):
        mine = data.cluster == c
        # the other clients hold no row: they neither train nor weigh
        counts = {**data.counts, "train": data.counts["train"] * mine}
        alone = simulate(
            "fedavg",
            data=replace(data, counts=counts),
            change=with_group("base", init=lambda c=c: rows(start.values["base"], c)),
            participation=1.0,
        )
        assert_close(rows(end.values["base"], c), train(alone).values["base"], EXACT)


@pytest.mark.parametrize("model", SHALLOW)
def test_with_one_client_fedavg_local_and_centralised_are_the_same(model):
    shape = SHAPES.get(model, (4, 4))
    how = {"model": model, "participation": 1.0, "epochs": 2}
    how["data"] = make_data((13,), shape=shape, clusters=1, text=model in TEXT)
    fedavg, *others = (trained(v, **how).values for v in ("fedavg", "local", "centralised", "centralised_cluster"))
    for other in others:
        for group in fedavg:
            assert_close(rows(other[group], 0), fedavg[group], EXACT)


def test_centralised_per_cluster_with_one_cluster_is_centralised():
    centralised, per_cluster = (trained(v, clusters=1) for v in ("centralised", "centralised_cluster"))
    assert_close(centralised.tensors(), per_cluster.tensors(), 0.0)


def test_centralised_per_cluster_sees_only_its_clusters_rows():
    data = make_data(clusters=2)
    other = data.train_y.copy()
    for k in (1, 3, 5):
        other[data.rows["train"][k, : data.counts["train"][k]]] = 0
    ours, changed = (
        trained("centralised_cluster", data=d).values["base"] for d in (data, replace(data, train_y=other))
    )
    assert_close(rows(ours, 0), rows(changed, 0), 0.0)
    assert not torch.equal(ours["out.bias"][1], changed["out.bias"][1])


def constant_loss(simulation, output):
    data = simulation.data.train
    index = torch.cat([torch.from_numpy(i[:n]) for i, n in zip(data.index, data.count, strict=True)])
    y = data.y[index]
    if simulation.settings.loss == "mse":
        return float(((output - y) ** 2).mean())
    return float(torch.nn.functional.cross_entropy(output.expand(len(y), -1), y))


@pytest.mark.parametrize("regression", [True, False])
def test_constant_is_the_best_constant(regression):
    """No other constant has a lower training loss; with classes up to the one row per class that keeps it finite."""
    simulation = simulate("constant", data=make_data(regression=regression))
    output = simulation.start().values["base"]["output"]
    ours = constant_loss(simulation, output)
    random = torch.Generator().manual_seed(0)
    rows_ = int(simulation.data.train.count.sum())
    slack = 0.0 if regression else len(output) / rows_
    for scale in (0.003, 0.03, 0.3, 3.0):
        for _ in range(100):
            other = output + scale * torch.randn(output.shape, generator=random, dtype=torch.float64)
            assert ours <= constant_loss(simulation, other) + slack
    if not regression:
        y = simulation.data.train.y
        index = torch.cat(
            [
                torch.from_numpy(i[:n])
                for i, n in zip(simulation.data.train.index, simulation.data.train.count, strict=True)
            ]
        )
        assert int(output.argmax()) == int(torch.bincount(y[index]).argmax())


@pytest.mark.parametrize("variant", [v for v in FIRST.values() if buildable(v, "mlp")])
def test_regression_trains_too(variant):
    data = make_data(regression=True, outputs=2)
    try:
        simulation = simulate(variant, data=data, lr=0.02)
    except ConfigError as refusal:
        assert "cannot be used for task" in str(refusal)
        return
    loop, vmap = train(simulation), trained(variant, data=data, lr=0.02, backend="vmap", chunk=3)
    assert_close(loop.tensors(), vmap.tensors(), 1e-10)


def test_starts_are_the_same_for_every_method_of_a_seed():
    """Member 0 of an ensemble, every local model and every pooled one start as FedAvg does; another seed elsewhere."""
    fedavg = simulate("fedavg").start().values["base"]
    for variant in ("floral_1", "floral_10", "local_adaptor"):
        assert_close(simulate(variant).start().values["base"], fedavg, 0.0)
    for variant in ("local", "ensemble", "ensemble_optimal", "centralised", "centralised_cluster"):
        assert_close(rows(simulate(variant).start().values["base"], 0), fedavg, 0.0)
    local = simulate("local").start().values["base"]
    assert_close(rows(local, 3), rows(local, 0), 0.0)
    other = simulate("fedavg", seed=1).start().values["base"]
    assert not torch.equal(other["out.weight"], fedavg["out.weight"])


def test_cohorts_are_the_same_for_every_method_of_a_seed():
    fedavg = simulate("fedavg")
    for variant in VARIANTS:
        other = simulate(variant)
        if other.method.pool is None:
            assert all((other.cohort(r) == fedavg.cohort(r)).all() for r in range(1, 6))
    assert any((simulate("fedavg", seed=1).cohort(r) != fedavg.cohort(r)).any() for r in range(1, 6))
