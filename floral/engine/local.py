"""Local training: pure functions for ONE client and ONE batch, lifted over a chunk of clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from floral import seeds
from floral.engine.rows import Plan, Rows
from floral.engine.state import Axes, dims, one
from floral.spec import Batch, Draws, Method, Phase, Scope, View

Loss = Literal["cross_entropy", "mse"]
MOST_STEPS = 1 << 20
"""No epoch has more steps: epoch and step make one counter."""


@dataclass(frozen=True)
class Trained:
    """What a chunk of m learners gives back: its groups with a client axis in front, log-routes [m, C], mean loss [m].

    `sums` has the SHARED groups that were summed over the chunk already, with weights p(k), instead of `values`.
    """

    values: View
    sums: View
    log_route: Tensor | None
    loss: Tensor


def sample_losses(loss: Loss, outputs: Tensor, y: Tensor) -> Tensor:
    """Loss of each sample [..., B]: cross-entropy of logits, or the squared error averaged over the outputs."""
    if loss == "mse":
        return ((outputs - y) ** 2).mean(-1)
    return F.cross_entropy(outputs.movedim(-1, 1), y, reduction="none")


def train_chunk(
    method: Method,
    seen: View,
    axes: Axes,
    plan: Plan,
    rows: Rows,
    *,
    loss: Loss,
    lifted: bool,
    draw: Callable[[int, int], Draws],
    phases: Sequence[tuple[Phase, range]],
    share: Tensor,
) -> Trained:
    """Every phase of local training, over its steps, for the m learners of `plan`, starting from what they see.

    `lifted` runs all of them in one `torch.vmap` per step; else m is 1 and the functions run as they are, without a
    client axis. A group without a client axis is still the federation's own tensor, only read; its first step makes a
    copy per client, later ones update that copy in place.

    When all of local training is one SGD step, Σ_k p(k) (w - lr·g_k) = w Σ_k p(k) - lr·Σ_k p(k) g_k: SHARED groups then
    need no copy per client, and one backward pass of the losses weighted with `share` [m] = p(k) gives the sum.
    """
    m = plan.index.shape[0]
    assert lifted or m == 1
    values, received = dict(seen), {}
    if method.penalty is not None:  # the chunk's own copies are about to change in place
        received = {
            group: {name: t.clone() for name, t in params.items()} if axes[group] == 0 else params
            for group, params in seen.items()
        }
    if not lifted:
        values, received = one(values, axes), one(received, axes)
    summed = frozenset[str]()
    if lifted and method.local_step is None and sum(len(steps) for _, steps in phases) == 1:
        summed = frozenset(
            group
            for group in phases[0][0].train
            if method.groups[group].scope is Scope.SHARED and group not in method.precondition
        )
    client = Clients(method, loss, lifted, received, {group: axes[group] for group in received}, summed, share)
    axes = dict(axes)
    total = torch.zeros(m, dtype=rows.dtype, device=rows.x.device)
    for phase, steps in phases:
        for h in steps:
            x, y = rows.gather(plan.index[:, h])
            batch, draws = Batch(x, y, plan.mask[:, h]), draw(h, x.shape[1])
            if not lifted:
                batch, draws = Batch(x[0], y[0], plan.mask[0, h]), {name: drawn[0] for name, drawn in draws.items()}
            changed, losses = client.step(phase, values, axes, batch, draws)
            values.update(changed)
            axes.update({group: 0 for group in changed if group not in summed})
            total = total + losses
    log_route = None if method.log_route is None else log_routes(method, values, axes, m, lifted)
    updated = {
        group: {name: with_axis(t, axes[group], m, lifted) if lifted else t[None] for name, t in values[group].items()}
        for group in (*method.trained, *method.statistics)
        if group not in summed
    }
    return Trained(
        updated, {group: values[group] for group in summed}, log_route, total / plan.mask.any(-1).sum(1).clamp(min=1)
    )


@dataclass(frozen=True)
class Clients:
    """The local steps of a chunk's clients: one backward pass has all their gradients, for Σ_k loss_k is separable."""

    method: Method
    loss: Loss
    lifted: bool
    received: View
    received_axes: Axes
    summed: frozenset[str]
    """SHARED groups that are trained as one, see `train_chunk`."""
    share: Tensor
    """[m] p(k)."""

    def step(self, phase: Phase, values: View, axes: Axes, batch: Batch, draws: Draws) -> tuple[View, Tensor]:
        """One local step; the groups that changed, with a client axis when lifted, and the losses."""
        trained = {group: params for group, params in values.items() if group in phase.train}
        fixed = {group: params for group, params in values.items() if group not in phase.train}
        if self.method.local_step is not None:
            over = (dims(axes, trained), dims(axes, fixed), *self._inputs(draws))
            own_step = self.over_clients(self._own_step(phase), over)
            return own_step(trained, fixed, batch.x, batch.y, batch.mask, draws, self.received)
        return self._sgd(phase, trained, fixed, axes, batch, draws)

    def _sgd(
        self, phase: Phase, trained: View, fixed: View, axes: Axes, batch: Batch, draws: Draws
    ) -> tuple[View, Tensor]:
        """w ← w - lr·g, in place on copies that the chunk owns; the `summed` groups as one."""
        m = len(batch.x)
        leaves = map_groups(lambda group, tensor: self._leaf(group, tensor, axes, m), trained)
        own_axes: Axes = {group: None if group in self.summed else 0 for group in leaves}
        over = (dims(own_axes, leaves), dims(axes, fixed), *self._inputs(draws))
        with torch.enable_grad():
            losses, changed = self.over_clients(self.objective, over)(
                leaves, fixed, batch.x, batch.y, batch.mask, draws, self.received
            )
            flat = [tensor for params in leaves.values() for tensor in params.values()]
            total = (losses * self.share).sum() if self.summed else losses.sum()
            found = iter(torch.autograd.grad(total, flat, materialize_grads=True))
        with torch.no_grad():
            gradients = map_groups(lambda group, tensor: self._unweighted(group, next(found)), leaves)
            values = map_groups(lambda group, tensor: tensor.detach(), leaves)
            for group, change in self.method.precondition.items():
                if group in gradients:
                    gradients[group] = self.over_clients(change, (0, 0))(gradients[group], values[group])

            def moved(group: str, name: str, tensor: Tensor) -> Tensor:
                change, lr = gradients[group][name], -self.method.groups[group].lr
                if group in self.summed:
                    return (tensor * self.share.sum()).add_(change, alpha=lr)
                return tensor.add_(change, alpha=lr) if axes[group] == 0 else tensor.add(change, alpha=lr)

            updated = {
                group: {name: moved(group, name, tensor) for name, tensor in params.items()}
                for group, params in values.items()
            }
            return {**updated, **map_groups(lambda group, tensor: tensor.detach(), changed)}, losses.detach()

    def _leaf(self, group: str, tensor: Tensor, axes: Axes, m: int) -> Tensor:
        """What the backward pass differentiates by: a value per client, or one for all where they are summed."""
        own = tensor if group in self.summed else with_axis(tensor, axes[group], m, self.lifted)
        return own.detach().requires_grad_()

    def _unweighted(self, group: str, gradient: Tensor) -> Tensor:
        """A client's own gradient out of the weighted backward pass."""
        if not self.summed or group in self.summed:
            return gradient
        return gradient / self.share.reshape(-1, *(1,) * (gradient.dim() - 1))

    def objective(
        self, trained: View, fixed: View, x: Tensor, y: Tensor, mask: Tensor, draws: Draws, received: View
    ) -> tuple[Tensor, View]:
        """Loss of ONE client on one batch, its mean over unmasked samples plus the penalty, and the changed statistics.

        Without a sample the loss is 0 whatever the parameters, so that an idle step changes nothing.
        """
        current = {**fixed, **trained}
        outputs, changed = self.method.predict(current, x, draws, mask)
        weight = mask.to(outputs.dtype)
        value = (sample_losses(self.loss, outputs, y) * weight).sum() / weight.sum().clamp(min=1)
        active = mask.any()
        if self.method.penalty is not None:
            value = value + active * self.method.penalty(current, received, draws)
        kept = {
            group: {name: torch.where(active, new, current[group][name]) for name, new in params.items()}
            for group, params in changed.items()
        }
        return value, kept

    def _own_step(self, phase: Phase) -> Callable[..., tuple[View, Tensor]]:
        """The method's own local step for ONE client."""
        local_step = self.method.local_step
        assert local_step is not None
        lr = {group: self.method.groups[group].lr for group in phase.train}

        def client_step(
            trained: View, fixed: View, x: Tensor, y: Tensor, mask: Tensor, draws: Draws, received: View
        ) -> tuple[View, Tensor]:
            def objective(trained: View, fixed: View, batch: Batch, draws: Draws) -> tuple[Tensor, View]:
                return self.objective(trained, fixed, batch.x, batch.y, batch.mask, draws, received)

            moved, changed, value = local_step(objective, trained, fixed, Batch(x, y, mask), draws, lr)
            active = mask.any()
            kept = {
                group: {name: torch.where(active, new, trained[group][name]) for name, new in params.items()}
                for group, params in moved.items()
            }
            return {**kept, **changed}, torch.where(active, value, 0.0)

        return client_step

    def over_clients(self, function: Callable[..., Any], in_dims: tuple[Any, ...]) -> Callable[..., Any]:
        """`function` for one client, for all clients of the chunk."""
        return torch.vmap(function, in_dims=in_dims) if self.lifted else function

    def _inputs(self, draws: Draws) -> tuple[Any, ...]:
        """`in_dims` of x, y, mask, draws and the received view."""
        return (0, 0, 0, dict.fromkeys(draws, 0), dims(self.received_axes, self.received))


