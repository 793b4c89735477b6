"""Inputs of a PyTorch baseline: the batches of a round, and the training samples as normalised floats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.engine.client_data import Plan, Rows


@dataclass(frozen=True)
class Batches:
    """The batches of one round for the PyTorch baseline.

    `index` [M, H, B] holds the indices of the training samples for M clients, H local steps and B places per batch. In
    step h, each batch uses only its first sizes[h] places. The other places are padding.
    """

    index: Tensor
    sizes: tuple[int, ...]

    @property
    def clients(self) -> int:
        return len(self.index)


def batches(plan: Plan) -> Batches:
    """Convert the batches of one round from the format of floral's training engine to the format of the PyTorch
    baseline.

    Raises:
        Refused: the clients have unequal numbers of training samples.
    """
    sizes = plan.mask.sum(-1)
    if bool((sizes != sizes[0]).any()):
        raise Refused(
            "clients have unequal numbers of training samples, but the baseline needs equal numbers; use another task"
        )
    return Batches(plan.index, tuple(int(size) for size in sizes[0] if size > 0))


@dataclass(frozen=True)
class Samples:
    """The training samples of a task: inputs `x` [N, ...] and `targets` [N, outputs].

    The inputs are normalised floats. If `classes` is true, the targets are one-hot and the loss is the cross-entropy.
    Otherwise the loss is the squared error.
    """

    x: Tensor
    targets: Tensor
    classes: bool

    def output_gradient(self, outputs: Tensor, targets: Tensor, dim: int) -> Tensor:
        """Return the gradient of each sample's loss with respect to the model's outputs for this sample.

        `dim` is the axis of the outputs.

        The function may overwrite `outputs`.
        """
        if self.classes:
            return torch.softmax(outputs, dim).sub_(targets)
        return outputs.sub_(targets).mul_(2 / outputs.shape[dim])


def samples(rows: Rows) -> Samples:
    """Convert the inputs of all training samples to normalised floats, in the same way as the engine.

    Raises:
        Refused: the task augments its training images.
    """
    if rows.augment is not None:
        raise Refused(
            "the task augments its training images, which the baseline cannot do; use a task without augmentation"
        )
    x = rows.decode(rows.x)
    if rows.y.dtype != torch.int64:
        return Samples(x, rows.y, classes=False)
    return Samples(x, F.one_hot(rows.y).to(x.dtype), classes=True)


def mean_model(params: Params, total: Params, batches: Batches) -> Params:
    """Return the mean of the clients' models.

    In a round of several steps, `total` holds the sum of the clients' models. In a round of one step, it holds the sum
    of the clients' changes to the initial model `params`. `total` is overwritten with the result.
    """
    change = len(batches.sizes) == 1
    return {
        name: total[name].div_(batches.clients).add_(value) if change else total[name].div_(batches.clients)
        for name, value in params.items()
    }
