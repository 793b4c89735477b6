"""Modules as people write them. The first three compute what the declared models of the same size compute."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Perceptron(nn.Module):
    """The declared model `mlp`."""

    def __init__(self, inputs: int, hidden: int, outputs: int, batch_norm: bool) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.norm(self.hidden(x.flatten(1)))))


def mlp(shape: Any, outputs: int, hidden: int = 5, batch_norm: bool = False, width: float = 1.0) -> nn.Module:
    return Perceptron(math.prod(shape), max(1, round(hidden * width)), outputs, batch_norm)


class Convolutions(nn.Module):
    """The declared model `cnn` for images of 14×14 pixels."""

    def __init__(self, channels: list[int], hidden: int, outputs: int, batch_norm: bool) -> None:
        super().__init__()
        first, second = channels
        self.conv1, self.conv2 = nn.Conv2d(1, first, 5), nn.Conv2d(first, second, 3)
        self.norm1, self.norm2 = (nn.BatchNorm2d(count) if batch_norm else nn.Identity() for count in channels)
        self.hidden, self.out = nn.Linear(second, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 3)
        return self.out(F.relu(self.hidden(x.flatten(1))))


def cnn(outputs: int, channels: list[int], hidden: int, batch_norm: bool = False, width: float = 1.0) -> nn.Module:
    first, second, hidden = (max(1, round(count * width)) for count in (*channels, hidden))
    return Convolutions([first, second], hidden, outputs, batch_norm)


class ResidualBlock(nn.Module):
    """A block of the declared model `resnet18`."""

    def __init__(self, inputs: int, count: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, count, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(groups, count), nn.GroupNorm(groups, count)
        self.conv2 = nn.Conv2d(count, count, 3, padding=1, bias=False)
        self.short = None
        if stride > 1 or inputs != count:
            self.short, self.short_norm = nn.Conv2d(inputs, count, 1, stride, bias=False), nn.GroupNorm(groups, count)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + (x if self.short is None else self.short_norm(self.short(x))))


class Residual(nn.Module):
    """The declared model `resnet18`, with one block in each stage."""

    def __init__(self, channels: list[int], groups: int, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels[0], 3, padding=1, bias=False)
        self.stem_norm = nn.GroupNorm(groups, channels[0])
        inputs = channels[0]
        for stage, count in enumerate(channels, start=1):
            self.add_module(f"block{stage}_1", ResidualBlock(inputs, count, 2 if stage > 1 else 1, groups))
            inputs = count
        self.out = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        for block in self.children():
            x = block(x) if isinstance(block, ResidualBlock) else x
        return self.out(x.mean((-2, -1)))


def resnet18(outputs: int, channels: list[int], groups: int, width: float = 1.0) -> nn.Module:
    return Residual([groups * max(1, round(count // groups * width)) for count in channels], groups, outputs)


class Small(nn.Module):
    """Convolution, batch norm, attention, dropout that is applied twice, and a parameter outside of layers."""

    def __init__(self, outputs: int, hidden: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.drop, self.hidden, self.out = nn.Dropout(0.3), nn.Linear(16, hidden), nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(F.relu(self.norm(self.conv(x))))
        x = x.flatten(2).mT * self.scale
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.out(self.drop(F.relu(self.hidden(x.flatten(1)))))


def small(outputs: int, width: float = 1.0) -> nn.Module:
    return Small(outputs, max(1, round(5 * width)))


def frozen_norm(outputs: int) -> nn.Module:
    """The module `small` with a batch norm that is not trained."""
    module = small(outputs)
    module.get_submodule("norm").requires_grad_(False)
    return module


def scaled_norm(outputs: int) -> nn.Module:
    """The module `small` with the initial values of the last norm in a residual block."""
    module = small(outputs)
    nn.init.zeros_(module.get_parameter("norm.weight"))
    nn.init.constant_(module.get_parameter("norm.bias"), 0.5)
    return module


class Attentive(nn.Module):
    """An encoder of PyTorch for 4×4 images, whose rows are tokens, with dropout of attention weights."""

    def __init__(self, outputs: int, dropout: float) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        layer.self_attn.dropout = dropout
        self.encoder, self.out = nn.TransformerEncoder(layer, 1), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x.squeeze(1)).mean(1))


def attentive(outputs: int, dropout: float = 0.4) -> nn.Module:
    return Attentive(outputs, dropout)


class Tokens(nn.Module):
    """A network of 4×4 images, whose rows are tokens. `layout` says on which axes its layers get samples and tokens."""

    def __init__(self, outputs: int, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.inner, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=layout != "samples second")
        self.out = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        match self.layout:
            case "samples second":
                x = self.norm(F.relu(self.inner(x.transpose(0, 1))))
                return self.out(self.attention(x, x, x)[0].transpose(0, 1).flatten(1))
            case "rows":
                x = self.norm(F.relu(self.inner(x.flatten(0, 1)))).unflatten(0, (-1, 4))
            case "grid":
                x = self.norm(F.relu(self.inner(x.unflatten(1, (2, 2))))).flatten(1, 2)
            case "reversed":
                x = self.norm(F.relu(self.inner(x.flip(0)))).flip(0)
            case "tokens first":
                x = self.norm(F.relu(self.inner(x.transpose(0, 1).flatten(0, 1)))).unflatten(0, (4, -1)).transpose(0, 1)
            case "positions":
                x = x + self.norm(F.relu(self.inner(torch.eye(4, dtype=x.dtype, device=x.device))))
            case _:
                x = self.norm(F.relu(self.inner(x)))
        return self.out(self.attention(x, x, x)[0].flatten(1))


def tokens(outputs: int, layout: str) -> nn.Module:
    return Tokens(outputs, layout)


class Auxiliary(nn.Module):
    """A linear model of 4×4 images with a second linear layer, which is called last and does not change the outputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.hidden, self.out, self.side = nn.Linear(16, 6), nn.Linear(6, outputs), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.hidden(x.flatten(1))
        logits = self.out(x)
        self.side(x)
        return logits


