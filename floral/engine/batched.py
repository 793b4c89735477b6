"""Local steps whose weight gradients are products taken last: fused with the update, or with the average.

Three things differ from a plain step (`Clients`), none of which a method can see:

- A step is recorded once and replayed (`Captured`).
- The weights of linear layers and convolutions are updated from the products on a `Tape`, without a gradient tensor.
  Of a step that is the method's own nothing is known: it is recorded as it is.
- The last step of a round never makes the clients' final SHARED and CLUSTERED values, for only their sum is wanted:
  Σ_k p(k) (w_k - lr·g_k) = Σ_k p(k) w_k - lr·Σ_k p(k) g_k, where the second sum is one product over all clients'
  samples. When local training is a single step, w_k is the server's own w and no client needs a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from floral.core.spec import Batch, Params, Phase, Refused, Scope, View
from floral.engine.aggregate import Relative, along, cluster_sum
from floral.engine.capture import Captured
from floral.engine.local import Chunk, Clients, Finished, Step, map_groups, with_axis
from floral.engine.state import Axes, dims
from floral.nn.products import Leaf, PendingGradient, Tape


@dataclass(frozen=True)
class Backward:
    """One backward pass: δ-products of noted leaves, gradients of the others, new statistics, the clients' losses."""

    entries: dict[Leaf, list[PendingGradient]]
    gradients: dict[Leaf, Tensor]
    changed: View
    losses: Tensor

    def of(self, group: str, name: str, share: Tensor | None = None) -> tuple[Tensor | None, list[PendingGradient]]:
        """A leaf's gradient and products, without the weights `share` [m] of the losses."""
        gradient, entries = self.gradients.get((group, name)), self.entries.get((group, name), [])
        if share is None:
            return gradient, entries
        return None if gradient is None else gradient / along(share, gradient), [e.divided_by(share) for e in entries]


