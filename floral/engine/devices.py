"""What a device is told before a run: in which precision to multiply, and to do the same thing every time."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

import torch

from floral.core.spec import Refused

Precision = Literal["fp32", "tf32", "bf16"]
"""Of the products in layers. fp32: single precision everywhere. tf32: a GPU's matrix units round the factors of float32
products to 10 bits of mantissa, in training and in evaluation. bf16: local training rounds the factors and results of
the layers' products to bfloat16; weights, losses, updates, averages and evaluation stay in single precision."""
PRECISIONS: tuple[str, ...] = get_args(Precision)

WORKSPACE = ":4096:8"
"""CUBLAS_WORKSPACE_CONFIG with which cuBLAS gives the same bits in every stream; it is read at the first product."""


def settle(device: torch.device, precision: Precision) -> None:
    """Switches of the whole process; on a CPU there are none, so that nothing there depends on this module.

    On a GPU: no choice of algorithms by their speed of the day, no convolution or sum whose order of additions varies.
    Where PyTorch has no such version of an operation it warns with the operation's name.

    Raises:
        Refused: the device cannot compute in that precision.
    """
    if device.type != "cuda":
        if precision == "tf32":
            raise Refused("the CPU has no such products; use fp32 or bf16 there, or `device: cuda`")
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[reportAttributeAccessIssue]
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[reportAttributeAccessIssue]
    for products in (torch.backends.cuda.matmul, convolutions):
        products.fp32_precision = "tf32" if precision == "tf32" else "ieee"


def wait_for(device: torch.device) -> None:
    """Until everything that was asked of the device is done: a GPU works behind the program's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
