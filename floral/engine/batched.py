"""Local steps whose weight gradients are products taken last: fused with the update, or with the average.

Three things differ from a plain step (`Clients`), none of which a method can see:

- A step is recorded once and replayed (`Captured`).
- The weights of linear layers and convolutions are updated from the products on a `Tape`, without a gradient tensor.
- The last step of a round never makes the clients' final SHARED and CLUSTERED values, for only their sum is wanted:
  Σ_k p(k) (w_k - lr·g_k) = Σ_k p(k) w_k - lr·Σ_k p(k) g_k, where the second sum is one product over all clients'
  samples. When local training is a single step, w_k is the server's own w and no client needs a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from floral.engine.aggregate import Relative, along, cluster_sum
from floral.engine.capture import Captured
from floral.engine.local import Chunk, Clients, Finished, map_groups, split, with_axis
from floral.engine.state import Axes, dims
from floral.products import Entry, Leaf, Tape
from floral.spec import Batch, Draws, Params, Phase, Refused, Scope, View


@dataclass(frozen=True)
class Backward:
    """One backward pass: δ-products of noted leaves, gradients of the others, new statistics, the clients' losses."""

    leaves: View
    entries: dict[Leaf, list[Entry]]
    gradients: dict[Leaf, Tensor]
    changed: View
    losses: Tensor

    def of(self, group: str, name: str, share: Tensor | None = None) -> tuple[Tensor | None, list[Entry]]:
        """A leaf's gradient and products, without the weights `share` [m] of the losses."""
        gradient, entries = self.gradients.get((group, name)), self.entries.get((group, name), [])
        if share is None:
            return gradient, entries
        return None if gradient is None else gradient / along(share, gradient), [e.over(share) for e in entries]


