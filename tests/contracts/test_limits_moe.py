"""The limiting cases and equations of the methods that mix sample by sample, and of models of FLoRAL's size."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federations import (
    ARGUMENTS,
    CLASSES,
    DEEP,
    KINDS,
    MODELS,
    SHALLOW,
    SHAPES,
    SIZES,
    TEXT,
    assert_close,
    make_data,
    served,
    simulate,
    train,
    trained,
    view_of,
    with_dropout,
)

from floral.core.spec import Routing
from floral.core.streams import Stream
from floral.engine.costs import Costs
from floral.nn.layers import layer_params
from floral.nn.small_layers import Identity
from floral.toolkit.parts import body_model, head_name
from floral.toolkit.routes import downsample

pytestmark = pytest.mark.usefixtures("without_recording")

EXACT = 1e-12
IMAGES = [model for model in SHALLOW if model not in TEXT]
"""Models that a gate can weigh the inputs of."""
WHERE = [{"backend": "loop"}, {"backend": "vmap", "chunk": 3}, {"backend": "batched", "chunk": 3}]
each_backend = pytest.mark.parametrize("how", WHERE, ids=lambda how: how["backend"])
NEVER = -1000.0
"""A logit whose softmax beside 0 is exactly 0."""


def gate_fixed(logits):
    """A change of method: the gate ignores its inputs, and never learns. `logits` [experts] or [K, experts]."""

    def change(method):
        gate = method.groups["gate"]
        start = {name: torch.zeros_like(value) for name, value in gate.init().items()}
        start["mix.bias"] = logits.expand(start["mix.bias"].shape).clone()
        return replace(method, groups={**method.groups, "gate": replace(gate, init=lambda: start, fixed=True)})

    return change


def without_gate(method):
    """`gate_fixed` for phases: the one that trains the gate is left out."""
    return replace(method, phases=tuple(phase for phase in method.phases if phase.train != ("gate",)))


def cluster(params, c):
    return {name: tensor[c] for name, tensor in params.items()}


def rows_of(simulation, k):
    rows = simulation.data.train
    return rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))


def costs_of(variant, **how) -> Costs:
    simulation = simulate(variant, **how)
    return simulation.costs(simulation.start())


# ---------------------------------------------------------------------------------------------------- parts


def built(kind):
    """The model at its tiny size."""
    if kind == "dropout":
        return with_dropout()
    module = importlib.import_module(f"floral.models.{KINDS.get(kind, kind)}")
    return module.build(SHAPES.get(kind, (4, 4)), CLASSES, **ARGUMENTS.get(kind, {}))


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in (*DEEP, "linear", "transformer")])
def test_a_body_with_its_head_on_top_is_the_model(kind):
    model = built(kind)
    params, running, x = model.init(Stream(3, "test")), model.statistics(), torch.rand(6, *SHAPES.get(kind, (4, 4)))
    features, _ = body_model(model)(params, running, x, None, None)
    found = model.layers[head_name(model)](layer_params(params, head_name(model)), features)
    torch.testing.assert_close(found, model(params, running, x, None, None)[0], rtol=0, atol=0)
    assert isinstance(body_model(model).layers[head_name(model)], Identity)


def test_images_are_averaged_to_8_by_8_and_nothing_else_is_touched():
    rows, small, wide = torch.rand(2, 300), torch.rand(2, 8, 5), torch.rand(2, 4, 16)
    assert downsample(rows) is rows and downsample(small) is small
    torch.testing.assert_close(downsample(wide), (wide[..., ::2] + wide[..., 1::2]) / 2)
    colours = torch.rand(2, 32, 32, 3)
    means = colours.reshape(2, 8, 4, 8, 4, 3).mean((2, 4))
    torch.testing.assert_close(downsample(colours), means.movedim(-1, 1))


# -------------------------------------------------------------------------------------------------- pFedMoE


@each_backend
@pytest.mark.parametrize("model", [m for m in IMAGES if m != "linear"])
def test_pfedmoe_with_a_gate_fixed_to_its_own_features_is_local(model, how):
    """Also its dropout: a client's own body has the draws of the whole model."""
    how = {"model": model, "epochs": 2, **how}
    ours = trained("pfedmoe", change=gate_fixed(torch.tensor([NEVER, 0.0])), **how).values
    local = trained("local", **how).values
    for group in local:
        assert_close(ours[group], local[group], 1e-10)
    start = simulate("pfedmoe", model=model).start().values["extractor"]
    assert_close(ours["extractor"], start, EXACT)


