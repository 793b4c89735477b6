"""Low-rank factors of a weight that is an elementwise product of two matrices (arXiv 2108.06098)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from floral.core.spec import Params
from floral.core.streams import Stream


def rank_of(weight: Tensor, gamma: float) -> int:
    """Return the rank R of the two factors of a weight [a, b, ...].

    It lies between R_min = √min(a, b), with which W can have full rank, and the R_max with which the factors have as
    many parameters as W. With `gamma` γ it is (1 - γ) R_min + γ R_max, or R_min if R_max is smaller. Results are
    rounded up.
    """
    rows, columns, area = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    smallest = math.ceil(math.sqrt(min(rows, columns)))
    if weight.dim() == 2:
        largest = weight.numel() // (2 * (rows + columns))
    else:  # 2 (R² area + R (rows + columns)) = rows · columns · area
        side = (rows + columns) / (2 * area)
        largest = int(math.sqrt(side**2 + rows * columns / 2) - side)
    return math.ceil((1 - gamma) * smallest + gamma * max(smallest, largest))


def drawn_factors(stream: Stream, shape: torch.Size, rank: int, variance: float) -> Params:
    """Draw normal factors X [a, R] and Y [b, R], and for a kernel T [R, R, ...], whose product has the variance."""
    kernel = tuple(shape[2:])
    deviation = (variance / rank**2) ** (1 / 6) if kernel else (variance / rank) ** (1 / 4)
    drawn = {"X": stream.normal("X", (shape[0], rank), deviation), "Y": stream.normal("Y", (shape[1], rank), deviation)}
    return drawn | ({"T": stream.normal("T", (rank, rank, *kernel), deviation)} if kernel else {})


def composed(params: Params, name: str, number: int) -> Tensor:
    """Return W₁ or W₂ of a layer from its factors."""
    rows, columns = (params[f"{name}.{key}{number}"] for key in "XY")
    if f"{name}.T{number}" not in params:
        return rows @ columns.mT
    return torch.einsum("rshw,ar,bs->abhw", params[f"{name}.T{number}"], rows, columns)