@dataclass(frozen=True)
class Batched(Clients):
    """Clients whose steps are recorded, with products on a tape."""

    captured: Captured = field(default_factory=Captured)
    noted: dict[Phase, frozenset[Leaf]] = field(default_factory=dict)
    """The leaves of a phase that are used in products alone: no copy per client is needed to tell gradients apart."""

    @classmethod
    def of(cls, clients: Clients, captured: Captured) -> Batched:
        """The same clients, batched."""
        known = clients.method, clients.phases, clients.loss, True, clients.clusters, clients.rounded
        return cls(*known, captured)

    # ---------------------------------------------------------------------------------------------- steps

    def step(self, step: Step) -> tuple[View, Axes, Tensor]:
        """One local step that is not the last, or the method's own: every client's own values after it."""
        own = self.method.local_step is not None
        noted = frozenset() if own else self._noted(step)

        def function(values: View, inputs: tuple[Any, ...]) -> tuple[View, Tensor]:
            here = renewed(step, values, inputs)
            if own:
                return self.own_step(here)
            found = self._backward(here, noted, None)
            updated = {group: self._updated(group, values, step.axes, found) for group in step.trained}
            return {**updated, **found.changed}, found.losses

        key = ("step", step.phase, tuple(step.axes.items()))
        changed, losses = self.captured(key, function, step.values, step.inputs, lasting=own)  # the last may be one
        return {**step.values, **changed}, {**step.axes, **dict.fromkeys(changed, 0)}, losses

    def last(self, step: Step, chunk: Chunk) -> tuple[Finished, Tensor]:
        """The last local step, whose gradients are summed over the clients where only sums are wanted."""
        if self.method.local_step is not None:
            return super().last(step, chunk)
        noted = self._noted(step)
        fused = [group for group in step.trained if self._fuses(group, step.axes)]

        def function(
            values: View, inputs: tuple[Any, ...], share: Tensor, members: Tensor | None
        ) -> tuple[Finished, Tensor]:
            here = renewed(step, values, inputs)
            found = self._backward(here, noted, share if fused else None)
            return self._finished(here, found, fused, Chunk(share, members)), found.losses

        key = ("last", step.phase, tuple(step.axes.items()))
        return self.captured(key, function, step.values, step.inputs, chunk.share, chunk.members)

    def _finished(self, step: Step, found: Backward, fused: list[str], chunk: Chunk) -> Finished:
        """Sums of the groups that are fused, by products; everything else as plain clients do it."""
        axes, values = dict(step.axes), {**step.values, **found.changed}
        share = chunk.share if fused else None
        values |= {g: self._updated(g, step.values, axes, found, share) for g in step.trained if g not in fused}
        axes.update({group: 0 for group in (*step.trained, *found.changed) if group not in fused})
        own = {group: params for group, params in values.items() if group not in fused}
        try:
            relative = self.relative(own, axes, chunk)
        except KeyError as missing:
            if missing.args[0] not in fused:
                raise
            raise Refused(f"its routes depend on the group {missing}, of which no client has a last value") from None
        sums = {group: self._summed(group, step.values, axes[group], found, chunk.share, relative) for group in fused}
        return self.finish(own, axes, chunk, relative, sums)

    def _fuses(self, group: str, axes: Axes) -> bool:
        """Whether a group's sum over the clients is taken without their values.

        A preconditioner is linear in the gradients (`spec.Method`), so where all share its values their sum is enough.
        """
        scope, plain = self.method.groups[group].scope, group not in self.method.precondition
        server, cluster_of_client = self.method.server, self.method.routing.cluster_of_client
        needs_each = bool(server.upload) or server.client_vector is not None
        if needs_each or (scope is Scope.CLUSTERED and cluster_of_client is not None):
            return False
        alike = all(axes[name] is None for name in self.method.preconditioned_by(group))
        return scope in (Scope.SHARED, Scope.CLUSTERED) and (plain or alike)

    # ------------------------------------------------------------------------------------------ one backward

    def _backward(self, step: Step, noted: frozenset[Leaf], share: Tensor | None) -> Backward:
        """One pass for all clients, whose losses are weighted with `share` [m] if there is one.

        Leaves that are noted keep the axes they have; of the others each client gets its own, to have its own gradient.
        """
        axes, trained, m = step.axes, step.trained, len(step.batch.x)

        def leaf(group: str, name: str, tensor: Tensor) -> Tensor:
            own = tensor if (group, name) in noted else with_axis(tensor, axes[group], m)
            return own.detach().requires_grad_()

        leaves = {g: {name: leaf(g, name, t) for name, t in params.items()} for g, params in trained.items()}
        vectorised = {
            g: {name: axes[g] if (g, name) in noted else 0 for name in params} for g, params in leaves.items()
        }
        over = (vectorised, dims(axes, step.fixed), *step.input_dims)
        tape = Tape.of(leaves)
        names = [(group, name) for group, params in leaves.items() for name in params]
        with torch.enable_grad(), tape.recording():
            objective = torch.vmap(partial(self.objective, step.phase), in_dims=over)
            losses, changed = objective(leaves, step.fixed, *step.inputs)
            total = losses.sum() if share is None else (losses * share.to(losses.dtype)).sum()
            flat = [leaves[group][name] for group, name in names]
            gradients = torch.autograd.grad(total, flat, allow_unused=True)
        found = {leaf: gradient for leaf, gradient in zip(names, gradients, strict=True) if gradient is not None}
        changed = map_groups(lambda group, tensor: tensor.detach(), changed)
        return Backward(tape.entries, found, changed, losses.detach())

    def _noted(self, step: Step) -> frozenset[Leaf]:
        """Which leaves of a phase are used in products with the clients' own inputs alone, found by one pass."""
        if step.phase not in self.noted:
            found = self._backward(step, frozenset(), None)
            alone = {leaf: entries for leaf, entries in found.entries.items() if leaf not in found.gradients}
            of_clients = (leaf for leaf, entries in alone.items() if all(entry.x_per_client for entry in entries))
            self.noted[step.phase] = frozenset(of_clients)
        return self.noted[step.phase]

    # --------------------------------------------------------------------------------------------- updates

    def _updated(self, group: str, values: View, axes: Axes, found: Backward, share: Tensor | None = None) -> Params:
        """Every client's own values after the step, in place where the chunk owns them; `share` weighted the losses."""
        if group in self.method.precondition:
            return self._preconditioned_step(group, values, axes, found, share)
        lr, m = self.method.groups[group].lr, len(found.losses)
        updated: Params = {}
        for name, tensor in values[group].items():
            gradient, entries = found.of(group, name, share)
            own = tensor if axes[group] == 0 else tensor.expand(m, *tensor.shape).clone()
            for entry in entries:
                entry.add_to(own, -lr)
            updated[name] = own if gradient is None else own.add_(gradient, alpha=-lr)
        return updated

    def _preconditioned_step(
        self, group: str, values: View, axes: Axes, found: Backward, share: Tensor | None
    ) -> Params:
        lr, m = self.method.groups[group].lr, len(found.losses)
        read = {name: values[name] for name in self.method.preconditioned_by(group)}
        own = map_groups(lambda name, tensor: with_axis(tensor, axes[name], m), read)
        gradients: Params = {}
        for name, tensor in own[group].items():
            gradient, entries = found.of(group, name, share)
            parts = [entry.per_client().reshape(tensor.shape) for entry in entries]
            parts += [] if gradient is None else [gradient]
            gradients[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(tensor)
        changes = self.preconditioned({group: gradients}, own, per_client=True)[group]
        return {name: tensor.add(changes[name], alpha=-lr) for name, tensor in own[group].items()}

    def _summed(
        self, group: str, values: View, axis: int | None, found: Backward, share: Tensor, relative: Relative | None
    ) -> Params:
        """Σ_k weight_k w_k - lr·Σ_k weight_k g_k of a group; the losses were weighted with `share`."""
        if self.method.groups[group].scope is Scope.SHARED:
            relative = None
        rest = None if relative is None else relative.weight / share[:, None]  # of a cluster's weight, beside p(k)
        gradients: Params = {}
        sums: Params = {}
        for name, tensor in values[group].items():
            gradient, entries = found.of(group, name)
            sums[name] = weighted(tensor, axis, share, None if relative is None else relative.weight)
            parts = [entry.sum(rest).reshape(sums[name].shape) for entry in entries]
            if gradient is not None:
                parts.append(gradient.sum(0) if rest is None else cluster_sum(rest, gradient, fixed=False))
            gradients[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(sums[name])
        changes = self.preconditioned({group: gradients}, values, per_client=False)[group]
        return {name: value.add_(changes[name], alpha=-self.method.groups[group].lr) for name, value in sums.items()}


def renewed(step: Step, values: View, inputs: tuple[Any, ...]) -> Step:
    """The same step of other tensors."""
    x, y, mask, noise, received = inputs
    return replace(step, values=values, batch=Batch(x, y, mask), noise=noise, received=received)


def weighted(tensor: Tensor, axis: int | None, share: Tensor, by_cluster: Tensor | None) -> Tensor:
    """Σ_k weight_k w_k of values [m, ...], or of one value for all."""
    if by_cluster is None:
        share = share.to(tensor.dtype)
        return tensor * share.sum() if axis is None else torch.tensordot(share, tensor, 1)
    if axis is None:
        return tensor * along(by_cluster.sum(0), tensor)
    return cluster_sum(by_cluster, tensor, fixed=False)