@each_backend
def test_pfedmoe_with_a_gate_fixed_to_the_shared_features_trains_no_body(how):
    change = gate_fixed(torch.tensor([0.0, NEVER]))
    start, end = simulate("pfedmoe", change=change).start().values, trained("pfedmoe", change=change, **how).values
    for name in start["base"]:
        assert torch.equal(start["base"][name], end["base"][name]) == name.startswith("hidden.")
    assert not torch.equal(start["extractor"]["hidden.weight"], end["extractor"]["hidden.weight"])


def test_pfedmoe_mixes_features_below_the_header():
    simulation = simulate("pfedmoe", participation=1.0, router_lr=2.0)
    seen = view_of(simulation, train(simulation), 2)
    own, shared, gate = seen["base"], seen["extractor"], seen["gate"]
    x, _ = rows_of(simulation, 2)
    flat = x.flatten(1)

    def linear(x, params, name):
        return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])

    weights = linear(torch.relu(linear(flat, gate, "hidden")), gate, "mix").softmax(-1)
    global_features = linear(torch.relu(linear(flat, shared, "hidden")), shared, "out")
    local_features = torch.relu(linear(flat, own, "hidden"))
    mixed = weights[:, :1] * global_features + weights[:, 1:] * local_features
    found, _ = simulation.method.predict(seen, x, None, None)
    torch.testing.assert_close(found, linear(mixed, own, "out"), rtol=0, atol=EXACT)
    assert float(weights.std(0).min()) > 1e-3


def test_pfedmoe_sends_the_extractor_alone():
    costs, whole = costs_of("pfedmoe"), costs_of("fedavg")
    extractor = (16 * 2 + 2) + (2 * 5 + 5)
    gate = (16 * 16 + 16) + (16 * 2 + 2)
    assert costs.sent_down == costs.sent_up == extractor < whole.sent_up
    assert costs.kept_private == whole.trainable_per_client + gate
    assert costs.passes_per_sample == pytest.approx(1 + (16 * 2 + 2 * 5 + 16 * 16 + 16 * 2) / (16 * 5 + 5 * 5))


# -------------------------------------------------------------------------------------------------- PFL-MoE


@each_backend
@pytest.mark.parametrize("model", IMAGES)
def test_pfl_moe_after_the_last_round_is_fedavg(unbounded, model, how):
    """Gates are even and both models are equal, so that the mixture is the model, too."""
    how = {"model": model, "epochs": 2, **how}
    ours, fedavg = simulate("pfl_moe", params={"after": 1.0}, **how), simulate("fedavg", **how)
    end, other = train(ours), train(fedavg)
    for group in other.values:
        assert_close(end.values[group], other.values[group], 1e-10)
    torch.testing.assert_close(served(ours, end), served(fedavg, other), rtol=0, atol=EXACT)


@pytest.mark.parametrize(("logits", "is_tuned"), [([0.0, NEVER], False), ([NEVER, 0.0], True)])
def test_pfl_moe_with_a_fixed_gate_serves_one_of_its_models(logits, is_tuned):
    simulation = simulate(
        "pfl_moe",
        params={"after": 0.25},
        change=lambda m: without_gate(gate_fixed(torch.tensor(logits))(m)),
        participation=1.0,
    )
    state = train(simulation, 2)
    as_fedavg = simulate("fedavg")
    for k, outputs in enumerate(served(simulation, state)):
        x = simulation.data.test.decode(simulation.data.test.x[:8])
        seen = view_of(simulation, state, k)
        model = {name: t + is_tuned * seen["difference"][name] for name, t in seen["base"].items()}
        expected, _ = as_fedavg.method.predict({"base": model}, x, None, None)
        torch.testing.assert_close(outputs, expected, rtol=0, atol=EXACT)
        assert any(d.any() for d in seen["difference"].values())


def test_pfl_moe_fine_tunes_linear_layers_only():
    simulation = simulate("pfl_moe", model="cnn")
    names = set(simulation.start().values["difference"])
    assert names == {f"{layer}.{kind}" for layer in ("hidden", "out") for kind in ("weight", "bias")}
    assert {"conv1.weight", "conv2.weight"} <= set(simulation.start().values["base"])


