"""Local training: pure functions for ONE client and ONE batch, lifted over a chunk of clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from floral.core import seeds
from floral.core.spec import Batch, Loss, Method, Noise, Penalty, Phase, Scope, View
from floral.engine.aggregate import Mean, Relative, sum_over_clients, weights
from floral.engine.rows import Plan, Rows
from floral.engine.state import Axes, dims, one
from floral.nn import products
from floral.toolkit.parts import sample_losses

MOST_STEPS = 1 << 20
"""No epoch has more steps: epoch and step make one counter."""
ROWS_AT_ONCE = 4096
"""Rows, of several clients together, that `assign` looks at in one piece."""


@dataclass(frozen=True)
class Trained:
    """What a chunk of m learners adds to a round: PRIVATE groups [m, ...], sums of the others, its mean losses [m]."""

    values: View
    mean: Mean
    loss: Tensor
    samples: int
    client_vectors: Tensor | None
    """[m, d] for a method whose server sees single vectors."""


@dataclass(frozen=True)
class Chunk:
    """Who trains: p(k) [m] of the learners in the round, and their fixed clusters [m] if the method has them."""

    share: Tensor
    members: Tensor | None

    def __len__(self) -> int:
        return len(self.share)


@dataclass(frozen=True)
class Step:
    """One local step of a chunk: its phase, what its clients hold and in which axes, their batch, draws, and what they
    received, which loss and penalty compare the values to (empty where neither does)."""

    phase: Phase
    values: View
    axes: Axes
    batch: Batch
    noise: Noise
    received: View
    received_axes: Axes

    @property
    def trained(self) -> View:
        """The groups that the phase trains."""
        return {group: params for group, params in self.values.items() if group in self.phase.train}

    @property
    def fixed(self) -> View:
        """The other groups."""
        return {group: params for group, params in self.values.items() if group not in self.phase.train}

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What a client's step gets besides its groups: x, y, mask, draws and the received view."""
        return self.batch.x, self.batch.y, self.batch.mask, dict(self.noise), self.received

    @property
    def input_dims(self) -> tuple[Any, ...]:
        """`in_dims` of `inputs`."""
        return 0, 0, 0, dict.fromkeys(self.noise, 0), dims(self.received_axes, self.received)


def train_chunk(
    clients: Clients,
    seen: View,
    axes: Axes,
    chunk: Chunk,
    plan: Plan,
    rows: Rows,
    *,
    draw: Callable[[int, int], Noise],
    phases: Sequence[tuple[Phase, range]],
    held: Callable[[], Batch],
) -> Trained:
    """Every phase of local training, over its steps, for the m learners of `plan`, starting from what they see.

    `held` gathers all their training rows, x [m, n, ...], for a method that assigns something to them.
    A group without a client axis is still the federation's own tensor, only read; its first step makes a copy per
    client, later ones update that copy in place.
    """
    values, axes, received, received_axes = clients.start(seen, axes)
    if clients.method.assign is not None:
        values = {**values, **clients.assigned(values, axes, held())}
    schedule = [(phase, h) for phase, steps in phases for h in steps]
    total = torch.zeros(len(chunk), dtype=rows.dtype, device=rows.x.device)
    trained = None
    for at, (phase, h) in enumerate(schedule):
        width = plan.widths[h]
        noise = draw(h, width)
        x, y = rows.gather(plan.index[:, h, :width], noise)
        batch, noise = Batch(x, y, plan.mask[:, h, :width]), {name: noise[name] for name in clients.method.noise}
        step = Step(phase, values, axes, batch, noise, received, received_axes)
        if at < len(schedule) - 1:
            values, axes, losses = clients.step(step)
        else:
            trained, losses = clients.last(step, chunk)
        total = total + losses
    assert trained is not None
    private, sums, relative, client_vectors = trained
    mean = Mean(sums, *((None, None) if relative is None else relative))
    return Trained(
        private, mean, total / plan.mask.any(-1).sum(1).clamp(min=1), int(plan.samples.sum()), client_vectors
    )


