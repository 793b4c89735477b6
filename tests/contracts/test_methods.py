"""The contracts of every method variant on every model: a new file of either is tested on arrival."""

from __future__ import annotations

import federations
import pytest
import torch
from federations import (
    FIRST,
    OF_EACH_KIND,
    VARIANTS,
    buildable,
    cases,
    few_cases,
    fitting,
    served,
    simulate,
    train,
    trained,
)

from floral.config import catalogue
from floral.core.spec import Scope
from floral.engine import evaluate
from floral.engine.simulate import Simulation
from floral.engine.state import view

LIFTED = ("vmap", "batched")
"""Backends that are compared with the backend loop, which a test runs once for both."""
CASES = [pytest.param(variant, model, id=f"{variant}-{model}") for variant, model in cases()]
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def assert_backends_equal_loop(variant, tolerance, chunk=3, **how):
    loop = trained(variant, **how).tensors()
    for backend in LIFTED:
        vectorised = trained(variant, backend=backend, chunk=chunk, **how).tensors()
        named = [{f"{backend}: {name}": t for name, t in tensors.items()} for tensors in (vectorised, loop)]
        federations.assert_close(*named, tolerance)


@pytest.mark.parametrize(("variant", "model"), CASES)
def test_backends_equal_loop(variant, model):
    """Over 3 rounds of several steps with unequal clients, in chunks of 3 that do not divide the cohort of 5."""
    assert_backends_equal_loop(variant, 1e-10, model=model)


@each_variant
def test_backends_equal_loop_in_single_precision(variant):
    assert_backends_equal_loop(variant, 1e-5, dtype=torch.float32)


@pytest.mark.parametrize(("variant", "model"), [case for case in few_cases() if case[1] != fitting(case[0])])
def test_batched_equals_loop_in_rounds_of_one_step(variant, model):
    """In which no client gets a copy of what is averaged; the fitting model is in the test with three clusters."""
    loop = trained(variant, model=model, batch=64)
    batched = trained(variant, model=model, batch=64, backend="batched", chunk=3)
    federations.assert_equal_states(batched, loop, 1e-10)


ADAPTED = [variant for variant in VARIANTS if "application" in catalogue.variant(variant).params]
ADAPTED = [variant for variant in ADAPTED if variant in FIRST.values() or variant.startswith("floral")]


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("application", ["merged", "unmerged"])
@pytest.mark.parametrize(
    ("variant", "model"),
    [(variant, "mlp") for variant in ADAPTED] + [(variant, "cnn") for variant in ADAPTED if variant in FIRST.values()],
)
def test_batched_equals_loop_however_adaptors_are_applied(variant, model, application, batch):
    how = {"model": model, "params": {"application": application}, "batch": batch}
    loop = trained(variant, **how)
    federations.assert_equal_states(trained(variant, backend="batched", chunk=3, **how), loop, 1e-10)


@pytest.mark.parametrize(
    ("variant", "batch"), [(variant, 4) for variant in VARIANTS] + [(variant, 64) for variant in OF_EACH_KIND]
)
def test_workers_do_not_change_a_bit(variant, batch):
    """Two threads take the chunks that one would take in turn; a worker adds its own, so the order is fixed."""
    how = {"backend": "batched", "chunk": 2, "batch": batch, "dtype": torch.float32, "workers": 2}
    first, second = trained(variant, **how), trained(variant, **how)
    federations.assert_equal_states(first, second, 0.0)
    federations.assert_equal_states(trained(variant, **{**how, "workers": 1}), first, 1e-5)


@each_variant
def test_backends_equal_loop_in_rounds_of_one_step_with_three_clusters(variant):
    assert_backends_equal_loop(variant, 1e-10, batch=64, clusters=3)


@each_variant
def test_backends_agree_under_official_fidelity_and_a_server_adam(variant):
    """Adam divides by the size of the gradient plus 1e-8: rounding errors of 1e-16 grow up to lr/1e-8 = 1e6 times."""
    how = {"fidelity": "official", "epochs": 2, "server": {"optimiser": "adam", "lr": 0.01}, "clusters": 3}
    assert_backends_equal_loop(variant, 1e-8, chunk=2, **how)


