"""Set up the device before a run: set the precision of matrix products in layers, and use deterministic algorithms."""

from __future__ import annotations

import os
from typing import Any

import torch

from floral.core.precision import Precision
from floral.core.spec import Refused

WORKSPACE = ":4096:8"
"""Value of CUBLAS_WORKSPACE_CONFIG that makes cuBLAS deterministic. cuBLAS reads it at the first product."""


def settle(device: torch.device, precision: Precision) -> None:
    """Set the precision of matrix products in layers and use deterministic algorithms, in the whole process.

    A CPU needs no settings. On a GPU, PyTorch then no longer picks algorithms by measured speed, and adds the terms of
    convolutions and sums in a fixed order. If an operation has no deterministic algorithm, PyTorch warns and names it.

    Raises:
        Refused: the device cannot compute in `precision`.
    """
    if device.type != "cuda":
        if precision == "tf32":
            raise Refused("a CPU cannot compute in tf32; set `precision` to fp32 or bf16, or set `device: cuda`")
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
    """Wait until the device has finished all operations. This is needed because a GPU runs them asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
