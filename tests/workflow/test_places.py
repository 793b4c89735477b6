"""Odd places: paths and names with spaces, quotes and wildcards, passwords, full and read-only disks, wrong clocks."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from projects import BIN, ROOT, TINY, Project, environment

from floral.cli import main
from floral.config import catalogue, paths
from floral.config.reading import ConfigError
from floral.config.settings import read_settings
from floral.io.files import atomic, remedy
from floral.runs import state
from floral.stages import progress_line

ODD = "a b;touch stray && $(touch stray)`touch stray`'\"#%&|<>!~\\ é"
"""A folder's name that a shell would cut, expand or run."""
READ_ONLY = "/sys"
"""A folder in which nobody can create a file, not even root."""
NOTHING = "Nothing to be done"
CALL = ("snakemake", "--profile", "local", "--config")


def test_everything_works_in_a_folder_with_an_odd_name(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also with such names of the project's folder, of a suite and of a task. No shell runs a part of them.

    The home folder is read-only. Only Snakemake needs another place, for its cache.
    """
    suite, task = "my suite's $(touch stray)", "my task; touch stray"
    project = Project.made(tmp_path / "my project's", **{suite: TINY.replace("digits_rotate", task)})
    (project.folder / "config/suites" / f"{suite}.yaml").write_text(
        TINY.replace("[digits_rotate]", f'["{task}"]').replace("[fedavg, local, floral_1]", "[fedavg]")
    )
    (project.folder / "config/tasks" / f"{task}.yaml").write_text("extends: digits_rotate\n")
    places = {"FLORAL_RESULTS": str(tmp_path / f"results {ODD}"), "FLORAL_REPORTS": str(tmp_path / f"reports {ODD}")}
    home = {"HOME": f"{READ_ONLY}/home", "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    before = sorted(project.folder.rglob("*"))
    done = project.call(*CALL, f"suite={suite}", **places, **home)
    assert done.returncode == 0, done.stdout
    results, reports = map(Path, places.values())
    assert (results / "track/mlflow.db").exists() and (results / f"track/{suite}.attached").exists()
    assert (reports / suite / "index.html").stat().st_size and len(list(results.glob("train/*/fedavg/*/done"))) == 1
    assert NOTHING in project.call(*CALL, f"suite={suite}", **places).stdout
    new = {path for path in set(project.folder.rglob("*")) - set(before) if ".snakemake" not in path.parts}
    assert not new and not list(tmp_path.rglob("stray")), new
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["my project's", results.name, reports.name])


@pytest.mark.parametrize("name", ["a{b}", "[1]", "what?", "all*", "line\nbreak", "tab\there", "bell\a", "x\udcff"])
@pytest.mark.parametrize("key", ["FLORAL_RESULTS", "FLORAL_REPORTS"])
def test_a_path_that_would_be_a_pattern_is_refused(
    key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(key, str(tmp_path / name))
    assert main.main(["plan", "quickstart"]) == main.MISTAKE
    assert f"{key}: the path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_snakemake_refuses_such_a_path_before_anything_runs(finished: Project, tmp_path: Path) -> None:
    odd = tmp_path / "a b;$HOME [1]?"
    call = finished.call(*CALL, "suite=tiny", FLORAL_RESULTS=str(odd))
    assert call.returncode == 1 and "FLORAL_RESULTS: the path" in call.stdout and "'['" in call.stdout
    assert "Building DAG" not in call.stdout and "common.smk" not in call.stdout
    assert not list(tmp_path.iterdir())


def test_the_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shell expands it only outside quotes and at the beginning of a word."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_settings({"results": "~/scratch"}).results == tmp_path / "scratch"
    monkeypatch.setenv("FLORAL_RESULTS", "~no_such_user/x")
    with pytest.raises(ConfigError, match="results: this user has no home directory"):
        read_settings()


@pytest.mark.parametrize("text", ["null", "~"])
def test_null_on_the_command_line_is_no_word(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake hands every value of `--config` over as text."""
    monkeypatch.chdir(ROOT)
    settings = read_settings({"tracking_uri": text, "tasks": text, "slurm": {"partition": text}})
    assert (settings.tracking_uri, settings.tasks, settings.slurm.partition) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("-x", "the name '-x' of this {kind} cannot be part of a path; use letters"),
        (".x", "unknown {kind} '.x'"),  # a hidden file
        ("a{b}", "the name 'a{b}' of this {kind} cannot be"),
        ("a[1]", "the name 'a[1]' of this {kind} cannot be"),
        ("a?", "the name 'a?' of this {kind} cannot be"),
        ("a*", "the name 'a*' of this {kind} cannot be"),
        ("x" * 151, "the name of this {kind} has 151 characters, which is too long for a file name; use at most 150"),
    ],
)
@pytest.mark.parametrize("folder", ["suites", "tasks"])
def test_a_name_that_cannot_be_part_of_a_path_is_refused(
    folder: str, name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / f"{name}.yaml").write_text("title: x\n")
    monkeypatch.setattr(catalogue, "variant_index", dict)
    monkeypatch.setattr(paths, "CONFIG_FOLDER", tmp_path)
    with pytest.raises(ConfigError) as refused:
        (catalogue.suite.__wrapped__ if folder == "suites" else catalogue.task)(name)
    assert f"{tmp_path / folder}" in str(refused.value)
    assert words.replace("{kind}", folder.removesuffix("s")) in str(refused.value)


