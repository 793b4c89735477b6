"""Committed results, reports/reference/<suite>/: finished runs that nobody needs to repeat, and the page made of them.

Nothing here imports torch or polars at once: Snakemake restores runs before it plans any job.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from floral.config.reading import ConfigError, suggest
from floral.config.run import Run
from floral.io.files import atomic
from floral.io.locks import held
from floral.runs.state import LOCK, is_finished, running

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
        ConfigError: no run is finished, there is no report, it is of other runs, or all of it exceeds 50 MB.
    """
    runs = list(runs)
    done = [run for run in runs if is_finished(results / run.folder)]
    if not done:
        raise ConfigError(f"suite {suite!r}: no run is finished below {results}; make them with `{command}`")
    if not (page / "index.html").exists():
        raise ConfigError(f"{page}/index.html: no such file; make the report with `floral report {suite} --partial`")
    _check_page(suite, page, done)
    final, fresh = REFERENCE / suite, REFERENCE / f".{suite}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        shutil.copy(page / "summary.parquet", fresh)
        committed = committed_page((page / "index.html").read_text(encoding="utf-8"), suite)
        (fresh / "index.html").write_text(committed, encoding="utf-8")
        with zipfile.ZipFile(fresh / RUNS, "w") as archive:
            for run in sorted(done, key=lambda run: str(run.folder)):
                for path in (results / run.folder / name for name in KEPT):
                    if path.exists():
                        _add(archive, str(run.folder / path.name), path.read_bytes())
        told = _provenance(suite, done, len(runs), results, command)
        (fresh / PROVENANCE).write_text(yaml.safe_dump(told, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if (size := sum(path.stat().st_size for path in fresh.rglob("*"))) > LARGEST:
            raise ConfigError(f"{final}: {size / 1e6:.0f} MB are too many to commit; narrow the suite")
        shutil.rmtree(final, ignore_errors=True)
        fresh.rename(final)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return final


def committed_page(html: str, suite: str) -> str:
    """The page of a report without links to its figure and table files, which are not committed.

    The figures themselves are part of the page. The footer names the command that builds the files from runs.zip.
    """
    html = re.sub(r'\s*<(p|span) class="files">.*?</\1>', "", html, flags=re.DOTALL)
    footer = (
        "<footer>\n<p>Beside this page: <code>summary.parquet</code> (one row per run) and <code>runs.zip</code> (the "
        f"runs). <code>floral report {suite} --reference</code> builds from them this page, its tables as LaTeX "
        "and its figures as SVG, PDF and CSV.</p>\n</footer>"
    )
    return re.sub(r"<footer>.*?</footer>", lambda _: footer, html, flags=re.DOTALL)


def _check_page(suite: str, page: Path, done: list[Run]) -> None:
    """Raise ConfigError unless the page is of exactly these runs."""
    import polars as pl

    rows = pl.read_parquet(page / "summary.parquet", columns=["hash8", "status"])
    told = set(rows.filter(pl.col("status").is_in(["done", "diverged"]))["hash8"])
    if told != {run.hash8 for run in done}:
        raise ConfigError(
            f"{page}: the report has {len(told)} runs and not the {len(done)} that are finished; make it anew with "
            f"`floral report {suite} --partial`"
        )


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """A member without a time, readable once unpacked."""
    member = zipfile.ZipInfo(name)
    member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
    archive.writestr(member, content)


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


def available(suites: Mapping[str, list[Run]], results: Path) -> list[tuple[Path, Run]]:
    """The runs that are not finished in `results`, nor being made, and are in a reference, with its archive.

    Raises:
        ConfigError: a reference's archive is damaged.
    """
    todo = {run.folder: run for runs in suites.values() for run in runs if not is_finished(results / run.folder)}
    found = []
    for path in sorted(REFERENCE.glob(f"[!.]*/{RUNS}")) if todo else []:
        with _read(path) as archive:
            names = set(archive.namelist())
        for folder in [folder for folder in todo if f"{folder}/summary.json" in names]:
            run = todo.pop(folder)
            if not running(results / folder):
                found.append((path, run))
    return found


def restore(suites: Mapping[str, list[Run]], results: Path) -> list[Run]:
    """Put the runs that are `available` into `results`; return them.

    One whose partition had other rows than the same one here is left out, and named: seeds are compared in pairs.

    Raises:
        ConfigError: a reference's archive is damaged; of the run that it is damaged in nothing is written.
    """
    restored = []
    for path, found in groupby(available(suites, results), key=itemgetter(0)):
        with _read(path) as archive:
            names = set(archive.namelist())
            for _, run in found:
                members = {name: f"{run.folder}/{name}" for name in KEPT}
                files = {name: archive.read(member) for name, member in members.items() if member in names}
                if said := _other_rows(run, files, results):
                    print(f"{path}: {run.folder} is not taken from it: {said}", file=sys.stderr)
                    continue
                with held(results / run.folder / LOCK, "restoring this run"):
                    if not is_finished(results / run.folder):
                        _write(results / run.folder, files, path.parent.name)
                        restored.append(run)
    return restored


def restore_archive(suite: str, results: Path) -> list[Path]:
    """Unpack all committed runs of a suite into `results`; return their folders. Finished runs there are kept.

    Raises:
        ConfigError: there is no such reference, or its archive is damaged.
    """
    path = REFERENCE / suite / RUNS
    if not path.exists():
        names = sorted(found.parent.name for found in REFERENCE.glob(f"[!.]*/{RUNS}"))
        raise suggest("reference", suite, names, str(REFERENCE))
    with _read(path) as archive:
        members: dict[Path, dict[str, str]] = {}
        for member in archive.namelist():
            folder, _, name = member.rpartition("/")
            if name in KEPT:
                members.setdefault(results / folder, {})[name] = member
        for folder, names in members.items():
            if not is_finished(folder):
                _write(folder, {name: archive.read(member) for name, member in names.items()}, suite)
    return list(members)


def _other_rows(run: Run, files: Mapping[str, bytes], results: Path) -> str:
    """What is said where the run's partition has been made here and has other rows; else nothing."""
    folder = results / run.partition.folder
    if not (folder / "card.json").exists():
        return ""
    here = json.loads((folder / "card.json").read_text(encoding="utf-8"))["digest"]
    there = yaml.safe_load(files["run.yaml"])["partition"]["digest"]
    return "" if here == there else f"its partition had other rows ({there[:8]}) than {folder} ({here[:8]})"


def _write(folder: Path, files: Mapping[str, bytes], suite: str) -> None:
    """A run's files, the mark and then the summary last: until then it is not finished."""
    for name, content in files.items():
        if name != "summary.json":
            atomic(folder / name, content)
    mark = {"suite": suite, "commit": json.loads(files["costs.json"])["git_commit"]}
    atomic(folder / MARK, (json.dumps(mark) + "\n").encode())
    atomic(folder / "summary.json", files["summary.json"])
    summary = json.loads(files["summary.json"])
    atomic(folder / "done", f"{summary['status']} {summary['hash8']} {summary['finished_at']}\n".encode())


@contextmanager
def _read(path: Path) -> Iterator[zipfile.ZipFile]:
    """A reference's archive, open.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError) as error:
        raise ConfigError(
            f"{path}: damaged ({error}); take it from the repository again, or use `--config reuse=false`"
        ) from None


def taken(suites: Mapping[str, list[Run]], results: Path) -> list[Run]:
    """The runs that were restored, and not made here."""
    runs = {run.folder: run for runs in suites.values() for run in runs}
    return [run for folder, run in runs.items() if (results / folder / MARK).exists()]


def forget(suites: Mapping[str, list[Run]], results: Path) -> list[Run]:
    """Remove what was restored, and no other file, so that these runs are made here; return them."""
    runs = taken(suites, results)
    for run in runs:
        folder = results / run.folder
        with held(folder / LOCK, "removing this run"):
            for name in ("done", "summary.json", *KEPT, MARK):
                (folder / name).unlink(missing_ok=True)
    return runs


def origin(folder: Path) -> str | None:
    """The reference that a run's folder was restored from, and the commit that made it; None where it was made here."""
    path = folder / MARK
    if not path.exists():
        return None
    mark = json.loads(path.read_text(encoding="utf-8"))
    return f"{mark['suite']}, commit {(mark['commit'] or 'unknown')[:12]}"
