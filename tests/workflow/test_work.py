"""The work of a Snakemake call, and the inputs, options and requests of its rules, without Snakemake."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from projects import ROOT

from floral.config.reading import ConfigError
from floral.config.settings import read_settings
from floral.config.tuned import Untuned
from floral.runs import reference
from floral.workflow.requests import Requests
from floral.workflow.rules import Rules
from floral.workflow.work import Work

NARROW = {"suite": "quickstart", "tasks": ["digits_rotate"], "variants": ["fedavg", "local"], "seeds": [0, 1]}


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("FLORAL_RESULTS", "FLORAL_REPORTS", "FLORAL_DATA", "FLORAL_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def work(results: Path, main_process: bool = True, dry_run: bool = False, **config: Any) -> Work:
    config = {"results": str(results)} | config
    return Work.read(NARROW | config, main_process, dry_run)


def wildcards(folder: Path) -> SimpleNamespace:
    """Those of a run's folder train/<task>/<variant>/seed<k>-<hash8>."""
    _, task, variant, name = folder.parts
    seed, hash8 = name.removeprefix("seed").split("-")
    return SimpleNamespace(task=task, variant=variant, seed=seed, hash8=hash8)


def test_a_run_of_two_suites_belongs_to_the_first(tmp_path: Path) -> None:
    shared = work(tmp_path).suites["quickstart"]
    both = Work(work(tmp_path).settings, {"first": shared[:2], "second": shared}, {})
    assert [suite for suite, _ in both.runs.values()].count("first") == 2
    assert len(both.runs) == len(shared) == 4
    assert len(both.partitions) == 2  # one per seed: variants share it


