"""The limiting cases of classic methods: drift correction, heads, memory, meta steps and prototypes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federations import (
    CLASSES,
    SHALLOW,
    SIZES,
    assert_close,
    buildable,
    make_data,
    served,
    simulate,
    train,
    trained,
)  # fmt: skip

from floral.config.reading import ConfigError
from floral.core.spec import Batch, Group, Scope, ServerStep
from floral.toolkit.parts import sample_losses, sgd_step

EXACT = 1e-12
HEADED = [model for model in SHALLOW if buildable("fedrod", model)]


def with_groups(names, **values):
    """A change of method: some groups with other values."""
    return lambda method: replace(
        method, groups={name: replace(g, **values) if name in names else g for name, g in method.groups.items()}
    )


# ------------------------------------------------------------------------------------------------------------ drift


@pytest.mark.parametrize("model", SHALLOW)
def test_scaffold_with_control_variates_of_zero_is_fedavg(model):
    still = lambda method: replace(method, after_training=None)  # noqa: E731
    ours, fedavg = trained("scaffold", model=model, change=still).values, trained("fedavg", model=model).values
    for group in fedavg:
        assert_close(ours[group], fedavg[group], EXACT)


def test_the_control_variates_of_scaffold_cancel_where_all_clients_take_part_with_one_step():
    """Σ p(k) (c - c_k) = 0, so the model is FedAvg's; with half of the clients, or two steps, it is not."""
    for how, equal in (({}, True), ({"participation": 0.5}, False), ({"epochs": 2}, False)):
        how = {"participation": 1.0, "batch": 64, **how}
        ours, fedavg = (trained(variant, **how).values["base"] for variant in ("scaffold", "fedavg"))
        assert all(torch.allclose(ours[name], fedavg[name], rtol=0, atol=1e-10) for name in ours) == equal


@pytest.mark.parametrize("model", SHALLOW)
def test_feddyn_with_gradients_and_memory_of_zero_is_fedprox(model):
    still = lambda method: replace(method, after_training=None, server=ServerStep())  # noqa: E731
    ours = trained("feddyn", model=model, params={"alpha": 0.3}, change=still).values
    fedprox = trained("fedprox", model=model, params={"mu": 0.3}).values
    for group in fedprox:
        assert_close(ours[group], fedprox[group], EXACT)


def test_the_server_of_feddyn_moves_twice_as_far_in_round_1_if_all_take_part():
    """h = -α (w̄ - w), so w̄ - h/α = w + 2 (w̄ - w). Round 1 of the clients is that of FedProx."""
    start = simulate("feddyn").start().values["base"]
    ours = trained("feddyn", 1, params={"alpha": 0.3}, participation=1.0).values["base"]
    mean = trained("fedprox", 1, params={"mu": 0.3}, participation=1.0).values["base"]
    assert_close(ours, {name: start[name] + 2 * (mean[name] - start[name]) for name in start}, EXACT)


# ------------------------------------------------------------------------------------------------------------ heads


def balanced(method):
    """FedAvg with the balanced loss: each logit gets the logarithm of the client's number of samples of its class."""

    def assign(view, samples):
        one_hot = (samples.y[..., None] == torch.arange(view["count"]["of"].shape[0])) & expanded(samples)[..., None]
        return {"count": {"of": one_hot.flatten(0, -2).sum(0).double()}}

    def expanded(samples):
        return samples.mask.reshape(-1, *(1,) * (samples.y.dim() - 1)).expand(samples.y.shape)

    def loss(view, received, batch, noise):
        outputs, changed = method.predict(view, batch.x, noise, batch.mask)
        kind = "cross_entropy" if batch.y.dim() == 1 else "token_cross_entropy"
        return sample_losses(kind, outputs + view["count"]["of"].clamp(min=1e-30).log(), batch.y), changed

    count = Group(scope=Scope.PRIVATE, init=lambda: {"of": torch.ones(len(SIZES), CLASSES)}, statistic=True)
    return replace(method, groups={**method.groups, "count": count}, assign=assign, loss=loss)