def auxiliary(outputs: int) -> nn.Module:
    return Auxiliary(outputs)


class ScaledNorm(nn.BatchNorm1d):
    """A batch norm with a forward function of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class EvaluatedNorm(nn.BatchNorm1d):
    """A batch norm that never leaves evaluation."""

    def train(self, mode: bool = True) -> nn.Module:
        del mode
        return super().train(False)


NORMS = {
    "without scale": lambda: nn.BatchNorm1d(16, affine=False),
    "subclass": lambda: ScaledNorm(16),
    "subclass without scale": lambda: ScaledNorm(16, affine=False),
    "synchronised": lambda: nn.SyncBatchNorm(16),
    "of volumes": lambda: nn.Sequential(nn.Unflatten(1, (2, 2, 2, 2)), nn.BatchNorm3d(2), nn.Flatten()),
    "evaluated": lambda: EvaluatedNorm(16),
    "cumulative": lambda: nn.BatchNorm1d(16, momentum=None),
    "without statistics": lambda: nn.BatchNorm1d(16, track_running_stats=False),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 8)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()
    ),
}


UNUSUAL = {
    "old spectral norm": nn.utils.spectral_norm,
    "double": lambda layer: layer.double(),
    "bfloat16": lambda layer: layer.bfloat16(),
}


def unusual(outputs: int, what: str) -> nn.Module:
    """A linear model of 4×4 images whose layer was changed in a way that cannot be trained."""
    return nn.Sequential(nn.Flatten(), UNUSUAL[what](nn.Linear(16, outputs)))


def normed(outputs: int, norm: str) -> nn.Module:
    """A linear model of 4×4 images with a norm of another kind than `small`."""
    return nn.Sequential(nn.Flatten(), NORMS[norm](), nn.Linear(16, outputs))


# ------------------------------------------------------------------------------------- modules with something special


class Special(nn.Module):
    """An MLP of 4×4 images with a word for what its forward pass does."""

    def __init__(self, does: str, outputs: int) -> None:
        super().__init__()
        self.does = does
        self.hidden, self.middle, self.out = nn.Linear(16, 6), nn.Linear(6, 6), nn.Linear(6, outputs)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.long))
        self.register_buffer("mean", torch.zeros(6))
        if does.startswith("ties"):
            self.middle = nn.Linear(6, 6)
            self.extra = nn.Linear(6, 6)
            self.extra.weight = self.middle.weight

    def forward(self, x: Tensor) -> Any:
        if self.does == "follows its parameters":
            first = next(self.parameters())
            x = x.to(first.device).to(self.middle.weight.dtype).type_as(self.out.bias) + first.new_zeros(1)
            x = x + torch.zeros_like(self.out.bias).sum().to(self.out.weight)
        x = F.relu(self.hidden(x.flatten(1)))
        match self.does:
            case "transposes the weight":
                x = x + F.linear(self.middle(x), self.middle.weight.t())
            case "drops":
                x = F.dropout(x, 0.5, self.training)
            case "mixes":
                x = x - x.mean(0)
            case "branches":
                x = x if x.sum() > -1 else -x
            case "skips":
                return self.out(self.middle(x) if x.sum() > 0.1 else x)
            case "draws with numpy":
                x = x * float(np.random.default_rng().random() if self.training else 1)
            case "counts":
                self.steps += 1
            case "averages":
                self.mean.copy_(x.detach().mean(0))
            case "reads the weight":
                x = x + self.middle.weight.mean()
            case "ties":
                x = self.extra(x)
            case "ties and reads the weight":
                x = self.extra(x) + self.extra.weight.mean()
            case "detaches":
                return self.out(x).detach()
        x = self.out(self.middle(F.relu(self.middle(x))) if self.does == "repeats" else self.middle(x))
        match self.does:
            case "returns an object":
                return SimpleNamespace(logits=x)
            case "returns a dictionary":
                return {"logits": x}
            case "returns a pair":
                return x, x
            case "squeezes":
                return x.squeeze()
        return x


def special(does: str, outputs: int) -> nn.Module:
    return Special(does, outputs)


class Recurrent(nn.Module):
    """A module without known layers except the last one."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x.squeeze(1))[0][:, -1])


def recurrent(outputs: int) -> nn.Module:
    return Recurrent(outputs)


def bert(outputs: int, dropout: float) -> nn.Module:
    """A small BERT of the package transformers, with random initial values."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
    drop = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=17, max_position_embeddings=8, num_labels=outputs, **sizes, **drop)
    return BertForSequenceClassification(config)


def of_width(outputs: int, width: float) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, round(4 * width)), nn.Linear(round(4 * width), outputs))


def of_units(outputs: int, width: int = 64) -> nn.Module:
    """Its `width` is no factor, but a number of units."""
    return of_width(outputs, width / 4)


def one_more(outputs: int) -> nn.Module:
    """It has one output too many."""
    return small(outputs + 1)


def no_module() -> str:
    return "no module"
