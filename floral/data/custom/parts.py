"""Steps that all formats of custom data share: checks, class numbers, and the split into training and test samples."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from floral.data.readers import Labelled, select_test
from floral.data.sources import DataError
from floral.io.files import visible

Array = npt.NDArray[Any]

SPLITS = ("train", "test")
KINDS = {
    **dict.fromkeys((".csv", ".parquet"), "table"), **dict.fromkeys((".npz", ".npy"), "arrays"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"), "folder"),
}  # fmt: skip
"""End of a file's name → the `kind` of custom data that reads such files."""
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
MISSING_WORDS = frozenset({
    "", "?", "<NA>", "#N/A", "#NA", "N/A", "n/a", "NA", "NaN", "-NaN", "nan", "-nan", "NaT", "NULL", "null", "None",
})  # fmt: skip
"""Words that usually mean "no value". In classes and clients they are refused, because they are hardly a name."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of custom data, as it was read: all samples, or only the training or test samples.

    x [N, ...] holds the inputs. `labels` [N] holds integers or words. `client` [N] holds the natural client of each
    sample, or is None.
    """

    where: Path
    """File or folder of these samples, for messages."""
    x: Array
    labels: Array
    client: Array | None = None
    domain: str | None = None
    """Name of the domain of all these samples. None: the data have no domains."""
    side: str | None = None
    """train or test. None: the samples are not split yet."""

    def samples_as_seen_from(self, part: Part) -> str:
        """Return words for these samples in a message about another part. The file is named if it differs."""
        words = {"train": "the training samples", "test": "the test samples"}.get(str(self.side), "the samples")
        return words if self.where == part.where else f"{words} of {self.where}"


@dataclass(frozen=True)
class Place:
    """A file or folder of samples that belong together: those of a client, of a domain, of train, or of test."""

    path: Path
    side: str | None = None
    """train or test. None: the samples are not split yet."""
    client: str | None = None
    """Name of the client whose samples are here. None: the place does not tell the client."""
    domain: str | None = None
    """Name of the domain whose samples are here. None: the data have no domains."""

    def of_client(self, samples: int) -> Array | None:
        """Return the client of each of so many samples, or None if the place does not tell it."""
        return None if self.client is None else np.full(samples, self.client)


def labelled(parts: Sequence[Part], test_share: float, scale: int) -> Labelled:
    """Return custom data as one data set with training and test samples.

    Either all parts have a `side`, or none has one. All clients of the data must be split, or none.

    If the data are not split, `select_test` splits the samples of each client. If the data have no clients, it splits
    the samples of each class. In data with domains, it does so within each domain. If all samples of a class were
    selected for the test, its first sample goes back to training.

    Raises:
        DataError: parts are empty or do not match, labels are wrong, or a class has only test samples.
    """
    _check(parts)
    parts = sorted(parts, key=lambda part: part.side == "test")
    training = [part for part in parts if part.side == "train"]
    y, names = _classes(parts)
    client = client_names = None
    if clients := [part.client for part in parts if part.client is not None]:
        values, client = np.unique(_joined(parts, "client", clients), return_inverse=True)
        client, client_names = client.astype(np.int32), _texts(values)
    group = y if client is None else client
    domain = domains = None
    if parts[0].domain is not None:
        domains, number = np.unique([str(part.domain) for part in parts], return_inverse=True)
        domain = np.repeat(number.astype(np.int32), [len(part.x) for part in parts])
        group = group * len(domains) + domain
    x = parts[0].x if len(parts) == 1 else np.concatenate([part.x for part in parts])
    if not training:
        test = select_test(group, test_share, "own data split")
        untrained = np.setdiff1d(y[test], y[~test])
        test[np.unique(y, return_index=True)[1][untrained]] = False
        if not test.any():
            word = ("class" if client is None else "client") + ("" if domain is None else " of a domain")
            raise DataError(
                f"{parts[0].where}: no {word} has two samples, so there are no test samples; add samples, so that a "
                f"{word} has at least two"
            )
        train_x, test_x = x[~test], x[test]
    else:
        trained = sum(len(part.x) for part in training)
        test = np.arange(len(y)) >= trained
        train_x, test_x = x[:trained], x[trained:]
        if (untrained := np.setdiff1d(y[test], y[~test])).size:
            name = repr(names[untrained[0]]) if names else untrained[0]
            raise DataError(
                f"{parts[len(training)].where}: class {name} has test samples, but no training samples; add "
                "training samples of it"
            )
    train_client, test_client = (None, None) if client is None else (client[~test], client[test])
    train_domain, test_domain = (None, None) if domain is None else (domain[~test], domain[test])
    return Labelled(
        train_x=train_x, train_y=y[~test], test_x=test_x, test_y=y[test], classes=int(y.max()) + 1, scale=scale,
        names=names, client_names=client_names, train_client=train_client, test_client=test_client,
        domains=None if domains is None else _texts(domains), train_domain=train_domain, test_domain=test_domain,
    )  # fmt: skip


def first_missing(values: Array, words: Collection[str] = MISSING_WORDS) -> int | None:
    """Return the first index at which `values` [N] has NaN, an empty text or one of these words, or None."""
    if values.dtype.kind in "US":
        missing = np.isin(np.char.strip(values), np.array(sorted({"", *words})).astype(values.dtype.kind))
    else:
        missing = values != values  # only NaN and NaT differ from themselves
    return int(np.flatnonzero(missing)[0]) if missing.any() else None


