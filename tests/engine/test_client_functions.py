"""What a client computes from all its samples after its training, before its upload, and before its predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from federations import SIZES, assert_close, make_data, simulate, train, trained

from floral.core.spec import Batch, Group, Scope, ServerStep, ServerView
from floral.engine import evaluate, local, unseen
from floral.engine.costs import needed_to_predict
from floral.engine.simulate import Simulation

EXACT = 1e-12
WHERE = [{"backend": "loop"}, {"backend": "vmap", "chunk": 3}, {"backend": "batched", "chunk": 3}]
each_backend = pytest.mark.parametrize("how", WHERE, ids=lambda how: how["backend"])


def total(params):
    return torch.stack([params[name].sum() for name in sorted(params)]).sum()


def noting(method):
    """FedAvg whose clients note the sums of their samples and of their model, and send the number of their samples."""

    def note(view, received, samples):
        weight = samples.mask.to(samples.x.dtype)
        return {
            "noted": {
                "x": (samples.x.flatten(1).sum(1) * weight).sum(),
                "y": (samples.y * weight).sum(),
                "received": total(received["base"]),
                "trained": total(view["base"]),
                "times": view["noted"]["times"] + 1,
            },
            "sent": {"samples": weight.sum()},
        }

    names = ("x", "y", "received", "trained", "times")
    noted = Group(scope=Scope.PRIVATE, init=lambda: dict.fromkeys(names, torch.zeros(len(SIZES))), statistic=True)
    sent = Group(scope=Scope.SHARED, init=lambda: {"samples": torch.zeros(())}, statistic=True)
    return replace(method, groups={**method.groups, "noted": noted, "sent": sent}, after_training=note)


def alone(simulation, state, round, k):
    """The model of one client after its training in a round."""
    trained = simulation.train_chunk(state, round, np.array([k]), torch.ones(1, dtype=torch.float64))
    return trained.mean.sums["base"]


@each_backend
@pytest.mark.parametrize("batch", [4, 64])
def test_a_client_sees_its_samples_its_trained_model_and_the_received_one(batch, how):
    """Once in a round; the server averages what is SHARED, and absent clients keep their values."""
    simulation = simulate("fedavg", change=noting, epochs=2, batch=batch, **how)
    plain = simulate("fedavg", epochs=2, batch=batch)
    state, times, rows = simulation.start(), torch.zeros(len(SIZES)).double(), simulation.data.train
    for round in (1, 2, 3):
        received = total(state.values["base"])
        before = {name: tensor.clone() for name, tensor in state.values["noted"].items()}
        models = {k: alone(plain, state, round, k) for k in simulation.cohort(round)}
        simulation.train(state, round)
        times[simulation.cohort(round)] += 1
        for k in range(len(SIZES)):
            noted = {name: tensor[k] for name, tensor in state.values["noted"].items()}
            if k not in models:
                assert_close(noted, {name: tensor[k] for name, tensor in before.items()}, 0.0)
                continue
            x, y = rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))
            expected = {"x": x.sum(), "y": y.sum().double(), "received": received, "trained": total(models[k])}
            assert_close(noted, {**expected, "times": times[k]}, 1e-10)
        count = torch.tensor([SIZES[k] for k in models], dtype=torch.float64)
        torch.testing.assert_close(state.values["sent"]["samples"], count @ count / count.sum())


@each_backend
@pytest.mark.parametrize("model", ["mlp", "batch_norm"])
def test_what_is_computed_after_training_changes_no_training(model, how):
    noted, plain = trained("fedavg", model=model, change=noting, **how), trained("fedavg", model=model, **how)
    for group in plain.values:
        assert_close(noted.values[group], plain.values[group], EXACT)


@each_backend
def test_samples_are_not_augmented_for_it(how):
    simulation = simulate("fedavg", change=noting, **how)
    data = simulation.data
    blank = replace(data.train, augment=lambda x, row, noise: torch.zeros_like(x), augment_draws={"turn": ("batch",)})
    augmented = Simulation(simulation.method, replace(data, train=blank), simulation.settings, simulation.execution)
    state, rows = train(augmented, 1), simulation.data.train
    for k in simulation.cohort(1):
        x, _ = rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))
        torch.testing.assert_close(state.values["noted"]["x"][k], x.sum(), rtol=0, atol=EXACT)


@pytest.mark.parametrize("at_once", [1, 20])
def test_clients_are_taken_in_pieces_of_few_samples(at_once, monkeypatch):
    together = trained("fedavg", change=noting, backend="vmap", chunk=5)
    monkeypatch.setattr(local, "MAX_ASSIGN_SAMPLES", at_once)
    assert_close(trained("fedavg", change=noting, backend="vmap", chunk=5).tensors(), together.tensors(), EXACT)


@each_backend
def test_the_received_values_are_those_before_assign_and_the_upload_follows(how):
    """Two PRIVATE counters; what the client sends, and the vector that the server reads, have the new values."""

    def counting(method):
        def assign(view, samples):
            return {"counter": {"value": view["counter"]["value"] + 1}}

        def after(view, received, samples):
            return {"counter": {"value": 10 * view["counter"]["value"] + received["counter"]["value"]}}

        def update(served: ServerView):
            return {"seen": {"value": served.client_vectors.vectors.max()}}

        counter = Group(scope=Scope.PRIVATE, init=lambda: {"value": torch.zeros(len(SIZES))}, statistic=True)
        uploaded = Group(scope=Scope.SHARED, init=lambda: {"value": torch.zeros(())})
        seen = Group(scope=Scope.FROZEN, init=lambda: {"value": torch.zeros(())}, statistic=True)
        server = ServerStep(
            upload={"uploaded": lambda view: view["counter"]},
            client_vector=lambda view: view["counter"]["value"].reshape(1),
            update=update,
        )
        groups = {**method.groups, "counter": counter, "uploaded": uploaded, "seen": seen}
        return replace(method, groups=groups, assign=assign, after_training=after, server=server)

    simulation = simulate("fedavg", change=counting, participation=1.0, **how)
    state = train(simulation, 2)  # 10·(0 + 1) + 0 = 10, then 10·(10 + 1) + 10 = 120
    assert state.values["counter"]["value"].tolist() == [120] * len(SIZES)
    assert float(state.values["uploaded"]["value"]) == pytest.approx(120)
    assert float(state.values["seen"]["value"]) == 120


@each_backend
@pytest.mark.parametrize("group", ["memory", "nothing"])
def test_a_group_that_the_round_does_not_change_is_an_error(group, how):
    def wrong(method):
        memory = Group(scope=Scope.PRIVATE, init=lambda: {"value": torch.zeros(len(SIZES))})
        after = {group: {"value": torch.zeros(())}}
        groups = {**method.groups, "memory": replace(memory, lr=0.1)}
        phases = (replace(method.phases_of(1, 1)[0], train=("base",)),)
        return replace(method, groups=groups, phases=phases, after_training=lambda view, received, samples: after)

    with pytest.raises(ValueError, match=rf"after_training.* returns '{group}'.*set `statistic: True`"):
        trained("fedavg", change=wrong, **how)


# ----------------------------------------------------------------------------------------- before predictions


def shifted(method):
    """FedAvg whose clients add the mean of their training inputs to the first output, and the model's sum to others."""

    def before(view, samples):
        weight = samples.mask.to(samples.x.dtype)
        mean = (samples.x.flatten(1).mean(1) * weight).sum() / weight.sum().clamp(min=1)
        return {"shift": {"mean": mean, "empty": 1 - samples.mask.any().to(mean.dtype)}}

    def predict(view, x, noise, mask):
        outputs, changed = method.predict(view, x, noise, mask)
        first = torch.arange(outputs.shape[-1]) == 0
        return outputs + torch.where(first, view["shift"]["mean"], 100 * view["shift"]["empty"]), changed

    phase = replace(method.phases_of(1, 1)[0], predict=method.predict)
    return replace(method, predict=predict, phases=(phase,), before_predictions=before)