def test_a_quarter_of_the_samples_is_held_out_also_of_the_first_n():
    """So that a client that joins with fewer samples holds out some of the same."""
    rows = simulate("fedavg", data=make_data((9, 4, 3, 16), clusters=1)).data.train
    for k, count in enumerate(rows.count):
        of_client = rows.held_out()[torch.from_numpy(rows.index[k, :count])]
        assert of_client.nonzero()[:, 0].tolist() == list(range(3, count, 4)) and int(of_client.sum()) == count // 4
    fewer = replace(rows, count=np.minimum(rows.count, 8))
    first = torch.from_numpy(rows.index[3, :8])
    assert torch.equal(fewer.held_out()[first], rows.held_out()[first])
    assert not fewer.held_out()[torch.from_numpy(rows.index[3, 8:])].any()


def test_pfl_moe_sends_the_model_in_the_rounds_of_fedavg_alone():
    simulation, whole = simulate("pfl_moe", params={"after": 0.5}), costs_of("fedavg")
    costs = [simulation.costs_of(simulation.start(), round) for round in (1, 2, 3, 4)]
    assert [cost.sent_up for cost in costs] == [whole.sent_up, whole.sent_up, 0, 0]
    assert costs[0].kept_private == whole.trainable_per_client + 16 * 2 + 2
    assert [cost.trainable_per_client for cost in costs] == [*[whole.trainable_per_client] * 3, 16 * 2 + 2]


# --------------------------------------------------------------------------------------------------- FedMix


@each_backend
@pytest.mark.parametrize("model", [m for m in IMAGES if m != "dropout"])  # its masks have an axis of models
def test_fedmix_with_one_expert_is_fedavg(model, how):
    how = {"model": model, "clusters": 1, **how}
    ours, fedavg = trained("fedmix", **how).values, trained("fedavg", **how).values
    for group in fedavg:
        assert_close(cluster(ours[group], 0), fedavg[group], 1e-10)
    assert_close(ours["gate"], simulate("fedmix", model=model, clusters=1).start().values["gate"], 0.0)


@each_backend
@pytest.mark.parametrize("regression", [False, True])
def test_fedmix_with_constant_gates_and_plain_means_is_fedem_with_fixed_weights(regression, how):
    """One local step a round, mixtures that differ from client to client: models and what is served."""
    log_weights = torch.log_softmax(2 * torch.arange(len(SIZES) * 3).reshape(-1, 3).double().sin(), -1)
    data = make_data(clusters=3, regression=regression)
    how = {"data": data, "clusters": 3, "batch": 64, **how}

    def held(method):
        mixture = replace(
            method.groups["mixture"], init=lambda: {"log_weights": log_weights}, statistic=False, fixed=True
        )
        return replace(method, assign=None, groups={**method.groups, "mixture": mixture})

    def plain(method):
        return replace(
            gate_fixed(log_weights)(method),
            routing=Routing(log_route=lambda view: view["responsibility"]["log_mean"] * 0),
        )

    mix, em = simulate("fedmix", change=plain, **how), simulate("fedem", change=held, **how)
    ours, fedem = train(mix), train(em)
    assert_close(ours.values["base"], fedem.values["base"], 1e-10)
    for ours_, theirs in zip(served(mix, ours), served(em, fedem), strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=0, atol=1e-10)


@each_backend
def test_fedmix_averages_an_expert_by_its_responsibilities_of_the_rounds_start(how):
    """r̄_k by hand, and experts that are the means of rounds of each client alone with p(k|z) ∝ n_k·r̄_kz."""
    how = {"participation": 1.0, "clusters": 3, "router_lr": 1.0, **how}
    simulation = simulate("fedmix", **how)
    before = train(simulation, 1)
    expected = []
    for k in range(len(SIZES)):
        x, y = rows_of(simulation, k)
        seen = view_of(simulation, before, k)
        log_gate = F.linear(x.flatten(1), seen["gate"]["mix.weight"], seen["gate"]["mix.bias"]).log_softmax(-1)
        models = [
            simulate("fedavg").method.predict({"base": cluster(seen["base"], z)}, x, None, None)[0] for z in range(3)
        ]
        log_p = torch.stack([-F.cross_entropy(outputs, y, reduction="none") for outputs in models], 1)
        expected.append((log_gate + log_p).softmax(-1).mean(0))
    found = train(simulation, 2).values["responsibility"]["log_mean"].exp()
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-10)

    together = trained("fedmix", 1, **how).values
    mass = torch.tensor(SIZES).double()[:, None] * together["responsibility"]["log_mean"].exp()
    share = mass / mass.sum(0)
    mean = {name: torch.zeros_like(tensor) for name, tensor in together["base"].items()}
    for k in range(len(SIZES)):
        data = make_data(clusters=3)
        counts = {**data.counts, "train": data.counts["train"] * (np.arange(len(SIZES)) == k)}
        single = trained("fedmix", 1, data=replace(data, counts=counts), **how).values["base"]
        for name, tensor in single.items():
            mean[name] += share[k].reshape(-1, *(1,) * (tensor.dim() - 1)) * tensor
    assert_close(together["base"], mean, 1e-10)


