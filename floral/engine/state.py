"""The state of a federation: every group's value, who sees what of it, and the server's momenta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from floral.spec import Method, Scope, View

Axes = dict[str, int | None]
"""group → 0 where a view of several clients has a client axis in front, None where all see the same tensor."""


@dataclass
class State:
    """`values`: group → its complete value (axis C, K or none). `server`: moments of the server's optimiser."""

    values: View
    server: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names, as a checkpoint keeps them."""
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


def start(method: Method, dtype: torch.dtype, device: torch.device) -> State:
    """The untrained state; values are cast once, so that float64 runs start from the same numbers."""
    values = {
        name: {key: tensor.to(device=device, dtype=dtype) for key, tensor in group.init().items()}
        for name, group in method.groups.items()
    }
    return State(values)


def view(method: Method, values: View, learners: Tensor, clients: Tensor) -> tuple[View, Axes]:
    """What `clients` (trained by `learners`) see, with the axis each group has.

    PRIVATE groups are gathered, CLUSTERED ones too when the method fixes its clients' clusters; the rest is not copied.
    """
    seen: View = {}
    axes: Axes = {}
    for name, group in method.groups.items():
        rows = None
        if group.scope is Scope.PRIVATE:
            rows = learners
        elif group.scope is Scope.CLUSTERED and method.member is not None:
            rows = method.member[clients]
        seen[name] = values[name] if rows is None else {key: t.index_select(0, rows) for key, t in values[name].items()}
        axes[name] = None if rows is None else 0
    return seen, axes


def dims(axes: Axes, values: View) -> dict[str, dict[str, int | None]]:
    """`in_dims` of torch.vmap for a view."""
    return {group: dict.fromkeys(params, axes[group]) for group, params in values.items()}


def one(values: View, axes: Axes, position: int = 0) -> View:
    """The view of a single client out of several."""
    return {
        group: params if axes[group] is None else {name: tensor[position] for name, tensor in params.items()}
        for group, params in values.items()
    }
