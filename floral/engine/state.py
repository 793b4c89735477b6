"""The state of a federation: values of all groups, and moments of the server optimiser; views of it by clients."""

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
"""Group → 0 if its tensors in a view of several clients start with a client axis, None if all clients share them."""


@dataclass
class State:
    """The values of all groups, and the moments of the server optimiser.

    `values` maps each group to its complete value, with axis C (CLUSTERED), K (PRIVATE) or no leading axis. PRIVATE
    values that are too large for memory are mapped to a file, which `store` manages.
    """

    values: View
    server: dict[str, Tensor] = field(default_factory=dict)
    store: Store | None = None

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint: all tensors, but only the changed rows of tensors in the store."""
        if self.store is None:
            return self.tensors()
        in_memory = {group: params for group, params in self.values.items() if group not in self.store.values}
        return State(in_memory, self.server).tensors() | self.store.journal()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by flat names: value/<group>/<name> and server/<name>."""
        flat = {f"value/{group}/{name}": t for group, params in self.values.items() for name, t in params.items()}
        return flat | {f"server/{name}": tensor for name, tensor in self.server.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> State:
        """Make a state from flat names; the inverse of `tensors`."""
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
    """Make the untrained state on the device.

    Initial values are cast to `dtype` after they are drawn, so float32 and float64 runs start from the same numbers.
    If the PRIVATE groups together exceed `store.MEMORY_BUDGET_BYTES`, they go to the file `private`, or to a temporary
    file.
    """
    initial = {name: group.init() for name, group in method.groups.items()}
    large = {name: params for name, params in initial.items() if method.groups[name].scope is Scope.PRIVATE}
    if store.nbytes(large, dtype) <= store.MEMORY_BUDGET_BYTES:
        large = {}
    values = {
        name: {key: tensor.to(device=device, dtype=dtype).clone() for key, tensor in params.items()}
        for name, params in initial.items()
        if name not in large
    }
    if not large:
        return State(values)
    if private is None:
        return State(values | store.scratch(large, dtype))
    created = Store.create(private, large, dtype)
    return State(values | created.values, store=created)


def view(method: Method, values: View, pools: Tensor, clients: Tensor) -> tuple[View, Axes]:
    """The values that `clients` [m] see, and the axis of each group; `pools` [m] are the clients' pools.

    PRIVATE groups are gathered, and CLUSTERED groups too if the method fixes its clients' clusters. Other groups are
    not copied.
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
    """Rows of a tensor, moved to the device of `rows`, because tensors of a store are always on the CPU."""
    return tensor.index_select(0, rows.to(tensor.device)).to(rows.device)


def dims(axes: Axes, values: View) -> dict[str, dict[str, int | None]]:
    """`in_dims` of torch.vmap for a view."""
    return {group: dict.fromkeys(params, axes[group]) for group, params in values.items()}


def client_view(values: View, axes: Axes, position: int = 0) -> View:
    """The view of one client, at `position`, taken from a view of several clients."""
    return {
        group: params if axes[group] is None else {name: tensor[position] for name, tensor in params.items()}
        for group, params in values.items()
    }
