"""Reference results: finished runs and their report, which are committed in reports/reference/<suite>/.

The setting `reference` names another folder than reports/reference. All functions have it as their last argument.

Snakemake restores these runs before it plans any job. To start fast, this module does not import torch, and imports
polars only where needed.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from floral.config.reading import ConfigError, suggest
from floral.config.run import Run
from floral.core.units import run_count
from floral.io.files import atomic
from floral.io.locks import held
from floral.runs.execution import executions
from floral.runs.outdated import why_outdated
from floral.runs.state import LOCK, is_finished, running

REFERENCE = Path("reports") / "reference"
"""Default of the setting `reference`: the folder with the reference results of each suite."""
RUNS, PROVENANCE = "runs.zip", "provenance.yaml"
RESTORED = "reference.json"
"""The file that marks a restored run; the file has the suite of the reference results and the commit of the code."""
RUN_FILES = ("run.yaml", "metrics.parquet", "clients.parquet", "unseen.parquet", "costs.json", "summary.json")
"""The files of a run that reports and MLflow read. Its model and routes.parquet are left out: they are large."""
WRITERS = 16
"""Runs that are unpacked at once. A disk confirms the files of many writers in about the time of one file."""
MAX_BYTES = 50_000_000
"""Maximum size of a reference folder in bytes, because it is committed."""


def make(suite: str, runs: Iterable[Run], results: Path, page: Path, command: str, reference: Path = REFERENCE) -> Path:
    """Write reports/reference/<suite>/ from the finished runs of a suite and from its report in the folder `page`.

    The new folder has runs.zip, summary.parquet, index.html and provenance.yaml. The file provenance.yaml says whether
    runs of the suite are missing. Equal runs give equal bytes of runs.zip, because the archive has no file times.

    Raises:
        ConfigError: no run is finished, the report is missing or has other runs, or the folder exceeds 50 MB.
    """
    runs = list(runs)
    done = [run for run in runs if is_finished(results / run.folder)]
    if not done:
        raise ConfigError(f"suite {suite!r}: no run is finished below {results}; make the runs with `{command}`")
    if not (page / "index.html").exists():
        raise ConfigError(
            f"{page}/index.html: there is no such file; make the report with `floral report {suite} --partial`"
        )
    _check_page(suite, page, done)
    final, fresh = reference / suite, reference / f".{suite}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        shutil.copy(page / "summary.parquet", fresh)
        committed = committed_page((page / "index.html").read_text(encoding="utf-8"), suite)
        (fresh / "index.html").write_text(committed, encoding="utf-8")
        with zipfile.ZipFile(fresh / RUNS, "w") as archive:
            for run in sorted(done, key=lambda run: str(run.folder)):
                for path in (results / run.folder / name for name in RUN_FILES):
                    if path.exists():
                        _add(archive, str(run.folder / path.name), path.read_bytes())
        provenance = _provenance(suite, done, len(runs), results, command)
        (fresh / PROVENANCE).write_text(
            yaml.safe_dump(provenance, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
        if (size := sum(path.stat().st_size for path in fresh.rglob("*"))) > MAX_BYTES:
            raise ConfigError(
                f"{final}: the files have {size / 1e6:.0f} MB, but 50 MB is the limit for a commit; reduce the suite"
            )
        shutil.rmtree(final, ignore_errors=True)
        fresh.rename(final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final


def committed_page(html: str, suite: str) -> str:
    """Return the report page without links to figure and table files, because these files are not committed.

    The figures themselves are part of the page. A new footer names the command that builds the figure and table files
    again from runs.zip.
    """
    html = html.replace('<body data-files="beside">', "<body>")  # without it, the page's script makes no links
    footer = (
        "<footer>\n<p>Beside this page: <code>summary.parquet</code> (one row per run) and <code>runs.zip</code> (the "
        f"runs). <code>floral report {suite} --reference</code> builds from them this page, its tables as LaTeX "
        "and its figures as SVG, PDF and CSV.</p>\n</footer>"
    )
    return re.sub(r"<footer>.*?</footer>", lambda _: footer, html, flags=re.DOTALL)


def _check_page(suite: str, page: Path, done: list[Run]) -> None:
    """Raise ConfigError unless the report in the folder `page` has exactly the runs `done`."""
    import polars as pl

    rows = pl.read_parquet(page / "summary.parquet", columns=["hash8", "status"])
    reported = set(rows.filter(pl.col("status").is_in(["done", "diverged"]))["hash8"])
    if reported != {run.hash8 for run in done}:
        raise ConfigError(
            f"{page}: the {len(reported)} runs in the report are not the {len(done)} finished runs of the suite; make "
            f"the report again with `floral report {suite} --partial`"
        )


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to the archive without the file's time, so that equal runs give equal bytes.

    After unpacking, all users can read the file.
    """
    member = zipfile.ZipInfo(name)
    member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(member, content)


