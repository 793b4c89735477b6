"""The contracts of every method variant on every model: a new file of either is tested on arrival."""

from __future__ import annotations

from functools import partial

import federations
import pytest
import torch
from federations import (
    FIRST,
    OF_EACH_KIND,
    RECORDED,
    VARIANTS,
    buildable,
    cases,
    few_cases,
    fitting,
    simulate,
    train,
    trained,
)

from floral.check import contracts
from floral.config import catalogue
from floral.core.spec import Scope
from floral.engine import evaluate
from floral.engine.state import view

without_recording = pytest.mark.usefixtures("without_recording")
each_variant = pytest.mark.parametrize("variant", VARIANTS)
METHODS = [variant for variant in VARIANTS if variant in FIRST.values() or variant.startswith("floral")]
"""One variant of each method and all of FLoRAL. The others differ from them by parameters that other tests cover."""
each_method = pytest.mark.parametrize("variant", METHODS)


def assert_backends_equal_loop(variant, tolerance, chunk=3, **how):
    contracts.backends_agree(partial(simulate, variant), tolerance, chunk=chunk, **how)


@pytest.mark.parametrize(("variant", "model"), [case for case in cases() if case[0] in RECORDED])
def test_recorded_steps_equal_loop_on_every_model(variant, model):
    """Over 3 rounds of several steps with unequal clients, in chunks of 3 that do not divide the cohort of 5."""
    assert_backends_equal_loop(variant, 1e-10, model=model)


@pytest.mark.parametrize(("variant", "model"), [case for case in cases() if case[0] not in RECORDED])
@without_recording
def test_backends_equal_loop(variant, model):
    """In the same rounds. In single precision, below, the steps are recorded."""
    assert_backends_equal_loop(variant, 1e-10, model=model)


@each_variant
def test_backends_equal_loop_in_single_precision(variant):
    assert_backends_equal_loop(variant, 1e-5, dtype=torch.float32)


@pytest.mark.parametrize(("variant", "model"), [case for case in few_cases() if case[1] != fitting(case[0])])
@without_recording
def test_batched_equals_loop_in_rounds_of_one_step(variant, model):
    """In which no client gets a copy of what is averaged; the fitting model is in the test with three clusters."""
    loop = trained(variant, model=model, batch=64)
    batched = trained(variant, model=model, batch=64, backend="batched", chunk=3)
    federations.assert_equal_states(batched, loop, 1e-10)


ADAPTED = [variant for variant in METHODS if "application" in catalogue.variant(variant).params]


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("application", ["merged", "unmerged"])
@pytest.mark.parametrize(
    ("variant", "model"),
    [(variant, "mlp") for variant in ADAPTED] + [(variant, "cnn") for variant in ADAPTED if variant in FIRST.values()],
)
@without_recording
def test_batched_equals_loop_however_adaptors_are_applied(variant, model, application, batch):
    how = {"model": model, "params": {"application": application}, "batch": batch}
    loop = trained(variant, **how)
    federations.assert_equal_states(trained(variant, backend="batched", chunk=3, **how), loop, 1e-10)


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize("variant", OF_EACH_KIND)
def test_workers_do_not_change_a_bit(variant, batch):
    """Two threads take the chunks that one would take in turn; a worker adds its own, so the order is fixed."""
    how = {"backend": "batched", "chunk": 2, "batch": batch, "dtype": torch.float32, "workers": 2}
    first, second = trained(variant, **how), trained(variant, **how)
    federations.assert_equal_states(first, second, 0.0)
    federations.assert_equal_states(trained(variant, **{**how, "workers": 1}), first, 1e-5)


@each_method
@without_recording
def test_backends_equal_loop_in_rounds_of_one_step_with_three_clusters(variant):
    assert_backends_equal_loop(variant, 1e-10, batch=64, clusters=3)


@each_method
@without_recording
def test_backends_agree_under_official_fidelity_and_a_server_adam(variant):
    """Adam divides by the size of the gradient plus 1e-8: rounding errors of 1e-16 grow up to lr/1e-8 = 1e6 times."""
    how = {"fidelity": "official", "epochs": 2, "server": {"optimiser": "adam", "lr": 0.01}, "clusters": 3}
    assert_backends_equal_loop(variant, 1e-8, chunk=2, **how)


@each_method
def test_chunks_do_not_matter(variant):
    """Draws, too: router noise and dropout belong to (round, client, step), not to the chunk they are made for."""
    model = "dropout" if buildable(variant, "dropout") else None
    contracts.chunks_do_not_matter(partial(simulate, variant), model=model)


@pytest.mark.parametrize(
    ("variant", "fidelity"),
    [(variant, "corrected") for variant in VARIANTS]
    + [(variant, "official") for variant in METHODS if variant in OF_EACH_KIND or variant.startswith("floral")],
)
def test_lr_zero_leaves_every_clients_served_predictions_unchanged(variant, fidelity):
    contracts.zero_rate_changes_nothing(partial(simulate, variant), fidelity=fidelity)


@each_variant
def test_training_changes_the_served_predictions(variant):
    """Else the test above would pass for a method that never trains."""
    contracts.training_changes_predictions(partial(simulate, variant))


SOONER = {"cfl": {"balance": 1, "patience": 1}}
"""What a method does not do in so few rounds by its defaults."""


@each_variant
def test_global_only_is_said_of_those_that_serve_one_model_to_all(variant):
    """The report says of them that they cannot fit a concept shift."""
    how = {"model": "mlp" if buildable(variant, "mlp") else "batch_norm", "params": SOONER.get(variant)}
    contracts.global_only_is_true(partial(simulate, variant, **how), catalogue.variant(variant).global_only)


@pytest.mark.parametrize(
    ("variant", "backend"),
    [(variant, "loop") for variant in METHODS]
    + [(variant, how) for variant in OF_EACH_KIND for how in contracts.VECTORISED],
)
@without_recording
def test_cohort_order_is_irrelevant(variant, backend):
    how = {"backend": backend, "chunk": 3, "clusters": 3}
    contracts.cohort_order_is_irrelevant(partial(simulate, variant), **how)


@pytest.mark.parametrize(("variant", "model"), few_cases())
def test_absent_clients_private_state_is_untouched(variant, model):
    contracts.absent_clients_keep_their_values(partial(simulate, variant), model=model)


@each_variant
def test_a_round_neither_reads_nor_writes_beyond_its_state(variant):
    """A round is a function of (state, round): the same call on an equal state gives the same bits."""
    contracts.a_round_is_a_function_of_its_state(partial(simulate, variant))


@each_variant
def test_frozen_and_fixed_groups_never_change(variant):
    contracts.frozen_groups_never_change(partial(simulate, variant))


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
