"""Clients that join after training: what is their own is trained on a few samples, what the server gave stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from floral.core.spec import Group, Method, Params, Scope, ServerStep, View
from floral.engine.aggregate import write_back
from floral.engine.evaluate import Scores
from floral.engine.local import Clients
from floral.engine.rows import ClientData
from floral.engine.simulate import Execution, Settings, Simulation
from floral.engine.state import State, dims, start, view

FLOATS_AT_ONCE = 1 << 24
"""Numbers of their own that clients who join in one piece may have together: 64 MiB in single precision."""


def sizes_of(samples: Sequence[int], rows: np.ndarray) -> list[int]:
    """The numbers of samples that every client has, of those asked for, and at last all rows of the smallest client."""
    most = int(rows.min())
    return [*sorted({n for n in samples if n < most}), most]


def join(method: Method, trained: State, data: ClientData, settings: Settings, sizes: list[int], epochs: int) -> Scores:
    """Scores of the U clients of `data` that join as `personalised` says, on the whole test set under their own concept
    or, where the evaluation is a sampled one, on their own test rows.
    """
    simulation, state = personalised(method, trained, data, settings, sizes, epochs)
    if not settings.sampled_evaluation:
        return simulation.global_test(state)[0]
    return simulation.own_rows(state, simulation.data.test, np.arange(simulation.data.clients))


def personalised(
    method: Method, trained: State, data: ClientData, settings: Settings, sizes: list[int], epochs: int
) -> tuple[Simulation, State]:
    """Let the U clients of `data` join once for each of `sizes`, with their first so many training rows.

    Client u with sizes[s] samples is number s·U + u of what is returned. `method` is the trained one, built for U
    clients; `trained` has its SHARED, CLUSTERED and FROZEN values. PRIVATE groups begin as `init` or `Method.join`
    says. Clients without samples stay there; the others take `epochs` rounds of local training of one epoch each,
    without sending anything: `assign`, then each phase in as far as it trains PRIVATE groups (one epoch even if the
    phase has a number of its own, so that all methods have as many). A method that pools its clients, or has nothing of
    their own, serves what it has. No test row is read.
    """
    copies = repeated(data, sizes, method.pool is not None)
    if method.pool is not None:
        return Simulation(method, copies, settings, Execution("vmap", data.clients)), trained
    method = held_by_server(method, len(sizes), settings.rounds)
    state = start(method, data.train.dtype, data.train.x.device)
    for name, group in method.groups.items():
        if group.scope is not Scope.PRIVATE:
            state.values[name] = trained.values[name]
    own = [tensor for name in private(method) for tensor in state.values[name].values()]
    chunk = max(1, FLOATS_AT_ONCE // max(1, sum(tensor[0].numel() for tensor in own)))
    simulation = Simulation(method, copies, replace(settings, epochs=1, steps_per_epoch=None), Execution("vmap", chunk))
    pools = np.arange(copies.clients)
    chunks = [pools[at : at + chunk] for at in range(0, len(pools), chunk)]
    if method.join is not None:
        for some in chunks:
            begin(method, state, torch.from_numpy(some).to(simulation.device))
    chunks = [kept for some in chunks if len(kept := some[copies.train.count[some] > 0])]
    for round in range(settings.rounds + 1, settings.rounds + 1 + epochs):  # random numbers that no round has had
        for some in chunks:
            personalise(simulation, state, round, some)
    return simulation, state


def held_by_server(method: Method, copies: int, rounds: int) -> Method:
    """The method as `copies` of each joining client run it: all that is not PRIVATE has rate 0 and is never sent.

    Phases are those that would take place in a round after the last. A method's own local step gets all of their
    groups, and moves the server's by nothing; an SGD step does without these.
    """

    def held(group: Group) -> Group:
        if group.scope is Scope.PRIVATE:
            return replace(group, init=lambda: _copied(group.init(), copies))
        return replace(group, lr=0.0, fixed=True, statistic=False)

    phases = []
    for phase in method.phases_of(rounds + 1, rounds):
        own = tuple(name for name in phase.train if name in private(method))
        if own:
            train = phase.train if method.local_step else own
            phases.append(replace(phase, train=train, epochs=None, when=None))
    groups = {name: held(group) for name, group in method.groups.items()}
    cluster_of_client = method.routing.cluster_of_client
    if cluster_of_client is not None:
        cluster_of_client = cluster_of_client.repeat(copies)
    routing = replace(method.routing, cluster_of_client=cluster_of_client)
    return replace(method, groups=groups, phases=tuple(phases), routing=routing, server=ServerStep())


def private(method: Method) -> list[str]:
    """The groups that are a client's own."""
    return [name for name, group in method.groups.items() if group.scope is Scope.PRIVATE]


def _copied(params: Params, copies: int) -> Params:
    return {name: value.repeat(copies, *(1,) * (value.dim() - 1)) for name, value in params.items()}


def repeated(data: ClientData, sizes: list[int], pooled: bool) -> ClientData:
    """The clients once for each size, limited to their first so many training rows; the rows of pools as they are."""

    def tiled(index: np.ndarray) -> np.ndarray:
        return np.tile(index, (len(sizes), *(1,) * (index.ndim - 1)))

    train, pool_of_client, copies = data.train, data.pool_of_client.repeat(len(sizes)), len(sizes) * data.clients
    if not pooled:
        limited = np.minimum(tiled(train.count), np.repeat(sizes, data.clients))
        train = replace(train, index=tiled(train.index), count=limited)
        pool_of_client = torch.arange(copies, device=pool_of_client.device)
    return ClientData(
        train=train,
        test=replace(data.test, index=tiled(data.test.index), count=tiled(data.test.count)),
        validation=None,
        global_test=data.global_test,
        cluster=data.cluster.repeat(len(sizes)),
        pool_of_client=pool_of_client,
    )


def begin(method: Method, state: State, pools: Tensor) -> None:
    """Give some learners what `Method.join` starts them with."""
    assert method.join is not None
    seen, axes = view(method, state.values, pools, pools)
    started = torch.vmap(method.join, in_dims=(dims(axes, seen),))(seen)
    write_back(state, method, _Values(started), pools)


def personalise(simulation: Simulation, state: State, round: int, pools: np.ndarray) -> None:
    """One round of some learners, in place."""
    method, settings, ids = simulation.method, simulation.settings, torch.from_numpy(pools).to(simulation.device)
    share = torch.ones(len(pools), device=simulation.device) / len(pools)
    if method.phases:
        write_back(state, method, simulation.train_chunk(state, round, pools, share), ids)
    elif method.assign is not None:
        seen, axes = view(method, state.values, ids, ids)
        clients = Clients(method, (), settings.loss, True, simulation.clusters)
        write_back(state, method, _Values(clients.assigned(seen, axes, simulation.held(pools))), ids)


@dataclass(frozen=True)
class _Values:
    """Values with a learner axis, to be written back."""

    values: View