def expected_scores(simulation, state, base, k, rows):
    train = simulation.data.train
    mean = train.gather(torch.from_numpy(train.index[k, : train.count[k]]))[0].flatten(1).mean()
    outputs, _ = base.predict({"base": state.values["base"]}, rows[0], None, None)
    outputs = outputs + torch.where(torch.arange(outputs.shape[-1]) == 0, mean, 0.0)
    return float(torch.nn.functional.cross_entropy(outputs, rows[1]))


@each_backend
def test_clients_predict_with_what_they_compute_from_their_training_samples(how):
    simulation, base = simulate("fedavg", change=shifted, **how), simulate("fedavg").method
    state = train(simulation, 2)
    assert_close(state.values["base"], trained("fedavg", 2, **how).values["base"], EXACT)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    test, everyone = simulation.data.test, np.arange(len(SIZES))
    local_scores, global_scores = simulation.own_rows(state, test, everyone), simulation.global_test(state)[0]
    for k in everyone:
        mine = test.gather(torch.from_numpy(test.index[k, : test.count[k]]))
        assert local_scores.loss[k] == pytest.approx(expected_scores(simulation, state, base, k, mine), abs=1e-10)
        x, y = simulation.data.global_test(int(simulation.data.cluster[k]))
        rows = test.decode(x), y
        assert global_scores.loss[k] == pytest.approx(expected_scores(simulation, state, base, k, rows), abs=1e-10)
    assert_close(state.tensors(), before, 0.0)
    assert list(evaluate.identical_models(
        simulation.method, state, simulation.data.pool_of_client, simulation.data.cluster
    )) == list(everyone)  # fmt: skip


