"""Local training: functions for ONE client and ONE batch, which are vectorised over a chunk of clients.

A chunk is a set of clients that train together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from floral.core import seeds
from floral.core.spec import LEARNING_RATE, LOCAL_STATE, Batch, Loss, Method, Noise, Penalty, Phase, Scope, View
from floral.engine.aggregate import Mean, Relative, sum_over_clients, weights
from floral.engine.client_data import Plan, Rows
from floral.engine.state import Axes, client_view, dims
from floral.nn import products
from floral.toolkit.parts import sample_losses

MAX_STEPS_PER_EPOCH = 1 << 20
"""Maximum number of steps of an epoch: the random counter of a step is epoch · MAX_STEPS_PER_EPOCH + step."""
MAX_ASSIGN_SAMPLES = 4096
"""Maximum number of samples, over several clients, that a function of all their samples processes in one piece."""


@dataclass(frozen=True)
class Trained:
    """The result of the local training of a chunk of m clients.

    `values` has the PRIVATE groups [m, ...] of each client. `mean` has the weighted sums of the other groups over the
    clients, from which the server computes means. `loss` [m] has the clients' mean losses, and `samples` is the number
    of processed samples.
    """

    values: View
    mean: Mean
    loss: Tensor
    samples: int
    client_vectors: Tensor | None
    """[m, d] for a method with `ServerStep.client_vector`, otherwise None."""


@dataclass(frozen=True)
class Chunk:
    """The clients of a chunk: their weights p(k) [m] in the round, and their fixed clusters [m].

    `members` is None if the method does not fix the clusters of its clients.
    """

    share: Tensor
    members: Tensor | None

    def __len__(self) -> int:
        return len(self.share)


@dataclass(frozen=True)
class Step:
    """The inputs of one local step of a chunk's clients.

    `values` has the parameters and statistics of all groups before the step. `received` has those at the beginning of
    the round, for losses and penalties that compare the current values with them. If the method has no such loss or
    penalty, `received` is empty.
    `axes` says which groups in `values` have a client axis; `received_axes` says this for the groups in `received`.
    """

    phase: Phase
    values: View
    axes: Axes
    batch: Batch
    noise: Noise
    received: View
    received_axes: Axes

    @property
    def trained(self) -> View:
        """The values of the groups of parameters that are trained in this phase of local training."""
        return {group: params for group, params in self.values.items() if group in self.phase.train}

    @property
    def fixed(self) -> View:
        """The values of the groups of parameters that are not trained in this phase of local training."""
        return {group: params for group, params in self.values.items() if group not in self.phase.train}

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The inputs of a local step except the groups' values: x, y, mask, noise, values received from the server."""
        return self.batch.x, self.batch.y, self.batch.mask, dict(self.noise), self.received

    @property
    def input_dims(self) -> tuple[Any, ...]:
        """The argument `in_dims` of `torch.vmap` for the tensors in `inputs`."""
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
    at: tuple[int, int],
    held: Callable[[], Batch],
    held_out: Callable[[], Tensor],
) -> Trained:
    """Do all local steps of a round for the m clients of a chunk, starting from the values `seen`.

    `plan` has the batches of all steps. `phases` has pairs of a phase and the range of its steps in the plan. `draw`
    returns the random numbers of a step. `held` returns all training samples of the clients, with inputs x [m, n, ...].
    It is called only if the method has a function that needs them before or after local training (`Method.assign`,
    `Method.after_training`). `held_out` returns a mask [N] of the samples that are held out. It is called only if a
    phase uses a part of the samples. `at` is the round and the number of rounds.

    The tensors of a group without a client axis are those of the state, and are never changed. The first step that
    trains the group makes one copy per client, and later steps update these copies in place.
    """
    values, axes, received, received_axes = clients.start(seen, axes)
    if clients.method.assign is not None:
        values = {**values, **clients.assigned(values, axes, held())}
    if clients.method.local_state is not None:
        with torch.no_grad():
            state = clients.method.local_state(client_view(values, axes))
        values, axes = {**values, LOCAL_STATE: state}, {**axes, LOCAL_STATE: None}
    schedule = [(phase, h, steps) for phase, steps in phases for h in steps]
    total = torch.zeros(len(chunk), dtype=rows.dtype, device=rows.x.device)
    active = plan.mask.any(-1)
    steps = active.sum(1)
    trained = None
    for number, (phase, h, of_phase) in enumerate(schedule):
        width = plan.widths[h]
        noise = draw(h, width)
        x, y = rows.gather(plan.index[:, h, :width], noise)
        mask = plan.mask[:, h, :width]
        if phase.samples != "all":
            is_held_out = held_out()[plan.index[:, h, :width]]
            used = mask & (is_held_out if phase.samples == "held_out" else ~is_held_out)
            steps = steps - (mask.any(-1) & ~used.any(-1)).long()
            mask = used
        batch, noise = Batch(x, y, mask), {name: noise[name] for name in clients.method.noise}
        if clients.method.schedule is not None:
            done, planned = (active[:, of_phase.start : end].sum(1).to(rows.dtype) for end in (h, of_phase.stop))
            noise[LEARNING_RATE] = clients.method.schedule(done, planned, *at)
        step = Step(phase, values, axes, batch, noise, received, received_axes)
        if number < len(schedule) - 1:
            values, axes, losses = clients.step(step)
        else:
            after = clients.method.after_training
            trained, losses = clients.last(step, chunk, None if after is None else held())
        total = total + losses
    assert trained is not None
    private, sums, relative, client_vectors = trained
    mean = Mean(sums, *((None, None) if relative is None else relative))
    return Trained(private, mean, total / steps.clamp(min=1), int(plan.samples.sum()), client_vectors)