def test_hidden_files_are_no_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS writes a file `._NAME` beside each file on foreign disks."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/._digits.yaml").write_bytes(b"\0\5\x16\7")
    (tmp_path / "tasks/digits.yaml").touch()
    (tmp_path / "parameters.yaml").touch()  # complete: the package's tasks are not read
    monkeypatch.setattr(paths, "CONFIG_FOLDER", tmp_path)
    assert catalogue.names("tasks") == ["digits"]


@pytest.mark.parametrize(("names", "file"), [(["a", "b"], "a+b.json"), ([f"{i}" * 60 for i in range(5)], None)])
def test_many_long_suites_have_one_short_plan(names: list[str], file: str | None, tmp_path: Path) -> None:
    progress_line.write_plan({name: [] for name in names}, tmp_path, 1)
    (plan,) = (tmp_path / "plan").glob("*.json")
    assert plan.name == (file or plan.name) and len(os.fsencode(plan.name)) < 120


# ------------------------------------------------------------------------------------ disks, clocks, terminals


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.ENOTDIR, "a file is where a folder should be"),
        (errno.EEXIST, "a file is where a folder should be"),
        (errno.ENAMETOOLONG, "too long"),
    ],
)
def test_a_disk_that_cannot_be_written_is_a_message_and_no_traceback(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "/disk/file")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("floral.runs.reference.available", fail)
    assert main.main(["plan", "quickstart"]) == main.FAILED
    said = capsys.readouterr().err
    assert said.startswith("floral plan: /disk/file: ") and words in said and "Traceback" not in said


