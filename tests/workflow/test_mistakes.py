"""Mistakes in commands and YAML files: one clear message, a suggestion, exit code 2 (Snakemake: 1), no traceback."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from projects import BIN, ROOT, Project, environment

from floral.cli import main


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("suite=tony", ["config/suites", "unknown suite 'tony'", "'tiny'"]),
        ("tasks=[digits_rotat]", ["suite 'tiny'", "unknown task 'digits_rotat'", "'digits_rotate'"]),
        ("variants=[fedavgg]", ["suite 'tiny'", "unknown variant 'fedavgg'", "'fedavg'"]),
        ("seeds=[7]", ["suite 'tiny'", "unknown seed '7'", "known: 0"]),
        ("seads=[0]", ["config/config.yaml or --config", "unknown key 'seads'", "'seeds'"]),
        ("device=gpu", ["config/config.yaml or --config", "device", "'cuda'", "'gpu'"]),
        ("precision=fp16", ["config/config.yaml or --config", "precision", "'bf16'", "'fp16'"]),
        ("runs_per_gpu=0", ["runs_per_gpu", "greater than 0"]),
        ("checkpoint_seconds=0", ["checkpoint_seconds", "greater than 0"]),
    ],
)
def test_snakemake_says_what_is_wrong(finished: Project, config: str, words: list[str]) -> None:
    call = finished.snakemake(config)
    assert call.returncode == 1
    assert all(word in call.stdout for word in words), call.stdout
    assert "Traceback" not in call.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rounds: many,", ["rounds", "'many'"]),
        ("rounds: 2, model: {hidden: 0},", ["model: hidden", "greater than 0"]),
        ("rounds: 2, loss: mse,", ["loss: mse", "set `loss: cross_entropy`"]),
    ],
)
def test_yaml_is_checked_before_anything_runs(copy: Project, change: str, words: list[str]) -> None:
    suite = copy.folder / "config/suites/tiny.yaml"
    suite.write_text(suite.read_text().replace("rounds: 2,", change))
    call = copy.snakemake()
    assert call.returncode == 1
    assert all(word in call.stdout for word in ["config/suites/tiny.yaml", *words]), call.stdout
    assert "Building DAG" not in call.stdout and "Traceback" not in call.stdout


JOB = ["--task", "digits_rotate", "--seed", "0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "quikstart"], ["unknown suite 'quikstart'", "'quickstart'"]),
        (["fetch", "minst"], ["config/data.lock", "unknown data set 'minst'", "'mnist'"]),
        (["train", "--suite", "quickstart", *JOB, "--variant", "fedavgg"], ["unknown variant 'fedavgg'", "'fedavg'"]),
        (
            ["train", "--suite", "quickstart", *JOB, "--variant", "fedavg", "--expect", "00000000"],
            ["has changed since"],
        ),
        (["report", "quickstart", "--variants", "flora_1"], ["unknown variant 'flora_1'", "'floral_1'"]),
        (["show", "no_such_task/fedavg/seed0"], ["unknown task of a run 'no_such_task'"]),
        (["track"], ["name a suite"]),
    ],
)
def test_floral_says_what_is_wrong(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FLORAL_RESULTS", "results")
    assert main.main(arguments) == main.MISTAKE
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["invalid choice: 'trian'", "did you mean 'train'?"]),
        (["train", "--sute", "quickstart", *JOB], ["did you mean '--suite'?"]),
        (["train", "--suite", "quickstart", *JOB, "--variant", "fedavg", "--threads", "0"], ["'0' is not a positive"]),
        (["plan", "--seeds", "one"], ["'one' is not a whole number"]),
    ],
)
def test_arguments_are_explained(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == main.MISTAKE
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_a_closed_pipe_is_no_error() -> None:
    """As in `floral plan quickstart | head -0`."""
    command = [BIN / "floral", "plan", "quickstart"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait() == main.CUT


def test_a_missing_configuration_is_named(
    tmp_path: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main.main(["plan"]) == main.MISTAKE
    assert "config.yaml" in capsys.readouterr().err


def test_the_ui_says_that_its_port_is_busy(tmp_path: Path) -> None:
    """In a project whose path has spaces, and with results elsewhere."""
    project, results = tmp_path / "my project", tmp_path / "my results"
    shutil.copytree(ROOT / "config", project / "config")
    shutil.copy(ROOT / "Makefile", project)
    for path in (project / "pyproject.toml", project / "constraints.txt", project / ".venv/.installed"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (project / ".venv" / "bin").symlink_to(BIN)

    def ui(port: int) -> str:
        places = environment(FLORAL_RESULTS=str(results))
        call = subprocess.run(
            ["make", "ui", f"PORT={port}"], cwd=project, env=places, capture_output=True, text=True, timeout=60
        )
        assert call.returncode != 0
        return call.stderr

    assert f"{results}/track/mlflow.db: no run is tracked yet" in ui(5000)
    (results / "track").mkdir(parents=True)
    (results / "track/mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"Port {port} cannot be used" in ui(port)
