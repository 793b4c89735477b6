"""See every PyTorch operation of a computation."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class EachOperation(TorchDispatchMode):
    """Calls `__torch_dispatch__` for every PyTorch operation inside a `with` block, in this thread."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, so that PyTorch does not import its compiler, which takes over a second and is not used."""
        return False
