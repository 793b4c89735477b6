"""Clients that join after training. Only their PRIVATE values are trained, on a few samples per client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from floral.core.spec import Group, Method, Params, Scope, ServerStep, View
from floral.engine.aggregate import write_back
from floral.engine.client_data import ClientData
from floral.engine.evaluate import Scores
from floral.engine.local import Clients
from floral.engine.simulate import Execution, Settings, Simulation
from floral.engine.state import State, dims, start, view

MAX_CHUNK_FLOATS = 1 << 24
"""Maximum number of PRIVATE values in one chunk of joining clients: 64 MiB in single precision."""


def sizes_of(samples: Sequence[int], rows: np.ndarray) -> list[int]:
    """Return numbers n in increasing order. The joining clients are trained once for each n, on n samples each.

    `rows` has the number of training samples of each client. The largest n is min(`rows`), because every client has at
    least so many samples. The other n are all numbers in `samples` that are smaller than min(`rows`).
    """
    most = int(rows.min())
    return [*sorted({n for n in samples if n < most}), most]


def join(method: Method, trained: State, data: ClientData, settings: Settings, sizes: list[int], epochs: int) -> Scores:
    """Train the PRIVATE values of the clients of `data`, which join after training, and return the clients' scores.

    Each client is evaluated on the global test set, under the data shift of its true cluster. If the setting
    `sampled_evaluation` is True, each client is evaluated on its own test samples instead.
    """
    simulation, state = personalised(method, trained, data, settings, sizes, epochs)
    if not settings.sampled_evaluation:
        return simulation.global_test(state)[0]
    return simulation.own_rows(state, simulation.data.test, np.arange(simulation.data.clients))


def personalised(
    method: Method, trained: State, data: ClientData, settings: Settings, sizes: list[int], epochs: int
) -> tuple[Simulation, State]:
    """Train the PRIVATE values of the U joining clients, once for each number n of training samples in `sizes`.

    Each time, a client uses its first n training samples. In the result, client u with n = sizes[s] has the index s·U +
    u. `method` is built for U clients. `trained` has the trained SHARED, CLUSTERED and FROZEN values of the method,
    which stay fixed. PRIVATE groups start with the values of `Method.join`, or else of `init`.

    Clients with samples then do `epochs` rounds of local training: first `assign`, then one epoch of each phase that
    trains PRIVATE groups. The numbers of epochs that the task or the method sets are not used, so that `epochs` has the
    same meaning for all methods. The clients send nothing to the server. Clients without samples keep their start
    values. A method that pools its clients, or has no PRIVATE groups, trains nothing. Test samples are not used.
    """
    copies = repeated(data, sizes, method.pool is not None)
    if method.pool is not None:
        return Simulation(method, copies, settings, Execution("vmap", data.clients)), trained
    method = held_by_server(method, len(sizes), settings.rounds)
    state = start(method, data.train.dtype, data.train.x.device)
    for name, group in method.groups.items():
        if group.scope is not Scope.PRIVATE:
            state.values[name] = trained.values[name]
    private_values = [tensor for name in private(method) for tensor in state.values[name].values()]
    chunk = max(1, MAX_CHUNK_FLOATS // max(1, sum(tensor[0].numel() for tensor in private_values)))
    simulation = Simulation(method, copies, replace(settings, epochs=1, steps_per_epoch=None), Execution("vmap", chunk))
    pools = np.arange(copies.clients)
    chunks = [pools[at : at + chunk] for at in range(0, len(pools), chunk)]
    if method.join is not None:
        for joining in chunks:
            begin(method, state, torch.from_numpy(joining).to(simulation.device))
    chunks = [with_samples for joining in chunks if len(with_samples := joining[copies.train.count[joining] > 0])]
    # New round numbers give random numbers that training has not used.
    for round in range(settings.rounds + 1, settings.rounds + 1 + epochs):
        for joining in chunks:
            personalise(simulation, state, round, joining)
    return simulation, state


def held_by_server(method: Method, copies: int, rounds: int) -> Method:
    """Return a copy of the method for clients that join after training: only PRIVATE groups are trained.

    There are several copies of each joining client, one per number of training samples. PRIVATE groups and fixed
    clusters are therefore repeated `copies` times. The phases are those of the round that would follow the
    last round of training, except phases without PRIVATE groups.

    All other groups have the learning rate 0. With the usual SGD step, a phase trains only its PRIVATE groups. A
    method's own step (`Method.local_step`) gets all groups of the phase, but the learning rate 0 leaves the other
    groups unchanged.
    """

    def held(group: Group) -> Group:
        if group.scope is Scope.PRIVATE:
            return replace(group, init=lambda: _copied(group.init(), copies))
        return replace(group, lr=0.0, fixed=True, statistic=False)

    phases = []
    for phase in method.phases_of(rounds + 1, rounds):
        private_groups = tuple(name for name in phase.train if name in private(method))
        if private_groups:
            train = phase.train if method.local_step else private_groups
            phases.append(replace(phase, train=train, epochs=None, when=None))
    groups = {name: held(group) for name, group in method.groups.items()}
    cluster_of_client = method.routing.cluster_of_client
    if cluster_of_client is not None:
        cluster_of_client = cluster_of_client.repeat(copies)
    routing = replace(method.routing, cluster_of_client=cluster_of_client)
    return replace(method, groups=groups, phases=tuple(phases), routing=routing, server=ServerStep())


def private(method: Method) -> list[str]:
    """Return the names of the method's PRIVATE groups."""
    return [name for name, group in method.groups.items() if group.scope is Scope.PRIVATE]


def _copied(params: Params, copies: int) -> Params:
    return {name: value.repeat(copies, *(1,) * (value.dim() - 1)) for name, value in params.items()}


def repeated(data: ClientData, sizes: list[int], pooled: bool) -> ClientData:
    """Return data with one copy of all clients for each n in `sizes`; a copy has only the first n training samples.

    With `pooled`, the training samples stay as they are, because they belong to pools of clients.
    """

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
    """Set the PRIVATE values of m joining clients to the start values from `Method.join`, in place.

    `pools` [m] has the indices of these clients.
    """
    assert method.join is not None
    seen, axes = view(method, state.values, pools, pools)
    started = torch.vmap(method.join, in_dims=(dims(axes, seen),))(seen)
    write_back(state, method, _Values(started), pools)


def personalise(simulation: Simulation, state: State, round: int, pools: np.ndarray) -> None:
    """Do one round of local training of m joining clients, and write their PRIVATE values into the state.

    `pools` [m] has the indices of these clients.
    """
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
    """The PRIVATE values [m, ...] of m clients, as an argument of `write_back`."""

    values: View