Finished = tuple[View, View, tuple[Tensor, Tensor] | None, Tensor | None]
"""(PRIVATE groups [m, ...], sums over the chunk, (top, mass) [C] of the clusters or None, client vectors [m, d] or
None)."""


@dataclass(frozen=True)
class Clients:
    """The local steps of the clients of a chunk.

    One backward pass of the sum of all losses gives the gradients of all clients, because each loss depends only on the
    values of its own client. With `vectorised`, each step runs all clients in one `torch.vmap`. Otherwise, a chunk is a
    single client, and its values have no client axis.
    """

    method: Method
    phases: tuple[Phase, ...]
    """The phases of the rounds in which these steps are used."""
    loss: Loss
    vectorised: bool
    clusters: int
    rounded: torch.dtype | None = None
    """Type to which the layers' products are rounded. None: they are not rounded."""

    def penalty(self, phase: Phase) -> Penalty | None:
        """Return the penalty that is added to the loss: the phase's penalty if it has one, else the method's."""
        return phase.penalty or self.method.penalty

    def start(self, seen: View, axes: Axes) -> tuple[View, Axes, View, Axes]:
        """Return the clients' values at the start of the round twice, each time with the client axis of every group.

        Local steps replace the first values. The second values stay unchanged, because some losses and penalties, and
        `Method.after_training`, compare later values with them. If the method has none of these, the second values are
        empty.
        """
        received: View = {}
        if self.method.loss or self.method.after_training or any(self.penalty(phase) for phase in self.phases):
            received = {  # values with a client axis are copied, because steps change them in place
                group: {name: t.clone() for name, t in params.items()} if axes[group] == 0 else params
                for group, params in seen.items()
            }
        received_axes: Axes = {group: axes[group] for group in received}
        if self.vectorised:
            return dict(seen), dict(axes), received, received_axes
        one_seen, one_received = client_view(seen, axes), client_view(received, received_axes)
        return one_seen, dict.fromkeys(axes), one_received, dict.fromkeys(received_axes)

    def assigned(self, values: View, axes: Axes, held: Batch) -> View:
        """Return the PRIVATE values that the method's `assign` computes before local training.

        `values` are the clients' values at the beginning of the round, and `held` are all their training samples.
        """
        assert self.method.assign is not None
        return self.of_all_samples(self.method.assign, held, (values, axes))

    def after_training(self, values: View, axes: Axes, step: Step, held: Batch) -> tuple[View, Axes]:
        """Return the values and client axes of all groups, with those that the method's `after_training` computes.

        `values` are the clients' values after the last local `step`, and `held` are all their training samples.

        Raises:
            ValueError: the function returns a group that the round does not change.
        """
        assert self.method.after_training is not None
        received = step.received, step.received_axes
        computed = self.of_all_samples(self.method.after_training, held, (values, axes), received)
        changing = self.method.changing(self.phases)
        for group in computed:
            if group not in changing and not (group in self.method.groups and self.method.groups[group].fixed):
                raise ValueError(
                    f"`after_training` returns {group!r}, which is no group that the round changes; set "
                    "`statistic: True` for this group, or train it"
                )
        return {**values, **computed}, {**axes, **dict.fromkeys(computed, 0 if self.vectorised else None)}

    def of_all_samples(self, function: Callable[..., View], held: Batch, *views: tuple[View, Axes]) -> View:
        """Return `function(values of a client, ..., its training samples)` for all clients of the chunk.

        `views` has pairs of values and their client axes. Without `vectorised`, nothing has a client axis.
        """
        computed = for_each_client(function, held, *views, vectorised=self.vectorised)
        return computed if self.vectorised else client_view(computed, dict.fromkeys(computed, 0))

    def step(self, step: Step) -> tuple[View, Axes, Tensor]:
        """Do one local step; return the values of all groups, the client axis of each group, and the losses [m]."""
        if not self.vectorised:
            x, y, mask = step.batch.x[0], step.batch.y[0], step.batch.mask[0]
            noise = {key: drawn[0] for key, drawn in step.noise.items()}
            step = replace(step, batch=Batch(x, y, mask), noise=noise)
        changed, losses = self._sgd(step) if self.method.local_step is None else self.own_step(step)
        if not self.vectorised:
            return {**step.values, **changed}, step.axes, losses[None]
        return {**step.values, **changed}, {**step.axes, **dict.fromkeys(changed, 0)}, losses

    def last(self, step: Step, chunk: Chunk, held: Batch | None) -> tuple[Finished, Tensor]:
        """Do the last local step; return PRIVATE parameters, the other parameters summed over clients, and losses.

        `held` has all training samples of the clients if the method has `after_training`.
        """
        values, axes, losses = self.step(step)
        if held is not None:
            values, axes = self.after_training(values, axes, step, held)
        if not self.vectorised:
            values = {group: {name: t[None] for name, t in params.items()} for group, params in values.items()}
            axes: Axes = dict.fromkeys(axes, 0)
        return self.finish(values, axes, chunk, self.relative(values, axes, chunk), {}), losses

    def relative(self, values: View, axes: Axes, chunk: Chunk) -> Relative | None:
        """Return the weights of the chunk's clients in each cluster, after the last local step."""
        method = self.method
        if not any(method.groups[group].scope is Scope.CLUSTERED for group in self.method.changing(self.phases)):
            return None
        log_route = method.routing.log_route
        route = log_routes(log_route, values, axes, len(chunk)) if log_route is not None else None
        return weights(method, chunk.share, route, chunk.members, self.clusters)

    def finish(self, values: View, axes: Axes, chunk: Chunk, relative: Relative | None, sums: View) -> Finished:
        """Return the PRIVATE parameters of each client, and all other parameters as weighted sums over the clients.

        `values` has the parameters after the last local step. The parameter groups in `sums` have already been summed.
        """
        method, m = self.method, len(chunk)
        over, client_vector = (dims(axes, values),), method.server.client_vector
        client_vectors = None if client_vector is None else torch.vmap(client_vector, in_dims=over)(values)
        sent = {group: torch.vmap(upload, in_dims=over)(values) for group, upload in method.server.upload.items()}
        values, axes = {**values, **sent}, {**axes, **dict.fromkeys(sent, 0)}
        pending = [group for group in method.changing(self.phases) if group not in sums]
        expanded = {
            group: {name: with_axis(t, axes[group], m) for name, t in values[group].items()} for group in pending
        }
        private = {group: params for group, params in expanded.items() if method.groups[group].scope is Scope.PRIVATE}
        averaged = [group for group in pending if group not in private]
        summed = sum_over_clients(method, expanded, averaged, chunk.share, relative)
        mass = None if relative is None else (relative.top, relative.weight.sum(0))
        return private, {**sums, **summed}, mass, client_vectors

    def _sgd(self, step: Step) -> tuple[View, Tensor]:
        """Do one SGD step w ← w - lr·g on the trained values w, with their gradients g and learning rates lr.

        Values with a client axis are updated in place. Returns the changed groups and the losses [m].
        """
        axes = step.axes
        leaves = map_groups(lambda group, t: self._leaf(t, axes[group], len(step.batch.x)), step.trained)
        over = (dict.fromkeys(leaves, 0), dims(axes, step.fixed), *step.input_dims)
        with torch.enable_grad():
            objective = self.over_clients(partial(self.objective, step.phase), over)
            losses, changed = objective(leaves, step.fixed, *step.inputs)
            flat = [tensor for params in leaves.values() for tensor in params.values()]
            # A phase may train a group whose parameters are all frozen.
            flat_gradients = iter(torch.autograd.grad(losses.sum(), flat, materialize_grads=True) if flat else ())
        with torch.no_grad():
            gradients = map_groups(lambda group, tensor: next(flat_gradients), leaves)
            values = map_groups(lambda group, tensor: tensor.detach(), leaves)
            inputs = map_groups(
                lambda group, t: with_axis(t, axes[group], len(step.batch.x)) if self.vectorised else t,
                self._preconditioner_inputs(step),
            )
            gradients = self.preconditioned(gradients, {**inputs, **values}, self.vectorised)

            def moved(group: str, name: str, tensor: Tensor) -> Tensor:
                change, lr = gradients[group][name], -self.method.groups[group].lr
                in_place = self.vectorised and axes[group] == 0
                return tensor.add_(change, alpha=lr) if in_place else tensor.add(change, alpha=lr)

            updated = {
                group: {name: moved(group, name, tensor) for name, tensor in params.items()}
                for group, params in values.items()
            }
            return {**updated, **map_groups(lambda group, tensor: tensor.detach(), changed)}, losses.detach()

    def _preconditioner_inputs(self, step: Step) -> View:
        """Return the groups that the preconditioners of the phase read, but that the phase does not train."""
        preconditioned = [group for group in step.trained if group in self.method.precondition]
        read = {name for group in preconditioned for name in self.method.preconditioner_inputs.get(group, ())}
        return {group: params for group, params in step.fixed.items() if group in read}

    def _leaf(self, tensor: Tensor, axis: int | None, m: int) -> Tensor:
        """Return the tensor as the start of a new autograd graph.

        With `vectorised`, it gets a client axis of length m.
        """
        return (with_axis(tensor, axis, m) if self.vectorised else tensor).detach().requires_grad_()

    def preconditioned(self, gradients: View, values: View, per_client: bool) -> View:
        """Apply the method's preconditioners to the gradients of their groups, and return the gradients of all groups.

        With `per_client`, the gradients and the values have a client axis.
        """
        return self.method.preconditioned(gradients, values, torch.vmap if per_client else lambda function: function)

    def objective(
        self, phase: Phase, trained: View, fixed: View, x: Tensor, y: Tensor, mask: Tensor, noise: Noise, received: View
    ) -> tuple[Tensor, View]:
        """Return the loss of ONE client on one batch, and the statistics that the forward pass changed.

        The loss is the mean over the unmasked samples, plus the penalty. If a batch has no unmasked samples, the loss
        is constantly 0 and its gradient is 0, so the step changes nothing.
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
        statistics = {
            group: {name: torch.where(active, new, current[group][name]) for name, new in params.items()}
            for group, params in changed.items()
        }
        return value, statistics

    def own_step(self, step: Step) -> tuple[View, Tensor]:
        """Do one step of the method's own `local_step` for all clients; return the changed groups and losses [m]."""
        over = (dims(step.axes, step.trained), dims(step.axes, step.fixed), *step.input_dims)
        return self.over_clients(self._own_step(step.phase), over)(step.trained, step.fixed, *step.inputs)

    def _own_step(self, phase: Phase) -> Callable[..., tuple[View, Tensor]]:
        """Return the method's own `local_step` as a function for ONE client.

        If a batch has no samples, the function changes nothing.
        """
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
            updated = {
                group: {name: torch.where(active, new, trained[group][name]) for name, new in params.items()}
                for group, params in moved.items()
            }
            return {**updated, **changed}, torch.where(active, value, 0.0)

        return client_step

    def over_clients(self, function: Callable[..., Any], in_dims: tuple[Any, ...]) -> Callable[..., Any]:
        """Return a function for one client, vectorised over all clients of the chunk.

        Without `vectorised`, the function is returned unchanged.
        """
        return torch.vmap(function, in_dims=in_dims) if self.vectorised else function


