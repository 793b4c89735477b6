"""Inputs of a baseline: the batches of a round and the decoded training samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.engine.client_data import Plan, Rows


@dataclass(frozen=True)
class Batches:
    """The batches of one round.

    index [M, H, B] holds the sample numbers of M clients and H steps. Step h uses the first sizes[h] of every client.
    """

    index: Tensor
    sizes: tuple[int, ...]

    @property
    def clients(self) -> int:
        return len(self.index)


def batches(plan: Plan) -> Batches:
    """Convert the engine's batches of one round.

    Raises:
        Refused: clients have unequal numbers of training samples.
    """
    sizes = plan.mask.sum(-1)
    if bool((sizes != sizes[0]).any()):
        raise Refused("clients have unequal numbers of training samples; the baseline needs equal numbers")
    return Batches(plan.index, tuple(int(size) for size in sizes[0] if size > 0))


@dataclass(frozen=True)
class Samples:
    """Decoded training samples.

    x [N, ...]; targets [N, outputs], one-hot for classification. `classes` selects cross-entropy, else squared error.
    """

    x: Tensor
    targets: Tensor
    classes: bool

    def output_gradient(self, outputs: Tensor, targets: Tensor, dim: int) -> Tensor:
        """Gradient of each sample's loss with respect to its outputs, which lie along `dim`.

        It may overwrite `outputs`.
        """
        if self.classes:
            return torch.softmax(outputs, dim).sub_(targets)
        return outputs.sub_(targets).mul_(2 / outputs.shape[dim])


def samples(rows: Rows) -> Samples:
    """Decode all training samples as the engine does.

    Raises:
        Refused: the task augments its training images.
    """
    if rows.augment is not None:
        raise Refused("the task augments its training images; the baseline cannot")
    x = rows.decode(rows.x)
    if rows.y.dtype != torch.int64:
        return Samples(x, rows.y, classes=False)
    return Samples(x, F.one_hot(rows.y).to(x.dtype), classes=True)


def mean_model(params: Params, total: Params, batches: Batches) -> Params:
    """Mean of the clients' models.

    `total` holds the sum of the clients' models. If the round has a single step, it holds the sum of their changes.
    """
    change = len(batches.sizes) == 1
    return {
        name: total[name].div_(batches.clients).add_(value) if change else total[name].div_(batches.clients)
        for name, value in params.items()
    }