Finished = tuple[View, View, tuple[Tensor, Tensor] | None, Tensor | None]
"""PRIVATE groups [m, ...]; sums over the chunk; top and mass [C] of its clusters, if it has any; single vectors [m, d],
if the server sees any."""


@dataclass(frozen=True)
class Clients:
    """The local steps of a chunk's clients: one backward pass has all their gradients, for Σ_k loss_k is separable.

    `vectorised` runs all of them in one `torch.vmap` per step; else a chunk is one client and the functions run as they
    are, without a client axis.
    """

    method: Method
    phases: tuple[Phase, ...]
    """Of the rounds that these steps are for."""
    loss: Loss
    vectorised: bool
    clusters: int
    rounded: torch.dtype | None = None
    """What the layers' products are rounded to, if to anything."""

    def penalty(self, phase: Phase) -> Penalty | None:
        """What a phase adds to the loss."""
        return phase.penalty or self.method.penalty

    def start(self, seen: View, axes: Axes) -> tuple[View, Axes, View, Axes]:
        """The values to begin with and their axes, and those of what the clients received."""
        received: View = {}
        if self.method.loss or any(self.penalty(phase) for phase in self.phases):
            received = {  # a copy of what the chunk owns, for that is about to change in place
                group: {name: t.clone() for name, t in params.items()} if axes[group] == 0 else params
                for group, params in seen.items()
            }
        kept: Axes = {group: axes[group] for group in received}
        if not self.vectorised:
            return one(seen, axes), dict.fromkeys(axes), one(received, kept), dict.fromkeys(kept)
        return dict(seen), dict(axes), received, kept

    def assigned(self, values: View, axes: Axes, held: Batch) -> View:
        """What the method's `assign` gives to the clients, of values as `start` returns them."""
        assign = self.method.assign
        assert assign is not None
        with torch.no_grad():
            if not self.vectorised:
                return assign(values, Batch(held.x[0], held.y[0], held.mask[0]))

            def client(values: View, x: Tensor, y: Tensor, mask: Tensor) -> View:
                return assign(values, Batch(x, y, mask))

            at_once = max(1, ROWS_AT_ONCE // held.mask.shape[1])
            over = (dims(axes, values), 0, 0, 0)
            return torch.vmap(client, in_dims=over, chunk_size=at_once)(values, held.x, held.y, held.mask)

    def step(self, step: Step) -> tuple[View, Axes, Tensor]:
        """One local step: all values after it, their axes, and the losses [m]."""
        if not self.vectorised:
            x, y, mask = step.batch.x[0], step.batch.y[0], step.batch.mask[0]
            noise = {key: drawn[0] for key, drawn in step.noise.items()}
            step = replace(step, batch=Batch(x, y, mask), noise=noise)
        changed, losses = self._sgd(step) if self.method.local_step is None else self.own_step(step)
        if not self.vectorised:
            return {**step.values, **changed}, step.axes, losses[None]
        return {**step.values, **changed}, {**step.axes, **dict.fromkeys(changed, 0)}, losses

    def last(self, step: Step, chunk: Chunk) -> tuple[Finished, Tensor]:
        """The last local step, and what the chunk adds to the round."""
        values, axes, losses = self.step(step)
        if not self.vectorised:
            values = {group: {name: t[None] for name, t in params.items()} for group, params in values.items()}
            axes: Axes = dict.fromkeys(axes, 0)
        return self.finish(values, axes, chunk, self.relative(values, axes, chunk), {}), losses

    def relative(self, values: View, axes: Axes, chunk: Chunk) -> Relative | None:
        """The clients' weights in the clusters after the step; None for a method without CLUSTERED averages."""
        method = self.method
        if not any(method.groups[group].scope is Scope.CLUSTERED for group in self.method.changing(self.phases)):
            return None
        log_route = method.routing.log_route
        route = log_routes(log_route, values, axes, len(chunk)) if log_route is not None else None
        return weights(method, chunk.share, route, chunk.members, self.clusters)

    def finish(self, values: View, axes: Axes, chunk: Chunk, relative: Relative | None, sums: View) -> Finished:
        """What a chunk adds to the round, from values with a client axis; `sums` of some groups are known already."""
        method, m = self.method, len(chunk)
        over, client_vector = (dims(axes, values),), method.server.client_vector
        client_vectors = None if client_vector is None else torch.vmap(client_vector, in_dims=over)(values)
        sent = {group: torch.vmap(made, in_dims=over)(values) for group, made in method.server.upload.items()}
        values, axes = {**values, **sent}, {**axes, **dict.fromkeys(sent, 0)}
        left = [group for group in method.changing(self.phases) if group not in sums]
        own = {group: {name: with_axis(t, axes[group], m) for name, t in values[group].items()} for group in left}
        private = {group: params for group, params in own.items() if method.groups[group].scope is Scope.PRIVATE}
        summed = sum_over_clients(method, own, [group for group in left if group not in private], chunk.share, relative)
        mass = None if relative is None else (relative.top, relative.weight.sum(0))
        return private, {**sums, **summed}, mass, client_vectors

    def _sgd(self, step: Step) -> tuple[View, Tensor]:
        """w ← w - lr·g, in place on copies that the chunk owns."""
        axes = step.axes
        leaves = map_groups(lambda group, t: self._leaf(t, axes[group], len(step.batch.x)), step.trained)
        over = (dict.fromkeys(leaves, 0), dims(axes, step.fixed), *step.input_dims)
        with torch.enable_grad():
            objective = self.over_clients(partial(self.objective, step.phase), over)
            losses, changed = objective(leaves, step.fixed, *step.inputs)
            flat = [tensor for params in leaves.values() for tensor in params.values()]
            found = iter(torch.autograd.grad(losses.sum(), flat, materialize_grads=True))
        with torch.no_grad():
            gradients = map_groups(lambda group, tensor: next(found), leaves)
            values = map_groups(lambda group, tensor: tensor.detach(), leaves)
            others = map_groups(
                lambda group, t: with_axis(t, axes[group], len(step.batch.x)) if self.vectorised else t,
                self._beside(step),
            )
            gradients = self.preconditioned(gradients, {**others, **values}, self.vectorised)

            def moved(group: str, name: str, tensor: Tensor) -> Tensor:
                change, lr = gradients[group][name], -self.method.groups[group].lr
                in_place = self.vectorised and axes[group] == 0
                return tensor.add_(change, alpha=lr) if in_place else tensor.add(change, alpha=lr)

            updated = {
                group: {name: moved(group, name, tensor) for name, tensor in params.items()}
                for group, params in values.items()
            }
            return {**updated, **map_groups(lambda group, tensor: tensor.detach(), changed)}, losses.detach()

    def _beside(self, step: Step) -> View:
        """What the preconditioners of a phase read and it does not train."""
        preconditioned = [group for group in step.trained if group in self.method.precondition]
        read = {name for group in preconditioned for name in self.method.preconditioner_inputs.get(group, ())}
        return {group: params for group, params in step.fixed.items() if group in read}

    def _leaf(self, tensor: Tensor, axis: int | None, m: int) -> Tensor:
        """What the backward pass differentiates by: a value per client."""
        return (with_axis(tensor, axis, m) if self.vectorised else tensor).detach().requires_grad_()

    def preconditioned(self, gradients: View, values: View, per_client: bool) -> View:
        """The gradients as the method's preconditioners change them."""
        changed = dict(gradients)
        for group, change in self.method.precondition.items():
            if group in gradients:
                change = torch.vmap(change) if per_client else change
                read = {n: t for name in self.method.preconditioned_by(group) for n, t in values[name].items()}
                changed[group] = change(gradients[group], read)
        return changed

    def objective(
        self, phase: Phase, trained: View, fixed: View, x: Tensor, y: Tensor, mask: Tensor, noise: Noise, received: View
    ) -> tuple[Tensor, View]:
        """Loss of ONE client on one batch, its mean over unmasked samples plus the penalty, and the changed statistics.

        Without a sample the loss is 0 whatever the parameters, so that an idle step changes nothing.
        """
        current = {**fixed, **trained}
        penalty = self.penalty(phase)
        with products.rounded(self.rounded):
            if self.method.loss is not None and phase.predict is None:
                losses, changed = self.method.loss(current, received, Batch(x, y, mask), noise)
            else:
                outputs, changed = (phase.predict or self.method.predict)(current, x, noise, mask)
                losses = sample_losses(self.loss, outputs, y)
        weight = mask.to(losses.dtype)
        value = (losses * weight).sum() / weight.sum().clamp(min=1)
        active = mask.any()
        if penalty is not None:
            value = value + active * penalty(current, received, noise)
        kept = {
            group: {name: torch.where(active, new, current[group][name]) for name, new in params.items()}
            for group, params in changed.items()
        }
        return value, kept

    def own_step(self, step: Step) -> tuple[View, Tensor]:
        """The method's own local step of all clients: what it changes, and the losses."""
        over = (dims(step.axes, step.trained), dims(step.axes, step.fixed), *step.input_dims)
        return self.over_clients(self._own_step(step.phase), over)(step.trained, step.fixed, *step.inputs)

    def _own_step(self, phase: Phase) -> Callable[..., tuple[View, Tensor]]:
        """The same for ONE client."""
        local_step = self.method.local_step
        assert local_step is not None
        lr = {group: self.method.groups[group].lr for group in phase.train}

        def client_step(
            trained: View, fixed: View, x: Tensor, y: Tensor, mask: Tensor, noise: Noise, received: View
        ) -> tuple[View, Tensor]:
            def objective(trained: View, fixed: View, batch: Batch, noise: Noise) -> tuple[Tensor, View]:
                return self.objective(phase, trained, fixed, batch.x, batch.y, batch.mask, noise, received)

            moved, changed, value = local_step(objective, trained, fixed, Batch(x, y, mask), noise, lr)
            active = mask.any()
            kept = {
                group: {name: torch.where(active, new, trained[group][name]) for name, new in params.items()}
                for group, params in moved.items()
            }
            return {**kept, **changed}, torch.where(active, value, 0.0)

        return client_step

    def over_clients(self, function: Callable[..., Any], in_dims: tuple[Any, ...]) -> Callable[..., Any]:
        """`function` for one client, for all clients of the chunk."""
        return torch.vmap(function, in_dims=in_dims) if self.vectorised else function


def map_groups(change: Callable[[str, Tensor], Tensor], values: View) -> View:
    """`change(group, tensor)` for every tensor of a view, in its order."""
    return {group: {name: change(group, tensor) for name, tensor in params.items()} for group, params in values.items()}


def log_routes(log_route: Callable[[View], Tensor], values: View, axes: Axes, m: int) -> Tensor:
    """log π_k [m, C] of every client of a chunk."""
    if all(axis is None for axis in axes.values()):
        return log_route(values).expand(m, -1)
    return torch.vmap(log_route, in_dims=(dims(axes, values),))(values)


def with_axis(tensor: Tensor, axis: int | None, m: int) -> Tensor:
    """The tensor with a client axis, expanded, not copied, where all share it."""
    return tensor.expand(m, *tensor.shape) if axis is None else tensor


def make_draws(
    shapes: Mapping[str, tuple[int | str, ...]],
    pools: np.ndarray,
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
        values = seeds.uniform(seed, f"draw/{name}", round, pools[:, None], counter, position)
        tensor = torch.from_numpy(values).to(device=like.x.device, dtype=like.dtype)
        made[name] = tensor.reshape(len(pools), *shape)
    return made