def _provenance(suite: str, done: list[Run], total: int, results: Path, command: str) -> dict[str, Any]:
    """Return the content of provenance.yaml, for example the commits, machines, versions and executions of the runs."""
    costs = [json.loads((results / run.folder / "costs.json").read_text(encoding="utf-8")) for run in done]
    ends = [
        json.loads((results / run.folder / "summary.json").read_text(encoding="utf-8"))["finished_at"] for run in done
    ]
    machines = [", ".join(f"{key} {value}" for key, value in cost["machine"].items()) for cost in costs]
    versions = [", ".join(f"{key} {value}" for key, value in cost["versions"].items()) for cost in costs]
    return {
        "suite": suite,
        "runs": f"{len(done)} of {total}" + ("" if len(done) == total else ": a partial grid"),
        "last_result": max(ends),
        "commits": sorted({str(cost["git_commit"] or "unknown") for cost in costs}),
        "commands": [command, f"floral reference {suite}"],
        "machines": sorted(set(machines)),
        "versions": sorted(set(versions)),
        "executions": executions(cost["execution"] for cost in costs),
        "seconds": round(sum(cost["seconds"]["total"] for cost in costs)),
    }


def execution_of(run: Run, reference: Path = REFERENCE) -> dict[str, Any] | None:
    """Return how the committed results of a run were computed: the key `execution` of its costs.json.

    If only other seeds of the run are committed, return the execution of one of them. Return None if there are no
    committed results.

    Raises:
        ConfigError: an archive is damaged.
    """
    for path in sorted(reference.glob(f"[!.]*/{RUNS}")):
        with _open_archive(path) as archive:
            names = set(archive.namelist())
            start = f"{run.folder.parent}/seed"
            seeds = {int(name.removeprefix(start).partition("-")[0]) for name in names if name.startswith(start)}
            for seed in sorted(seeds, key=lambda seed: (seed != run.seed, seed)):
                member = f"{run.model_copy(update={'seed': seed}).folder}/costs.json"
                if member in names:
                    return json.loads(archive.read(member))["execution"]
    return None


def available(suites: Mapping[str, list[Run]], results: Path, reference: Path = REFERENCE) -> list[tuple[Path, Run]]:
    """Return the unfinished runs whose results are in reports/reference, each as a pair (path of the archive, run).

    Runs that a process is working on are left out. Results made by other code are left out too, with a message.

    Raises:
        ConfigError: an archive is damaged.
    """
    todo = {run.folder: run for runs in suites.values() for run in runs if not is_finished(results / run.folder)}
    restorable = []
    made_by_other_code: Counter[tuple[Path, str]] = Counter()
    for path in sorted(reference.glob(f"[!.]*/{RUNS}")) if todo else []:
        with _open_archive(path) as archive:
            names = set(archive.namelist())
            for folder in [folder for folder in todo if f"{folder}/summary.json" in names]:
                run = todo.pop(folder)
                if running(results / folder):
                    continue
                costs = json.loads(archive.read(f"{folder}/costs.json"))
                if reasons := why_outdated(costs, run.variant.method, run.task.model.kind, run.precision):
                    made_by_other_code[path, " and ".join(reasons)] += 1
                else:
                    restorable.append((path, run))
    for (path, reasons), number in made_by_other_code.items():
        print(f"{path}: {run_count(number)} made by other code and not taken: {reasons}", file=sys.stderr)
    return restorable


def restore(suites: Mapping[str, list[Run]], results: Path, reference: Path = REFERENCE) -> list[Run]:
    """Unpack the runs that `available` returns into `results`, and return the runs that were unpacked.

    A run is left out, with a message, if its partition differs from the one in `results`. Methods can be compared only
    on the same partition.

    Raises:
        ConfigError: an archive is damaged; no file of the damaged run is written.
    """
    restored = []
    for path, in_archive in groupby(available(suites, results, reference), key=itemgetter(0)):
        with _open_archive(path) as archive:
            runs = [run for _, run in in_archive]
            with ThreadPoolExecutor(WRITERS) as writers:
                written = writers.map(partial(_restore_run, archive, _members(archive), results), runs)
                restored += [run for run, done in zip(runs, written, strict=True) if done]
    return restored


def restore_archive(suite: str, results: Path, reference: Path = REFERENCE) -> list[Path]:
    """Unpack all reference runs of a suite into `results`, and return the folders of these runs.

    Runs that are already finished in `results` are kept.

    Raises:
        ConfigError: the suite has no reference results, or the archive is damaged.
    """
    path = reference / suite / RUNS
    if not path.exists():
        names = sorted(archive.parent.name for archive in reference.glob(f"[!.]*/{RUNS}"))
        raise suggest("reference", suite, names, str(reference))
    with _open_archive(path) as archive:
        members = _members(archive)

        def restore_folder(folder: str) -> None:
            if not is_finished(results / folder):
                _write_run(results / folder, _read_files(archive, members[folder]), suite)

        with ThreadPoolExecutor(WRITERS) as writers:
            list(writers.map(restore_folder, members))
    return [results / folder for folder in members]


