"""The clients' rows as tensors on the device: batches are index gathers, clients of unequal size are masked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from floral import seeds
from floral.spec import Draws


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one split by holder (client or learner).

    x [N, ...] as stored (uint8 images stay uint8 until they are gathered), y [N] or [N, d], index [U, n_max] row
    numbers padded with 0, count [U]. mean, std [channels]: of inputs that are already divided by `scale`.
    """

    x: Tensor
    y: Tensor
    index: np.ndarray
    count: np.ndarray
    scale: float
    dtype: torch.dtype
    mean: Tensor | None = None
    std: Tensor | None = None
    augment: Callable[[Tensor, Tensor, Draws], Tensor] | None = None
    """(x [n, ...] as stored, row numbers [n], draws [n]) → x [n, ...] as stored, changed at random."""
    augment_draws: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Shapes of the random inputs of `augment`, "batch" for the rows of one batch; empty without one."""

    def decode(self, x: Tensor) -> Tensor:
        """Stored values to inputs: divided by `scale`, and normalised where there are a mean and a std."""
        x = x.to(self.dtype) / self.scale if self.scale != 1 else x.to(self.dtype)
        if self.mean is None or self.std is None:
            return x
        return (x - self.mean) / self.std

    def decoded(self, budget: int) -> Rows:
        """The same rows with their inputs decoded once, where that takes no more than `budget` bytes."""
        if self.augment is not None or self.x.numel() * self.dtype.itemsize > budget:
            return self
        return replace(self, x=self.decode(self.x), scale=1, mean=None, std=None)

    def gather(self, index: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """x [*index, ...] and y [*index, ...] of the rows in `index`, augmented by `draws` [*index] where given."""
        flat = index.flatten()
        x = self.x.index_select(0, flat)
        if draws is not None and self.augment is not None:
            x = self.augment(x, flat, {name: draws[name].flatten() for name in self.augment_draws})
        x = self.decode(x)
        y = self.y.index_select(0, flat)
        return x.reshape(*index.shape, *x.shape[1:]), y.reshape(*index.shape, *y.shape[1:])


@dataclass(frozen=True, kw_only=True)
class ClientData:
    """Everything that a simulation reads; `train` is by learner (a client, or its pool), the rest by client."""

    train: Rows
    test: Rows
    validation: Rows | None
    population: Callable[[int], tuple[Tensor, Tensor]]
    """cluster → (x [N, ...] as stored, y): the whole test set under that cluster's shift, or fresh synthetic rows."""
    cluster: Tensor
    """[K] true cluster."""
    learner: Tensor
    """[K] the learner that trains for a client."""

    @property
    def clients(self) -> int:
        return len(self.cluster)


@dataclass(frozen=True)
class Plan:
    """The batches of a chunk of learners in one round: index and mask [m, H, B]; a step without samples is idle."""

    index: Tensor
    mask: Tensor
    samples: np.ndarray
    """[m] samples that each learner processes."""
    widths: list[int]
    """[H] the most rows that any learner of the federation has in a step: what lies behind is padding for all."""

    @property
    def steps(self) -> int:
        return self.index.shape[1]


def plan(
    rows: Rows,
    learners: np.ndarray,
    *,
    round: int,
    seed: int,
    batch: int,
    epochs: int,
    reshuffle: bool,
    share: float = 1.0,
) -> Plan:
    """Epochs of batches without replacement over ceil(share·n) rows of each learner, the last batch shorter.

    `reshuffle` draws a new order per epoch (a stream of (seed, round, learner, epoch)); else rows come in stored order.
    """
    count = rows.count[learners]
    take = np.ceil(share * count).astype(np.int64)
    width = rows.index.shape[1]
    steps = -(-int(take.max()) // batch)
    position = np.arange(width)
    padded = np.zeros((len(learners), epochs, steps * batch), dtype=np.int64)
    for epoch in range(epochs):
        if reshuffle:
            keys = seeds.bits(seed, "batches", round, learners[:, None], epoch, position) >> np.uint64(1)
            keys[position >= count[:, None]] = np.iinfo(np.uint64).max
            order = np.argsort(keys, axis=1)[:, : steps * batch]
        else:
            order = np.broadcast_to(position[: steps * batch], (len(learners), min(width, steps * batch)))
        padded[:, epoch, : order.shape[1]] = np.take_along_axis(rows.index[learners], order, axis=1)
    valid = np.broadcast_to((np.arange(steps * batch) < take[:, None])[:, None], padded.shape)
    shape = (len(learners), epochs * steps, batch)
    mask = valid.reshape(shape)
    index = np.where(mask, padded.reshape(shape), 0)
    most = int(np.ceil(share * rows.count.max()))
    widths = [min(batch, max(1, most - step * batch)) for step in range(steps)] * epochs
    device = rows.x.device
    return Plan(
        torch.from_numpy(index).to(device),
        torch.from_numpy(mask.copy()).to(device),
        epochs * take,
        widths,
    )
