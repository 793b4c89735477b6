"""The file for PRIVATE values that are too large for memory: a safetensors file that is mapped into memory.

Its tensors are used like all other tensors. Only the values of the clients that take part in a round are read from the
file. The operating system counts these parts as memory of the process, but frees them when memory runs short. The
memory that the process really needs is RssAnon in /proc/self/status.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from floral.core.spec import View
from floral.engine.checkpoint import Unreadable
from floral.io.files import atomic

MEMORY_BUDGET_BYTES = 1 << 30
"""Maximum size in bytes of PRIVATE values in memory. Larger values go to a file, and a checkpoint is due when about as
many bytes have changed."""
BLOCK_BYTES = 1 << 24
"""Number of bytes of the initial values that are made and written at a time."""
NAME = "private.safetensors"
"""Name of the file in the run's folder. It is part of the final state."""
JOURNAL = "private/"
"""Prefix of the changed rows in a checkpoint: private/<group>/<name> [n, ...], and ROWS."""
ROWS = JOURNAL + "rows"
"""Name of the tensor [n] of the clients (or pools) whose rows have changed."""

CODES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # not in Python before 3.13
"""Flag for mappings larger than memory. Without it the system refuses them, although only changed pages need memory."""

Layout = dict[str, tuple[torch.dtype, list[int], int]]
"""<group>/<name> → type, shape and position of the first byte in the file."""


