"""The state of a federation: the values of all groups, and the moments of the server optimiser.

The function `view` selects the values that single clients see.
"""

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

    `values` maps each group to its complete value. A CLUSTERED group has one entry per cluster on its first axis, and a
    PRIVATE group has one per client. PRIVATE values that are too large for memory lie in a file, which `store` manages.
    """

    values: View
    server: dict[str, Tensor] = field(default_factory=dict)
    store: Store | None = None

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint contains.

        These are all tensors in memory. If PRIVATE values lie in a file, a checkpoint contains only those that have
        changed.
        """
        if self.store is None:
            return self.tensors()
        in_memory = {group: params for group, params in self.values.items() if group not in self.store.values}
        return State(in_memory, self.server).tensors() | self.store.journal()

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by flat names: value/<group>/<name> and server/<name>."""
        flat = {f"value/{group}/{name}": t for group, params in self.values.items() for name, t in params.items()}
        return flat | {f"server/{name}": tensor for name, tensor in self.server.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> State:
        """Make a state from tensors with flat names. This is the inverse of `tensors`."""
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

    The initial values are converted to `dtype` after they are drawn, so float32 and float64 runs start from the same
    numbers. If all PRIVATE groups together take more than `store.MEMORY_BUDGET_BYTES`, their values go to the file
    `private`. Without `private`, they go to a temporary file.
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
    """Return the values that m clients see, and the client axis of each group (0 or None).

    `clients` [m] has the indices of these clients. PRIVATE groups are copied for them, and so are CLUSTERED groups if
    the method fixes the cluster of each client. All other groups are not copied, and have no client axis. `pools` [m]
    has the index of each client's pool, whose PRIVATE values the client sees. If the method does not pool clients,
    `pools` is the same as `clients`.
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
    """Return the given rows of a tensor, on the device of `rows`.

    The tensor may be on another device, because PRIVATE values in a file are always on the CPU.
    """
    return tensor.index_select(0, rows.to(tensor.device)).to(rows.device)


def dims(axes: Axes, values: View) -> dict[str, dict[str, int | None]]:
    """Return the argument `in_dims` of `torch.vmap` for `values`, from the client axis of each group."""
    return {group: dict.fromkeys(params, axes[group]) for group, params in values.items()}


def client_view(values: View, axes: Axes, position: int = 0) -> View:
    """Return the values that one client sees, taken at `position` from the values of several clients."""
    return {
        group: params if axes[group] is None else {name: tensor[position] for name, tensor in params.items()}
        for group, params in values.items()
    }