def test_a_client_without_samples_gets_a_mask_without_samples():
    """Also one that joins after training. With samples, it predicts with those that it has."""
    data = make_data((9, 0, 5), clusters=1)
    simulation = simulate("fedavg", change=shifted, data=data)
    state = train(simulation, 1)
    values, _ = evaluate.prediction_view(
        simulation.method, state, simulation.data.train, *(torch.arange(3),) * 2, vectorised=True
    )
    assert values["shift"]["empty"].tolist() == [0, 1, 0] and float(values["shift"]["mean"][1]) == 0
    joined, joined_state = unseen.personalised(
        simulation.method, state, simulation.data, simulation.settings, [0, 4], epochs=1
    )
    clients = torch.arange(6)
    values, _ = evaluate.prediction_view(
        joined.method, joined_state, joined.data.train, clients, clients, vectorised=True
    )
    rows = simulation.data.train
    means = [rows.gather(torch.from_numpy(rows.index[k, :4]))[0].mean() for k in (0, 2)]
    assert values["shift"]["empty"].tolist() == [1, 1, 1, 0, 1, 0]
    torch.testing.assert_close(values["shift"]["mean"][[3, 5]], torch.stack(means))


def test_a_group_is_needed_for_predictions_if_what_is_computed_from_it_is():
    def method_of(group):
        def copied(method):
            private = Group(scope=Scope.PRIVATE, init=lambda: {"value": torch.zeros(len(SIZES))}, lr=0.1)

            def before(view, samples):
                return {"copy": {"value": view[group]["value"] + samples.x.mean()}}

            def predict(view, x, noise, mask):
                outputs, changed = method.predict(view, x, noise, mask)
                return outputs + view["copy"]["value"], changed

            groups = {**method.groups, "used": private, "unused": private}
            phase = replace(method.phases_of(1, 1)[0], train=("base",), predict=method.predict)
            return replace(method, groups=groups, predict=predict, phases=(phase,), before_predictions=before)

        return copied

    for group, other in (("used", "unused"), ("unused", "used")):
        simulation = simulate("fedavg", change=method_of(group))
        served = simulation.costs(simulation.start()).served
        plain = simulate("fedavg")
        assert served == plain.costs(plain.start()).served + 1
        values = simulation.start().values
        seen = {"base": values["base"], **{name: {"value": values[name]["value"][0]} for name in ("used", "unused")}}
        held = simulation.held(np.array([0]))
        needed = needed_to_predict(simulation.method, seen, Batch(held.x[0], held.y[0], held.mask[0]))
        assert group in needed and other not in needed
