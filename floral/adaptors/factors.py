"""What the low-rank adaptors of all layer kinds share: rank, stacked factors of a mixture, start of a bias."""

import math

import torch
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.core.streams import Stream

EPSILON = 1e-5
"""Ridge of the preconditioners."""


def resolve(rank: float | str, inputs: int, outputs: int) -> int:
    """The rank R of B A with A [R, inputs] and B [outputs, R] (arXiv 2410.03497, "relative rank").

    Below 1 a share ρ of the layer's weights: R (inputs + outputs) = ρ·inputs·outputs, at least 1. From 1 a number (1.0
    is rank 1). "full" is the smaller side, "sqrt" and "log" its root and log2(1 + side). Never more than the smaller
    side, beyond which a rank adds nothing.

    Raises:
        Refused: the rank is not positive, or an unknown word.
    """
    side = min(inputs, outputs)
    match rank:
        case "full":
            return side
        case "sqrt":
            return max(1, round(math.sqrt(side)))
        case "log":
            return max(1, round(math.log2(1 + side)))
        case str():
            raise Refused(f"rank {rank!r} is none of full, sqrt, log, a share below 1 or a number")
    if rank <= 0:
        raise Refused(f"rank {rank} must be positive")
    if rank < 1:
        return min(side, max(1, int(rank * inputs * outputs / (inputs + outputs))))
    return min(side, round(rank))


def stack(mixture: Params, route: Tensor) -> tuple[Tensor, Tensor]:
    """C adaptors as ONE of rank C·R: A [C·R, inputs, ...], and B [outputs, C·R, ...] with π folded in."""
    down, up = mixture["A"], mixture["B"]
    weighted = (up * route.reshape(-1, *(1,) * (up.dim() - 1))).movedim(0, 1)
    return down.flatten(0, 1), weighted.flatten(1, 2)


def without_mean(mixture: Params) -> Params:
    """C adaptors of one layer less their mean product M = (1/C) Σ_j B_j A_j: B_c' = argmin ‖B A_c - (B_c A_c - M)‖_F.

    B_c' = B_c - M A_c⁺: each A_c stays, so that an adaptor at zero still learns. What lies outside the rows of A_c is
    lost: nothing where they span all inputs or all A_c are alike; of a low rank with unlike A_c most of M, which then
    shrinks B_c by about 1/C. Kernels are rows and columns of the same product: those of B go with the outputs, those
    of A with the inputs. Biases less their mean, exactly.
    """
    down, up = mixture["A"].flatten(2), mixture["B"].movedim(2, -1)
    rows = up.flatten(1, -2)
    mean = torch.einsum("cmr,crn->mn", rows, down) / len(rows)
    left = (rows - mean @ torch.linalg.pinv(down)).reshape(up.shape).movedim(-1, 2)
    bias = {"bias": mixture["bias"] - mixture["bias"].mean(0)} if "bias" in mixture else {}
    return {"A": mixture["A"], "B": left, **bias}


def start_bias(kind: str | None, stream: Stream, outputs: int, fan_in: int) -> Params:
    """The bias at the start: absent, zero, or U(±1/sqrt(fan_in)) as the published code leaves it."""
    match kind:
        case None:
            return {}
        case "zero":
            return {"bias": torch.zeros(outputs)}
        case "uniform":
            bound = 1 / math.sqrt(fan_in)
            return {"bias": stream.uniform("bias", (outputs,), -bound, bound)}
    raise ValueError(f"bias start {kind!r}")
