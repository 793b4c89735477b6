"""What a method costs, counted from its declaration: floats held, sent and served, passes per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from floral.core.spec import Group, Method, Params, Phase, Scope
from floral.core.units import BYTES_PER_FLOAT
from floral.engine.state import State


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Floats per client (and round, where sent); `server` is what the server holds."""

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
        """Bytes that one client receives and sends in a round."""
        return BYTES_PER_FLOAT * (self.sent_down + self.sent_up)

    def parameters(self) -> dict[str, int]:
        """The counts of floats, without the passes."""
        return {name: value for name, value in asdict(self).items() if name != "passes_per_sample"}


def count(method: Method, state: State, now: tuple[Phase, ...], before: tuple[Phase, ...], *, epochs: int = 1) -> Costs:
    """Costs of a round with the phases `now` after one with the phases `before`, from scopes and shapes.

    What `assign` costs once a round is spread over the samples of `epochs` epochs.
    """
    held = {name: _held(method, group, state.values[name]) for name, group in method.groups.items()}
    one_cluster = method.routing.serves_one_cluster
    own = {
        name: _slice(group, state.values[name]) if one_cluster and group.scope is Scope.CLUSTERED else held[name]
        for name, group in method.groups.items()
    }
    sent = _sent(method, held, own, now, before)
    passes = method.cost.passes_per_sample + method.cost.assign_passes_per_sample / max(1, epochs)
    parts = {name: group for name, group in method.groups.items() if not group.statistic}
    return Costs(
        base=_slice(method.groups["base"], state.values["base"]),
        trainable_per_client=sum(own[name] for name in {name for phase in now for name in phase.train}),
        served=sum(own[name] for name in parts),
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
    """The mean of every figure, counts rounded to whole floats."""
    if len(set(costs)) == 1:
        return costs[0]
    columns = {name: [getattr(one, name) for one in costs] for name in asdict(costs[0])}
    counts = {name: round(fmean(values)) for name, values in columns.items() if name != "passes_per_sample"}
    return Costs(**counts, passes_per_sample=fmean(columns["passes_per_sample"]))


def _sent(
    method: Method, held: dict[str, int], own: dict[str, int], now: tuple[Phase, ...], before: tuple[Phase, ...]
) -> dict[str, tuple[int, int]]:
    """Floats (down, up) of a client and round by group, or what the method says.

    A client sends up the averaged groups that change in the round, and gets those that change in this one or did in the
    one before: who joins later and fetches what has stayed the same since is not counted. One slice goes down where the
    server picks it, all of them where the client does.
    """
    received = own if method.assign is None else held
    up = set(method.changing(now)) if now else set()
    down = up | set(method.changing(before)) if now else up
    sent = {}
    for name, group in method.groups.items():
        averaged = group.scope in (Scope.SHARED, Scope.CLUSTERED)
        sent[name] = (received[name] if averaged and name in down else 0, own[name] if averaged and name in up else 0)
    declared = [method.cost.floats_sent, *(phase.floats_sent for phase in now)]
    return {**sent, **{name: floats for some in declared for name, floats in some.items()}}


def _held(method: Method, group: Group, params: Params) -> int:
    """Floats of a group that one client holds: all clusters, unless its cluster is fixed."""
    holds_all = group.scope is Scope.CLUSTERED and method.routing.cluster_of_client is None
    return _size(params) if holds_all else _slice(group, params)


def _slice(group: Group, params: Params) -> int:
    """Floats of one holder: the whole value, or one slice of the axis C or K."""
    holders = len(next(iter(params.values()))) if group.scope in (Scope.CLUSTERED, Scope.PRIVATE) else 1
    return _size(params) // holders


def _size(params: Params) -> int:
    return sum(tensor.numel() for tensor in params.values())
