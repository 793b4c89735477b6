"""Contracts that every method and model keeps. Each is a function that raises `Broken` if its contract is broken.

A contract gets a function `make`. `make(**how)` returns a new simulation of a method on a model and small data; `how`
has arguments of `floral.check.federation.simulate`, such as `backend` and `lr`. The tests of the package and the
command `floral check` call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from floral.check.federation import served, train, view_of
from floral.core.spec import Method, Scope
from floral.engine.simulate import Simulation
from floral.engine.state import State

Make = Callable[..., Simulation]

VECTORISED = ("vmap", "batched")
"""Backends that are compared with the backend loop."""


class Broken(AssertionError):
    """Error: a contract is broken. The message says what was observed."""


# ------------------------------------------------------------------------------------------ comparison


def check_equal(values: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """Check that every tensor agrees within `tolerance` · max(1, its largest absolute value).

    Raises:
        Broken: a tensor differs, or has no counterpart. The message names it.
    """
    if missing := sorted(values.keys() ^ reference.keys()):
        raise Broken(f"{missing[0]} is in one of the two results only")
    for name, tensor in values.items():
        expected = reference[name]
        if tensor.shape != expected.shape:
            raise Broken(f"{name} has the shape {list(tensor.shape)}, expected {list(expected.shape)}")
        scale = max(1.0, float(tensor.abs().max()) if tensor.numel() else 0.0)
        if not torch.allclose(tensor, expected, rtol=0, atol=tolerance * scale):
            difference = float((tensor - expected).abs().max())
            raise Broken(f"{name} differs by {difference:.2g}; at most {tolerance * scale:.2g} is rounding")


def check_equal_states(values: State, reference: State, tolerance: float) -> None:
    """Check that all tensors of two states agree, including the moments of the server optimiser."""
    check_equal(values.tensors(), reference.tensors(), tolerance)


# ------------------------------------------------------------------------------------------ declaration


def declaration_is_complete(method: Method, clients: int) -> None:
    """All groups that the method names exist, and routes are declared where clusters are averaged."""
    if not isinstance(method, Method):
        raise Broken(f"`build` returns {type(method).__name__}, not a Method")
    if "base" not in method.groups:
        raise Broken(f"there is no group with the name base, only {', '.join(method.groups)}")
    routing = method.routing
    if any(group.scope is Scope.CLUSTERED for group in method.groups.values()):
        if (routing.log_route is None) == (routing.cluster_of_client is None):
            raise Broken("a group is CLUSTERED, but the routing has not exactly one of log_route and cluster_of_client")
        if routing.cluster_of_client is not None and len(routing.cluster_of_client) != clients:
            raise Broken(f"cluster_of_client has {len(routing.cluster_of_client)} entries for {clients} clients")
    for phase in method.phases or ():
        if unknown := set(phase.train) - set(method.trained):
            raise Broken(f"a phase trains {min(unknown)}, which is no group that can be trained")
    if unknown := set(method.cost.floats_sent) - set(method.groups):
        raise Broken(f"the costs name {min(unknown)}, which is no group")


# ------------------------------------------------------------------------------------------ numbers


def backends_agree(
    make: Make, tolerance: float, backends: Iterable[str] = VECTORISED, chunk: int = 3, **how: Any
) -> None:
    """After three rounds with unequal clients, each backend has the numbers of the backend loop."""
    loop = train(make(**how)).tensors()
    for backend in backends:
        vectorised = train(make(backend=backend, chunk=chunk, **how)).tensors()
        try:
            check_equal(vectorised, loop, tolerance)
        except Broken as difference:
            raise Broken(f"after 3 rounds, backend {backend} and backend loop disagree: {difference}") from None


def chunks_do_not_matter(make: Make, **how: Any) -> None:
    """Random numbers belong to the round, client and step, not to the clients that are computed together."""
    first, *rest = (train(make(backend="vmap", chunk=chunk, **how)) for chunk in (1, 2, 7))
    for chunk, state in zip((2, 7), rest, strict=True):
        try:
            check_equal_states(state, first, 1e-10)
        except Broken as difference:
            raise Broken(f"{chunk} clients computed at once give other numbers than 1: {difference}") from None


def zero_rate_changes_nothing(make: Make, **how: Any) -> None:
    """With a learning rate of 0, what clients predict stays as before training."""
    simulation = make(lr=0.0, router_lr=0.0, **how)
    start, end = simulation.start(), train(simulation)
    # a choice among models and running statistics depend on the samples, whatever the rate
    end.values.update({name: start.values[name] for name in simulation.method.statistics})
    for client, (after, before) in enumerate(zip(served(simulation, end), served(simulation, start), strict=True)):
        if not torch.allclose(after, before, rtol=0, atol=1e-12):
            difference = float((after - before).abs().max())
            raise Broken(f"with `lr: 0`, the outputs of client {client} change by {difference:.2g}")


def training_changes_predictions(make: Make, **how: Any) -> None:
    """After training, clients that took part predict something else. A method without phases changes nothing."""
    simulation = make(**how)
    before, after = served(simulation, simulation.start()), served(simulation, train(simulation))
    moved = [bool((a - b).abs().max() > 1e-3) for a, b in zip(after, before, strict=True)]
    cohorts = (set(simulation.cohort(round).tolist()) for round in range(1, 4))
    trained = set.union(*cohorts) if simulation.method.pool is None else set(range(len(moved)))
    if simulation.method.phases == ():
        if any(moved):
            raise Broken(f"the method has no phases, but the outputs of client {moved.index(True)} change")
    elif still := [client for client in sorted(trained) if not moved[client]]:
        raise Broken(f"after 3 rounds, the outputs of clients {', '.join(map(str, still))} are as before training")


def global_only_is_true(make: Make, global_only: bool, **how: Any) -> None:
    """The key `global_only` is true exactly if all clients are served the same model."""
    simulation = make(rounds=5, **how)
    state, alike, round = simulation.start(), True, 0
    while alike and round < simulation.settings.rounds:
        round += 1
        simulation.train(state, round)
        first, *rest = served(simulation, state)
        alike = all(torch.equal(first, outputs) for outputs in rest)
    if alike != global_only:
        observed = "the same" if alike else "different"
        raise Broken(f"`global_only` is {str(global_only).lower()}, but clients are served {observed} models")


class Reversed(Simulation):
    """A simulation whose cohorts are in the opposite order."""

    def cohort(self, round: int) -> Any:
        return super().cohort(round)[::-1].copy()


def cohort_order_is_irrelevant(make: Make, **how: Any) -> None:
    """The order of the clients in a round does not change the result."""
    try:
        check_equal_states(train(make(kind=Reversed, **how)), train(make(**how)), 1e-12)
    except Broken as difference:
        raise Broken(f"the opposite order of clients gives other numbers: {difference}") from None


def absent_clients_keep_their_values(make: Make, backend: str = "vmap", chunk: int = 3, **how: Any) -> None:
    """PRIVATE values of clients that are not in a round stay as they are; those of trained clients are written back."""
    simulation = make(backend=backend, chunk=chunk, participation=0.5, **how)
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
                    if not same and k not in cohort:
                        raise Broken(f"{name}/{key} of client {k} changed in a round without this client")
                    if same and k in cohort and name in training and key.endswith("out.bias"):
                        raise Broken(f"{name}/{key} of client {k} was trained, but is as before")


def a_round_is_a_function_of_its_state(make: Make, backend: str = "vmap", chunk: int = 3, **how: Any) -> None:
    """The same round on an equal state gives the same bits, so an interrupted run can continue."""
    simulation = make(backend=backend, chunk=chunk, **how)
    if simulation.method.phases == ():
        if simulation.settings.rounds != 0:
            raise Broken("the method has no phases, but the run has rounds")
        return
    state = train(simulation, 1)
    copies = [type(state).of({name: t.clone() for name, t in state.tensors().items()}) for _ in range(2)]
    losses = [simulation.train(copy, 2)[0] for copy in copies]
    try:
        check_equal({"loss": torch.as_tensor(losses[0])}, {"loss": torch.as_tensor(losses[1])}, 0.0)
        check_equal_states(copies[0], copies[1], 0.0)
    except Broken as difference:
        raise Broken(f"round 2, computed twice from the same state, differs: {difference}") from None


def frozen_groups_never_change(make: Make, **how: Any) -> None:
    """Groups that are FROZEN, or fixed, have their initial values after training."""
    simulation = make(**how)
    start, end = simulation.start(), train(simulation)
    for name, group in simulation.method.groups.items():
        if group.fixed or (group.scope is Scope.FROZEN and not group.statistic):
            for key, tensor in start.values[name].items():
                if not torch.equal(tensor, end.values[name][key]):
                    raise Broken(f"{name}/{key} is frozen, but has changed")


def samples_are_independent(make: Make, **how: Any) -> None:
    """What a client predicts for a sample does not depend on the samples that are predicted with it."""
    simulation = make(**how)
    state = train(simulation)
    together = served(simulation, state)
    data = simulation.data
    for client in (0, data.clients - 1):
        inputs = data.test.x
        for sample in range(min(3, len(inputs))):
            single = _outputs(simulation, state, client, inputs[sample : sample + 1])[0]
            difference = float((single - together[client][sample]).abs().max())
            if difference > 1e-9:
                raise Broken(f"alone, a sample has outputs that differ by {difference:.2g} from those in a batch")


def _outputs(simulation: Simulation, state: State, client: int, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        view = view_of(simulation, state, client)
        return simulation.method.predict(view, simulation.data.test.decode(x), None, None)[0]


def initial_values_follow_from_the_seed(make: Make, **how: Any) -> None:
    """Equal seeds give equal initial values, and another seed gives others."""
    first, again, different = (make(seed=seed, **how).start() for seed in (0, 0, 1))
    try:
        check_equal_states(first, again, 0.0)
    except Broken as difference:
        raise Broken(f"two models with the same seed start differently: {difference}") from None
    if all(torch.equal(t, different.tensors()[name]) for name, t in first.tensors().items()):
        raise Broken("models with the seeds 0 and 1 start with the same values")


def outputs_have_the_right_shape(make: Make, outputs: int, shape: Sequence[int] = (), **how: Any) -> None:
    """A batch of N samples gives outputs [N, outputs], or [N, T, outputs] for text of T tokens."""
    simulation = make(**how)
    inputs = simulation.data.test.x[:3]
    got = list(_outputs(simulation, simulation.start(), 0, inputs).shape)
    if got != [len(inputs), *shape, outputs]:
        raise Broken(f"{len(inputs)} samples give outputs of shape {got}, expected {[len(inputs), *shape, outputs]}")