@pytest.mark.parametrize("model", HEADED)
def test_the_shared_model_of_fedrod_is_fedavg_with_the_balanced_loss(model):
    """Whatever the private heads: no gradient passes from them to the shared model."""
    ours, fedavg = trained("fedrod", model=model).values, trained("fedavg", model=model, change=balanced).values
    for group in set(fedavg) - {"count"}:
        assert_close(ours[group], fedavg[group], EXACT)


def test_fedrod_without_its_private_head_serves_this_model():
    simulation = simulate("fedrod", change=with_groups(["head"], lr=0.0))
    fedavg = simulate("fedavg", change=balanced)
    ours, theirs = (served(each, train(each)) for each in (simulation, fedavg))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=EXACT)


def test_with_equally_many_samples_of_all_classes_the_balanced_loss_is_fedavgs():
    data = make_data((10, 10, 10))
    labels = data.train_y.copy()
    for k in range(3):
        labels[data.rows["train"][k]] = [0, 1, 2, 3, 4] * 2
    data = replace(data, train_y=labels)
    ours, fedavg = (trained(variant, data=data).values["base"] for variant in ("fedrod", "fedavg"))
    assert_close(ours, fedavg, 1e-10)


@pytest.mark.parametrize("model", HEADED)
def test_the_body_of_fedbabu_is_fedpers_under_a_head_that_is_not_trained(unbounded, model):
    ours = trained("fedbabu", model=model, params={"after": 1.0}).values
    fedper = trained("fedper", model=model, change=with_groups(["head"], lr=0.0)).values
    assert_close(ours["base"], fedper["base"], EXACT)
    assert_close(ours["head"], {name: value[0] for name, value in fedper["head"].items()}, EXACT)
    if "statistics" in fedper:
        assert_close(ours["statistics"], fedper["statistics"], EXACT)


def test_fedbabu_sends_no_head_and_nothing_while_it_fine_tunes():
    simulation, fedper = simulate("fedbabu", rounds=10), simulate("fedper")
    state, costs = simulation.start(), fedper.costs(fedper.start())
    assert simulation.costs_of(state, 1).bytes_per_client == costs.bytes_per_client
    assert simulation.costs_of(state, 10).bytes_per_client == 0
    assert simulation.costs_of(state, 1).served == costs.served


# --------------------------------------------------------------------------------------------- memory and meta steps


@pytest.mark.parametrize("model", [model for model in HEADED if buildable("knn_per", model)])
def test_knn_per_trains_fedavgs_model_and_serves_it_without_votes(unbounded, model):
    simulation = simulate("knn_per", model=model, params={"lam": 0.0})
    fedavg = simulate("fedavg", model=model)
    state, plain = train(simulation), train(fedavg)
    for group in plain.values:
        assert_close(state.values[group], plain.values[group], EXACT)
    expected = [torch.log_softmax(outputs, -1) for outputs in served(fedavg, plain)]
    torch.testing.assert_close(served(simulation, state), expected, rtol=0, atol=1e-10)


def test_the_nearest_neighbour_of_a_training_sample_is_this_sample():
    """With one neighbour and nearly all of the weight, a client knows the labels of its own samples."""
    simulation = simulate("knn_per", params={"lam": 0.99, "neighbours": 1})
    state, rows = train(simulation), simulation.data.train
    scores = simulation.own_rows(state, rows, torch.arange(len(SIZES)).numpy())
    assert scores.correct.tolist() == list(SIZES)


def test_a_client_without_samples_is_served_fedavgs_model_by_knn_per():
    data = make_data((9, 0, 5), clusters=1)
    simulation, fedavg = simulate("knn_per", data=data), simulate("fedavg", data=data)
    ours, theirs = (served(each, train(each, 1)) for each in (simulation, fedavg))
    torch.testing.assert_close(ours[1], torch.log_softmax(theirs[1], -1), rtol=0, atol=1e-10)
    assert float((ours[0] - torch.log_softmax(theirs[0], -1)).abs().max()) > 1e-3


