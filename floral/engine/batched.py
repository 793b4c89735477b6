"""The local steps of the backend `batched`, which computes the weight gradients of many clients in one product.

These steps give the same result as those of the backends `vmap` and `loop`, up to rounding. They differ from them in
three ways:

- A step is recorded once and then replayed (`Captured`).
- The gradient of a weight in a linear layer or convolution is a product of two factors, which are stored during the
  backward pass. The product is added directly to the weights, without a gradient tensor. A method's own local step
  (`Method.local_step`) is recorded too, but uses gradient tensors.
- The last step of a round does not compute the final SHARED and CLUSTERED values of each client k, because the server
  needs only their weighted sum: Σ_k p(k) (w_k - lr·g_k) = Σ_k p(k) w_k - lr·Σ_k p(k) g_k. Here w_k are the values
  before the step, g_k the gradients, lr is the learning rate, and p(k) is the client's weight in the round. The second
  sum is one product over the samples of all clients. If a round has a single step, all w_k are the server's values, and
  no client needs a copy.
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

MAX_RECORDED_SAMPLES = 1024
"""A function of all samples of the clients is recorded if these are at most so many, because the recording keeps all
tensors that it makes."""

Samples = tuple[Tensor, Tensor, Tensor]
"""Inputs x [m, n, ...], labels y [m, n, ...] and mask [m, n] of all samples of m clients."""


@dataclass(frozen=True)
class Backward:
    """The results of one backward pass for all clients of a chunk.

    These are the gradients of the trained parameters, the new running statistics of batch norm (`changed`), and the
    clients' losses [m]. The gradient of a weight in a linear layer or convolution is a product of two factors.
    `entries` has these factors, which are multiplied later.
    """

    entries: dict[Leaf, list[PendingGradient]]
    gradients: dict[Leaf, Tensor]
    changed: View
    losses: Tensor

    def of(self, group: str, name: str, share: Tensor | None = None) -> tuple[Tensor | None, list[PendingGradient]]:
        """Return a parameter's gradient: a tensor or None, and a list of pairs of factors that are not yet multiplied.

        The gradient is the sum of the tensor and of the products of the pairs.

        If the losses were multiplied by weights `share` [m] before the backward pass, the gradient and the products of
        the factors are divided by these weights. If `share` is None, nothing is divided.
        """
        gradient, entries = self.gradients.get((group, name)), self.entries.get((group, name), [])
        if share is None:
            return gradient, entries
        return None if gradient is None else gradient / along(share, gradient), [e.divided_by(share) for e in entries]


@dataclass(frozen=True)
class Batched(Clients):
    """The local steps of a chunk's clients with the backend `batched`. A step is recorded once and then replayed.

    The gradient of a weight is stored as two factors, whose matrix product is added directly to the weight.
    """

    captured: Captured = field(default_factory=Captured)
    noted: dict[Phase, frozenset[Leaf]] = field(default_factory=dict)
    """Phase → leaves that are used only in products. Products are per client, so the leaves need no copy per client."""

    @classmethod
    def of(cls, clients: Clients, captured: Captured) -> Batched:
        """Return a `Batched` with the same settings as `clients`; `captured` stores recordings of the local steps."""
        fields = clients.method, clients.phases, clients.loss, True, clients.clusters, clients.rounded
        return cls(*fields, captured)

    # ---------------------------------------------------------------------------------------------- steps

    def step(self, step: Step) -> tuple[View, Axes, Tensor]:
        """Do one local step. The last step of a round is done by `last`, unless `needs_each_client`.

        Returns the values of all groups after the step, the client axis of each group, and the losses [m].
        """
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
        # This step may be the last one, whose results must outlive the next call.
        changed, losses = self.captured(key, function, step.values, step.inputs, lasting=self.needs_each_client)
        return {**step.values, **changed}, {**step.axes, **dict.fromkeys(changed, 0)}, losses

    @property
    def needs_each_client(self) -> bool:
        """Whether the last step of a round computes the values of each client, as the steps before it.

        This is so for a method's own `local_step`, and if `after_training` reads the values of each client.
        """
        return self.method.local_step is not None or self.method.after_training is not None

    def last(self, step: Step, chunk: Chunk, held: Batch | None) -> tuple[Finished, Tensor]:
        """Do the last local step; return the PRIVATE parameters, the other parameters summed over clients, and losses.

        If the server needs only the sum of a parameter group, the values of single clients are not computed.
        """
        if self.needs_each_client:
            return self._last_of_each(step, chunk, held)
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

    def _last_of_each(self, step: Step, chunk: Chunk, held: Batch | None) -> tuple[Finished, Tensor]:
        """Do what `last` does, with the values of each client after the step."""
        stepped, axes, losses = self.step(step)

        def function(
            values: View, received: View, samples: Samples | None, share: Tensor, members: Tensor | None
        ) -> Finished:
            after, after_axes, clients = values, axes, Chunk(share, members)
            if samples is not None:
                here = replace(step, received=received)
                after, after_axes = self.after_training(values, axes, here, Batch(*samples))
            return self.finish(after, after_axes, clients, self.relative(after, after_axes, clients), {})

        inputs = (stepped, step.received, None if held is None else samples_of(held), chunk.share, chunk.members)
        if held is not None and not is_recorded(held):
            return function(*inputs), losses
        return self.captured(("end", step.phase, tuple(axes.items())), function, *inputs), losses

    def assigned(self, values: View, axes: Axes, held: Batch) -> View:
        """Return the PRIVATE values that the method's `assign` computes before local training."""
        if not is_recorded(held):
            return super().assigned(values, axes, held)

        def function(values: View, samples: Samples) -> View:
            return super(Batched, self).assigned(values, axes, Batch(*samples))

        return self.captured(("assign", tuple(axes.items())), function, values, samples_of(held))

    def _finished(self, step: Step, backward: Backward, fused: list[str], chunk: Chunk) -> Finished:
        """Return the PRIVATE parameters of each client, and all other parameters as weighted sums over the clients.

        The sum of a parameter group in `fused` is computed directly, without the values of each client. All other
        groups are updated for each client, and then summed as in `Clients`.
        """
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
            raise Refused(
                f"the routes depend on the group {missing}, but `batched` computes only the mean of "
                "this group over the clients; use the backend `vmap` or `loop`"
            ) from None
        sums = {
            group: self._summed(group, step.values, axes[group], backward, chunk.share, relative) for group in fused
        }
        return self.finish(per_client, axes, chunk, relative, sums)

    def _fuses(self, group: str, axes: Axes) -> bool:
        """Return whether the last local step computes only a group's sum over the clients, not each client's values.

        This is possible for SHARED and CLUSTERED groups, unless the server needs the values of single clients, or the
        clients have fixed clusters. If the group has a preconditioner, all clients must also have the same values of
        the groups that the preconditioner reads. It can then be applied to the sum of the gradients, because it is
        linear in the gradients.
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
        """Do one backward pass for all clients of a chunk.

        The loss of each client is multiplied by its weight in `share` [m], unless `share` is None. For the parameters
        in `noted`, two factors are stored whose product is the gradient of a client. These parameters need no copy per
        client. All other parameters get a client axis, so that each client has its own gradient.
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
            gradients = torch.autograd.grad(total, flat, allow_unused=True) if flat else ()
        by_leaf = {leaf: gradient for leaf, gradient in zip(names, gradients, strict=True) if gradient is not None}
        changed = map_groups(lambda group, tensor: tensor.detach(), changed)
        return Backward(tape.entries, by_leaf, changed, losses.detach())

    def _noted(self, step: Step) -> frozenset[Leaf]:
        """Return the weights that need no copy per client in the backward pass.

        These are the weights that are used only in layers whose input differs between clients. For them, two factors
        are stored whose product is the gradient of a client. The first call for a phase of local training finds these
        weights by one backward pass.
        """
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
        """Return the values [m, ...] of a group after the local step, one per client.

        Values that already have a client axis are updated in place. If the losses were multiplied by weights `share`
        [m], the gradients are divided by these weights.
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
        """Return the weighted sum of a group's parameters over a chunk's clients, as it is after the last local step.

        The sum is Σ_k weight_k·w_k - lr·Σ_k weight_k·g_k over the clients k. Here w_k are the values before the step,
        g_k the gradients and lr the learning rate. For a SHARED group, weight_k is the client's weight p(k) in the
        round; for a CLUSTERED group, it is the client's weight in each cluster. The backward pass has already
        multiplied the losses by `share`, which is p(k) [m].
        """
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
    """Return a copy of a local step with other values of the parameter groups and other inputs.

    `inputs` is the tuple (x, y, mask, noise, values received from the server).
    """
    x, y, mask, noise, received = inputs
    return replace(step, values=values, batch=Batch(x, y, mask), noise=noise, received=received)


def weighted(tensor: Tensor, axis: int | None, share: Tensor, by_cluster: Tensor | None) -> Tensor:
    """Return the weighted sum of a tensor over the clients, with the weights `share` [m].

    The tensor is [m, ...], or has no client axis (`axis` None) if all clients have the same values. If `by_cluster` [m,
    C] is given, it has the weights instead of `share`, and the result has one sum per cluster.
    """
    if by_cluster is None:
        share = share.to(tensor.dtype)
        return tensor * share.sum() if axis is None else torch.tensordot(share, tensor, 1)
    if axis is None:
        return tensor * along(by_cluster.sum(0), tensor)
    return cluster_sum(by_cluster, tensor, fixed=False)


def samples_of(held: Batch) -> Samples:
    """Return the tensors of all samples of some clients."""
    return held.x, held.y, held.mask


def is_recorded(held: Batch) -> bool:
    """Return whether a function of all samples of the clients is recorded."""
    return held.mask.numel() <= MAX_RECORDED_SAMPLES
