"""PyTorch modules that the benchmark trains: an MLP, and an encoder of 20 million parameters."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH = 512, 8, 7


def mlp(shape: tuple[int, ...], outputs: int, hidden: int) -> nn.Module:
    """Return the module that computes what the declared model `mlp` computes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Block(nn.Module):
    """A block of an encoder: attention, then two linear layers, both with layer norm and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.wide, self.back = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.back(F.gelu(self.wide(self.norm2(x))))


class Encoder(nn.Module):
    """An encoder of images, whose rows are the tokens."""

    def __init__(self, side: int, outputs: int) -> None:
        super().__init__()
        self.rows = nn.Linear(side, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.rows(x.flatten(1, -2))).mean(1))


def encoder(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return an encoder of 22 million parameters."""
    return Encoder(shape[-1], outputs)