def map_groups(change: Callable[[str, Tensor], Tensor], values: View) -> View:
    """`change(group, tensor)` for every tensor of a view, in its order."""
    return {group: {name: change(group, tensor) for name, tensor in params.items()} for group, params in values.items()}


def log_routes(method: Method, values: View, axes: Axes, m: int, lifted: bool = True) -> Tensor:
    """log π_k [m, C] of every client of a chunk."""
    assert method.log_route is not None
    if not lifted or all(axis is None for axis in axes.values()):
        return method.log_route(values).expand(m, -1)
    return torch.vmap(method.log_route, in_dims=(dims(axes, values),))(values)


def with_axis(tensor: Tensor, axis: int | None, m: int, lifted: bool) -> Tensor:
    """The tensor with a client axis, expanded, not copied, where all share it; as it is when nothing is lifted."""
    return tensor.expand(m, *tensor.shape) if lifted and axis is None else tensor


def make_draws(
    shapes: Mapping[str, tuple[int | str, ...]],
    learners: np.ndarray,
    *,
    seed: int,
    round: int,
    epoch: int,
    step: int,
    batch: int,
    like: Rows,
) -> dict[str, Tensor]:
    """Uniform inputs [m, *shape] of one step, each from the stream (seed, name, round, client, epoch and its step).

    The step is counted within the epoch, whose length in a chunk is that of its largest client.
    """
    counter = epoch * MOST_STEPS + step
    made = {}
    for name, declared in shapes.items():
        shape = tuple(batch if side == "batch" else int(side) for side in declared)
        position = np.arange(int(np.prod(shape)))
        values = seeds.uniform(seed, f"draw/{name}", round, learners[:, None], counter, position)
        tensor = torch.from_numpy(values).to(device=like.x.device, dtype=like.dtype)
        made[name] = tensor.reshape(len(learners), *shape)
    return made