def _members(archive: zipfile.ZipFile) -> dict[str, list[str]]:
    """Return the members of an archive that are files of runs, as a mapping from the run's folder to its members."""
    members: dict[str, list[str]] = {}
    for member in archive.namelist():
        folder, _, name = member.rpartition("/")
        if name in RUN_FILES:
            members.setdefault(folder, []).append(member)
    return members


def _read_files(archive: zipfile.ZipFile, members: Iterable[str]) -> dict[str, bytes]:
    """Return the content of some members by the name of their file."""
    return {member.rpartition("/")[2]: archive.read(member) for member in members}


def _restore_run(archive: zipfile.ZipFile, members: Mapping[str, list[str]], results: Path, run: Run) -> bool:
    """Unpack a run and return True. Return False if it is finished, or with a message if its partition differs."""
    path, folder = Path(str(archive.filename)), results / run.folder
    files = _read_files(archive, members[str(run.folder)])
    if difference := _partition_difference(run, files, results):
        print(f"{path}: {run.folder} is not restored: {difference}", file=sys.stderr)
        return False
    with held(folder / LOCK, "restoring this run"):
        if is_finished(folder):
            return False
        _write_run(folder, files, path.parent.name)
        return True


def _partition_difference(run: Run, files: Mapping[str, bytes], results: Path) -> str:
    """Describe how the partition of a reference run differs from the one in `results`.

    The text is empty if both are equal, or if `results` has no such partition yet.
    """
    folder = results / run.partition.folder
    if not (folder / "card.json").exists():
        return ""
    here = json.loads((folder / "card.json").read_text(encoding="utf-8"))["digest"]
    there = yaml.safe_load(files["run.yaml"])["partition"]["digest"]
    return "" if here == there else f"its partition has other samples ({there[:8]}) than {folder} ({here[:8]})"


def _write_run(folder: Path, files: Mapping[str, bytes], suite: str) -> None:
    """Write the files of a run. summary.json and `done` are written last, because they mark the run as finished."""
    for name, content in files.items():
        if name != "summary.json":
            atomic(folder / name, content)
    mark = {"suite": suite, "commit": json.loads(files["costs.json"])["git_commit"]}
    atomic(folder / RESTORED, (json.dumps(mark) + "\n").encode())
    atomic(folder / "summary.json", files["summary.json"])
    summary = json.loads(files["summary.json"])
    atomic(folder / "done", f"{summary['status']} {summary['hash8']} {summary['finished_at']}\n".encode())


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive of reference runs for reading.

    Raises:
        ConfigError: the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: damaged ({error}); restore this file from the repository, or use `--config reuse=false`"
        ) from None


def archives_with(folders: Collection[Path], reference: Path = REFERENCE) -> list[Path]:
    """Return the archives in reports/reference that have one of these runs, given as paths inside the results."""
    archives = []
    for path in sorted(reference.glob(f"[!.]*/{RUNS}")):
        with _open_archive(path) as archive:
            names = set(archive.namelist())
        if any(f"{folder}/summary.json" in names for folder in folders):
            archives.append(path)
    return archives


def restored_runs(suites: Mapping[str, list[Run]], results: Path) -> list[Run]:
    """Return the runs of these suites that were restored from reference results."""
    runs = {run.folder: run for runs in suites.values() for run in runs}
    return [run for folder, run in runs.items() if (results / folder / RESTORED).exists()]


def remove_restored(suites: Mapping[str, list[Run]], results: Path) -> list[Run]:
    """Remove the files of runs that were restored from reports/reference, so that these runs will be trained.

    Return these runs. Files in their folders that were not restored are kept.
    """
    runs = restored_runs(suites, results)
    for run in runs:
        folder = results / run.folder
        with held(folder / LOCK, "removing this run"):
            for name in ("done", "summary.json", *RUN_FILES, RESTORED):
                (folder / name).unlink(missing_ok=True)
            (folder / LOCK).write_text("")  # no process has started to train this run
    return runs


def origin(folder: Path) -> str | None:
    """Return the suite and the commit of the reference results from which a run was restored.

    Return None for a run that was not restored.
    """
    path = folder / RESTORED
    if not path.exists():
        return None
    mark = json.loads(path.read_text(encoding="utf-8"))
    return f"{mark['suite']}, commit {(mark['commit'] or 'unknown')[:12]}"
