"""Steps shared by all formats of custom data: checks, class numbers, and the split into training and test samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from floral.data.readers import Labelled, select_test
from floral.data.sources import DataError

Array = npt.NDArray[Any]

SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Samples as read: x [N, ...], labels [N] (integers or words) and optionally the natural client [N] of each."""

    where: Path
    """File or folder of these samples, for messages."""
    x: Array
    labels: Array
    client: Array | None = None


def labelled(parts: Sequence[Part], test_share: float, scale: int) -> Labelled:
    """Return the data set made of one part, or of a training and a test part.

    A single part is split by `select_test` within each client, or within each class if there are no clients. Every
    class keeps a training sample: if all samples of a class were selected for the test, the first one stays in
    training.

    Raises:
        DataError: parts are empty or do not match, labels are wrong, or a class has only test samples.
    """
    _check(parts)
    y, names = _classes(parts)
    client = None
    if clients := [part.client for part in parts if part.client is not None]:
        client = np.unique(np.concatenate(clients), return_inverse=True)[1].astype(np.int32)
    if len(parts) == 1:
        test = select_test(y if client is None else client, test_share, "own data split")
        untrained = np.setdiff1d(y[test], y[~test])
        test[np.unique(y, return_index=True)[1][untrained]] = False
        if not test.any():
            group = "class" if client is None else "client"
            raise DataError(f"{parts[0].where}: no {group} has two samples, so the test split is empty; add samples")
        train_x, test_x = parts[0].x[~test], parts[0].x[test]
    else:
        test = np.arange(len(y)) >= len(parts[0].x)
        train_x, test_x = parts[0].x, parts[1].x
        if (untrained := np.setdiff1d(y[test], y[~test])).size:
            name = repr(names[untrained[0]]) if names else untrained[0]
            raise DataError(f"{parts[1].where}: class {name} has test samples, but no training sample; add some")
    clients_of = {} if client is None else {"train_client": client[~test], "test_client": client[test]}
    return Labelled(
        train_x=train_x, train_y=y[~test], test_x=test_x, test_y=y[test], classes=int(y.max()) + 1, scale=scale,
        names=names, **clients_of,
    )  # fmt: skip


def _check(parts: Sequence[Part]) -> None:
    for part in parts:
        if not len(part.x):
            raise DataError(f"{part.where}: there are no samples in it; add some, or remove it")
        for name, column in (("labels (y)", part.labels), ("client", part.client)):
            if column is not None and column.shape != part.x.shape[:1]:
                raise DataError(
                    f"{part.where}: {name} of shape {list(column.shape)} for {len(part.x)} samples; give one per sample"
                )
        if part.x.shape[1:] != parts[0].x.shape[1:] or part.x.dtype != parts[0].x.dtype:
            raise DataError(
                f"{part.where}: test samples of shape {list(part.x.shape[1:])} ({part.x.dtype}), but training samples "
                f"of shape {list(parts[0].x.shape[1:])} ({parts[0].x.dtype}); make them equal"
            )


def _classes(parts: Sequence[Part]) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Return the labels [N] of all parts as 0, 1, …, and the class names in sorted order (None for integer labels)."""
    where, labels = parts[0].where, np.concatenate([part.labels for part in parts])
    if labels.dtype.kind in "UST":
        names, y = np.unique(labels, return_inverse=True)
        return y.astype(np.int64), tuple(map(str, names))
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"{where}: the labels are of type {labels.dtype}; write classes as integers 0, 1, …, or as words"
        )
    classes = np.unique(labels)
    if classes[0] < 0 or classes[-1] != len(classes) - 1:
        problem = f"{classes[0]}" if classes[0] < 0 else f"no {np.flatnonzero(classes != np.arange(len(classes)))[0]}"
        raise DataError(
            f"{where}: integer labels must be 0, 1, … without a gap, but these run from {classes[0]} to {classes[-1]} "
            f"with {problem}; number the classes again, or write them as words, which are numbered in sorted order"
        )
    return labels.astype(np.int64), None


def split_or_not(root: Path, entries: Mapping[str, Path]) -> list[Path]:
    """Return the training and the test entry of a folder if it has them, otherwise `root` itself.

    `entries` has the files and folders in `root` by name.
    """
    if not set(SPLITS) & entries.keys():
        return [root]
    if set(entries) != set(SPLITS):
        extra = sorted(set(entries) - set(SPLITS))
        remedy = f"remove {extra[0]!r}" if extra else f"add {next(iter(set(SPLITS) - set(entries)))!r}"
        raise DataError(f"{root}: a folder with train or test needs both and nothing else; remedy: {remedy}")
    return [entries[side] for side in SPLITS]


def entries_of(root: Path) -> list[Path]:
    """Return the visible files and folders in a folder, sorted by name."""
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder; name the folder that holds one folder of images per class")
    return sorted(path for path in root.iterdir() if not path.name.startswith("."))
