"""Say what is wrong with a file that cannot be read as safetensors, and what to do.

A safetensors file has 8 bytes with the length of the header as a little-endian number, the header in JSON, and the
tensors. The header gives the place of each tensor.
"""

from __future__ import annotations

import json
from pathlib import Path

LENGTH_BYTES = 8
"""Number of bytes with the length of the header."""
PICKLES = (b"PK", b"\x80")
"""First bytes of the files that `torch.save` writes: a zip archive, or in early versions of PyTorch a pickle."""
COPY = "copy or download the file again"
CONVERT = (
    "convert a file of PyTorch with "
    '`safetensors.torch.save_file(torch.load("old.pt", weights_only=True), "new.safetensors")`'
)


def defect(path: Path, error: Exception) -> str:
    """Return what is wrong with a file and the remedy. `error` is what safetensors said about it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(LENGTH_BYTES)
            length = int.from_bytes(first, "little")
            has_header = len(first) == LENGTH_BYTES and file.peek(1)[:1] == b"{"
            header = file.read(length) if has_header and length < size else b""
    except OSError:  # the file cannot be opened, and `error` says why
        return f"{error}; correct the path, or the permissions of the file"
    if size < LENGTH_BYTES:
        return f"the file is incomplete: it has only {size} bytes; {COPY}"
    if first.startswith(PICKLES) and not has_header:
        return f"{error}; {CONVERT}"
    if not has_header:
        return f"the file begins with {first!r} and has no header of safetensors; {COPY}"
    expected = LENGTH_BYTES + length + _bytes_of_tensors(header)
    if size < expected:
        announced = f"{expected:,} bytes" if header else f"at least {expected:,} bytes"
        return f"the file is incomplete: it has {size:,} of the {announced} that its header announces; {COPY}"
    return f"the file is damaged ({error}); {COPY}"


def _bytes_of_tensors(header: bytes) -> int:
    """Return the number of bytes that a header announces for the tensors; 0 if it is no such header."""
    try:
        return max(entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__")
    except (ValueError, TypeError, LookupError, AttributeError):
        return 0
