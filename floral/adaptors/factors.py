"""Functions shared by the low-rank adaptors of all layer kinds."""

import math

import torch
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.core.streams import Stream

EPSILON = 1e-5
"""Ridge term of the preconditioners."""


def resolve(rank: float | str, inputs: int, outputs: int) -> int:
    """Return the rank R of the product B A, where A is [R, inputs] and B is [outputs, R].

    `rank` is a number or a word:

    - A number below 1 is a share ρ of the layer's weights: R (inputs + outputs) = ρ·inputs·outputs, at least 1
    (arXiv 2410.03497, "relative rank").
    - A number from 1 on is the rank itself (1.0 is rank 1).
    - "full" is the smaller of inputs and outputs, "sqrt" its square root, and "log" is log2(1 + the smaller one).

    R is never more than the smaller of inputs and outputs, because a higher rank adds nothing.

    Raises:
        Refused: the rank is not positive, or it is an unknown word.
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
            raise Refused(
                f"`rank: {rank!r}` is unknown; use full, sqrt, log, a rank of at least 1, or a number between 0 and 1, "
                "which is a share of the layer's parameters"
            )
    if rank <= 0:
        raise Refused(
            f"`rank: {rank}` is not positive; use a rank of at least 1, or a number between 0 and 1, a share of "
            "the layer's parameters"
        )
    if rank < 1:
        return min(side, max(1, int(rank * inputs * outputs / (inputs + outputs))))
    return min(side, round(rank))


def scale_of(alpha: float | str, rank: int) -> float:
    """Return alpha/rank, by which the product B A and the bias of an adaptor of this rank are multiplied.

    The result is 1 if `alpha` is "rank".

    Source: arXiv 2106.09685, section 4.1.

    Raises:
        Refused: `alpha` is not positive.
    """
    if isinstance(alpha, str):
        return 1.0
    if alpha <= 0:
        raise Refused(f"`alpha: {alpha}` is not positive; set a positive number, or `rank` for the scale 1")
    return alpha / rank


def scaled(route: Tensor, scale: float) -> Tensor:
    """Return the mixture weights multiplied by the scale of the adaptors."""
    return route if scale == 1 else route * scale


def start_a(kind: str, stream: Stream, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Return the initial values of a factor A with the given shape [R, ...].

    - "floral": uniform between ±sqrt(6/fan_in), as in the published code of arXiv 2410.03497.
    - "kaiming": uniform between ±1/sqrt(fan_in). This is the default of the package peft: Kaiming's rule with a = √5.
    - "gaussian": normal with standard deviation 1/R, as with `init_lora_weights="gaussian"` of the package peft.
    """
    match kind:
        case "floral":
            bound = math.sqrt(6 / fan_in)
        case "kaiming":
            bound = 1 / math.sqrt(fan_in)
        case "gaussian":
            return stream.normal("A", shape, 1 / shape[0])
        case _:
            raise Refused(f"`start: {kind}` is unknown; use floral, kaiming or gaussian")
    return stream.uniform("A", shape, -bound, bound)


def stack(mixture: Params, route: Tensor) -> tuple[Tensor, Tensor]:
    """Return C adaptors of rank R as one adaptor of rank C·R: A [C·R, inputs, ...] and B [outputs, C·R, ...].

    The part of B that belongs to adaptor c is multiplied by route_c, the weight of this adaptor in the mixture.
    """
    down, up = mixture["A"], mixture["B"]
    weighted = (up * route.reshape(-1, *(1,) * (up.dim() - 1))).movedim(0, 1)
    return down.flatten(0, 1), weighted.flatten(1, 2)


def without_mean(mixture: Params) -> Params:
    """Subtract the mean product M from each of the C adaptors of one layer. With a low rank, this is only approximate.

    The mean product is M = (1/C) Σ_j B_j A_j over the adaptors j. The factor A_c does not change. The new factor is B_c
    - M A_c⁺ with the pseudo-inverse A_c⁺; of all B, it makes B A_c closest to B_c A_c - M. The mean of the biases is
    subtracted exactly.

    The part of M outside the row space of A_c is lost. Nothing is lost if the rows of A_c span all inputs, or if all
    A_c are equal. With a low rank and different A_c, most of M is lost, and B_c shrinks by about 1/C.

    For convolutions, the kernel positions of B count as outputs, and those of A as inputs.
    """
    down, up = mixture["A"].flatten(2), mixture["B"].movedim(2, -1)
    rows = up.flatten(1, -2)
    mean = torch.einsum("cmr,crn->mn", rows, down) / len(rows)
    remainder = (rows - mean @ torch.linalg.pinv(down)).reshape(up.shape).movedim(-1, 2)
    bias = {"bias": mixture["bias"] - mixture["bias"].mean(0)} if "bias" in mixture else {}
    return {"A": mixture["A"], "B": remainder, **bias}


def start_bias(kind: str | None, stream: Stream, outputs: int, fan_in: int) -> Params:
    """Return the initial bias of an adaptor: no bias, zeros, or uniform between ±1/sqrt(fan_in) as in the published
    code.
    """
    match kind:
        case None:
            return {}
        case "zero":
            return {"bias": torch.zeros(outputs)}
        case "uniform":
            bound = 1 / math.sqrt(fan_in)
            return {"bias": stream.uniform("bias", (outputs,), -bound, bound)}
    raise ValueError(f"the initial bias {kind!r} is unknown; use zero, uniform or None")


def solve(gram: Tensor, right: Tensor) -> Tensor:
    """Return the solution Y of (G + εI) Y = X for Gram matrices G [..., R, R] and right sides X [..., R, n].

    For R = 1 this is a division. ε is a small constant.

    The result is NaN if rounding makes G + εI singular. This happens if the factors are so large that ε is lost in the
    sum: the run has diverged.
    """
    if gram.shape[-1] == 1:
        return right / (gram + EPSILON)
    ridge = EPSILON * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    solved, failed = torch.linalg.solve_ex(gram + ridge, right)
    return torch.where((failed == 0)[..., None, None], solved, torch.nan)
