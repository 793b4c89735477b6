"""`floral track --follow`: rounds reach MLflow while runs train, each once, whatever dies on the way."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
import pytest
import yaml
from projects import BIN, ROOT, environment
from run_folders import make_run, write_run

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.io.locks import held
from floral.runs import segments, state
from floral.runs.quantities import curve_name
from floral.tracking import mlflow_runs as tracked_runs
from floral.tracking import mlflow_store
from floral.tracking.mlflow_store import default_uri
from floral.tracking.track import follow, track

ROUNDS = (0, 2, 4)
PATIENCE = 90.0


pytestmark = pytest.mark.usefixtures("empty_store")


class Training:
    """A run that says its rounds one by one, as a training process does, and then leaves its results."""

    def __init__(self, results: Path, seed: int = 0) -> None:
        self.results, self.run = results, make_run("digits_rotate", "fedavg", seed)
        self.folder = results / self.run.folder
        finished = write_run(results / "source", self.run)
        self.folder.mkdir(parents=True)
        self.source, self.segment = finished, segments.new(self.folder)
        shutil.copy(finished / "run.yaml", self.folder)

    def says(self, round: int) -> None:
        rows = pl.read_parquet(self.source / "metrics.parquet").filter(pl.col("round") == round)
        segments.append(self.segment, round, rows.select("split", "metric", "value").iter_rows())

    def resumes(self) -> None:
        self.segment = segments.new(self.folder)

    def ends(self) -> None:
        for name in ("metrics.parquet", "clients.parquet", "costs.json", "summary.json"):
            shutil.copy(self.source / name, self.folder)

    def expected(self) -> list[tuple[str, int, float]]:
        table = pl.read_parquet(self.source / "metrics.parquet")
        return sorted(
            (curve_name(row["split"], row["metric"]), row["round"], row["value"]) for row in table.iter_rows(named=True)
        )


def logged(uri: str) -> dict[str, list[tuple[str, int, float]]]:
    """job_key of a seed's run → every point of the curves that the store has, doubled ones twice; no key may stand
    there twice, and every such run is below a parent that is there."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("suite")
    if experiment is None:
        return {}
    found: dict[str, list[tuple[str, int, float]]] = {}
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = {run.info.run_id: run.data.tags["job_key"] for run in runs if run.data.tags["kind"] == "mean"}
    assert len(set(parents.values())) == len(parents)
    for run in runs:
        if run.info.run_id in parents:
            continue
        assert run.data.tags["mlflow.parentRunId"] in parents
        keys = [key for key in run.data.metrics if not key.startswith(("cost/", "test/"))]
        points = [point for key in keys for point in client.get_metric_history(run.info.run_id, key)]
        assert run.data.tags["job_key"] not in found
        found[run.data.tags["job_key"]] = sorted((point.key, point.step, point.value) for point in points)
    return found


