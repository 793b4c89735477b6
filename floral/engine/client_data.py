"""The clients' samples as tensors on the device.

The samples of all clients are stored in one tensor. A batch is given by the indices of its samples in this tensor, and
by a mask that is False for padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from floral.core import seeds
from floral.core.spec import Batch, Noise


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The samples of one split, and for each of U clients the list of its samples.

    For a method that trains pools of clients on their joint samples, the training split has U pools instead. `x` [N,
    ...] are the inputs as stored (images stay uint8), and `y` [N] or [N, d] are the labels. `index` [U, n_max] has the
    indices of each client's samples in `x`, padded with 0. `count` [U] has each client's number of samples. `mean` and
    `std` [channels] normalise the inputs after they are divided by `scale`.
    """

    x: Tensor
    y: Tensor
    index: np.ndarray
    count: np.ndarray
    scale: float
    dtype: torch.dtype
    mean: Tensor | None = None
    std: Tensor | None = None
    augment: Callable[[Tensor, Tensor, Noise], Tensor] | None = None
    """(x [n, ...] as stored, sample numbers [n], noise [n]) → randomly augmented x [n, ...], as stored."""
    augment_draws: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    """Shapes of the random inputs of `augment`; "batch" stands for the batch size. Empty without `augment`."""

    def decode(self, x: Tensor) -> Tensor:
        """Convert stored values to model inputs: divide by `scale`, then normalise with `mean` and `std` if given."""
        x = x.to(self.dtype) / self.scale if self.scale != 1 else x.to(self.dtype)
        if self.mean is None or self.std is None:
            return x
        return (x - self.mean) / self.std

    def decoded(self, budget: int) -> Rows:
        """Return a copy in which all inputs are already decoded, if the decoded inputs take at most `budget` bytes.

        Otherwise, and for inputs that are augmented, return the object unchanged; `gather` then decodes each batch.
        """
        if self.augment is not None or self.x.numel() * self.dtype.itemsize > budget:
            return self
        return replace(self, x=self.decode(self.x), scale=1, mean=None, std=None)

    def gather(self, index: Tensor, noise: Noise | None = None) -> tuple[Tensor, Tensor]:
        """Return the inputs x and the labels y of the samples with the indices `index`.

        The shapes of both begin with the axes of `index`. With `noise`, the inputs are augmented; each tensor in
        `noise` has the shape of `index`.
        """
        flat = index.flatten()
        x = self.x.index_select(0, flat)
        if noise is not None and self.augment is not None:
            x = self.augment(x, flat, {name: noise[name].flatten() for name in self.augment_draws})
        x = self.decode(x)
        y = self.y.index_select(0, flat)
        return x.reshape(*index.shape, *x.shape[1:]), y.reshape(*index.shape, *y.shape[1:])

    def of_clients(self, clients: np.ndarray) -> Batch:
        """Return all samples of m clients: inputs x [m, n, ...], labels and mask. `clients` [m] has their indices.

        The inputs are decoded, but not augmented.
        """
        count = self.count[clients, None]
        width = max(1, int(count.max()))
        x, y = self.gather(torch.from_numpy(self.index[clients, :width]).to(self.x.device))
        return Batch(x, y, torch.from_numpy(np.arange(width) < count).to(self.x.device))

    def held_out(self) -> Tensor:
        """Return a mask [N] of the samples in `x`: True for every fourth sample of a client, in stored order.

        A client with n samples has n // 4 of them. The first samples of a client do not depend on how many follow.
        """
        position = np.arange(self.index.shape[1])
        mask = np.zeros(len(self.x), bool)
        mask[self.index[(position % 4 == 3) & (position < self.count[:, None])]] = True
        return torch.from_numpy(mask).to(self.x.device)


@dataclass(frozen=True, kw_only=True)
class ClientData:
    """The data of all clients in a simulation.

    `train` has the samples of each client. If the method trains pools of clients on their joint samples, `train` has
    the samples of each pool instead. The other splits always have the samples of each client.
    """

    train: Rows
    test: Rows
    validation: Rows | None
    global_test: Callable[[int], tuple[Tensor, Tensor]]
    """cluster → (x [N, ...] as stored, y): the global test set under the cluster's shift, or new synthetic samples."""
    cluster: Tensor
    """[K] true cluster."""
    pool_of_client: Tensor
    """[K] the number of each client's pool; the client itself for methods that do not pool."""

    @property
    def clients(self) -> int:
        return len(self.cluster)


@dataclass(frozen=True)
class Plan:
    """The batches of a chunk of m clients in one round of H local steps, with at most B samples per batch.

    `index` [m, H, B] has the indices of the samples in `Rows.x`, and `mask` [m, H, B] is False for padding. If all
    samples of a client in a step are padding, the step changes nothing for this client.
    """

    index: Tensor
    mask: Tensor
    samples: np.ndarray
    """[m] samples that each client processes."""
    widths: list[int]
    """[H] the largest batch of any client of the federation in each step; later columns of a step are padding."""

    @property
    def steps(self) -> int:
        return self.index.shape[1]