@each_variant
def test_chunks_do_not_matter(variant):
    """Draws, too: router noise and dropout belong to (round, client, step), not to the chunk they are made for."""
    model = "dropout" if buildable(variant, "dropout") else None
    first, *others = (trained(variant, model=model, backend="vmap", chunk=chunk) for chunk in (1, 2, 7))
    for other in others:
        federations.assert_equal_states(other, first, 1e-10)


@pytest.mark.parametrize("fidelity", ["corrected", "official"])
@each_variant
def test_lr_zero_leaves_every_clients_served_predictions_unchanged(variant, fidelity):
    simulation = simulate(variant, lr=0.0, router_lr=0.0, fidelity=fidelity)
    start, end = simulation.start(), train(simulation)
    # a choice among models and running statistics depend on the rows, whatever the rate
    end.values.update({name: start.values[name] for name in simulation.method.statistics})
    before, after = served(simulation, start), served(simulation, end)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


@each_variant
def test_training_changes_the_served_predictions(variant):
    """Else the test above would pass for a method that never trains."""
    simulation = simulate(variant)
    before, after = served(simulation, simulation.start()), served(simulation, train(simulation))
    moved = [bool((a - b).abs().max() > 1e-3) for a, b in zip(after, before, strict=True)]
    taking_part = set(simulation.cohort(1)) | set(simulation.cohort(2)) | set(simulation.cohort(3))
    if simulation.method.phases == ():
        assert not any(moved)
    elif simulation.method.pool is None:
        assert all(moved[k] for k in taking_part)
    else:
        assert all(moved)


SOONER = {"cfl": {"balance": 1, "patience": 1}}
"""What a method does not do in so few rounds by its defaults."""


@each_variant
def test_global_only_is_said_of_those_that_serve_one_model_to_all(variant):
    """The report says of them that they cannot fit a concept shift."""
    model = "mlp" if buildable(variant, "mlp") else "batch_norm"
    simulation = simulate(variant, model=model, params=SOONER.get(variant), rounds=5)
    state, alike = simulation.start(), True
    for round in range(1, simulation.settings.rounds + 1):
        simulation.train(state, round)
        first, *others = served(simulation, state)
        alike = alike and all(torch.equal(first, other) for other in others)
    assert catalogue.variant(variant).global_only == alike


class Reversed(Simulation):
    def cohort(self, round):
        return super().cohort(round)[::-1].copy()


@pytest.mark.parametrize(
    ("variant", "backend"),
    [(variant, "loop") for variant in VARIANTS] + [(variant, how) for variant in OF_EACH_KIND for how in LIFTED],
)
def test_cohort_order_is_irrelevant(variant, backend):
    how = {"backend": backend, "chunk": 3, "clusters": 3}
    federations.assert_equal_states(trained(variant, kind=Reversed, **how), trained(variant, **how), 1e-12)


@pytest.mark.parametrize(("variant", "model"), few_cases())
def test_absent_clients_private_state_is_untouched(variant, model):
    simulation = simulate(variant, model=model, backend="vmap", chunk=3, participation=0.5)
    private = {n: g for n, g in simulation.method.groups.items() if g.scope is Scope.PRIVATE}
    if simulation.method.server.update is not None:  # which may put any client into another cluster
        private = {n: g for n, g in private.items() if not g.statistic}
    state = simulation.start()
    for round in range(1, min(2, simulation.settings.rounds) + 1):
        before = {name: {key: t.clone() for key, t in state.values[name].items()} for name in private}
        simulation.train(state, round)
        cohort = set(simulation.cohort(round).tolist())
        training = {name for phase in simulation.phases(round) for name in phase.train}
        for name in private:
            for key, tensor in state.values[name].items():
                for k in range(len(tensor)):
                    same = torch.equal(tensor[k], before[name][key][k])
                    assert same or k in cohort, f"{name}/{key} of client {k} changed in a round without it"
                    if k in cohort and name in training and key.endswith("out.bias"):
                        assert not same, f"{name}/{key} of client {k} was not written back"


@each_variant
def test_a_round_neither_reads_nor_writes_beyond_its_state(variant):
    """A round is a function of (state, round): the same call on an equal state gives the same bits."""
    simulation = simulate(variant, backend="vmap", chunk=3)
    if simulation.method.phases == ():
        assert simulation.settings.rounds == 0
        return
    state = train(simulation, 1)
    copies = [type(state).of({name: t.clone() for name, t in state.tensors().items()}) for _ in range(2)]
    losses = [simulation.train(copy, 2)[0] for copy in copies]
    assert torch.equal(losses[0], losses[1])
    federations.assert_equal_states(copies[0], copies[1], 0.0)