@dataclass(frozen=True)
class Batched(Clients):
    """Clients whose steps are recorded, with products on a tape."""

    captured: Captured = field(default_factory=Captured)
    noted: dict[Phase, frozenset[Leaf]] = field(default_factory=dict)
    """The leaves of a phase that are used in products alone: no copy per client is needed to tell gradients apart."""

    @classmethod
    def of(cls, clients: Clients) -> Batched:
        """The same clients, batched.

        Raises:
            Refused: the method takes its own local steps, of which nothing is known.
        """
        if clients.method.local_step is not None:
            raise Refused("the method takes its own local steps")
        return cls(clients.method, clients.loss, True, clients.clusters)

    # ---------------------------------------------------------------------------------------------- steps

    def step(
        self, phase: Phase, values: View, axes: Axes, batch: Batch, draws: Draws, received: tuple[View, Axes]
    ) -> tuple[View, Axes, Tensor]:
        """One local step that is not the last: every client's own values after it."""
        noted = self._noted(phase, values, axes, batch, draws, received)

        def function(
            values: View, x: Tensor, y: Tensor, mask: Tensor, draws: Draws, received: View
        ) -> tuple[View, Tensor]:
            found = self._backward(phase, values, axes, Batch(x, y, mask), draws, (received, axes_of), noted, None)
            updated = {group: self._updated(group, values[group], axes, found) for group in found.leaves}
            return {**updated, **found.changed}, found.losses

        axes_of = received[1]
        key = ("step", phase, tuple(axes.items()))
        changed, losses = self.captured(key, function, values, batch.x, batch.y, batch.mask, dict(draws), received[0])
        return {**values, **changed}, {**axes, **dict.fromkeys(changed, 0)}, losses

    def last(
        self,
        phase: Phase,
        values: View,
        axes: Axes,
        batch: Batch,
        draws: Draws,
        received: tuple[View, Axes],
        chunk: Chunk,
    ) -> tuple[Finished, Tensor]:
        """The last local step, whose gradients are summed over the clients where only sums are wanted."""
        noted = self._noted(phase, values, axes, batch, draws, received)
        axes_of = received[1]

        def function(
            values: View,
            x: Tensor,
            y: Tensor,
            mask: Tensor,
            draws: Draws,
            received: View,
            share: Tensor,
            members: Tensor | None,
        ) -> tuple[Finished, Tensor]:
            now = Chunk(share, members)
            batch = Batch(x, y, mask)
            fuses = any(self._fuses(group, axes) for group in phase.train)
            weight = share if fuses else None
            found = self._backward(phase, values, axes, batch, draws, (received, axes_of), noted, weight)
            return self._finished(values, axes, found, now), found.losses

        key = ("last", phase, tuple(axes.items()))
        inputs = (values, batch.x, batch.y, batch.mask, dict(draws), received[0], chunk.share, chunk.members)
        return self.captured(key, function, *inputs)

    def _finished(self, values: View, axes: Axes, found: Backward, chunk: Chunk) -> Finished:
        """Sums of what can be summed by products, then everything else as plain clients do."""
        axes, values = dict(axes), dict(values)
        fused = [group for group in found.leaves if self._fuses(group, axes)]
        for group in found.leaves:
            if group not in fused:
                values[group] = self._updated(group, values[group], axes, found, chunk.share if fused else None)
        for group in found.changed:
            values[group] = found.changed[group]
        axes.update({group: 0 for group in (*found.leaves, *found.changed) if group not in fused})
        own = {group: params for group, params in values.items() if group not in fused}
        try:
            relative = self.relative(own, axes, chunk)
        except KeyError as missing:
            if missing.args[0] not in fused:
                raise
            raise Refused(f"its routes depend on the group {missing}, of which no client has a last value") from None
        sums = {group: self._summed(group, values[group], axes[group], found, chunk.share, relative) for group in fused}
        return self.finish(own, axes, chunk, relative, sums)

    def _fuses(self, group: str, axes: Axes) -> bool:
        """Whether a group's sum over the clients is taken without their values.

        A preconditioner is linear in the gradients (`spec.Method`), so where all share its values their sum is enough.
        """
        scope, plain = self.method.groups[group].scope, group not in self.method.precondition
        if self.method.upload is not None or (scope is Scope.CLUSTERED and self.method.member is not None):
            return False
        return scope in (Scope.SHARED, Scope.CLUSTERED) and (plain or axes[group] is None)

    # ------------------------------------------------------------------------------------------ one backward

    def _backward(
        self,
        phase: Phase,
        values: View,
        axes: Axes,
        batch: Batch,
        draws: Draws,
        received: tuple[View, Axes],
        noted: frozenset[Leaf],
        share: Tensor | None,
    ) -> Backward:
        """One pass for all clients, whose losses are weighted with `share` [m] if there is one.

        Leaves that are noted keep the axes they have; of the others each client gets its own, to have its own gradient.
        """
        trained, fixed = split(values, phase.train)
        m = len(batch.x)

        def leaf(group: str, name: str, tensor: Tensor) -> Tensor:
            own = tensor if (group, name) in noted else with_axis(tensor, axes[group], m)
            return own.detach().requires_grad_()

        leaves = {g: {name: leaf(g, name, t) for name, t in params.items()} for g, params in trained.items()}
        lifted = {g: {name: axes[g] if (g, name) in noted else 0 for name in params} for g, params in leaves.items()}
        over = (lifted, dims(axes, fixed), *self._inputs(draws, received))
        tape = Tape.of(leaves)
        names = [(group, name) for group, params in leaves.items() for name in params]
        with torch.enable_grad(), tape.noting():
            losses, changed = torch.vmap(partial(self.objective, phase), in_dims=over)(
                leaves, fixed, batch.x, batch.y, batch.mask, draws, received[0]
            )
            total = losses.sum() if share is None else (losses * share.to(losses.dtype)).sum()
            flat = [leaves[group][name] for group, name in names]
            gradients = torch.autograd.grad(total, flat, allow_unused=True)
        found = {leaf: gradient for leaf, gradient in zip(names, gradients, strict=True) if gradient is not None}
        changed = map_groups(lambda group, tensor: tensor.detach(), changed)
        return Backward(map_groups(lambda group, t: t.detach(), leaves), tape.entries, found, changed, losses.detach())

    def _noted(
        self, phase: Phase, values: View, axes: Axes, batch: Batch, draws: Draws, received: tuple[View, Axes]
    ) -> frozenset[Leaf]:
        """Which leaves of a phase are used in products with the clients' own inputs alone, found by one pass."""
        if phase not in self.noted:
            found = self._backward(phase, values, axes, batch, draws, received, frozenset(), None)
            alone = {leaf: entries for leaf, entries in found.entries.items() if leaf not in found.gradients}
            of_clients = (leaf for leaf, entries in alone.items() if all(entry.how.has(0)[0] for entry in entries))
            self.noted[phase] = frozenset(of_clients)
        return self.noted[phase]

    # --------------------------------------------------------------------------------------------- updates

    def _updated(self, group: str, values: Params, axes: Axes, found: Backward, share: Tensor | None = None) -> Params:
        """Every client's own values after the step, in place where the chunk owns them; `share` weighted the losses."""
        if group in self.method.precondition:
            return self._preconditioned_step(group, values, axes, found, share)
        lr, m = self.method.groups[group].lr, len(found.losses)
        updated: Params = {}
        for name, tensor in values.items():
            gradient, entries = found.of(group, name, share)
            own = tensor if axes[group] == 0 else tensor.expand(m, *tensor.shape).clone()
            for entry in entries:
                entry.add_to(own, -lr)
            updated[name] = own if gradient is None else own.add_(gradient, alpha=-lr)
        return updated

    def _preconditioned_step(
        self, group: str, values: Params, axes: Axes, found: Backward, share: Tensor | None
    ) -> Params:
        lr, m = self.method.groups[group].lr, len(found.losses)
        own = {name: with_axis(tensor, axes[group], m) for name, tensor in values.items()}
        gradients: Params = {}
        for name, tensor in own.items():
            gradient, entries = found.of(group, name, share)
            parts = [entry.each().reshape(tensor.shape) for entry in entries]
            parts += [] if gradient is None else [gradient]
            gradients[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(tensor)
        changes = self.preconditioned({group: gradients}, {group: own}, per_client=True)[group]
        return {name: tensor.add(changes[name], alpha=-lr) for name, tensor in own.items()}

    def _summed(
        self, group: str, values: Params, axis: int | None, found: Backward, share: Tensor, relative: Relative | None
    ) -> Params:
        """Σ_k weight_k w_k - lr·Σ_k weight_k g_k of a group; the losses were weighted with `share`."""
        if self.method.groups[group].scope is Scope.SHARED:
            relative = None
        rest = None if relative is None else relative.weight / share[:, None]  # of a cluster's weight, beside p(k)
        gradients: Params = {}
        sums: Params = {}
        for name, tensor in values.items():
            gradient, entries = found.of(group, name)
            sums[name] = weighted(tensor, axis, share, None if relative is None else relative.weight)
            parts = [entry.sum(rest).reshape(sums[name].shape) for entry in entries]
            if gradient is not None:
                parts.append(gradient.sum(0) if rest is None else cluster_sum(rest, gradient, fixed=False))
            gradients[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(sums[name])
        changes = self.preconditioned({group: gradients}, {group: values}, per_client=False)[group]
        return {name: value.add_(changes[name], alpha=-self.method.groups[group].lr) for name, value in sums.items()}


def weighted(tensor: Tensor, axis: int | None, share: Tensor, by_cluster: Tensor | None) -> Tensor:
    """Σ_k weight_k w_k of values [m, ...], or of one value for all."""
    if by_cluster is None:
        share = share.to(tensor.dtype)
        return tensor * share.sum() if axis is None else torch.tensordot(share, tensor, 1)
    if axis is None:
        return tensor * along(by_cluster.sum(0), tensor)
    return cluster_sum(by_cluster, tensor, fixed=False)
