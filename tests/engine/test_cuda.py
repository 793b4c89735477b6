"""The same rounds on a GPU: run where there is one, for no continuous integration has it."""

from __future__ import annotations

import pytest
import torch
from federations import VARIANTS, assert_close, trained

if not torch.cuda.is_available():
    pytest.skip("a CUDA GPU is missing", allow_module_level=True)


@pytest.mark.parametrize("backend", ["vmap", "batched"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gpu_gives_what_the_cpu_gives(variant, backend):
    """float64, over 3 rounds: sums are added in another order, nothing else differs."""
    how = {"backend": backend, "chunk": 3}
    ours = trained(variant, device=torch.device("cuda"), **how).tensors()
    other = trained(variant, **how).tensors()
    assert_close({name: tensor.cpu() for name, tensor in ours.items()}, other, 1e-9)
