"""The contracts of every method variant on every model: a new file of either is tested on arrival."""

from __future__ import annotations

from functools import partial

import federations
import pytest
import torch
from federations import (
    DIFFERENT,
    FIRST,
    METHODS,
    OF_EACH_KIND,
    RECORDED,
    VARIANTS,
    all_models,
    buildable,
    fitting,
    noisy,
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
each_method = pytest.mark.parametrize("variant", METHODS)


def assert_backends_equal_loop(variant, tolerance, chunk=3, **how):
    contracts.backends_agree(partial(simulate, variant), tolerance, chunk=chunk, **how)


@pytest.mark.parametrize(("variant", "model"), [case for case in all_models() if case[0] in RECORDED])
def test_recorded_steps_equal_loop_on_every_model(variant, model):
    """Over 3 rounds of several steps with unequal clients, in chunks of 3 that do not divide the cohort of 5."""
    assert_backends_equal_loop(variant, 1e-10, model=model)


@each_variant
@without_recording
def test_backends_equal_loop(variant):
    """In the same rounds, with noise: it belongs to (round, client, step). In single precision, below, the steps are
    recorded."""
    assert_backends_equal_loop(variant, 1e-10, model=noisy(variant))


@pytest.mark.parametrize(
    ("variant", "model"), [case for case in all_models() if case[0] not in RECORDED and case[1] != noisy(case[0])]
)
@without_recording
def test_backends_equal_loop_on_every_model(variant, model):
    assert_backends_equal_loop(variant, 1e-10, model=model)


ADAPTED = [variant for variant in METHODS if "application" in catalogue.variant(variant).params]


@pytest.mark.parametrize(
    ("variant", "model"),
    [
        (variant, model)
        for variant in FIRST.values()
        for model in DIFFERENT
        if variant not in OF_EACH_KIND and buildable(variant, model)
        if not (variant in ADAPTED and model == "cnn")  # it is below, merged and unmerged
    ],
)
@without_recording
def test_batched_equals_loop_on_different_models(variant, model):
    """The step of `vmap` is that of `loop`, so `vmap` is tested on these models with OF_EACH_KIND."""
    assert_backends_equal_loop(variant, 1e-10, model=model, backends=["batched"])


@each_method
def test_batched_equals_loop_in_single_precision(variant):
    assert_backends_equal_loop(variant, 1e-5, dtype=torch.float32, backends=["batched"])


@pytest.mark.parametrize(("variant", "model"), [case for case in all_models() if case[1] != fitting(case[0])])
@without_recording
def test_batched_equals_loop_in_rounds_of_one_step(variant, model):
    """In which no client gets a copy of what is averaged; the fitting model is in the test with three clusters."""
    assert_backends_equal_loop(variant, 1e-10, model=model, batch=64, backends=["batched"])


@pytest.mark.parametrize("application", ["merged", "unmerged"])
@pytest.mark.parametrize(
    ("variant", "model", "batch"),
    [(variant, "mlp", 4) for variant in ADAPTED if variant not in FIRST.values()]
    + [(variant, "mlp", 64) for variant in ADAPTED if variant in OF_EACH_KIND]
    + [(variant, "cnn", 4) for variant in ADAPTED if variant in FIRST.values()]
    + [(variant, "cnn", 64) for variant in ADAPTED if variant in OF_EACH_KIND],
)
@without_recording
def test_batched_equals_loop_however_adaptors_are_applied(variant, model, application, batch):
    how = {"model": model, "params": {"application": application}, "batch": batch}
    assert_backends_equal_loop(variant, 1e-10, backends=["batched"], **how)


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


@pytest.mark.parametrize("variant", FIRST.values())
@without_recording
def test_backends_agree_under_official_fidelity_and_a_server_adam(variant):
    """Adam divides by the size of the gradient plus 1e-8: rounding errors of 1e-16 grow up to lr/1e-8 = 1e6 times."""
    how = {"fidelity": "official", "epochs": 2, "server": {"optimiser": "adam", "lr": 0.01}, "clusters": 3}
    backends = contracts.VECTORISED if variant in OF_EACH_KIND else ["batched"]
    assert_backends_equal_loop(variant, 1e-8, chunk=2, backends=backends, **how)


@pytest.mark.parametrize("variant", [*OF_EACH_KIND, *(method for method in METHODS if simulate(method).method.noise)])
def test_chunks_do_not_matter(variant):
    """Draws, too: router noise and dropout belong to (round, client, step), not to the chunk they are made for.

    Of all variants, `test_backends_equal_loop` compares chunks of 1 and 3.
    """
    contracts.chunks_do_not_matter(partial(simulate, variant), model=noisy(variant))


@pytest.mark.parametrize(
    ("variant", "fidelity"),
    [(variant, "corrected") for variant in VARIANTS]
    + [(variant, "official") for variant in METHODS if variant in OF_EACH_KIND or variant.startswith("floral")],
)
def test_lr_zero_leaves_every_clients_served_predictions_unchanged(variant, fidelity):
    contracts.zero_rate_changes_nothing(partial(simulate, variant), fidelity=fidelity)


@each_method
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


@pytest.mark.parametrize(
    ("variant", "model"),
    sorted(
        {(variant, fitting(variant)) for variant in VARIANTS}
        | {(variant, "batch_norm") for variant in FIRST.values() if buildable(variant, "batch_norm")}
        | {(variant, "cnn") for variant in OF_EACH_KIND if buildable(variant, "cnn")}
    ),
)
def test_absent_clients_private_state_is_untouched(variant, model):
    contracts.absent_clients_keep_their_values(partial(simulate, variant), model=model)


@each_method
def test_a_round_neither_reads_nor_writes_beyond_its_state(variant):
    """A round is a function of (state, round): the same call on an equal state gives the same bits."""
    contracts.a_round_is_a_function_of_its_state(partial(simulate, variant))


@each_method
def test_frozen_and_fixed_groups_never_change(variant):
    contracts.frozen_groups_never_change(partial(simulate, variant))


@each_variant
def test_evaluation_is_the_served_prediction(variant, monkeypatch):
    """On own samples and on the global test set of a client's cluster: both backends, against a plain loop over
    clients. Both evaluate the same state, the vectorised one several clients at a time on slices of the samples."""
    monkeypatch.setattr(evaluate, "SLICE_SAMPLES", 7)
    state = train(simulate(variant, clusters=3, backend="vmap", chunk=3), 2)
    for backend, chunk in (("loop", 1), ("vmap", 3)):
        simulation = simulate(variant, clusters=3, backend=backend, chunk=chunk)
        data, rows = simulation.data, simulation.data.test
        own, (everywhere, _) = (
            simulation.own_rows(state, rows, torch.arange(data.clients).numpy()),
            simulation.global_test(state),
        )
        for k, (index, count) in enumerate(zip(rows.index, rows.count, strict=True)):
            view = federations.view_of(simulation, state, k)
            held = rows.gather(torch.from_numpy(index[:count]))
            stored, labels = data.global_test(int(data.cluster[k]))
            for scores, (x, y) in ((own, held), (everywhere, (data.test.decode(stored), labels))):
                outputs, _ = simulation.method.predict(view, x, None, None)
                loss = float(torch.nn.functional.cross_entropy(outputs, y))
                assert scores.loss[k] == pytest.approx(loss, abs=1e-10)
                assert scores.correct[k] == int((outputs.argmax(1) == y).sum())
                assert scores.rows[k] == len(y)


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