def test_fedmix_serves_the_mixture_of_probabilities():
    simulation = simulate("fedmix", clusters=3)
    state = train(simulation)
    seen = view_of(simulation, state, int(simulation.cohort(1)[0]))
    x, _ = rows_of(simulation, 0)
    weights = F.linear(x.flatten(1), seen["gate"]["mix.weight"], seen["gate"]["mix.bias"]).softmax(-1)
    fedavg = simulate("fedavg").method
    models = [fedavg.predict({"base": cluster(seen["base"], z)}, x, None, None)[0].softmax(-1) for z in range(3)]
    expected = sum(weights[:, z, None] * models[z] for z in range(3))
    found, _ = simulation.method.predict(seen, x, None, None)
    torch.testing.assert_close(found.exp(), expected, rtol=0, atol=EXACT)


def test_fedmixs_balance_makes_the_mean_gate_more_even():
    """From gates that prefer an expert; experts do not learn, so that the reward alone differs."""

    def skewed(method):
        gate, base = method.groups["gate"], replace(method.groups["base"], lr=0.0)
        start = {**gate.init(), "mix.bias": torch.tensor([2.0, 0.0]).expand(len(SIZES), 2).clone()}
        return replace(method, groups={**method.groups, "base": base, "gate": replace(gate, init=lambda: start)})

    def evenness(balance):
        simulation = simulate("fedmix", params={"balance": balance}, change=skewed, participation=1.0, router_lr=0.05)
        gates = train(simulation).values["gate"]
        return [
            float(torch.special.entr(F.linear(x.flatten(1), w, b).softmax(-1).mean(0)).sum())
            for k, (w, b) in enumerate(zip(gates["mix.weight"], gates["mix.bias"], strict=True))
            for x, _ in [rows_of(simulation, k)]
        ]

    assert all(more > less for more, less in zip(evenness(2.0), evenness(0.0), strict=True))


def test_fedmix_counts_all_experts_the_gate_and_the_responsibilities():
    costs, whole = (costs_of(variant, clusters=3, epochs=2) for variant in ("fedmix", "fedavg"))
    assert (costs.sent_down, costs.sent_up) == (3 * whole.sent_down, 3 * whole.sent_up + 3)
    assert costs.kept_private == 16 * 3 + 3 + 3
    assert costs.passes_per_sample == pytest.approx(3 + 16 * 3 / (16 * 5 + 5 * 5) + 3 / 3 / 2)


# ------------------------------------------------------------------------------------ an ensemble of small models


def size_of(variant, **how):
    groups = simulate(variant, **how).method.groups
    return sum(t.numel() for name, g in groups.items() if name != "router" for t in g.init().values())


@pytest.mark.parametrize("clusters", [1, 2, 3])
@pytest.mark.parametrize("rank", [0.01, 0.3, 2.0])
def test_a_small_ensemble_has_florals_parameters_and_no_narrower_one_does(clusters, rank):
    how = {"clusters": clusters, "data": make_data(clusters=clusters, shape=(8, 8)), "params": {"rank": rank}}
    unit = clusters * (64 + 1 + 5)  # one hidden unit more in each model
    assert 0 <= size_of("ensemble_small", **how) - size_of("floral_1", **how) < unit


@pytest.mark.parametrize("model", ["mlp", "cnn", "vgg8"])
def test_a_small_ensemble_of_one_model_is_the_widened_fedavg(model):
    how = {"model": model, "clusters": 1}
    small, wide = trained("ensemble_small", **how).values, trained("fedavg_wide", **how).values
    if model != "vgg8":  # its dropout has an axis of models
        assert_close(cluster(small["base"], 0), wide["base"], EXACT)
    assert {name: t[0].shape for name, t in small["base"].items()} == {n: t.shape for n, t in wide["base"].items()}


def test_a_small_ensemble_costs_as_much_less_as_its_models_are_narrower():
    small, whole = (costs_of(variant, clusters=3) for variant in ("ensemble_small", "ensemble"))
    assert small.base < whole.base and small.passes_per_sample < whole.passes_per_sample == 3
    assert small.sent_down == 3 * small.base
