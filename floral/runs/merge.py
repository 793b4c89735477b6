"""Results that were made on several machines: finished runs of other folders join those of this one, checked first."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from floral.config.reading import ConfigError
from floral.config.run import RESULTS_VERSION
from floral.io.files import atomic
from floral.io.locks import held
from floral.runs.state import LOCK, is_finished

LAST = ("summary.json", "done")
"""Written after all else: a run is finished when its summary is there."""
CHECKPOINT = "checkpoint"
PIECE = 1 << 24
"""Bytes that are copied at a time."""


@dataclass
class Merged:
    """What became of the runs of the other folders, by their folders below `train`, and what is wrong with them."""

    copied: list[Path] = field(default_factory=list)
    here: list[Path] = field(default_factory=list)
    """Finished here, too, with the same numbers."""
    unfinished: list[Path] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    """Runs by the version of the code that made them, of those copied and their namesakes here."""

    def __str__(self) -> str:
        lines = [
            f"{len(self.copied)} copied, {len(self.here)} already here with the same numbers, "
            f"{len(self.unfinished)} unfinished and left out, {len(self.conflicts)} in conflict"
        ]
        lines += [f"conflict: {said}" for said in self.conflicts]
        if len(self.versions) > 1:
            found = ", ".join(f"{version} ({count})" for version, count in sorted(self.versions.items()))
            lines.append(f"WARNING: runs of several versions of the code: {found}; compare only what one of them made")
        return "\n".join(lines)


def merge(sources: Sequence[Path], results: Path) -> Merged:
    """Copy every finished run of `sources` that is not here yet; what is here is never replaced.

    A run that is damaged, that another version of the results made, whose partition or data set has other rows than the
    same one here, or that is here with other numbers is a conflict, and stays where it is.

    Raises:
        ConfigError: a source holds no results.
    """
    merged = Merged()
    digests: dict[str, str | None] = {}
    for folder in sorted((results / "train").glob("*/*/seed*")):
        if is_finished(folder):
            _note(folder, digests, merged)
    for source in sources:
        if not (source / "train").is_dir():
            raise ConfigError(f"{source}: holds no results (there is no folder train in it); name a results folder")
        if source.resolve() == results.resolve():
            raise ConfigError(f"{source}: is the folder that the others are merged into; name another")
        for folder in sorted((source / "train").glob("*/*/seed*")):
            _one(folder, results / folder.relative_to(source), digests, merged)
    return merged


def _one(folder: Path, target: Path, digests: dict[str, str | None], merged: Merged) -> None:
    """One run of another folder."""
    name = Path(*folder.parts[-3:])
    if not is_finished(folder):
        merged.unfinished.append(name)
        return
    try:
        run, _ = _checked(folder)
    except ConfigError as wrong:
        merged.conflicts.append(str(wrong))
        return
    if is_finished(target):
        if _numbers(folder) == _numbers(target):
            merged.here.append(name)
        else:
            merged.conflicts.append(
                f"{run['hash8']}: {folder} and {target} have other numbers for one run; the latter stays"
            )
        return
    for place, digest in _rests_on(run).items():
        if digests.get(place, digest) != digest:
            merged.conflicts.append(
                f"{run['hash8']}: {folder}: {place} had other rows there ({str(digest)[:8]}) than here "
                f"({str(digests[place])[:8]})"
            )
            return
    target.mkdir(parents=True, exist_ok=True)
    with held(target / LOCK, "training this run"):
        _copy(folder, target)
    merged.copied.append(name)
    _note(target, digests, merged)


def _note(folder: Path, digests: dict[str, str | None], merged: Merged) -> None:
    """Remember the partition and the version of a run that is here.

    Raises:
        ConfigError: it is damaged.
    """
    run, version = _checked(folder)
    for place, digest in _rests_on(run).items():
        digests.setdefault(place, digest)
    merged.versions[version] = merged.versions.get(version, 0) + 1


def _rests_on(run: dict[str, Any]) -> dict[str, str | None]:
    """What → digest of its rows: the run's partition, and the data set that it divides, if the run says it."""
    folder, stored = run["partition"]["folder"], run.get("data", {}).get("digest")
    return {folder: run["partition"]["digest"]} | ({f"the data set of {folder}": stored} if stored else {})


def _checked(folder: Path) -> tuple[dict[str, Any], str]:
    """run.yaml of a finished run and the version of the code that made it, once its files agree with one another."""
    try:
        run = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        costs = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
        told = {f"seed{run['seed']}-{run['hash8']}", f"seed{summary['seed']}-{summary['hash8']}"}
        version, made = run["results_version"], f"{costs['versions']['floral']} {costs['git_commit']}"
        _ = run["partition"]["folder"], run["partition"]["digest"], _numbers(folder)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"{folder}: damaged ({error!r}); train it again where it was made") from None
    if told != {folder.name}:
        raise ConfigError(f"{folder}: its files are of {' and '.join(sorted(told))}; the folder was renamed or mixed")
    if version != RESULTS_VERSION:
        raise ConfigError(f"{folder}: results version {version}, here {RESULTS_VERSION}; it does not compare")
    return run, made


def _numbers(folder: Path) -> str:
    """Hash of what the run measured."""
    return hashlib.sha256((folder / "metrics.parquet").read_bytes()).hexdigest()


def _copy(folder: Path, target: Path) -> None:
    """Every file in one piece, the marks of a finished run last; what an unfinished one left here goes."""
    if (target / CHECKPOINT).is_dir():
        shutil.rmtree(target / CHECKPOINT)
    (target / "failure.json").unlink(missing_ok=True)
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    ordinary = [path for path in found if path.parts[0] not in (CHECKPOINT, LOCK, *LAST)]
    for path in (*ordinary, *(Path(name) for name in LAST if Path(name) in found)):
        with (folder / path).open("rb") as file:
            atomic(target / path, iter(lambda file=file: file.read(PIECE), b""))