def second_half(method):
    """FedAvg whose steps use the samples at odd places of a batch, or the only one of a batch."""

    def step(objective, trained, fixed, batch, noise, lr):
        odd = batch.mask & (torch.arange(len(batch.mask)) % 2 == 1)
        mask = torch.where(odd.any(), odd, batch.mask)
        return sgd_step()(objective, trained, fixed, Batch(batch.x, batch.y, mask), noise, lr)

    return replace(method, local_step=step)


@pytest.mark.parametrize("variant", ["per_fedavg", "per_fedavg_first_order"])
@pytest.mark.parametrize("model", [model for model in SHALLOW if model not in ("batch_norm", "vgg8")])
def test_per_fedavg_with_an_inner_rate_of_zero_is_fedavg_on_half_batches(unbounded, variant, model):
    """Running statistics follow both halves, so models with batch norm are left out."""
    ours = simulate(variant, model=model, params={"alpha": 0.0})
    fedavg = simulate("fedavg", model=model, change=second_half)
    states = train(ours), train(fedavg)
    assert_close(states[0].values["base"], states[1].values["base"], EXACT)
    torch.testing.assert_close(served(ours, states[0]), served(fedavg, states[1]), rtol=0, atol=EXACT)


def test_the_model_of_per_fedavg_is_better_after_its_step_than_before():
    """On two clusters with opposite labels, one step with the samples of a client tells its cluster."""
    data = make_data((40, 40, 40, 40), clusters=2)
    how = {"rounds": 25, "params": {"alpha": 1.0}, "participation": 1.0, "backend": "vmap", "chunk": 4}
    simulation = simulate("per_fedavg", data=data, **how)
    state, everyone = train(simulation, 25), torch.arange(4).numpy()
    plain = simulate("per_fedavg", data=data, change=lambda method: replace(method, before_predictions=None))
    after, before = (each.own_rows(state, each.data.train, everyone) for each in (simulation, plain))
    assert after.loss.mean() < before.loss.mean() - 0.05


# ------------------------------------------------------------------------------------------------------- prototypes


@pytest.mark.parametrize("model", HEADED)
def test_fedproto_without_prototypes_is_local(unbounded, model):
    ours, local = trained("fedproto", model=model, params={"lam": 0.0}).values, trained("local", model=model).values
    for group in local:
        assert_close(ours[group], local[group], EXACT)


def test_the_larger_lam_the_nearer_are_the_features_of_a_class_on_different_clients():
    def spread(lam):
        simulation = simulate("fedproto", rounds=30, participation=1.0, params={"lam": lam})
        state, received = train(simulation, 30), None
        method, rows, means = simulation.method, simulation.data.train, []
        for k in (0, 4):
            x, y = rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))
            view = {
                "base": {n: t[k] for n, t in state.values["base"].items()},
                "prototypes": state.values["prototypes"],
            }
            sent = method.after_training(view, received, Batch(x, y, torch.ones(len(x), dtype=torch.bool)))
            means.append(sent["prototypes"]["sum"] / sent["prototypes"]["share"].clamp(min=1e-9)[:, None])
        both = (means[0] != 0).any(1) & (means[1] != 0).any(1)
        assert both.any()
        return float((means[0] - means[1])[both].square().mean())

    assert spread(0.01) > 1.5 * spread(1.0) > 1.5 * spread(5.0) > 0


def test_fedproto_sends_prototypes_only():
    simulation = simulate("fedproto", model="mlp")
    costs = simulation.costs(simulation.start())
    assert costs.sent_up == costs.sent_down == CLASSES * (5 + 1)


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("variant", ["fedrod", "knn_per", "fedproto"])
def test_methods_that_need_classes_refuse_a_regression(variant):
    with pytest.raises(ConfigError, match=f"{variant} cannot be used .* needs classes, but the task is a regression"):
        simulate(variant, data=make_data(regression=True))


@pytest.mark.parametrize("variant", ["fedrod", "fedbabu", "knn_per", "fedproto"])
def test_methods_that_need_a_body_refuse_a_model_without_one(variant):
    with pytest.raises(ConfigError, match="no body before a last linear layer"):
        simulate(variant, model="linear")


def test_knn_per_refuses_text():
    with pytest.raises(ConfigError, match=r"knn_per cannot be used .* but text has one per token"):
        simulate("knn_per", model="lstm")
