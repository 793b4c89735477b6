"""Merge the results of several machines: check the finished runs of other folders, and copy them into one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from floral.config.reading import ConfigError
from floral.config.run import RESULTS_VERSION
from floral.io.files import atomic, content_sha256
from floral.io.locks import held
from floral.runs.state import LOCK, is_finished

FINISHED_FILES = ("summary.json", "done")
"""Copied after all other files, because they mark the run as finished."""
CHECKPOINT = "checkpoint"
CHUNK_BYTES = 1 << 24
"""Bytes copied at a time."""


@dataclass
class Merged:
    """The outcome of a merge: which runs were copied, which were not copied, and why.

    `copied`, `identical` and `unfinished` have folders of runs, relative to the folder `train`. `conflicts` has one
    message for each run in conflict; `merge` says what a conflict is.
    """

    copied: list[Path] = field(default_factory=list)
    identical: list[Path] = field(default_factory=list)
    """Finished in both folders with the same metrics."""
    unfinished: list[Path] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)
    """Version of the code → number of finished runs in the merged folder."""

    def __str__(self) -> str:
        lines = [
            f"{len(self.copied)} copied, {len(self.identical)} already here with the same numbers, "
            f"{len(self.unfinished)} unfinished and left out, {len(self.conflicts)} in conflict"
        ]
        lines += [f"conflict: {message}" for message in self.conflicts]
        if len(self.versions) > 1:
            counts = ", ".join(f"{version} ({count})" for version, count in sorted(self.versions.items()))
            lines.append(f"WARNING: runs of several versions of the code: {counts}; compare runs of one version only")
        return "\n".join(lines)


def merge(sources: Sequence[Path], results: Path) -> Merged:
    """Copy every finished run of `sources` that `results` does not have. Finished runs in `results` are never replaced.

    A run is a conflict, and is not copied, in four cases: its files are damaged; its results version is not that of the
    installed code; `results` has the same run with different metrics; or `results` has a partition or data set of the
    same name with different samples. The results version is a number in the code. It is increased when the same run
    gives other numbers than before.

    Raises:
        ConfigError: a source holds no results, or a source is the folder `results` itself.
    """
    merged = Merged()
    digests: dict[str, str | None] = {}
    for folder in sorted((results / "train").glob("*/*/seed*")):
        if is_finished(folder):
            _record(folder, digests, merged)
    for source in sources:
        if not (source / "train").is_dir():
            raise ConfigError(
                f"{source}: holds no results, because there is no subfolder `train`; give a results folder"
            )
        if source.resolve() == results.resolve():
            raise ConfigError(
                f"{source}: this source is the folder that the others are merged into; give another source"
            )
        for folder in sorted((source / "train").glob("*/*/seed*")):
            _merge_run(folder, results / folder.relative_to(source), digests, merged)
    return merged


def _merge_run(folder: Path, target: Path, digests: dict[str, str | None], merged: Merged) -> None:
    """Copy one run into the folder `target`, or record why the run is not copied."""
    name = Path(*folder.parts[-3:])
    if not is_finished(folder):
        merged.unfinished.append(name)
        return
    try:
        run, _ = _read_checked(folder)
    except ConfigError as error:
        merged.conflicts.append(str(error))
        return
    if is_finished(target):
        if _metrics_hash(folder) == _metrics_hash(target):
            merged.identical.append(name)
        else:
            merged.conflicts.append(
                f"{run['hash8']}: {folder} and {target} have different metrics for the same run; {target} is kept"
            )
        return
    for name_of_data, digest in _data_digests(run).items():
        if digests.get(name_of_data, digest) != digest:
            merged.conflicts.append(
                f"{run['hash8']}: {folder}: {name_of_data} has other samples there ({str(digest)[:8]}) than in the "
                f"merged results ({str(digests[name_of_data])[:8]})"
            )
            return
    target.mkdir(parents=True, exist_ok=True)
    with held(target / LOCK, "training this run"):
        _copy(folder, target)
    merged.copied.append(name)
    _record(target, digests, merged)


def _record(folder: Path, digests: dict[str, str | None], merged: Merged) -> None:
    """Add the data digests of a run to `digests`, and count the run under its code version in `merged`.

    Raises:
        ConfigError: the run is damaged, or its results version is not that of the installed code.
    """
    run, version = _read_checked(folder)
    for name, digest in _data_digests(run).items():
        digests.setdefault(name, digest)
    merged.versions[version] = merged.versions.get(version, 0) + 1


def _data_digests(run: dict[str, Any]) -> dict[str, str | None]:
    """Return the digests of the samples that a run uses, as a mapping from a name to the digest.

    The result has the run's partition, and the run's data set if run.yaml names a data set.
    """
    folder, stored = run["partition"]["folder"], run.get("data", {}).get("digest")
    return {folder: run["partition"]["digest"]} | ({f"the data set of {folder}": stored} if stored else {})


def _read_checked(folder: Path) -> tuple[dict[str, Any], str]:
    """Check the files of a finished run, and return the content of run.yaml and the code version.

    Raises:
        ConfigError: a file is damaged, the files belong to different runs, or the run has another results version than
            the installed code.
    """
    try:
        run = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        costs = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
        names = {f"seed{run['seed']}-{run['hash8']}", f"seed{summary['seed']}-{summary['hash8']}"}
        results_version, code_version = run["results_version"], f"{costs['versions']['floral']} {costs['git_commit']}"
        _ = run["partition"]["folder"], run["partition"]["digest"], _metrics_hash(folder)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{folder}: this run is damaged ({error!r}); train the run again on the machine that trained it"
        ) from None
    if names != {folder.name}:
        raise ConfigError(
            f"{folder}: the files in this folder belong to {' and '.join(sorted(names))}, so the folder was "
            "renamed or files were mixed; restore the original folder"
        )
    if results_version != RESULTS_VERSION:
        raise ConfigError(
            f"{folder}: this run has results version {results_version}, but the installed code has "
            f"{RESULTS_VERSION}; results of different versions cannot be compared; train the run again "
            "with the installed code"
        )
    return run, code_version


def _metrics_hash(folder: Path) -> str:
    """Return the SHA-256 hash of the run's metrics.parquet."""
    return content_sha256(folder / "metrics.parquet")


def _copy(folder: Path, target: Path) -> None:
    """Copy all files of a run except the checkpoint. FINISHED_FILES are copied last.

    In the target folder, an old checkpoint and failure.json are removed first.
    """
    if (target / CHECKPOINT).is_dir():
        shutil.rmtree(target / CHECKPOINT)
    (target / "failure.json").unlink(missing_ok=True)
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    ordinary = [path for path in files if path.parts[0] not in (CHECKPOINT, LOCK, *FINISHED_FILES)]
    for path in (*ordinary, *(Path(name) for name in FINISHED_FILES if Path(name) in files)):
        with (folder / path).open("rb") as file:
            atomic(target / path, iter(lambda file=file: file.read(CHUNK_BYTES), b""))
