"""Local steps that compute weight gradients as matrix products, fused with the update or with the average.

They give the same result as plain steps (`Clients`), up to rounding. Three things differ:

- A step is recorded once and replayed (`Captured`).
- The weights of linear layers and convolutions are updated from the products on a `Tape`, without a gradient tensor.
  A method's own local step (`Method.local_step`) is recorded without this change.
- The last step of a round does not compute the clients' final SHARED and CLUSTERED values, because the server needs
  only their sum: Σ_k p(k) (w_k - lr·g_k) = Σ_k p(k) w_k - lr·Σ_k p(k) g_k. The second sum is one product over the
  samples of all clients. If local training is a single step, w_k is the server's w, and no client needs a copy.
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
    """Results of one backward pass: gradients of the leaves, new statistics, and the clients' losses [m].

    Gradients of weights that are used in matrix products are pending products (`entries`).
    """

    entries: dict[Leaf, list[PendingGradient]]
    gradients: dict[Leaf, Tensor]
    changed: View
    losses: Tensor

    def of(self, group: str, name: str, share: Tensor | None = None) -> tuple[Tensor | None, list[PendingGradient]]:
        """A leaf's gradient and pending products, both divided by the loss weights `share` [m] unless it is None."""
        gradient, entries = self.gradients.get((group, name)), self.entries.get((group, name), [])
        if share is None:
            return gradient, entries
        return None if gradient is None else gradient / along(share, gradient), [e.divided_by(share) for e in entries]