@each_variant
def test_frozen_and_fixed_groups_never_change(variant):
    simulation = simulate(variant)
    start, end = simulation.start(), train(simulation)
    groups = simulation.method.groups.items()
    still = [n for n, g in groups if g.fixed or (g.scope is Scope.FROZEN and not g.statistic)]
    for name in still:
        for key, tensor in start.values[name].items():
            assert torch.equal(tensor, end.values[name][key])


@each_variant
def test_evaluation_is_the_served_prediction_on_own_rows(variant):
    """Both backends, against a plain loop over clients and rows."""
    loss = torch.nn.CrossEntropyLoss()
    for backend, chunk in (("loop", 1), ("vmap", 3)):
        simulation = simulate(variant, backend=backend, chunk=chunk)
        state = train(simulation, 2)
        rows = simulation.data.test
        scores = simulation.own_rows(state, rows, torch.arange(simulation.data.clients).numpy())
        for k, (index, count) in enumerate(zip(rows.index, rows.count, strict=True)):
            x, y = rows.gather(torch.from_numpy(index[:count]))
            outputs, _ = simulation.method.predict(federations.view_of(simulation, state, k), x, None, None)
            assert scores.loss[k] == pytest.approx(float(loss(outputs, y)), abs=1e-10)
            assert scores.correct[k] == int((outputs.argmax(1) == y).sum())
            assert scores.rows[k] == count


@each_variant
def test_population_is_every_client_on_its_clusters_rows(variant, monkeypatch):
    """Client by client and, several at a time on slices of the rows, lifted."""
    monkeypatch.setattr(evaluate, "SLICE_SAMPLES", 7)
    for backend, chunk in (("loop", 1), ("vmap", 3)):
        simulation = simulate(variant, clusters=3, backend=backend, chunk=chunk)
        state = train(simulation, 2)
        scores, _ = simulation.global_test(state)
        for k, cluster in enumerate(simulation.data.cluster.tolist()):
            x, y = simulation.data.global_test(cluster)
            view = federations.view_of(simulation, state, k)
            outputs, _ = simulation.method.predict(view, simulation.data.test.decode(x), None, None)
            assert scores.loss[k] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, y)), abs=1e-10)
            assert scores.correct[k] == int((outputs.argmax(1) == y).sum())


@pytest.mark.parametrize(("variant", "equal"), [("fedavg", True), ("ifca", True), ("local", False)])
def test_equal_models_are_evaluated_once(variant, equal):
    simulation = simulate(variant, clusters=2)
    state = train(simulation, 6)
    same = evaluate.identical_models(simulation.method, state, simulation.data.pool_of_client, simulation.data.cluster)
    clients, cluster = simulation.data.clients, simulation.data.cluster.numpy()
    assert (len(set(same)) < clients) == equal and (cluster[same] == cluster).all()
    for k, first in enumerate(same):
        mine, other = (federations.view_of(simulation, state, int(of)) for of in (k, first))
        served = simulation.method.groups.keys() & mine.keys()
        assert all(torch.equal(mine[g][name], other[g][name]) for g in served for name in mine[g])


@pytest.mark.parametrize("variant", [v for v in VARIANTS if simulate(v).method.precondition])
def test_preconditioners_are_linear_in_the_gradients(variant):
    """The backend batched relies on it where it preconditions a sum over clients, and every backend in an idle step."""
    simulation = simulate(variant)
    seen, _ = view(simulation.method, simulation.start().values, torch.tensor([0]), torch.tensor([0]))
    for group, change in simulation.method.precondition.items():
        private = (
            simulation.method.groups[group].scope is Scope.PRIVATE
            or simulation.method.routing.cluster_of_client is not None
        )
        read = {n: t for name in simulation.method.preconditioned_by(group) for n, t in seen[name].items()}
        values = {name: (t[0] if private else t) + 0.1 for name, t in read.items()}
        first, second = ({name: torch.randn_like(values[name]) for name in seen[group]} for _ in range(2))
        both = change({name: 2 * first[name] - second[name] for name in first}, values)
        apart = change(first, values), change(second, values)
        for name in first:
            torch.testing.assert_close(both[name], 2 * apart[0][name] - apart[1][name], rtol=1e-9, atol=1e-9)