def _check(parts: Sequence[Part]) -> None:
    for part in parts:
        if not len(part.x):
            raise DataError(f"{part.where}: there are no samples here; add samples")
        for name, column in (("labels (y)", part.labels), ("client", part.client)):
            if column is not None and column.shape != part.x.shape[:1]:
                raise DataError(
                    f"{part.where}: {name} has shape {list(column.shape)}, but there are {len(part.x)} samples; "
                    "give one value per sample"
                )
        if part.x.shape[1:] != parts[0].x.shape[1:] or part.x.dtype != parts[0].x.dtype:
            raise DataError(
                f"{part.where}: {part.samples_as_seen_from(part)} have shape {list(part.x.shape[1:])} "
                f"({part.x.dtype}), but {parts[0].samples_as_seen_from(part)} have {list(parts[0].x.shape[1:])} "
                f"({parts[0].x.dtype}); give all of them the same shape and type"
            )
        if (part.side is None) != (parts[0].side is None):
            raise DataError(
                f"{part.where}: these samples {'are not' if part.side is None else 'are'} split into train and test, "
                f"but those of {parts[0].where} {'are' if part.side is None else 'are not'}; split all, or none"
            )


def _classes(parts: Sequence[Part]) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Return the labels [N] of all parts as classes 0, 1, …, and the names of the classes.

    If the labels are words, they are numbered in sorted order. If they are integers, the second result is None.
    """
    where, labels = parts[0].where, _joined(parts, "labels (y)", [part.labels for part in parts])
    if labels.dtype.kind in "UST":
        names, y = np.unique(labels, return_inverse=True)
        return y.astype(np.int64), _texts(names)
    if labels.dtype.kind not in "iu":
        raise DataError(f"{where}: the labels are of type {labels.dtype}; write them as integers 0, 1, …, or as words")
    classes = np.unique(labels)
    if classes[0] < 0 or classes[-1] != len(classes) - 1:
        problem = f"{classes[0]}" if classes[0] < 0 else f"no {np.flatnonzero(classes != np.arange(len(classes)))[0]}"
        raise DataError(
            f"{where}: integer labels must be 0, 1, … without a gap, but these run from {classes[0]} to {classes[-1]} "
            f"with {problem}; number the classes again, or write them as words"
        )
    return labels.astype(np.int64), None


def _texts(values: Array) -> tuple[str, ...]:
    """Return values as texts. Bytes are read as UTF-8; a byte that is not UTF-8 becomes a question mark."""
    return tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)


def _joined(parts: Sequence[Part], name: str, columns: Sequence[Array]) -> Array:
    """Return the labels or clients of all parts as one array.

    Raises:
        DataError: one part has words and another numbers, or two words look the same.
    """
    are_words = [column.dtype.kind in "UST" for column in columns]
    if (changed := next((i for i, words in enumerate(are_words) if words != are_words[0]), None)) is not None:
        raise DataError(
            f"{parts[changed].where}: {name} has type {columns[changed].dtype}, but {columns[0].dtype} in "
            f"{parts[0].samples_as_seen_from(parts[changed])}; write both as words, or both as numbers"
        )
    joined = np.concatenate(columns)
    seen: dict[str | Fraction, str] = {}
    for word in _texts(np.unique(joined)) if joined.dtype.kind in "UST" else ():
        key = unicodedata.normalize("NFC", word.strip())
        number = NUMBER.fullmatch(key)
        first = seen.setdefault(Fraction(key) if number else key, word)
        if first != word:
            raise DataError(
                f"{parts[0].where}: {name} has {first!a} and {word!a}, which "
                f"{'are the same number' if number else 'look the same'}; write both in the same way, or rename one"
            )
    return joined


def file_type(path: Path) -> str:
    """Return the end of a file's name, such as ".csv", without the ".gz" of a compressed file."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def check_kind(root: Path, kind: str) -> None:
    """Raise DataError if all files of custom data, by their names, are for another `kind`."""
    paths = visible(root) if root.is_dir() else [root]
    kinds = {KINDS.get(file_type(path)) for path in paths}
    if len(kinds) == 1 and kinds <= {*KINDS.values()} - {kind}:
        raise DataError(
            f"{paths[0]}: `kind: {kind}` does not read files of type {file_type(paths[0])}; set `data.kind: "
            f"{kinds.pop()}`"
        )


def split_or_not(root: Path, entries: Mapping[str, Path]) -> list[Place]:
    """Return the places of the entries train and test in the folder `root`.

    If `root` has neither of them, the data are not split yet, and the result is `root` alone.

    `entries` maps the names of the files and folders in `root` to their paths.

    Raises:
        DataError: the folder has only one of the entries train and test, or has other entries besides them.
    """
    if not set(SPLITS) & entries.keys():
        return [Place(root)]
    if set(entries) != set(SPLITS):
        extra = sorted(set(entries) - set(SPLITS))
        remedy = f"remove {extra[0]!r}" if extra else f"add {next(iter(set(SPLITS) - set(entries)))!r}"
        raise DataError(
            f"{root}: a folder with an entry train or test must contain both, and nothing else; remedy: {remedy}"
        )
    return [Place(entries[side], side) for side in SPLITS]


def entries_of(root: Path) -> list[Path]:
    """Return the visible files and folders in a folder, sorted by name.

    Raises:
        DataError: `root` is not a folder.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: this is a file, but a folder is expected; set `data.path` to the folder that contains one folder "
            "of images per class"
        )
    return sorted(path for path in root.iterdir() if not path.name.startswith("."))
