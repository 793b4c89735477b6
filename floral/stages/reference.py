"""Committed results, reports/reference/<suite>/: finished runs that nobody needs to repeat, and the page made of them.

Nothing here imports torch or polars at once: Snakemake restores runs before it plans any job.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from floral.config import ConfigError, Run
from floral.files import atomic
from floral.stages.failure import running
from floral.stages.locks import held
from floral.stages.plan import finished

REFERENCE = Path("reports") / "reference"
"""Below the project's root, where all commands are typed."""
RUNS, PROVENANCE = "runs.zip", "provenance.yaml"
MARK = "reference.json"
"""In the folder of a run that was restored and not made here: from which reference, and the commit that made it."""
KEPT = ("run.yaml", "metrics.parquet", "clients.parquet", "unseen.parquet", "costs.json", "summary.json")
"""What a report and MLflow read of a run. Its model and the routes of every round are not kept: they are large."""
LARGEST = 50_000_000
"""Bytes of a reference: it is committed."""


def make(suite: str, runs: Iterable[Run], results: Path, page: Path, command: str) -> Path:
    """Write reports/reference/<suite>/ from the finished runs of a suite and its report, the folder `page`.

    The zip archive of equal runs has equal bytes: it has no times. A partial grid says so in provenance.yaml.

    Raises:
        ConfigError: no run is finished, there is no report, or all of it exceeds 50 MB.
    """
    runs = list(runs)
    done = [run for run in runs if finished(run, results)]
    if not done:
        raise ConfigError(f"suite {suite!r}: no run is finished below {results}; make them with `{command}`")
    if not (page / "index.html").exists():
        raise ConfigError(f"{page}/index.html: no such file; make the report with `floral report {suite} --partial`")
    final, fresh = REFERENCE / suite, REFERENCE / f".{suite}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(page, fresh)
    with zipfile.ZipFile(fresh / RUNS, "w", zipfile.ZIP_DEFLATED) as archive:
        for run in sorted(done, key=lambda run: str(run.folder)):
            for path in (results / run.folder / name for name in KEPT):
                if path.exists():
                    archive.writestr(zipfile.ZipInfo(str(run.folder / path.name)), path.read_bytes())
    told = _provenance(suite, done, len(runs), results, command)
    (fresh / PROVENANCE).write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if (size := sum(path.stat().st_size for path in fresh.rglob("*"))) > LARGEST:
        raise ConfigError(
            f"{fresh}: {size / 1e6:.0f} MB are too many to commit; narrow the suite, and remove this folder"
        )
    shutil.rmtree(final, ignore_errors=True)
    fresh.rename(final)
    return final


def _provenance(suite: str, done: list[Run], of: int, results: Path, command: str) -> dict[str, Any]:
    """Who made these runs, with what; read from the runs."""
    costs = [json.loads((results / run.folder / "costs.json").read_text(encoding="utf-8")) for run in done]
    ends = [
        json.loads((results / run.folder / "summary.json").read_text(encoding="utf-8"))["finished_at"] for run in done
    ]
    machines = [", ".join(f"{key} {value}" for key, value in one["machine"].items()) for one in costs]
    versions = [", ".join(f"{key} {value}" for key, value in one["versions"].items()) for one in costs]
    return {
        "suite": suite,
        "runs": f"{len(done)} of {of}" + ("" if len(done) == of else ": a partial grid"),
        "last_result": max(ends),
        "commits": sorted({str(one["git_commit"] or "unknown") for one in costs}),
        "commands": [command, f"floral reference {suite}"],
        "machines": sorted(set(machines)),
        "versions": sorted(set(versions)),
        "seconds": round(sum(one["seconds"]["total"] for one in costs)),
    }


def restore(suites: Mapping[str, list[Run]], results: Path) -> list[Run]:
    """Put those runs into `results` that are not finished there and have an equal hash in a reference; return them.

    Raises:
        ConfigError: a reference's archive is damaged.
    """
    archives = sorted(REFERENCE.glob(f"*/{RUNS}"))
    todo = {run.folder: run for runs in suites.values() for run in runs if not finished(run, results)}
    found = []
    for path in archives if todo else []:
        try:
            with held(results / "reference.lock", "restoring runs"), zipfile.ZipFile(path) as archive:
                names = set(archive.namelist())
                for folder in [folder for folder in todo if f"{folder}/summary.json" in names]:
                    run = todo.pop(folder)
                    if not running(results / folder):
                        _restore(archive, names, run, results, path.parent.name)
                        found.append(run)
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise ConfigError(
                f"{path}: damaged ({error}); take it from the repository again, or use `--config reuse=false`"
            ) from None
    return found


def _restore(archive: zipfile.ZipFile, names: set[str], run: Run, results: Path, suite: str) -> None:
    """Write a run's files, the summary last: until then it is not finished."""
    folder = results / run.folder
    costs = json.loads(archive.read(f"{run.folder}/costs.json"))
    atomic(folder / MARK, (json.dumps({"suite": suite, "commit": costs["git_commit"]}) + "\n").encode())
    for name in KEPT:
        if f"{run.folder}/{name}" in names:
            atomic(folder / name, archive.read(f"{run.folder}/{name}"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    atomic(folder / "done", f"{summary['status']} {summary['hash8']} {summary['finished_at']}\n".encode())


def forget(suites: Mapping[str, list[Run]], results: Path) -> list[Run]:
    """Remove what was restored of these runs, so that they are made here; return them."""
    runs = {run.folder: run for runs in suites.values() for run in runs if (results / run.folder / MARK).exists()}
    for folder in runs:
        shutil.rmtree(results / folder)
    return list(runs.values())


def origin(folder: Path) -> str | None:
    """The reference that a run's folder was restored from, and the commit that made it; None where it was made here."""
    path = folder / MARK
    if not path.exists():
        return None
    mark = json.loads(path.read_text(encoding="utf-8"))
    return f"{mark['suite']}, commit {(mark['commit'] or 'unknown')[:12]}"
