"""PRIVATE state that is too large for memory: one safetensors file of all clients' values, mapped.

Its tensors are ordinary ones, and gathering a cohort's rows touches these rows alone. What was read counts as the
process's resident memory until the system wants it back; what it must not lose is RssAnon in /proc/self/status.
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

BUDGET = 1 << 30
"""Bytes of PRIVATE state that are held in memory. More live in a file, and changes of at most about as many wait in
memory for the next checkpoint."""
BLOCK = 1 << 24
"""Bytes of the start that are made and written at a time."""
NAME = "private.safetensors"
"""The file in the run's folder: it stays there as a part of the final state."""
JOURNAL = "private/"
"""What the names of a checkpoint's changed rows begin with: private/<group>/<name> [n, ...], and ROWS."""
ROWS = JOURNAL + "rows"
"""[n] the holders whose rows have changed."""

CODES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)  # not in Python before 3.13
"""A mapping larger than memory is refused without it, although only changed pages will ever take any."""

Layout = dict[str, tuple[torch.dtype, list[int], int]]
"""<group>/<name> → type, shape and first byte in the file."""


@dataclass
class Store:
    """The mapped file of a run that can be resumed.

    It is mapped copy-on-write: what training writes stays in memory, page by page, and every read sees it. A checkpoint
    holds the changed rows as its journal. Once that is in place, `apply` writes them into the file, and a resumption
    does so again, for nobody knows how far a killed process came: the file is never ahead of its checkpoint.
    """

    path: Path
    mapping: mmap.mmap
    layout: Layout
    values: View
    changed: set[int] = field(default_factory=set)
    """Holders whose rows differ from the file's."""

    @classmethod
    def create(cls, path: Path, values: View, dtype: torch.dtype) -> Store:
        """Write the start, which may be an expanded view of one holder's, and map it.

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
        """Map the file that is there.

        Raises:
            Unreadable: it is missing or damaged.
        """
        try:
            with path.open("rb") as file:
                mapping = mmap.mmap(
                    file.fileno(), 0, flags=mmap.MAP_PRIVATE | NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
            layout = read_layout(mapping)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unreadable(
                f"{path}: the clients' private state is missing or damaged ({error}); "
                "remove the run's checkpoint/ to train from the start"
            ) from error
        return cls(path, mapping, layout, mapped(mapping, layout))

    def mark(self, holders: Tensor) -> None:
        """Note that these holders' rows were changed."""
        self.changed.update(holders.tolist())

    @property
    def full(self) -> bool:
        """Whether the changed rows, in whole pages, are more than memory should hold: time for a checkpoint."""
        tensors = (tensor for params in self.values.values() for tensor in params.values())
        pages = sum(tensor.nbytes // len(tensor) // mmap.PAGESIZE + 2 for tensor in tensors)
        return len(self.changed) * pages * mmap.PAGESIZE > BUDGET

    def journal(self) -> dict[str, Tensor]:
        """The changed rows, as the next checkpoint keeps them."""
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
        """Write a checkpoint's rows into the file, durably, and free the memory that the changes took.

        Raises:
            OSError: the disk is full; the next resumption writes the same rows again.
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
        self.mapping.madvise(mmap.MADV_DONTNEED)  # reads now see the file, which has them all
        self.changed.clear()


def scratch(values: View, dtype: torch.dtype) -> View:
    """The values mapped to a nameless temporary file, for a simulation without a folder: nothing to resume, so writes
    go to the file at once. The system removes it when the last tensor is gone, however the process ends.

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
        raise no_room(error, folder, nbytes(values, dtype), "; or let TMPDIR name another disk") from error
    return mapped(mapping, read_layout(mapping))


def nbytes(values: View, dtype: torch.dtype) -> int:
    """Bytes of the values once they have that type."""
    return sum(tensor.numel() for params in values.values() for tensor in params.values()) * dtype.itemsize


def no_room(error: OSError, path: Path, size: int, otherwise: str = "") -> OSError:
    """The same error, which now names the file, what was to be written and the remedy."""
    remedy = f"{size / 1e9:.2g} GB of clients' private state go there; free space on its file system{otherwise}"
    return OSError(error.errno, f"{error.strerror}: {remedy}", str(path))


# ------------------------------------------------------------------------------------------- the format


def header(values: View, dtype: torch.dtype) -> bytes:
    """The beginning of a safetensors file: the length of the JSON that follows, and where each tensor lies."""
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
    """The bytes of all tensors, of which a few holders' rows at a time are made."""
    for params in values.values():
        for tensor in params.values():
            rows = max(1, BLOCK // max(1, tensor[0].numel() * dtype.itemsize))
            for some in tensor.split(rows):
                yield as_bytes(some.to(device="cpu", dtype=dtype))


def overwrite(file: BinaryIO, begin: int, rows: Sequence[int], values: Tensor) -> None:
    """Replace rows of a tensor that begins at that byte: `values` [n, ...] are those of `rows` [n]."""
    for row, value in zip(rows, values, strict=True):
        file.seek(begin + row * value.nbytes)
        file.write(as_bytes(value))


def as_bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def read_layout(mapping: mmap.mmap) -> Layout:
    """Where the tensors lie, read from what `header` wrote."""
    start = 8 + int.from_bytes(mapping[:8], "little")
    types = {code: dtype for dtype, code in CODES.items()}
    layout, end = {}, start
    for name, entry in json.loads(mapping[8:start]).items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        layout[name] = types[entry["dtype"]], entry["shape"], begin
    if end != len(mapping):
        raise ValueError(f"it has {len(mapping)} bytes instead of {end}")
    return layout


def mapped(mapping: mmap.mmap, layout: Layout) -> View:
    """The tensors that lie in the mapping, which lives as long as they do."""
    values: View = {}
    for name, (dtype, shape, begin) in layout.items():
        group, key = name.split("/", 1)
        count = torch.Size(shape).numel()
        tensor = torch.frombuffer(mapping, dtype=dtype, count=count, offset=begin)
        values.setdefault(group, {})[key] = tensor.reshape(shape)
    return values
