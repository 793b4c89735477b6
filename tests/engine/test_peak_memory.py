"""The memory of tensors that exist at the same time."""

from __future__ import annotations

import subprocess
import sys

import torch

from floral.engine.peak_memory import PeakMemory

KB = 1 << 10


def new() -> torch.Tensor:
    return torch.zeros(KB, dtype=torch.uint8)


def test_tensors_that_exist_at_the_same_time_are_added() -> None:
    with PeakMemory() as memory:
        kept = [new(), new()]
        for _ in range(5):
            new()
        assert memory.bytes == 2 * KB
        kept.pop()
        assert memory.bytes == KB
    assert memory.peak == 3 * KB


def test_measuring_memory_does_not_load_the_compiler_of_pytorch() -> None:
    """It would make every start of a run more than a second longer."""
    code = """
import sys, torch
from floral.engine.peak_memory import PeakMemory
with PeakMemory():
    torch.ones(3) + 1
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_views_and_older_tensors_do_not_count() -> None:
    older = new()
    with PeakMemory() as memory:
        older.add_(1)
        view = older.view(2, -1)[0].t()
        assert memory.peak == 0
        copy = view.clone().view(-1, 2)
        assert memory.bytes == copy.nbytes == KB // 2


def test_what_the_backward_pass_needs_counts() -> None:
    weight, x = torch.ones(8, 8, requires_grad=True), torch.ones(8, 8)
    with PeakMemory() as without, torch.no_grad():
        ((x @ weight).exp() @ weight).sum()
    with PeakMemory() as memory:
        loss = ((x @ weight).exp() @ weight).sum()
        assert memory.bytes >= x.nbytes, "the result of exp"
        torch.autograd.grad(loss, weight)
    assert memory.peak > without.peak