@contextmanager
def following(runs: list[Run], results: Path, uri: str | None) -> Iterator[threading.Thread]:
    """A follower in a thread, which must end by itself once all runs have ended."""
    thread = threading.Thread(target=follow, args=("suite", runs, results, uri, None, 0.05), daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()


def until(what: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_rounds_are_there_before_the_run_ends_and_each_once_after_it(tmp_path: Path) -> None:
    uri = default_uri(tmp_path)
    training = Training(tmp_path)
    key, expected = str(training.run.folder), training.expected()
    with following([training.run], tmp_path, None):
        training.says(0)
        until(lambda: len(logged(uri).get(key, ())) == sum(step == 0 for _, step, _ in expected))
        training.says(2)
        training.resumes()  # its checkpoint was older than what it had said
        training.says(2)
        training.says(4)
        until(lambda: len(logged(uri)[key]) == len(expected))
        training.ends()
    assert logged(uri) == {key: expected}
    track("suite", [training.run], tmp_path)
    follow("suite", [training.run], tmp_path)
    assert logged(uri) == {key: expected}


def test_the_follower_ends_if_the_other_runs_have_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, failed, killed = (Training(tmp_path, seed) for seed in (0, 1, 2))
    monkeypatch.setattr(state, "FRESH_SECONDS", 1.0)
    finished.says(0)
    finished.ends()
    with following([finished.run, failed.run, killed.run], tmp_path, None) as follower:
        until(lambda: logged(default_uri(tmp_path)))
        (failed.folder / "failure.json").write_text('{"reason": "crash"}')
        with held(tmp_path / state.SUBMITTING, "submitting"):
            time.sleep(2.5)
            assert follower.is_alive()  # Snakemake may still retry the two runs
    said = capsys.readouterr().out
    assert "2 runs failed; train them again" in said
    assert str(failed.run.folder) in said and str(finished.run.folder) not in said


class Lost(OSError):
    """The answer of a store that has done what it was asked."""


def losing(monkeypatch: pytest.MonkeyPatch, call: str, times: int = 1) -> None:
    """Let a call of MLflow's client do its work, and then fail as a broken connection does."""
    from mlflow import MlflowClient

    real, left = getattr(MlflowClient, call), [times]

    def cut(self: Any, *arguments: Any, **named: Any) -> Any:
        answer = real(self, *arguments, **named)
        if left[0]:
            left[0] -= 1
            raise Lost("connection reset by peer")
        return answer

    monkeypatch.setattr(MlflowClient, call, cut)


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_artifact", "set_terminated"])
def test_a_lost_answer_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    training = Training(tmp_path)
    for round in ROUNDS:
        training.says(round)
    losing(monkeypatch, call, times=3)
    with following([training.run], tmp_path, None):
        until(lambda: len(logged(default_uri(tmp_path))) == 1)
        training.ends()
    assert logged(default_uri(tmp_path)) == {str(training.run.folder): training.expected()}
    assert "connection reset by peer" in capsys.readouterr().out


def test_a_run_that_was_created_twice_is_there_once(tmp_path: Path) -> None:
    """As after a request that MLflow's client repeats because its answer was lost."""
    training = Training(tmp_path)
    training.says(0)
    with mlflow_store.experiment_of("suite", tmp_path, None) as experiment:
        settings = yaml.safe_load((training.folder / "run.yaml").read_text())
        for _ in range(2):
            tracked_runs._create_run(experiment, "parent", training.run, settings)
    training.ends()
    follow("suite", [training.run], tmp_path)
    assert logged(default_uri(tmp_path)) == {str(training.run.folder): training.expected()}


def test_a_run_that_was_trained_anew_with_other_values_is_logged_anew(tmp_path: Path) -> None:
    training = Training(tmp_path)
    segments.append(training.segment, 0, [("test", "loss", 123.0)])
    with following([training.run], tmp_path, None):
        until(lambda: logged(default_uri(tmp_path)))
        training.ends()
    assert logged(default_uri(tmp_path)) == {str(training.run.folder): training.expected()}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("no database", "cannot be written: file is not a database"),
        ("older MLflow", "out-of-date database schema.*call: mlflow db upgrade sqlite:"),
    ],
)
def test_a_store_that_refuses_ends_the_following(damage: str, words: str, tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.says(0)
    database = tmp_path / "track" / "mlflow.db"
    if damage == "no database":
        database.write_text("not a database, but longer than a header of SQLite would be\n" * 20)
    else:
        with sqlite3.connect(database) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        connection.close()
    with pytest.raises(ConfigError, match=rf"mlflow\.db {words}" if damage == "no database" else words):
        follow("suite", [training.run], tmp_path)


# ------------------------------------------------------------------------------------- many runs at once


@pytest.mark.parametrize("count", [8])
def test_runs_that_end_together_are_all_there_once(tmp_path: Path, count: int) -> None:
    runs = finished_runs(tmp_path, count)
    track("suite", [training.run for training in runs], tmp_path)
    assert logged(default_uri(tmp_path)) == {str(one.run.folder): one.expected() for one in runs}


def finished_runs(results: Path, count: int) -> list[Training]:
    """Runs that have said no round: as if all had ended before anyone looked."""
    runs = [Training(results, seed) for seed in range(count)]
    for training in runs:
        training.ends()
    return runs


# ---------------------------------------------------------------- a server over PostgreSQL, slow and killed

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "none").parent]


