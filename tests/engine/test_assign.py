"""What a client computes from all its rows before it trains, a loss of the method's own, and what it sends instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from federations import SIZES, assert_close, simulate, train, trained

from floral.core.spec import Cost, Group, Scope, ServerStep
from floral.engine import batched, local
from floral.engine.simulate import Simulation
from floral.toolkit.parts import sample_losses

EXACT = 1e-12
WHERE = [{"backend": "loop"}, {"backend": "vmap", "chunk": 3}, {"backend": "batched", "chunk": 3}]
each_backend = pytest.mark.parametrize("how", WHERE, ids=lambda how: how["backend"])


def sums(method):
    """FedAvg whose clients note the sums of their rows, and the sum of the model that they see."""

    def assign(view, held):
        weight = held.mask.to(held.x.dtype)
        return {
            "seen": {
                "x": (held.x.flatten(1).sum(1) * weight).sum(),
                "y": (held.y * weight).sum(),
                "rows": weight.sum(),
                "model": torch.stack([tensor.sum() for tensor in view["base"].values()]).sum(),
                "times": view["seen"]["times"] + 1,
            }
        }

    names = ("x", "y", "rows", "model", "times")
    group = Group(scope=Scope.PRIVATE, init=lambda: dict.fromkeys(names, torch.zeros(len(SIZES))), statistic=True)
    return replace(
        method, groups={**method.groups, "seen": group}, assign=assign, cost=Cost(assign_passes_per_sample=0.5)
    )


def expected(simulation, k):
    rows = simulation.data.train
    x, y = rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))
    return {"x": x.sum(), "y": y.sum().double(), "rows": torch.tensor(SIZES[k]).double()}


@each_backend
def test_every_client_of_a_round_sees_all_its_rows_and_the_received_model(how):
    """Once a round, whatever the batches and epochs; the clients that are absent keep their values."""
    simulation = simulate("fedavg", change=sums, epochs=2, **how)
    state, times = simulation.start(), torch.zeros(len(SIZES)).double()
    for round in (1, 2, 3):
        model = torch.stack([tensor.sum() for tensor in state.values["base"].values()]).sum()
        before = {name: tensor.clone() for name, tensor in state.values["seen"].items()}
        simulation.train(state, round)
        cohort = simulation.cohort(round)
        times[cohort] += 1
        for k in range(len(SIZES)):
            found = {name: tensor[k] for name, tensor in state.values["seen"].items()}
            if k in cohort:
                assert_close(found, {**expected(simulation, k), "model": model, "times": times[k]}, EXACT)
            else:
                assert_close(found, {name: tensor[k] for name, tensor in before.items()}, 0.0)


@each_backend
def test_what_is_assigned_without_being_used_changes_no_training(how):
    ours, plain = trained("fedavg", change=sums, **how), trained("fedavg", **how)
    assert_close(ours.values["base"], plain.values["base"], EXACT)


@pytest.mark.parametrize("variant", ["scaffold", "fedala"])
def test_a_recorded_function_of_all_rows_gives_the_same_bits(variant, monkeypatch):
    """SCAFFOLD has one after training, FedALA one before it."""
    recorded = trained(variant, backend="batched", chunk=3)
    monkeypatch.setattr(batched, "MAX_RECORDED_SAMPLES", 0)
    plain = trained(variant, backend="batched", chunk=3)
    for group, params in plain.values.items():
        assert_close(recorded.values[group], params, 0.0)


@each_backend
def test_rows_are_not_augmented_for_it(how):
    simulation = simulate("fedavg", change=sums, **how)
    data = simulation.data
    blank = replace(data.train, augment=lambda x, row, noise: torch.zeros_like(x), augment_draws={"turn": ("batch",)})
    augmented = Simulation(simulation.method, replace(data, train=blank), simulation.settings, simulation.execution)
    state = train(augmented, 1)
    for k in simulation.cohort(1):
        for name, value in expected(simulation, k).items():
            torch.testing.assert_close(state.values["seen"][name][k], value, rtol=0, atol=EXACT)


@pytest.mark.parametrize("at_once", [1, 20, 1000])
def test_clients_are_taken_in_pieces_of_few_rows(at_once, monkeypatch):
    whole = trained("fedavg", change=sums, backend="vmap", chunk=5)
    monkeypatch.setattr(local, "MAX_ASSIGN_SAMPLES", at_once)
    pieces = trained("fedavg", change=sums, backend="vmap", chunk=5)
    assert_close(pieces.tensors(), whole.tensors(), EXACT)


@each_backend
def test_training_sees_the_new_value_and_what_was_received_has_the_old_one(how):
    """A penalty whose weight is new minus old, here always 1."""

    def tied(method):
        def penalty(view, received, noise):
            weight = view["seen"]["times"] - received["seen"]["times"]
            return weight * sum(tensor.square().sum() for tensor in view["base"].values())

        return replace(sums(method), penalty=penalty)

    def plain(method):
        return replace(
            method, penalty=lambda view, received, noise: sum(t.square().sum() for t in view["base"].values())
        )

    ours = trained("fedavg", change=tied, **how)
    assert_close(ours.values["base"], trained("fedavg", change=plain, **how).values["base"], EXACT)


def test_its_passes_are_counted_once_a_round():
    """Half a pass per row and round, over 2 epochs of samples."""
    simulation = simulate("fedavg", change=sums, epochs=2)
    assert simulation.costs(simulation.start()).passes_per_sample == 1 + 0.5 / 2


# --------------------------------------------------------------------------------- loss and upload


@each_backend
@pytest.mark.parametrize("model", ["mlp", "batch_norm", "dropout"])
def test_an_own_loss_replaces_the_tasks(model, how):
    """Twice the cross-entropy is twice the rate."""

    def twice(method):
        def loss(view, received, batch, noise):
            outputs, changed = method.predict(view, batch.x, noise, batch.mask)
            return 2 * sample_losses("cross_entropy", outputs, batch.y), changed

        return replace(method, loss=loss)

    ours = trained("fedavg", model=model, change=twice, lr=0.05, **how)
    assert_close(ours.tensors(), trained("fedavg", model=model, lr=0.1, **how).tensors(), 1e-10)


@each_backend
def test_an_upload_is_what_the_server_averages(how):
    """Local models that are sent without being replaced, and halved on the way."""

    def sending(method):
        def upload(view):
            return {name: tensor / 2 for name, tensor in view["own"].items()}

        base = method.groups["base"]
        shared = replace(base, scope=Scope.SHARED, init=lambda: {name: t[0] for name, t in base.init().items()})
        groups = {"own": base, "base": shared}

        def predict(view, x, noise, mask):
            return method.predict({"base": view["own"]}, x, noise, mask)

        return replace(method, groups=groups, server=ServerStep(upload={"base": upload}), predict=predict)

    simulation = simulate("local", change=sending, **how)
    state = train(simulation, 1)
    local_models = trained("local", 1, **how).values["base"]
    assert_close(state.values["own"], local_models, EXACT)
    cohort = simulation.cohort(1)
    share = torch.tensor([SIZES[k] for k in cohort]).double()
    mean = {name: torch.tensordot(share / share.sum(), t[cohort], 1) / 2 for name, t in local_models.items()}
    assert_close(state.values["base"], mean, EXACT)