@dataclass
class Store:
    """The memory-mapped file with the PRIVATE values of a run.

    Changed values stay in memory (copy-on-write), and every read sees them. A checkpoint contains the changed rows; a
    row has the values of one client, or of one pool of clients. Only after the checkpoint is written does `apply` copy
    the rows to the file, so the file is never newer than its checkpoint. A resumed run copies the rows again, because a
    killed process may have copied only some of them.
    """

    path: Path
    mapping: mmap.mmap
    layout: Layout
    values: View
    changed: set[int] = field(default_factory=set)
    """Clients (or pools) whose rows differ from the file's."""

    @classmethod
    def create(cls, path: Path, values: View, dtype: torch.dtype) -> Store:
        """Write the initial PRIVATE values to the file, and memory-map the file.

        `values` may be the values of one client, expanded to all clients.

        Raises:
            OSError: the disk is full; no half-written file is left.
        """
        size = nbytes(values, dtype)
        try:
            atomic(path, chain([header(values, dtype)], blocks(values, dtype)))
        except OSError as error:
            raise no_room(error, path, size) from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open an existing file of PRIVATE values, and memory-map it.

        Raises:
            Unreadable: the file is missing or damaged.
        """
        try:
            with path.open("rb") as file:
                mapping = mmap.mmap(
                    file.fileno(), 0, flags=mmap.MAP_PRIVATE | NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
            layout = read_layout(mapping)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(
                f"{path}: the file of the clients' PRIVATE values is missing or damaged ({error}); "
                "remove the run's folder `checkpoint` to train from the start"
            ) from error
        return cls(path, mapping, layout, mapped(mapping, layout))

    def mark(self, holders: Tensor) -> None:
        """Mark the clients (or pools) with the indices `holders` as changed; the next checkpoint has their values."""
        self.changed.update(holders.tolist())

    @property
    def full(self) -> bool:
        """Whether the changed values take more memory than MEMORY_BUDGET_BYTES. A checkpoint must then be written."""
        tensors = (tensor for params in self.values.values() for tensor in params.values())
        pages = sum(tensor.nbytes // len(tensor) // mmap.PAGESIZE + 2 for tensor in tensors)
        return len(self.changed) * pages * mmap.PAGESIZE > MEMORY_BUDGET_BYTES

    def journal(self) -> dict[str, Tensor]:
        """Return the values of the clients (or pools) that changed since the last checkpoint; the next one has them."""
        rows = torch.tensor(sorted(self.changed), dtype=torch.int64)
        return {
            ROWS: rows,
            **{
                f"{JOURNAL}{group}/{name}": tensor.index_select(0, rows)
                for group, params in self.values.items()
                for name, tensor in params.items()
            },
        }

    def apply(self, journal: Mapping[str, Tensor]) -> None:
        """Write the changed rows of a checkpoint into the file, and free the memory of the changed pages.

        Raises:
            OSError: the disk is full. The next resumed run writes the same rows again.
        """
        rows = journal[ROWS].tolist()
        try:
            with self.path.open("r+b") as file:
                for name, (_, _, begin) in self.layout.items():
                    overwrite(file, begin, rows, journal[JOURNAL + name])
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise no_room(error, self.path, sum(tensor.nbytes for tensor in journal.values())) from error
        self.mapping.madvise(mmap.MADV_DONTNEED)  # reads now see the file, which has all changes
        self.changed.clear()


def scratch(values: View, dtype: torch.dtype) -> View:
    """Write the PRIVATE values to an unnamed temporary file, and return tensors that are mapped to it.

    This is for a simulation without a run folder. Such a simulation cannot be resumed, so changes go directly to the
    file. The operating system deletes the file when its last tensor is deleted or the process ends.

    Raises:
        OSError: the disk of temporary files is full.
    """
    try:
        with tempfile.TemporaryFile() as file:
            file.writelines(chain([header(values, dtype)], blocks(values, dtype)))
            file.flush()
            mapping = mmap.mmap(file.fileno(), 0)
    except OSError as error:
        folder = Path(tempfile.gettempdir())
        remedy = "free space on this file system, or set TMPDIR to a folder on another disk"
        raise no_room(error, folder, nbytes(values, dtype), remedy) from error
    return mapped(mapping, read_layout(mapping))


def nbytes(values: View, dtype: torch.dtype) -> int:
    """Return the size of the values in bytes, if they have the type `dtype`."""
    return sum(tensor.numel() for params in values.values() for tensor in params.values()) * dtype.itemsize


def no_room(error: OSError, path: Path, size: int, remedy: str = "free space on this file system") -> OSError:
    """Return a copy of `error` whose message names the file and the needed size, and says what to do."""
    message = f"{error.strerror}: cannot write {size / 1e9:.2g} GB of PRIVATE values; {remedy}"
    return OSError(error.errno, message, str(path))


# ------------------------------------------------------------------------------------------- the format


def header(values: View, dtype: torch.dtype) -> bytes:
    """Return the header of a safetensors file.

    The header is the length of a JSON text, followed by this text. The text has the type, shape and position of each
    tensor.
    """
    entries, end = {}, 0
    for group, params in values.items():
        for name, tensor in params.items():
            begin, end = end, end + tensor.numel() * dtype.itemsize
            entries[f"{group}/{name}"] = {
                "dtype": CODES[dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # aligned, as the format recommends
    return len(text).to_bytes(8, "little") + text


def blocks(values: View, dtype: torch.dtype) -> Iterator[memoryview]:
    """Return the bytes of all tensors, one block of a few rows at a time, so that not all are in memory at once."""
    for params in values.values():
        for tensor in params.values():
            rows = max(1, BLOCK_BYTES // max(1, tensor[0].numel() * dtype.itemsize))
            for block in tensor.split(rows):
                yield as_bytes(block.to(device="cpu", dtype=dtype))


def overwrite(file: BinaryIO, begin: int, rows: Sequence[int], values: Tensor) -> None:
    """Overwrite some rows of a tensor in the file.

    The tensor starts at byte `begin`. Its rows with the indices `rows` [n] become `values` [n, ...].
    """
    for row, value in zip(rows, values, strict=True):
        file.seek(begin + row * value.nbytes)
        file.write(as_bytes(value))


def as_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor that is on the CPU."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def read_layout(mapping: mmap.mmap) -> Layout:
    """Read the type, shape and position of each tensor from the header of the file.

    Raises:
        ValueError: the file does not have the size that follows from the header.
    """
    start = 8 + int.from_bytes(mapping[:8], "little")
    types = {code: dtype for dtype, code in CODES.items()}
    layout, end = {}, start
    for name, entry in json.loads(mapping[8:start]).items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        layout[name] = types[entry["dtype"]], entry["shape"], begin
    if end != len(mapping):
        raise ValueError(f"the file has {len(mapping)} bytes, but its header describes a file of {end} bytes")
    return layout


def mapped(mapping: mmap.mmap, layout: Layout) -> View:
    """Return the tensors of the memory-mapped file, by group and name.

    The file stays mapped as long as one of these tensors exists.
    """
    values: View = {}
    for name, (dtype, shape, begin) in layout.items():
        group, key = name.split("/", 1)
        count = torch.Size(shape).numel()
        tensor = torch.frombuffer(mapping, dtype=dtype, count=count, offset=begin)
        values.setdefault(group, {})[key] = tensor.reshape(shape)
    return values