NOT_A_FOLDER, CANNOT_WRITE = "is a file and no folder", "you have no permission|this place is read-only"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (f"{READ_ONLY}/floral", CANNOT_WRITE),
        ("/proc/floral", "No such file"),
        ("{}", NOT_A_FOLDER),
        ("{}/x", NOT_A_FOLDER),
    ],
)
@pytest.mark.parametrize("key", ["FLORAL_RESULTS", "FLORAL_REPORTS"])
def test_a_folder_that_cannot_be_written_is_named(
    key: str, place: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FLORAL_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv(key, place.format(tmp_path / "file"))
    with pytest.raises(ConfigError) as refused:
        read_settings().check_folders()
    message = str(refused.value)
    assert message.startswith(key) and os.environ[key].removesuffix("/x") in message, message
    assert re.search(words, message) and "choose another folder" in message, message


@pytest.mark.parametrize(
    ("command", "key", "place", "words"),
    [
        (["fetch", "digits"], "FLORAL_RESULTS", f"{READ_ONLY}/floral", CANNOT_WRITE),
        (["report", "tiny"], "FLORAL_REPORTS", f"{READ_ONLY}/floral", CANNOT_WRITE),
        (["tasks"], "FLORAL_REPORTS", "Snakefile", NOT_A_FOLDER),
    ],
)
def test_a_command_names_the_folder_that_it_cannot_write(
    command: list[str], key: str, place: str, words: str, finished: Project,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(finished.folder)
    monkeypatch.setenv(key, place)
    assert main.main(command) == (main.MISTAKE if words == NOT_A_FOLDER else main.FAILED)
    shown = capsys.readouterr().err
    assert shown.startswith(f"floral {command[0]}: ") and place in shown and re.search(words, shown), shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("key", "place", "words"),
    [("FLORAL_RESULTS", f"{READ_ONLY}/floral", CANNOT_WRITE), ("FLORAL_REPORTS", "Snakefile", NOT_A_FOLDER)],
)
def test_snakemake_names_a_folder_that_cannot_be_written(key: str, place: str, words: str, finished: Project) -> None:
    call = finished.call(*CALL, "suite=tiny", **{key: place})
    assert call.returncode == 1 and re.search(f"{key}.*{place}.*({words})", call.stdout), call.stdout
    assert "Traceback" not in call.stdout and "common.smk" not in call.stdout, call.stdout


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    assert remedy(FileNotFoundError(errno.ENOENT, "no", "/x")) is None and remedy(ValueError("x")) is None


def test_a_file_on_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as stopped:
        atomic(tmp_path / "metrics.parquet", b"x")
    assert stopped.value.filename == str(tmp_path / "metrics.parquet") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("free", "words"), [(200_000, "the disk is full"), (2_000_000, "killed, out of memory")])
def test_a_run_without_a_reason_on_a_full_disk(
    free: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its failure.json could not be written, so that the last message must not name another cause."""
    (tmp_path / "run.yaml").write_text("seed: 0")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    failure = state.failure(tmp_path)
    assert failure is not None and words in state.one_line(failure)


@pytest.mark.parametrize(("days", "running"), [(0, True), (1, False), (-1, False), (365, False)])
def test_a_run_of_another_machine_whose_files_are_dated_wrongly(days: int, running: bool, tmp_path: Path) -> None:
    """Its date tells nothing: the run does not count as running for a day."""
    (tmp_path / state.LOCK).write_text("process 7 on another-node")
    when = time.time() + days * 86400
    os.utime(tmp_path / state.LOCK, (when, when))
    assert state.running(tmp_path) == running


def test_results_dated_tomorrow_are_up_to_date(copy: Project) -> None:
    """Snakemake would make the report again at each call, and fail because its inputs are newer than its outputs."""
    tomorrow = time.time() + 86400
    for path in (copy.folder / "results").rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    first = copy.snakemake()
    assert first.returncode == 0 and "were dated in the future" in first.stdout, first.stdout
    second = copy.snakemake()
    assert NOTHING in second.stdout and "dated" not in second.stdout, second.stdout


@pytest.mark.parametrize("encoding", ["latin-1", "cp437"])
def test_a_terminal_without_a_character_shows_a_question_mark(encoding: str) -> None:
    command = [BIN / "floral", "plan", "quickstart"]
    variables = environment(PYTHONIOENCODING=encoding)
    call = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, timeout=100)
    assert call.returncode == 0 and b"suite quickstart: " in call.stdout and b"Traceback" not in call.stderr
    as_json = subprocess.run(
        [BIN / "floral", "tasks", "--json"], cwd=ROOT, env=variables, capture_output=True, timeout=100
    )
    assert "×" in str([row["title"] for row in json.loads(as_json.stdout.decode(encoding))])