@pytest.fixture
def postgres(missing: Callable[[str], NoReturn]) -> Iterator[str]:
    """The URI of an empty database of a PostgreSQL server of our own, which never runs as root."""
    if not (BINARIES[-1] / "initdb").exists():
        missing("PostgreSQL is not installed (.ci/setup installs it)")
    if importlib.util.find_spec("psycopg2") is None:
        missing("psycopg2 is not installed (pip install psycopg2-binary)")
    user = "nobody" if os.getuid() == 0 else None
    name = user or subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    folder = Path(tempfile.mkdtemp(prefix="floral-pg-"))  # short, and open to that user
    if user:
        shutil.chown(folder, user)
    data = folder / "data"
    how: dict[str, Any] = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    quick = ["-c", "fsync=off", "-c", "listen_addresses=", "-k", str(folder)]
    subprocess.run([BINARIES[-1] / "initdb", "-D", data, "-A", "trust", "-U", name, "-N"], check=True, **how)
    server = subprocess.Popen([BINARIES[-1] / "postgres", "-D", data, *quick], **how)
    try:
        until(lambda: subprocess.run([BINARIES[-1] / "pg_isready", "-h", folder], **how).returncode == 0)
        subprocess.run([BINARIES[-1] / "createdb", "-h", folder, "-U", name, "mlflow"], check=True, **how)
        yield f"postgresql://{name}@/mlflow?host={folder}"
    finally:
        server.send_signal(signal.SIGINT)  # a fast shutdown
        server.wait(timeout=30)
        shutil.rmtree(folder)


class Server:
    """`make ui-server`, which can be killed, stopped in its tracks and started again on the same port."""

    def __init__(self, store: str, artifacts: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.store = store
        self.command = [
            "make", "ui-server", f"BIN={BIN}", "INSTALLED=", f"PORT={self.port}", f"ARTIFACTS={artifacts}", "WORKERS=1",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        settings = environment(STORE=self.store, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=settings, stdout=log, stderr=log, start_new_session=True
            )
        until(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(postgres: str, tmp_path: Path) -> Iterator[Server]:
    server = Server(postgres, tmp_path / "artifacts", tmp_path / "server.log")
    try:
        yield server
    finally:
        server.signal(signal.SIGCONT)
        server.kill()


@pytest.mark.parametrize(
    ("store", "said"),
    [("", "STORE names no PostgreSQL database"), ("sqlite:///a.db", "STORE names no"), ("postgresql://x", "PORT=5001")],
)
def test_make_ui_server_says_what_to_set(store: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = ["make", "ui-server", f"BIN={BIN}", "INSTALLED=", f"PORT={taken.getsockname()[1]}"]
        stopped = subprocess.run(
            command, cwd=ROOT, env=environment(STORE=store), capture_output=True, text=True, timeout=60
        )
    assert stopped.returncode != 0
    assert said in stopped.stdout


def test_64_runs_reach_a_server_over_postgresql_that_stalls_dies_and_comes_back(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four of them while they train; all end together, and two minutes later all are there, once."""
    runs = [Training(tmp_path, seed) for seed in range(64)]
    early, keys = runs[:4], {str(training.run.folder) for training in runs[:4]}
    with following([training.run for training in runs], tmp_path, server.uri):
        for training in early:
            training.says(0)
        until(lambda: set(logged(server.uri)) == keys)
        server.signal(signal.SIGSTOP)  # the server is slow …
        for training in early:
            training.says(2)
        time.sleep(1)
        server.kill()  # … dies …
        for training in early:
            training.says(4)
        time.sleep(1)
        server.start()  # … and comes back
        for training in runs:
            training.ends()
        together = time.monotonic()
    assert time.monotonic() - together < 120
    assert logged(server.uri) == {str(one.run.folder): one.expected() for one in runs}
    assert capsys.readouterr().out.count("trying again") <= 2