def test_the_command_line_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLORAL_RESULTS", str(tmp_path / "environment"))
    monkeypatch.setenv("FLORAL_TRACKING_URI", "http://environment:5000")
    settings = work(tmp_path / "typed", tracking_uri="http://typed:5000").settings
    assert (settings.results, settings.tracking_uri) == (tmp_path / "typed", "http://typed:5000")
    settings = work(tmp_path / "typed", tracking_uri=None).settings
    before = dict(os.environ)
    settings.export()
    in_a_job = read_settings()
    os.environ.clear()
    os.environ.update(before)
    assert (in_a_job.results, in_a_job.tracking_uri) == (tmp_path / "typed", None)
    assert Work.read(NARROW, True, False).settings.results == tmp_path / "environment"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://u:pw@h", "set the environment variables MLFLOW_TRACKING_USERNAME and"),
        ("postgresql://u:pw@h/db", "set the environment variable PGPASSWORD, or"),
        ("mysql://u:pw@h/db", "give the whole address in the environment variable FLORAL_TRACKING_URI"),
    ],
)
def test_a_password_in_the_address_is_noticed(
    uri: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work(tmp_path, tracking_uri=uri)
    assert f"`tracking_uri` contains a password, which other users may see; {words}" in capsys.readouterr().err


def test_finished_runs_are_not_counted_as_unfinished(tmp_path: Path) -> None:
    asked = work(tmp_path)
    first, *rest = asked.suites["quickstart"]
    (tmp_path / first.folder).mkdir(parents=True)
    (tmp_path / first.folder / "summary.json").write_text("{}")
    assert len(asked.unfinished_runs) == len(rest)
    assert list(asked.unfinished_suites) == ["quickstart"]


@pytest.mark.parametrize(
    ("reuse", "dry_run", "function"),
    [
        (True, False, "restore"),
        (True, True, "available"),
        (False, False, "remove_restored"),
        (False, True, "restored_runs"),
    ],
)
def test_a_dry_run_changes_no_result(
    reuse: bool, dry_run: bool, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    called: list[str] = []
    for name in ("restore", "available", "remove_restored", "restored_runs"):
        monkeypatch.setattr(reference, name, lambda *_, name=name: called.append(name) or [1])
    work(tmp_path, dry_run=dry_run, reuse=reuse)
    assert called == [function]
    assert ("not in a dry run" in capsys.readouterr().err) == dry_run
    called.clear()
    work(tmp_path, main_process=False)
    assert called == []


def test_missing_tuned_values_stop_all_but_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(self: Any) -> Any:
        raise Untuned("no tuned values of fedavg on digits_rotate")

    monkeypatch.setattr("floral.config.settings.Settings.runs", lack)
    asked = work(tmp_path)
    assert asked.suites == {} and asked.untuned is not None
    with pytest.raises(Untuned, match="no tuned values"):
        Rules(asked).all_input(None)


def test_nothing_to_tune_is_said(tmp_path: Path) -> None:
    rules = Rules(work(tmp_path))
    assert rules.all_input(None) == []
    with pytest.raises(ConfigError, match="quickstart: nothing to tune"):
        rules.tuned_input(None)


def test_options_name_the_run_of_the_path(tmp_path: Path) -> None:
    rules = Rules(work(tmp_path, precision="bf16", runs_per_gpu=2, allow_missing=True))
    run = rules.work.suites["quickstart"][0]
    job = wildcards(run.folder)
    names = f"--suite quickstart --task digits_rotate --variant {run.variant.name} --seed {run.seed}"
    assert rules.train_options(job) == f"{names} --precision bf16 --expect {run.hash8}"
    assert rules.checkpoint_options(job) == "--checkpoint-seconds 60"
    execution = "--runs-per-gpu 2 --backend auto --threads 1"
    assert rules.execution_options(job, threads=1, resources={}) == f"--device cpu {execution}"
    assert rules.execution_options(job, threads=1, resources={"gpu": 1}) == f"--device cuda {execution}"
    narrowing = "--tasks digits_rotate --variants fedavg local --seeds 0 1 --precision bf16"
    assert rules.track_options() == narrowing and rules.report_options() == f"{narrowing} --allow-missing"
    assert rules.tuned_options(None).split() == narrowing.split()[:-5]
    assert rules.train_input(job) == [f"{tmp_path}/{run.partition.folder}/partition.parquet"]
    (tmp_path / run.folder).mkdir(parents=True)
    (tmp_path / run.folder / reference.RESTORED).write_text('{"suite": "quickstart", "commit": "1234"}')
    assert rules.train_input(job)  # its other files are gone, so it will be trained
    (tmp_path / run.folder / "summary.json").write_text("{}")
    assert rules.train_input(job) == []  # a run from the reference results needs no partition
    partition = SimpleNamespace(task="digits_rotate", seed=str(run.seed), hash8=run.partition.hash8)
    assert rules.partition_input(partition) == [f"{tmp_path}/data/{run.partition.data}/card.json"]
    assert rules.partition_options(partition).endswith(f"--expect {run.partition.hash8}")
    assert rules.fetch_options(SimpleNamespace(data="mnist")) == "mnist"


def test_short_runs_share_a_job_only_where_jobs_are_submitted(tmp_path: Path) -> None:
    rules = Rules(work(tmp_path, slurm={"short": 1e9}))
    job = wildcards(rules.work.suites["quickstart"][0].folder)
    assert Requests(rules, submits=True).group(job) == "short"
    assert Requests(rules, submits=False).group(job) is None
    assert Requests(Rules(work(tmp_path, slurm={"short": 0})), submits=True).group(job) is None
    assert Requests(Rules(work(tmp_path, slurm={"short": 1e9, "gpu": 1})), submits=True).group(job) is None


def test_requests_hold_what_the_configuration_names(tmp_path: Path) -> None:
    cluster = {"partition": "main", "account": "lab", "gpu": 1, "gpu_model": "a100", "memory": 900, "walltime": 30}
    cluster |= {"qos": "long", "constraint": "ib", "options": ["--comment-free", "--exclude=n 7"]}
    requests = Requests(Rules(work(tmp_path, slurm=cluster)), submits=True)
    place = {"slurm_partition": "main", "slurm_account": "lab", "gpu": 1, "gpu_model": "a100"}
    place |= {"qos": "long", "constraint": "ib"}
    extra = "--comment-free '--exclude=n 7'"
    assert requests.tune == place | {"mem_mb": 900, "runtime": 30, "slurm_extra": extra}
    job = wildcards(requests.rules.work.suites["quickstart"][0].folder)
    assert (requests.train["mem_mb"](job), requests.train["runtime"](job)) == (900, 10)
    assert requests.train["slurm_extra"] == f"--signal=USR1@60 {extra}"
    assert Requests(Rules(work(tmp_path)), submits=False).tune == {"mem_mb": 2000, "runtime": 1440}
