"""How a run is carried out is measured once, stored, and shared by the seeds of a task and variant."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from federations import CPU, SIZES, make_data, simulate, view_of

from floral.cluster import gpus
from floral.cluster.gpus import hold_device, lease_folder, resolve_device
from floral.config.reading import ConfigError
from floral.core.clock import Reading
from floral.core.spec import Refused, Routing
from floral.engine import evaluate, execution
from floral.engine.simulate import Execution
from floral.io.locks import take_place
from floral.stages import train
from floral.stages.choose_execution import resolve_execution
from floral.toolkit.parts import sgd_step
from floral.toolkit.routes import fixed_logits


def test_auto_measures_once_and_all_seeds_share_its_choice(tmp_path, monkeypatch):
    folders = [tmp_path / "floral_1" / f"seed{seed}" for seed in (0, 1)]
    for folder in folders:
        folder.mkdir(parents=True)
    measured = []
    real = execution.choose
    monkeypatch.setattr(execution, "choose", lambda *a: measured.append(1) or real(*a))
    chosen = []
    for seed, folder in enumerate(folders):
        simulation = simulate("floral_1", seed=seed)
        chosen.append(resolve_execution(simulation, simulation.start(), folder, "0" * 8, "auto", 1))
    assert len(measured) == 1
    assert chosen[0] == chosen[1]
    assert chosen[0].backend in ("loop", "vmap") and "recording takes longer" in chosen[0].reason
    (stored,) = (tmp_path / "floral_1").glob("execution-*.json")
    assert json.loads(stored.read_text())["chunk"] == chosen[0].chunk
    assert not list((tmp_path / "floral_1").glob("*.json.*"))


PINNED = {"backend": "vmap", "chunk": 3, "workers": 1, "threads": 1, "reason": "the fastest", "device": "cpu"}
"""The execution of committed results, of a version without the key `precision`."""


def resolved(folder, committed, backend="auto"):
    (folder / "seed0").mkdir(exist_ok=True)
    simulation = simulate("fedavg")
    how = (backend, 1, "fp32", lambda: {**PINNED, **committed})
    return resolve_execution(simulation, simulation.start(), folder / "seed0", "0" * 8, *how)


@pytest.mark.parametrize("committed", [{}, {"backend": "loop", "chunk": 1}, {"backend": "batched", "chunk": 2}])
def test_auto_computes_a_committed_run_as_before(tmp_path, monkeypatch, committed):
    monkeypatch.setattr(execution, "choose", lambda *a: pytest.fail("the time must not decide"))
    found = resolved(tmp_path, committed)
    assert (found.backend, found.chunk) == tuple({**PINNED, **committed}[key] for key in ("backend", "chunk"))
    assert found.reason == "as in the committed results of this run"


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"precision": "bf16"}, {"threads": 2}, {"workers": 4}])
def test_a_committed_execution_that_does_not_fit_is_not_taken(tmp_path, other):
    assert "committed" not in resolved(tmp_path, other).reason


def test_a_backend_that_was_asked_for_precedes_the_committed_one(tmp_path):
    assert resolved(tmp_path, {}, backend="loop").backend == "loop"


def test_a_method_that_the_committed_backend_refuses_is_measured(tmp_path, monkeypatch):
    measured, real = [], execution.measure

    def measure(simulation, state, candidates, *refused):
        measured.append(candidates)
        if len(measured) == 1:
            raise Refused("the method has changed")
        return real(simulation, state, candidates, *refused)

    monkeypatch.setattr(execution, "measure", measure)
    found = resolved(tmp_path, {"chunk": 2})
    assert [candidate.chunk for candidate in measured[0]] == [2] and len(measured) > 1
    assert "committed" not in found.reason


@pytest.mark.parametrize("faster", ["loop", "vmap", "batched"])
def test_auto_takes_the_fastest(monkeypatch, faster):
    pretend(monkeypatch, {faster: 1.0})
    simulation = simulate("fedavg")
    assert execution.choose(simulation, simulation.start(), "auto").backend == faster


def pretend(monkeypatch, seconds):
    """Every trial takes the seconds of its backend, or 9."""
    replace_trials(monkeypatch, lambda how: seconds.get(how.backend, 9.0))


def replace_trials(monkeypatch, seconds):
    """Every trial takes `seconds(execution)` instead of the measured time."""
    timing = execution.Timing
    monkeypatch.setattr(execution, "seconds_per_client", lambda trial, state: timing(seconds(trial.execution)))


def test_a_short_run_is_not_recorded(monkeypatch):
    simulation = simulate("fedavg")
    pretend(monkeypatch, {"vmap": 1e-4, "batched": 1e-6})
    chosen = execution.choose(simulation, simulation.start(), "auto")
    assert chosen.backend == "vmap" and "recording takes longer" in chosen.reason


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_no_candidate_uses_more_cores_than_it_was_given(monkeypatch, threads):
    tried = []
    replace_trials(monkeypatch, lambda how: tried.append(how) or 9.0)
    simulation = simulate("fedavg")
    execution.choose(simulation, simulation.start(), "auto", threads)
    assert {how.backend for how in tried} == {"loop", "vmap", "batched"}
    assert max(how.cores for how in tried) == threads


def test_candidates_of_one_core_are_among_those_of_several():
    """So a machine with more cores never makes `auto` slower."""
    for one, several in zip(execution.on_cpu(30, 1, 0), execution.on_cpu(30, 6, 0), strict=True):
        assert set(one) < set(several)
        assert {how.cores for how in several} == {1, 2, 4, 6}
        assert len(set(several)) == len(several)


@pytest.mark.parametrize("cores", [1, 2, 6])
@pytest.mark.parametrize("most", [1, 7, 29])
def test_candidates_train_at_most_so_many_clients_at_the_same_time(most, cores):
    plain, recorded = execution.on_cpu(30, cores, execution.MAX_BYTES // most)
    at_once = [how.chunk * how.workers for how in [*plain, *recorded]]
    assert max(at_once) <= max(most, cores)
    assert ("vmap" in {how.backend for how in plain}) == (most > 1)
    assert recorded


def test_the_memory_of_a_client_is_that_of_its_parameters_gradients_and_activations():
    simulation = simulate("fedavg")
    state = simulation.start()
    parameters = sum(t.nbytes for params in state.values.values() for t in params.values())
    client_bytes, step_bytes = execution.memory_of_client(simulation, state)
    assert 2 * parameters <= client_bytes <= 5 * parameters, "a client holds new parameters and their gradients"
    assert 2 * parameters <= step_bytes


def test_a_large_step_is_recorded_or_vectorised_only_on_request(monkeypatch):
    pretend(monkeypatch, {"vmap": 1e-2, "batched": 1e-3})
    simulation = simulate("fedavg", rounds=10**6)
    assert execution.choose(simulation, simulation.start(), "auto").backend == "batched"
    monkeypatch.setattr(execution, "MAX_RECORDED_BYTES", 1)
    chosen = execution.choose(simulation, simulation.start(), "auto")
    assert (chosen.backend, chosen.cores) == ("loop", 1) and "one client at a time" in chosen.reason
    assert execution.choose(simulation, simulation.start(), "auto", 2).backend == "loop"
    for backend in ("batched", "vmap"):
        assert execution.choose(simulation, simulation.start(), backend).backend == backend


@pytest.mark.parametrize(("speed_up", "cores"), [(0.5, 1), (1.04, 1), (1.5, 2)])
def test_more_cores_must_pay(monkeypatch, speed_up, cores):
    simulation = simulate("fedavg")
    replace_trials(monkeypatch, lambda how: 1.0 if how.cores == 1 else 1 / speed_up)
    chosen = execution.choose(simulation, simulation.start(), "auto", 2)
    assert chosen.cores == cores


class Clock:
    """A clock that only `train` advances. Other programs may keep the process from its core meanwhile."""

    def __init__(self, disturbed):
        self.now, self.trials, self.disturbed = Reading(wall=0.0, cpu=0.0), [], disturbed

    def read(self):
        return self.now

    def train(self, how):
        """A round takes one second of CPU time on one core, and 0.6 on two; a disturbed round takes 5 more."""
        self.trials.append(how.cores)
        cpu = {1: 1.0, 2: 0.6}[how.cores]
        waited = 5.0 if self.disturbed(how.cores, self.trials.count(how.cores)) else 0.0
        self.now = Reading(wall=self.now.wall + cpu + waited, cpu=self.now.cpu + cpu, waited=self.now.waited + waited)


@pytest.mark.parametrize(
    ("disturbed", "cores", "trials"),
    [
        (lambda cores, trial: False, 2, {1: 1 + 2, 2: 1 + 5}),
        (lambda cores, trial: cores == 2 and trial < 6, 2, {1: 1 + 2, 2: 1 + 4 + 5}),
        (lambda cores, trial: cores == 2, 1, {1: 1 + 2, 2: 1 + 10}),
        (lambda cores, trial: cores == 1, 2, {1: 1 + 2, 2: 1 + 5}),
    ],
    ids=["idle", "disturbed at first", "two threads always disturbed", "one thread always disturbed"],
)
def test_a_disturbed_trial_is_repeated(monkeypatch, disturbed, cores, trials):
    simulation = simulate("fedavg")
    clock = Clock(disturbed)
    monkeypatch.setattr(execution, "read_clock", clock.read)
    monkeypatch.setattr(execution, "MAX_MEASUREMENT_S", 1000.0)
    monkeypatch.setattr(execution, "MAX_MEASUREMENT_SHARE", 1000.0)
    monkeypatch.setattr(execution.Simulation, "local_training", lambda trial, *_: clock.train(trial.execution))
    candidates = [Execution("loop", 1), Execution("loop", 1, workers=2)]
    chosen = execution.fastest(execution.measure(simulation, simulation.start(), candidates), "the fastest")
    assert chosen.workers == cores
    assert {cores: clock.trials.count(cores) for cores in (1, 2)} == trials


def test_a_much_slower_candidate_has_one_trial_after_its_warm_up(monkeypatch):
    """One thread is 1.67 times slower here than two."""
    simulation, clock = simulate("fedavg"), Clock(lambda cores, trial: False)
    monkeypatch.setattr(execution, "read_clock", clock.read)
    monkeypatch.setattr(execution, "HOPELESS_FACTOR", 1.6)
    monkeypatch.setattr(execution.Simulation, "local_training", lambda trial, *_: clock.train(trial.execution))
    execution.measure(simulation, simulation.start(), [Execution("loop", 1), Execution("loop", 1, workers=2)])
    assert (clock.trials.count(1), clock.trials.count(2)) == (1 + 1, 1 + 2)


@pytest.mark.parametrize(("rounds", "trials"), [(10, 1 + 2), (1000, 1 + 5)])
def test_trials_cost_a_small_share_of_the_training(monkeypatch, rounds, trials):
    simulation = simulate("fedavg", rounds=rounds)
    clock = Clock(lambda cores, trial: False)
    monkeypatch.setattr(execution, "read_clock", clock.read)
    monkeypatch.setattr(execution, "MAX_MEASUREMENT_S", 1000.0)
    monkeypatch.setattr(execution.Simulation, "local_training", lambda trial, *_: clock.train(trial.execution))
    execution.measure(simulation, simulation.start(), [Execution("loop", 1)])
    assert len(clock.trials) == trials


def test_one_client_a_round_is_recorded_if_this_pays(monkeypatch):
    """As `centralised` on digits: 37,000 steps, of which each is mostly dispatch."""
    simulation = simulate("centralised", rounds=10**4)
    pretend(monkeypatch, {"loop": 1e-3, "batched": 3e-4})
    assert execution.choose(simulation, simulation.start(), "auto").backend == "batched"
    assert execution.choose(simulation, simulation.start(), "vmap").backend == "loop"


def test_a_step_that_reads_a_value_is_not_batched():
    def step(*given):
        moved, changed, loss = sgd_step()(*given)
        return (moved, changed, loss) if float(torch.ones(())) else (moved, changed, 2 * loss)

    simulation = simulate("fedavg", change=lambda method: replace(method, local_step=step), rounds=10**4)
    chosen = execution.choose(simulation, simulation.start(), "auto")
    assert chosen.backend != "batched" and "not batched: a step calls aten._local_scalar_dense" in chosen.reason
    with pytest.raises(Refused, match="which a recording cannot repeat"):
        execution.choose(simulation, simulation.start(), "batched")


@pytest.mark.parametrize("batch", [4, 64])
def test_routes_that_depend_on_what_is_averaged_are_not_batched(batch):
    def by_base(method):
        return replace(
            method, routing=Routing(log_route=lambda seen: torch.log_softmax(seen["base"]["out.bias"][:2], 0))
        )

    simulation = simulate("floral_1", change=by_base, batch=batch, rounds=10**4)
    chosen = execution.choose(simulation, simulation.start(), "auto")
    assert chosen.backend != "batched" and "the routes depend on the group 'base'" in chosen.reason


def test_near_ties_always_go_the_same_way(monkeypatch):
    simulation = simulate("fedavg")
    for seconds in ({"loop": 1.0, "batched": 1.04}, {"loop": 1.04, "batched": 1.0}):
        pretend(monkeypatch, seconds)
        assert execution.choose(simulation, simulation.start(), "auto").backend == "batched"


def test_measuring_leaves_the_state_as_it_is():
    simulation = simulate("local", dtype=torch.float32)
    state = simulation.start()
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    execution.choose(simulation, state, "auto")
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


@pytest.mark.parametrize("backend", ["loop", "vmap", "batched"])
def test_a_backend_that_was_asked_for_is_taken(tmp_path, backend):
    folder = tmp_path / "seed0"
    folder.mkdir()
    simulation = simulate("fedavg")
    assert resolve_execution(simulation, simulation.start(), folder, "0" * 8, backend, 1).backend == backend


def test_another_choice_of_backend_or_threads_is_stored_apart(tmp_path):
    folder = tmp_path / "seed0"
    folder.mkdir()
    simulation = simulate("fedavg")
    for backend, threads in (("loop", 1), ("vmap", 1), ("loop", 2)):
        resolve_execution(simulation, simulation.start(), folder, "0" * 8, backend, threads)
    assert len(list(tmp_path.glob("execution-*.json"))) == 3


def test_an_absent_gpu_is_a_users_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"cuda.*no GPU.*cpu"):
        resolve_device("cuda")
    assert resolve_device("auto") == CPU


# ----------------------------------------------------------------------------------------- evaluation


def test_batch_means_and_sample_means_by_hand():
    """Client 1 has 5 test rows, batch 4: the published mean of batch means gives the last row the weight of four."""
    means = {}
    for weighting in ("batch_means", "sample_mean"):
        for backend, chunk in (("loop", 1), ("vmap", 3)):
            simulation = simulate("fedavg", switches={"client_value": weighting}, backend=backend, chunk=chunk)
            state = simulation.start()
            rows = simulation.data.test
            clients = np.arange(simulation.data.clients)
            means[weighting] = simulation.own_rows(state, rows, clients)
            for k in clients:
                x, y = rows.gather(torch.from_numpy(rows.index[k, : rows.count[k]]))
                outputs, _ = simulation.method.predict(state.values, x, None, None)
                each = torch.nn.functional.cross_entropy(outputs, y, reduction="none")
                hit = (outputs.argmax(1) == y).double()
                batches = [slice(at, at + 4) for at in range(0, len(y), 4)]
                for values, found in ((each, means[weighting].loss[k]), (hit, means[weighting].accuracy[k])):
                    by_batch = torch.stack([values[b].mean() for b in batches]).mean()
                    assert found == pytest.approx(float(by_batch if weighting == "batch_means" else values.mean()))
                assert means[weighting].correct[k] == int(hit.sum())
    assert means["batch_means"].loss[1] != pytest.approx(means["sample_mean"].loss[1])


def test_the_summary_weighs_clients_by_their_rows():
    simulation = simulate("fedavg")
    state = simulation.start()
    found = {(split, name): value for split, name, value in simulation.evaluate(state, 0, None).metrics}
    scores = simulation.own_rows(state, simulation.data.test, np.arange(7))
    assert found["test", "loss"] == pytest.approx(np.average(scores.loss, weights=scores.rows))
    assert found["test", "accuracy"] == pytest.approx(scores.correct.sum() / scores.rows.sum())
    by_cluster = [scores.correct[c::2].sum() / scores.rows[c::2].sum() for c in range(2)]
    assert found["test", "worst_cluster_accuracy"] == pytest.approx(min(by_cluster))
    assert found["test", "worst_decile_accuracy"] == pytest.approx(scores.accuracy.min())
    assert ("test", "top5_accuracy") not in found  # of 3 classes


def test_top_five_counts_what_is_among_them_and_no_nan():
    logits = torch.tensor([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]).expand(1, 7, 7)
    found = evaluate.near_hits("cross_entropy", logits, torch.arange(7)[None])
    assert found is not None and found.tolist() == [[1, 1, 1, 1, 1, 0, 0]]
    nan = evaluate.near_hits("cross_entropy", torch.full_like(logits, float("nan")), torch.arange(7)[None])
    assert nan is not None and not nan.any()
    assert evaluate.near_hits("cross_entropy", logits[..., :5], torch.zeros(1, 7, dtype=torch.int64)) is None
    assert evaluate.near_hits("mse", logits, logits) is None


def test_top_five_of_clients_and_of_the_population_is_that_of_topk(monkeypatch):
    monkeypatch.setattr(evaluate, "TOP_K", 2)  # of the 5 classes
    for backend, chunk in (("loop", 1), ("vmap", 3)):
        simulation = simulate("ensemble", backend=backend, chunk=chunk)
        state = simulation.start()
        data = simulation.data
        scores, metrics = simulation.global_test(state)
        own = simulation.own_rows(state, data.test, np.arange(data.clients))
        for k, cluster in enumerate(data.cluster.tolist()):
            view = view_of(simulation, state, k)
            x, y = data.global_test(cluster)
            some = data.test.gather(torch.from_numpy(data.test.index[k, : data.test.count[k]]))
            for found, (rows, labels) in ((scores, (data.test.decode(x), y)), (own, some)):
                outputs, _ = simulation.method.predict(view, rows, None, None)
                hit = (outputs.topk(2).indices == labels[:, None]).any(1)
                assert found.top5[k] == pytest.approx(float(hit.double().mean()))
        told = {name: value for _, name, value in metrics}
        assert told["top5_accuracy"] == pytest.approx(np.average(scores.top5, weights=scores.rows))
        assert told["accuracy"] < told["top5_accuracy"] < 1


def test_the_worst_served_of_a_regression_have_the_largest_losses():
    simulation = simulate("fedavg", data=make_data(regression=True))
    scores, metrics = simulation.global_test(simulation.start())
    told = {name: value for _, name, value in metrics}
    assert told["worst_cluster_loss"] == pytest.approx(max(scores.loss))
    assert told["worst_decile_loss"] == pytest.approx(max(scores.loss))
    assert not {"accuracy", "top5_accuracy", "worst_cluster_accuracy"} & told.keys()


def test_official_evaluation_samples_as_many_clients_as_a_cohort_apart_from_it():
    simulation = simulate("fedavg", fidelity="official")
    rounds = range(1, 30)
    assert all(len(simulation.evaluated_clients(r)) == simulation.settings.cohort for r in rounds)
    assert any(set(simulation.evaluated_clients(r)) != set(simulation.cohort(r)) for r in rounds)


def test_a_loss_that_is_not_finite_or_explodes_is_a_divergence():
    for lr in (1e30, 1e12):
        simulation = simulate("fedavg", dtype=torch.float32, lr=lr, clusters=1)
        state = simulation.start()
        for round in (1, 2, 3):
            loss, _ = simulation.train(state, round)
        assert simulation.evaluate(state, 3, float(loss)).diverged
    calm = simulate("fedavg")
    assert not calm.evaluate(calm.start(), 0, None).diverged


def test_a_split_without_samples_is_no_divergence():
    """With sampled evaluation, it may happen that no evaluated client has a validation sample."""
    data = make_data()
    sampled = {"evaluation": "sampled"}
    absent = np.setdiff1d(np.arange(data.clients), simulate("fedavg", switches=sampled).evaluated_clients(1))
    validation = np.isin(np.arange(data.clients), absent).astype(int)
    data = replace(data, counts={**data.counts, "validation": validation})
    simulation = simulate("fedavg", data=data, switches=sampled)
    found = simulation.evaluate(simulation.start(), 1, 1.0)
    assert {split: np.isnan(v) for split, metric, v in found.metrics if metric == "loss"}["validation"]
    assert not found.diverged
    assert simulation.evaluate(simulation.start(), 1, float("nan")).diverged


def test_routes_that_are_not_finite_are_a_divergence():
    simulation = simulate("floral_1")
    state = simulation.start()
    state.values["router"]["logits"] = torch.full_like(state.values["router"]["logits"], torch.nan)
    found = simulation.evaluate(state, 0, None)
    assert found.diverged and found.routes is None


def test_the_last_bin_is_the_last_fifty_first_of_the_rounds():
    """The published numbers (arXiv 2410.03497) are means of the last 6 of 500 rounds, and 16 of 1500."""
    for rounds, expected in ((500, 6), (1500, 16)):
        settings = simulate("fedavg", rounds=rounds).settings
        assert sum(settings.last_bin(r) for r in range(1, rounds + 1)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_route_metrics_of_perfect_uniform_and_swapped_routes(dtype):
    true = torch.arange(7) % 2
    for logits, ari, entropy, mismatch in (
        (fixed_logits(true, 2), 1.0, 0.0, 0.0),
        (fixed_logits(1 - true, 2), 1.0, 0.0, 0.0),
        (torch.zeros(7, 2), 0.0, np.log(2), None),
    ):
        simulation = simulate("floral_1", dtype=dtype)
        state = simulation.start()
        state.values["router"]["logits"] = logits.to(dtype)
        found = {name: value for split, name, value in simulation.evaluate(state, 0, None).metrics if split == "route"}
        assert found["ari"] == pytest.approx(ari)
        assert found["entropy"] == pytest.approx(entropy, abs=1e-6)
        if mismatch is None:  # p̂(k|c) = p(k): outside of c mass 1 - p(c), inside too much of it is missing
            p = np.array(SIZES) / sum(SIZES)
            share = np.array([p[0::2].sum(), p[1::2].sum()])
            mismatch = float((2 * (1 - share)).mean())
        assert found["mismatch"] == pytest.approx(mismatch, abs=1e-6)


def test_routes_of_clients_of_one_concept_recover_nothing():
    route = np.array([[0.5, 0.5], [1.0, 0.0]])
    found = evaluate.route_metrics(route, np.zeros(2, int), np.ones(2))
    assert found == {"entropy": pytest.approx(np.log(2) / 2)}


@pytest.mark.parametrize("assumed", [2, 6])
@pytest.mark.parametrize("variant", ["ensemble", "ifca", "fedem", "momentum_clustering", "floral_1", "floral_1_double"])
def test_methods_may_be_told_half_or_twice_the_true_number_of_clusters(variant, assumed):
    simulation = simulate(variant, data=make_data(clusters=3), assumed_clusters=assumed)
    state = simulation.start()
    simulation.train(state, 1)
    evaluation = simulation.evaluate(state, 1, None)
    assert evaluation.routes.shape[1] == assumed * (2 if variant == "floral_1_double" else 1)
    metrics = {(split, name): value for split, name, value in evaluation.metrics}
    assert 0 <= metrics["route", "mismatch"] <= 2 and np.isfinite(metrics["test", "loss"])


def test_routes_to_two_of_three_clusters_miss_the_third():
    cluster = np.array([0, 1, 2, 0, 1])
    route = np.eye(2)[np.minimum(cluster, 1)]
    assert evaluate.route_metrics(route[cluster < 2], cluster[cluster < 2], np.ones(4))["mismatch"] == 0
    # p̂(k|1) has a third on the client of cluster 2: 2·(1/3); and nobody stands for cluster 2: 1
    assert evaluate.route_metrics(route, cluster, np.ones(5))["mismatch"] == pytest.approx((0 + 2 / 3 + 1) / 3)


# ----------------------------------------------------------------------------------------------- GPUs


def test_on_a_gpu_one_worker_takes_the_whole_cohort():
    plain, recorded = execution.on_gpu(30)
    assert [how.backend for how in plain] == ["vmap", "loop"]
    assert recorded == [Execution("batched", 30, graphs=True)]
    assert all(how.workers == how.threads == 1 for how in (*plain, *recorded))


@pytest.mark.parametrize(("room", "taken"), [(5, 5), (4, 3), (2, 2), (1, 1)])
def test_a_candidate_that_has_no_room_gets_half_its_chunk(monkeypatch, room, taken):
    simulation = simulate("fedavg")

    def seconds(trial, state):
        if trial.execution.chunk > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return execution.Timing(1.0)

    monkeypatch.setattr(execution, "seconds_per_client", seconds)
    (found,) = execution.measure(simulation, simulation.start(), [Execution("vmap", 5)])
    assert found == Execution("vmap", taken)


def test_no_room_for_one_client_is_said(monkeypatch):
    def seconds(trial, state):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(execution, "seconds_per_client", seconds)
    simulation = simulate("fedavg")
    with pytest.raises(torch.OutOfMemoryError) as raised:
        execution.measure(simulation, simulation.start(), [Execution("vmap", 5)])
    reason, hint = train.diagnosis(raised.value)
    assert reason == "out of GPU memory" and "runs_per_gpu" in hint


def test_leases_of_a_slurm_job_are_its_own():
    """SLURM gave it its GPUs; other jobs of the same user may hold others of this machine."""
    shared = lease_folder({})
    assert lease_folder({"SLURM_JOB_ID": "7"}) == shared / "slurm-7"
    assert str(os.getuid()) in shared.name


def test_a_cpu_needs_no_place(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level("INFO", "floral.train"), hold_device("auto", 1) as device:
        assert device == CPU
    assert "device: auto: torch finds no GPU; using the CPU" in caplog.text


def test_a_run_takes_the_gpu_of_its_place(monkeypatch, tmp_path):
    """Two GPUs that are not there, one run on each: the second run gets the second, a third would have to wait."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a GPU")
    monkeypatch.setattr(gpus, "gpu_ids", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(gpus, "lease_folder", lambda environment: tmp_path)
    with hold_device("cuda", 1) as first, hold_device("auto", 1) as second:
        assert (first, second) == (torch.device("cuda", 0), torch.device("cuda", 1))
        assert take_place(["GPU-a", "GPU-b"], 1, tmp_path) is None
    assert chosen == [0, 1]


def test_data_and_state_lie_on_the_device():
    """Batches are gathered there: from the CPU come row numbers, masks and draws."""
    meta = torch.device("meta")
    simulation = simulate("floral_1", device=meta)
    data = simulation.data
    tensors = [*(tensor for rows in (data.train, data.test, data.validation) for tensor in (rows.x, rows.y))]
    tensors += [data.cluster, data.pool_of_client, *data.global_test(0), *simulation.start().tensors().values()]
    assert {tensor.device for tensor in tensors} == {meta}