def plan(
    rows: Rows,
    pools: np.ndarray,
    *,
    round: int,
    seed: int,
    batch: int,
    epochs: int,
    reshuffle: bool,
    share: float = 1.0,
    steps: np.ndarray | None = None,
) -> Plan:
    """Plan the batches of a round, with a given number of local epochs.

    `pools` [m] has the indices of the clients, or of pools of clients. In each epoch, a client with n samples uses
    ceil(share·n) of them, each once. With `reshuffle`, these samples are drawn in a new random order in each epoch,
    from the random numbers of (seed, round, client, epoch). Otherwise, the client uses its first samples, in stored
    order. The last batch of an epoch may be smaller. With `steps` [m], each epoch of client k has exactly steps[k]
    batches, as described at `_cycled`.
    """
    take = np.ceil(share * rows.count[pools]).astype(np.int64)
    most = int(np.ceil(share * rows.count.max()))
    if steps is not None:
        return _cycled(rows, pools, take, most, round, seed, batch, epochs, reshuffle, steps)
    count = -(-int(take.max()) // batch)
    padded = np.zeros((len(pools), epochs, count * batch), dtype=np.int64)
    for epoch in range(epochs):
        order = _ordered(rows, pools, round, seed, epoch, reshuffle)[:, : count * batch]
        padded[:, epoch, : order.shape[1]] = order
    valid = np.broadcast_to((np.arange(count * batch) < take[:, None])[:, None], padded.shape)
    shape = (len(pools), epochs * count, batch)
    mask = valid.reshape(shape)
    widths = [min(batch, max(1, most - step * batch)) for step in range(count)] * epochs
    return _plan(rows, padded.reshape(shape), mask, epochs * take, widths)


def _cycled(
    rows: Rows, pools: np.ndarray, take: np.ndarray, most: int,
    round: int, seed: int, batch: int, epochs: int, reshuffle: bool, steps: np.ndarray,
) -> Plan:  # fmt: skip
    """Plan epochs in which client k has exactly steps[k] batches.

    A client passes through its samples again and again until it has done its steps, so its last pass may be incomplete.
    With `reshuffle`, each pass has a new random order. If one pass has exactly steps[k] batches, the plan is the same
    as without `steps`.
    """
    of_pass, longest = np.maximum(1, -(-take // batch)), int(steps.max())
    step = np.arange(longest)
    which, at = np.divmod(step, of_pass[:, None])  # [m, longest]: the pass, and the batch within it
    which = np.where(step < steps[:, None], which, 0)
    place = (at * batch)[:, :, None] + np.arange(batch)
    mask = np.tile((place < take[:, None, None]) & (step < steps[:, None])[:, :, None], (1, epochs, 1))
    pool, width = np.arange(len(pools))[:, None, None], rows.index.shape[1]
    index = np.zeros((len(pools), epochs, longest, batch), np.int64)
    for epoch in range(epochs):
        # The first pass of an epoch has the same order as the epoch of a plan without `steps`.
        orders = [
            _ordered(rows, pools, round, seed, epoch + epochs * turn, reshuffle) for turn in range(which.max() + 1)
        ]
        index[:, epoch] = np.stack(orders)[which[:, :, None], pool, np.minimum(place, width - 1)]
    index = index.reshape(mask.shape)
    return _plan(rows, index, mask, mask.sum((1, 2)), [min(batch, max(1, most))] * (epochs * longest))


def _ordered(rows: Rows, pools: np.ndarray, round: int, seed: int, turn: int, reshuffle: bool) -> np.ndarray:
    """Return the indices [m, n_max] of the samples of m clients in the order of one pass, with the padding last.

    `pools` [m] has the indices of these clients, or of pools of clients. With `reshuffle`, the order is random and
    depends only on (seed, round, client, turn), where `turn` is the number of the pass. Otherwise, the samples keep
    their stored order.
    """
    index = rows.index[pools]
    if not reshuffle:
        return index
    position = np.arange(index.shape[1])
    keys = seeds.bits(seed, "batches", round, pools[:, None], turn, position) >> np.uint64(1)
    keys[position >= rows.count[pools, None]] = np.iinfo(np.uint64).max
    return np.take_along_axis(index, np.argsort(keys, axis=1), axis=1)


def _plan(rows: Rows, index: np.ndarray, mask: np.ndarray, samples: np.ndarray, widths: list[int]) -> Plan:
    """Return the plan as tensors on the device of the samples; padded entries of `index` become 0."""
    device = rows.x.device
    index = np.where(mask, index, 0)
    return Plan(torch.from_numpy(index).to(device), torch.from_numpy(mask.copy()).to(device), samples, widths)