@dataclass(frozen=True)
class Batched(Clients):
    """Clients whose steps are recorded, with weight gradients as products on a tape."""

    captured: Captured = field(default_factory=Captured)
    noted: dict[Phase, frozenset[Leaf]] = field(default_factory=dict)
    """Phase → leaves that are used only in products. Products are per client, so the leaves need no copy per client."""

    @classmethod
    def of(cls, clients: Clients, captured: Captured) -> Batched:
        """The same clients, batched."""
        fields = clients.method, clients.phases, clients.loss, True, clients.clusters, clients.rounded
        return cls(*fields, captured)

    # ---------------------------------------------------------------------------------------------- steps

    def step(self, step: Step) -> tuple[View, Axes, Tensor]:
        """Do one local step that is not the last one, or a `Method.local_step`; returns the values of every client."""
        method_step = self.method.local_step is not None
        noted = frozenset() if method_step else self._noted(step)

        def function(values: View, inputs: tuple[Any, ...]) -> tuple[View, Tensor]:
            here = renewed(step, values, inputs)
            if method_step:
                return self.own_step(here)
            backward = self._backward(here, noted, None)
            updated = {group: self._updated(group, values, step.axes, backward) for group in step.trained}
            return {**updated, **backward.changed}, backward.losses

        key = ("step", step.phase, tuple(step.axes.items()))
        # A method's own step may be the last one, whose results must outlive the next call.
        changed, losses = self.captured(key, function, step.values, step.inputs, lasting=method_step)
        return {**step.values, **changed}, {**step.axes, **dict.fromkeys(changed, 0)}, losses

    def last(self, step: Step, chunk: Chunk) -> tuple[Finished, Tensor]:
        """The last local step; gradients are summed over the clients where the server needs only the sum."""
        if self.method.local_step is not None:
            return super().last(step, chunk)
        noted = self._noted(step)
        fused = [group for group in step.trained if self._fuses(group, step.axes)]

        def function(
            values: View, inputs: tuple[Any, ...], share: Tensor, members: Tensor | None
        ) -> tuple[Finished, Tensor]:
            here = renewed(step, values, inputs)
            backward = self._backward(here, noted, share if fused else None)
            return self._finished(here, backward, fused, Chunk(share, members)), backward.losses

        key = ("last", step.phase, tuple(step.axes.items()))
        return self.captured(key, function, step.values, step.inputs, chunk.share, chunk.members)

    def _finished(self, step: Step, backward: Backward, fused: list[str], chunk: Chunk) -> Finished:
        """The chunk's contribution to the round: `fused` groups are summed by products, the others as in `Clients`."""
        axes, values = dict(step.axes), {**step.values, **backward.changed}
        share = chunk.share if fused else None
        values |= {g: self._updated(g, step.values, axes, backward, share) for g in step.trained if g not in fused}
        axes.update({group: 0 for group in (*step.trained, *backward.changed) if group not in fused})
        per_client = {group: params for group, params in values.items() if group not in fused}
        try:
            relative = self.relative(per_client, axes, chunk)
        except KeyError as missing:
            if missing.args[0] not in fused:
                raise
            raise Refused(f"the routes depend on the group {missing}, whose final values are not computed") from None
        sums = {
            group: self._summed(group, step.values, axes[group], backward, chunk.share, relative) for group in fused
        }
        return self.finish(per_client, axes, chunk, relative, sums)

    def _fuses(self, group: str, axes: Axes) -> bool:
        """Whether the last step computes only the sum of a group over the clients, not the values of each client.

        A preconditioner is linear in the gradients (`spec.Method`). The sum of the gradients is therefore enough if all
        clients have the same values of the groups that the preconditioner reads.
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
        """Do one backward pass for all clients; their losses are weighted with `share` [m] unless it is None.

        `noted` leaves are not expanded. Other leaves get a client axis, so that each client has a gradient.
        """
        axes, trained, m = step.axes, step.trained, len(step.batch.x)

        def leaf(group: str, name: str, tensor: Tensor) -> Tensor:
            expanded = tensor if (group, name) in noted else with_axis(tensor, axes[group], m)
            return expanded.detach().requires_grad_()

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
        by_leaf = {leaf: gradient for leaf, gradient in zip(names, gradients, strict=True) if gradient is not None}
        changed = map_groups(lambda group, tensor: tensor.detach(), changed)
        return Backward(tape.entries, by_leaf, changed, losses.detach())

    def _noted(self, step: Step) -> frozenset[Leaf]:
        """The leaves of a phase that are used only in products with per-client inputs; one backward pass finds them."""
        if step.phase not in self.noted:
            backward = self._backward(step, frozenset(), None)
            self.noted[step.phase] = frozenset(
                leaf
                for leaf, entries in backward.entries.items()
                if leaf not in backward.gradients and all(entry.x_per_client for entry in entries)
            )
        return self.noted[step.phase]

    # --------------------------------------------------------------------------------------------- updates

    def _updated(self, group: str, values: View, axes: Axes, backward: Backward, share: Tensor | None = None) -> Params:
        """Values [m, ...] of a group after the step, one per client.

        Values that already have a client axis are updated in place. `share` [m] are the weights of the losses.
        """
        if group in self.method.precondition:
            return self._preconditioned_step(group, values, axes, backward, share)
        lr, m = self.method.groups[group].lr, len(backward.losses)
        updated: Params = {}
        for name, tensor in values[group].items():
            gradient, entries = backward.of(group, name, share)
            per_client = tensor if axes[group] == 0 else tensor.expand(m, *tensor.shape).clone()
            for entry in entries:
                entry.add_to(per_client, -lr)
            updated[name] = per_client if gradient is None else per_client.add_(gradient, alpha=-lr)
        return updated

    def _preconditioned_step(
        self, group: str, values: View, axes: Axes, backward: Backward, share: Tensor | None
    ) -> Params:
        lr, m = self.method.groups[group].lr, len(backward.losses)
        read = {name: values[name] for name in self.method.preconditioned_by(group)}
        per_client = map_groups(lambda name, tensor: with_axis(tensor, axes[name], m), read)
        gradients: Params = {}
        for name, tensor in per_client[group].items():
            gradient, entries = backward.of(group, name, share)
            parts = [entry.per_client().reshape(tensor.shape) for entry in entries]
            parts += [] if gradient is None else [gradient]
            gradients[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(tensor)
        changes = self.preconditioned({group: gradients}, per_client, per_client=True)[group]
        return {name: tensor.add(changes[name], alpha=-lr) for name, tensor in per_client[group].items()}

    def _summed(
        self, group: str, values: View, axis: int | None, backward: Backward, share: Tensor, relative: Relative | None
    ) -> Params:
        """Σ_k weight_k w_k - lr·Σ_k weight_k g_k of a group; the losses were weighted with `share` [m]."""
        if self.method.groups[group].scope is Scope.SHARED:
            relative = None
        # The gradients already contain the factor p(k), so only the other factor of the cluster weight is applied.
        rest = None if relative is None else relative.weight / share[:, None]
        gradients: Params = {}
        sums: Params = {}
        for name, tensor in values[group].items():
            gradient, entries = backward.of(group, name)
            sums[name] = weighted(tensor, axis, share, None if relative is None else relative.weight)
            parts = [entry.sum(rest).reshape(sums[name].shape) for entry in entries]
            if gradient is not None:
                parts.append(gradient.sum(0) if rest is None else cluster_sum(rest, gradient, fixed=False))
            gradients[name] = sum(parts[1:], parts[0]) if parts else torch.zeros_like(sums[name])
        changes = self.preconditioned({group: gradients}, values, per_client=False)[group]
        return {name: value.add_(changes[name], alpha=-self.method.groups[group].lr) for name, value in sums.items()}


def renewed(step: Step, values: View, inputs: tuple[Any, ...]) -> Step:
    """The same step with other tensors."""
    x, y, mask, noise, received = inputs
    return replace(step, values=values, batch=Batch(x, y, mask), noise=noise, received=received)


def weighted(tensor: Tensor, axis: int | None, share: Tensor, by_cluster: Tensor | None) -> Tensor:
    """Σ_k weight_k w_k of values [m, ...], or of one value that all clients share (`axis` None)."""
    if by_cluster is None:
        share = share.to(tensor.dtype)
        return tensor * share.sum() if axis is None else torch.tensordot(share, tensor, 1)
    if axis is None:
        return tensor * along(by_cluster.sum(0), tensor)
    return cluster_sum(by_cluster, tensor, fixed=False)
