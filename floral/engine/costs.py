"""Count the costs of a method: floats that are stored and sent, and forward-backward passes per sample.

The costs are counted from the shapes of the method's parameters, not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import torch

from floral.core.spec import Batch, Group, Method, Params, Phase, Scope, View
from floral.core.units import BYTES_PER_FLOAT
from floral.engine.state import State


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of a method: numbers of floats, and forward-backward passes per training sample.

    `served` is the number of floats that one client needs for its predictions. `sent_down` and `sent_up` are the floats
    that one client receives and sends in one round. `server` is the number of floats that the server holds. All other
    numbers of floats are per client.
    """

    base: int
    trainable_per_client: int
    served: int
    sent_down: int
    sent_up: int
    kept_private: int
    server: int
    passes_per_sample: float

    @property
    def bytes_per_client(self) -> int:
        """The number of bytes that one client receives and sends in one round, added together."""
        return BYTES_PER_FLOAT * (self.sent_down + self.sent_up)

    def parameters(self) -> dict[str, int]:
        """Return all numbers of floats by name, without the passes per sample."""
        return {name: value for name, value in asdict(self).items() if name != "passes_per_sample"}


def needed_to_predict(method: Method, view: View, samples: Batch) -> frozenset[str]:
    """Return the names of the groups that one client needs to predict. `samples` are its training samples.

    A group is needed if the outputs become NaN when its values do, also by what `Method.before_predictions` computes
    from it. The values in `view` do not matter, except those of statistics, such as the number of the client's cluster.
    """
    parts = [group for group in view if not method.groups[group].statistic]
    statistics = {group: {n: t.nan_to_num() for n, t in view[group].items()} for group in view if group not in parts}
    zeros = {group: {name: torch.zeros_like(t) for name, t in view[group].items()} for group in parts}

    def needed(group: str) -> bool:
        unknown = {name: torch.full_like(t, torch.nan) for name, t in view[group].items()}
        values = {**statistics, **zeros, group: unknown}
        if method.before_predictions is not None:
            values |= method.before_predictions(values, samples)
        outputs, _ = method.predict(values, samples.x[:1], None, None)
        return bool(outputs.isnan().any())

    with torch.no_grad():
        return frozenset(filter(needed, parts))


def count(
    method: Method,
    state: State,
    now: tuple[Phase, ...],
    before: tuple[Phase, ...],
    needed: frozenset[str],
    *,
    epochs: int = 1,
) -> Costs:
    """Count the costs of one round, in which local training has the phases `now`.

    A phase trains some of the groups of parameters. `before` has the phases of the previous round; the values that
    changed there are sent to the clients now. `needed` has the groups that a client needs for its predictions. The
    method's `assign`, which sets PRIVATE values before local training, runs once per round. Its cost per sample is
    therefore divided by the number of local `epochs`.
    """
    held = {name: _held(method, group, state.values[name]) for name, group in method.groups.items()}
    one_cluster = method.routing.serves_one_cluster
    used = {
        name: _slice(group, state.values[name]) if one_cluster and group.scope is Scope.CLUSTERED else held[name]
        for name, group in method.groups.items()
    }
    sent = _sent(method, held, used, now, before)
    passes = method.cost.passes_per_sample + method.cost.assign_passes_per_sample / max(1, epochs)
    served = {**{name: used[name] for name in needed}, **method.cost.floats_served}
    return Costs(
        base=_slice(method.groups["base"], state.values["base"]),
        trainable_per_client=sum(used[name] for name in {name for phase in now for name in phase.train}),
        served=sum(served.values()),
        sent_down=sum(down for down, _ in sent.values()),
        sent_up=sum(up for _, up in sent.values()),
        kept_private=0
        if method.pool
        else sum(held[name] for name, group in method.groups.items() if group.scope is Scope.PRIVATE),
        server=sum(
            _size(state.values[name])
            for name, group in method.groups.items()
            if group.scope in (Scope.SHARED, Scope.CLUSTERED)
        ),
        passes_per_sample=passes if now else 0.0,
    )


def mean(costs: Sequence[Costs]) -> Costs:
    """Return the mean of each cost over several rounds. Mean numbers of floats are rounded to integers."""
    if len(set(costs)) == 1:
        return costs[0]
    columns = {name: [getattr(cost, name) for cost in costs] for name in asdict(costs[0])}
    counts = {name: round(fmean(values)) for name, values in columns.items() if name != "passes_per_sample"}
    return Costs(**counts, passes_per_sample=fmean(columns["passes_per_sample"]))


def _sent(
    method: Method, held: dict[str, int], used: dict[str, int], now: tuple[Phase, ...], before: tuple[Phase, ...]
) -> dict[str, tuple[int, int]]:
    """Return a pair (down, up) for each group: the floats that one client receives and sends in a round.

    Usually, only SHARED and CLUSTERED groups are sent. A client sends those that change in this round. It receives
    those that change in this round or changed in the round before. A client that missed earlier rounds must also
    receive the changes of these rounds, but they are not counted. Of a CLUSTERED group, a client receives one cluster
    if the server picks the cluster, and all clusters if the client picks it (`Method.assign`). A count that the method
    declares in `floats_sent` replaces the count made here.
    """
    received = used if method.assign is None else held
    up = set(method.changing(now)) if now else set()
    down = up | set(method.changing(before)) if now else up
    sent = {}
    for name, group in method.groups.items():
        averaged = group.scope in (Scope.SHARED, Scope.CLUSTERED)
        sent[name] = (received[name] if averaged and name in down else 0, used[name] if averaged and name in up else 0)
    declared = [method.cost.floats_sent, *(phase.floats_sent for phase in now)]
    return {**sent, **{name: floats for floats_sent in declared for name, floats in floats_sent.items()}}


def _held(method: Method, group: Group, params: Params) -> int:
    """Return the number of floats of a group that one client holds.

    A client holds all clusters of a CLUSTERED group, or only its own cluster if the method fixes it.
    """
    holds_all = group.scope is Scope.CLUSTERED and method.routing.cluster_of_client is None
    return _size(params) if holds_all else _slice(group, params)


def _slice(group: Group, params: Params) -> int:
    """Return the floats of one cluster if the group is CLUSTERED, of one client if it is PRIVATE, else of the group."""
    holders = len(next(iter(params.values()))) if group.scope in (Scope.CLUSTERED, Scope.PRIVATE) else 1
    return _size(params) // holders


def _size(params: Params) -> int:
    return sum(tensor.numel() for tensor in params.values())