def map_groups(change: Callable[[str, Tensor], Tensor], values: View) -> View:
    """Apply `change(group, tensor)` to every tensor of every group in `values`; the order stays the same."""
    return {group: {name: change(group, tensor) for name, tensor in params.items()} for group, params in values.items()}


def for_each_client(function: Callable[..., View], held: Batch, *views: tuple[View, Axes], vectorised: bool) -> View:
    """Return `function(values of a client, ..., its samples)` for m clients, with a client axis, without gradients.

    `held` has all samples of the clients, with inputs x [m, n, ...]. `views` has pairs of values and their client axes.
    """

    def client(x: Tensor, y: Tensor, mask: Tensor, *values: View) -> View:
        return function(*values, Batch(x, y, mask))

    samples = held.x, held.y, held.mask
    with torch.no_grad():
        if vectorised:
            at_once = max(1, MAX_ASSIGN_SAMPLES // held.mask.shape[1])
            over = (0, 0, 0, *(dims(axes, values) for values, axes in views))
            computed = torch.vmap(client, in_dims=over, chunk_size=at_once)
            return computed(*samples, *(values for values, _ in views))
        of_client = [
            function(
                *(client_view(values, axes, k) for values, axes in views), Batch(*(tensor[k] for tensor in samples))
            )
            for k in range(len(held.mask))
        ]
    return {
        group: {name: torch.stack([view[group][name] for view in of_client]) for name in params}
        for group, params in of_client[0].items()
    }


def log_routes(log_route: Callable[[View], Tensor], values: View, axes: Axes, m: int) -> Tensor:
    """Return the log routes [m, C] of m clients: the logarithm of each client's weight in each cluster."""
    if all(axis is None for axis in axes.values()):
        return log_route(values).expand(m, -1)
    return torch.vmap(log_route, in_dims=(dims(axes, values),))(values)


def with_axis(tensor: Tensor, axis: int | None, m: int) -> Tensor:
    """Return the tensor with a client axis of length m.

    A tensor that all clients share (`axis` None) is expanded without a copy.
    """
    return tensor.expand(m, *tensor.shape) if axis is None else tensor


def make_noise(
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
    """Draw the noise of one local step: random inputs [m, *shape], uniform on [0, 1), for each name in `shapes`.

    The numbers depend only on (seed, name, round, client, epoch, step). `pools` [m] has the indices of the clients, or
    of pools of clients. `step` is counted from the start of the epoch. Shorter epochs are padded with empty steps, so
    all clients of a chunk have the same number of steps per epoch.
    """
    counter = epoch * MAX_STEPS_PER_EPOCH + step
    noise = {}
    for name, declared in shapes.items():
        shape = tuple(batch if side == "batch" else int(side) for side in declared)
        position = np.arange(int(np.prod(shape)))
        values = seeds.uniform(seed, f"draw/{name}", round, pools[:, None], counter, position)
        tensor = torch.from_numpy(values).to(device=like.x.device, dtype=like.dtype)
        noise[name] = tensor.reshape(len(pools), *shape)
    return noise
