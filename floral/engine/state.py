"""The state of a federation: every group's value, who sees what of it, and the server's momenta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from floral.core.spec import Method, Scope, View
from floral.engine import store
from floral.engine.store import Store

Axes = dict[str, int | None]
"""group → 0 where a view of several clients has a client axis in front, None where all see the same tensor."""


@dataclass
class State:
    """`values`: group → its complete value (axis C, K or none). `server`: moments of the server's optimiser.

    PRIVATE values that are too large for memory are mapped to a file, whose changes `store` takes care of.
    """

    values: View
    server: dict[str, Tensor] = field(default_factory=dict)
    store: Store | None = None

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: all tensors, but of those in the store only the rows that have changed."""
        if self.store is None:
            return self.tensors()
        others = {group: params for group, params in self.values.items() if group not in self.store.values}
        return State(others, self.server).tensors() | self.store.journal()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names."""
        flat = {f"value/{group}/{name}": t for group, params in self.values.items() for name, t in params.items()}
        return flat | {f"server/{name}": tensor for name, tensor in self.server.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> State:
        """The inverse of `tensors`."""
        values: View = {}
        server: dict[str, Tensor] = {}
        for flat, tensor in tensors.items():
            kind, name = flat.split("/", 1)
            if kind == "server":
                server[name] = tensor
            else:
                group, name = name.split("/", 1)
                values.setdefault(group, {})[name] = tensor
        return cls(values, server)


def start(method: Method, dtype: torch.dtype, device: torch.device, private: Path | None = None) -> State:
    """The untrained state; values are cast once, so that float64 runs start from the same numbers.

    PRIVATE groups that together exceed `store.BUDGET` go to the file `private`, or to a temporary one.
    """
    made = {name: group.init() for name, group in method.groups.items()}
    large = {name: params for name, params in made.items() if method.groups[name].scope is Scope.PRIVATE}
    if store.nbytes(large, dtype) <= store.BUDGET:
        large = {}
    values = {
        name: {key: tensor.to(device=device, dtype=dtype).clone() for key, tensor in params.items()}
        for name, params in made.items()
        if name not in large
    }
    if not large:
        return State(values)
    if private is None:
        return State(values | store.scratch(large, dtype))
    kept = Store.create(private, large, dtype)
    return State(values | kept.values, store=kept)


def view(method: Method, values: View, pools: Tensor, clients: Tensor) -> tuple[View, Axes]:
    """What `clients` (trained by `pools`) see, with the axis each group has.

    PRIVATE groups are gathered, CLUSTERED ones too when the method fixes its clients' clusters; the rest is not copied.
    """
    seen: View = {}
    axes: Axes = {}
    for name, group in method.groups.items():
        rows = None
        if group.scope is Scope.PRIVATE:
            rows = pools
        elif group.scope is Scope.CLUSTERED and method.routing.cluster_of_client is not None:
            rows = method.routing.cluster_of_client[clients]
        seen[name] = values[name] if rows is None else {key: gather(t, rows) for key, t in values[name].items()}
        axes[name] = None if rows is None else 0
    return seen, axes


def gather(tensor: Tensor, rows: Tensor) -> Tensor:
    """Rows of a tensor, on the device of `rows`: a store's tensors lie in a file whatever that is."""
    return tensor.index_select(0, rows.to(tensor.device)).to(rows.device)


def dims(axes: Axes, values: View) -> dict[str, dict[str, int | None]]:
    """`in_dims` of torch.vmap for a view."""
    return {group: dict.fromkeys(params, axes[group]) for group, params in values.items()}


def one(values: View, axes: Axes, position: int = 0) -> View:
    """The view of a single client out of several."""
    return {
        group: params if axes[group] is None else {name: tensor[position] for name, tensor in params.items()}
        for group, params in values.items()
    }
