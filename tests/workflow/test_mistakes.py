"""Mistakes in commands and YAML files: one clear message, a suggestion, exit code 2 (Snakemake: 1), no traceback."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from projects import BIN, ROOT, Project, environment

from floral.cli import main
from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.suites import suite_runs


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (["suite=tony"], ["config/suites", "unknown suite 'tony'", "'tiny'"]),
        (["tasks=[digits_rotat]"], ["suite 'tiny'", "unknown task 'digits_rotat'", "'digits_rotate'"]),
        (["variants=[fedavgg]"], ["suite 'tiny'", "unknown variant 'fedavgg'", "'fedavg'"]),
        (["seeds=[7]"], ["suite 'tiny'", "unknown seed '7'", "known: 0"]),
        (
            ["seeds=0-3", "slurm={partitions: main}"],
            ["seeds: '0-3' is not a whole number", "slurm: unknown key 'partitions'; did you mean 'partition'?"],
        ),
        (
            ["seeds=0,1", "variants=fedavg,floral_1", "tasks=a;b", "results=3", "slurm=main", "seads=[0]", "device=gpu",
             "precision=fp16", "runs_per_gpu=0", "checkpoint_seconds=0"],
            ["seeds: this is one word and not a list", "'seeds=[0,1]'",
             "variants: this is one word and not a list", "'variants=[fedavg,floral_1]'",
             "tasks: this is one word and not a list",
             "results: must be the path of a file or folder",
             "slurm: must be a mapping", "'main'",
             "config/config.yaml or --config: unknown key 'seads'; did you mean 'seeds'",
             "config/config.yaml or --config: device: must be", "'cuda'", "'gpu'",
             "config/config.yaml or --config: precision: must be", "'bf16'", "'fp16'",
             "runs_per_gpu: must be greater than 0",
             "checkpoint_seconds: must be greater than 0"],
        ),
    ],
)  # fmt: skip
def test_snakemake_says_what_is_wrong(finished: Project, config: list[str], words: list[str]) -> None:
    """All mistakes in the settings are named at once."""
    call = finished.snakemake(*config)
    assert call.returncode == 1
    assert all(word in call.stdout for word in words), call.stdout
    assert not [word for word in SNAKEMAKES_WORDS if word in call.stdout], call.stdout


SNAKEMAKES_WORDS = ("Traceback", "WorkflowError", "common.smk", "Exception", "Input should")
"""What Snakemake and pydantic add to a message. It does not help the user."""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("all", "tune with: snakemake"),
        ("tuned", "nothing to tune"),
        ("results/train/digits_rotate/local/seed7-00000000/done", "does not need this folder"),
        ("results/track/tuned.json", "unknown suite of this call 'tuned'; known: tiny"),
    ],
)
def test_an_impossible_target_is_explained(copy: Project, target: str, words: str) -> None:
    """Tuned values that are missing, a suite without searches, and a run and a suite that are not in this call."""
    if target == "all":
        tuned = (ROOT / "config/suites/tuned.yaml").read_text()
        (copy.folder / "config/suites/tiny.yaml").write_text(tuned)
        shutil.rmtree(copy.folder / "config/tuned")
    call = copy.call("snakemake", "--profile", "local", target, "--config", "suite=tiny")
    assert call.returncode == 1 and words in call.stdout, call.stdout
    assert not [word for word in SNAKEMAKES_WORDS if word in call.stdout], call.stdout


def test_a_damaged_record_of_jobs_is_named_alone(copy: Project) -> None:
    """Snakemake adds its own words to an error in a function that computes what a job requests."""
    folder = copy.path("results/train/digits_rotate/local/*/done").parent
    for name in ("done", "summary.json"):
        (folder / name).unlink()
    (folder / "jobs.json").write_text("{")
    call = copy.call("snakemake", "--profile", "slurm", "--dry-run", "--config", "suite=tiny")
    assert call.returncode == 1 and "jobs.json: damaged" in call.stdout and "remove this file" in call.stdout
    words = ("Building DAG", "train.smk", "SystemExit", *SNAKEMAKES_WORDS)
    assert not [word for word in words if word in call.stdout], call.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("rounds: many,", ["suites/tiny.yaml", "rounds", "'many'"]),
        ("rounds: 2, model: {hidden: 0},", ["suites/tiny.yaml", "model: hidden", "greater than 0"]),
        ("rounds: 2, loss: mse,", ["suites/tiny.yaml", "loss: mse", "set `loss: cross_entropy`"]),
        ("rounds: 2, model: {kind: module, build: 'mine.py:net'},", ["build: mine.py:net", "there is no file mine.py"]),
    ],
)
def test_yaml_is_checked_before_anything_runs(copy: Project, change: str, words: list[str]) -> None:
    suite = copy.folder / "config/suites/tiny.yaml"
    suite.write_text(suite.read_text().replace("rounds: 2,", change))
    call = copy.snakemake()
    assert call.returncode == 1
    assert all(word in call.stdout for word in words), call.stdout
    assert not [word for word in ("Building DAG", *SNAKEMAKES_WORDS) if word in call.stdout], call.stdout


BLOCK = "tasks: [digits_rotate], variants: [fedavg], seeds: [0]"


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("tasks: digits_rotate, variants: [fedavg], seeds: [0]", "runs.0.tasks: must be a list; write `tasks: [digits"),
        ("tasks: [digits_rotate], variants: fedavg, seeds: [0]", "runs.0.variants: must be a list; write `variants:"),
        ("tasks: [digits_rotate], variants: [fedavg], seeds: 0", "runs.0.seeds: must be a list; write `seeds: [0]`"),
        (f"{BLOCK}, seed: 1", "runs.0: unknown key 'seed'; did you mean 'seeds'?"),
        (BLOCK.replace("tasks", "task"), "runs.0.task: must be a mapping (found ['digits_rotate']); did you mean 'tas"),
        (f"{BLOCK}, task: {{cluster: 3}}", "runs.0.task: unknown key 'cluster'; did you mean 'clusters'?"),
        (f"{BLOCK}, task: {{partition: {{knd: iid}}}}", "runs.0.task: partition: unknown key 'knd'"),
        (f"{BLOCK}, method: {{mu: 1}}", "runs.0.method: unknown parameter 'mu'"),
        (f"{BLOCK}, switches: {{batch: 1}}", "runs.0.switches: unknown switch 'batch'; did you mean 'batches'?"),
        (f"{BLOCK}, seeds: [1]", "not valid YAML: line 3: the key `seeds` is already on line 3; keep one of the two"),
        ("tasks: [digit_rotate], variants: [fedavg], seeds: [0]", "runs.0.tasks: unknown task 'digit_rotate'; did you"),
        ("tasks: [digits_rotate], variants: [fedavgg], seeds: [0]", "runs.0.variants: unknown variant 'fedavgg'"),
        ("tasks: [no], variants: [fedavg], seeds: [0]", "runs.0.tasks.0: must be text; put the value in quotes"),
        (f"{BLOCK}, task: {{model: {{kind: module, build: m/net.py:f}}}}", "there is no file m/net.py; correct"),
        (f"{BLOCK}, task: {{model: {{kind: cnn}}}}", "8×8 pixels are too small for this network"),
        (f"{BLOCK}, task: {{data: {{kind: linear, samples_per_client: 9}}, loss: mse, model: {{kind: cnn}}, "
         "shift: {kind: none}, normalise: null}", "samples of shape [10] are no images"),
    ],
)  # fmt: skip
def test_a_wrong_block_is_named(
    block: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`floral plan` builds models and methods, so that a model that does not fit the data is refused too."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/suites/mine.yaml").write_text(f"title: Mine\nruns:\n  - {{{block}}}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLORAL_RESULTS", raising=False)
    monkeypatch.setattr("floral.stages.check_model.facts", lambda *_: {"shape": [8, 8], "classes": 10})
    catalogue.suite.cache_clear()
    assert main.main(["plan", "mine"]) == main.MISTAKE
    error = capsys.readouterr().err
    assert words in error and "Input should" not in error and error.count("\n") == 1, error
    if "cnn" in block:
        assert "models that fit: " in error and "mlp" in error.partition("models that fit")[2]
    elif "module" in block:
        assert "models that fit" not in error
    else:
        assert "floral plan: config/suites/mine.yaml: " in error
    catalogue.suite.cache_clear()


def test_a_misspelt_suite_is_named_with_the_file_that_includes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/suites/outer.yaml").write_text("title: Outer\nsuites: [quickstrat]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"suites/outer\.yaml: suites: unknown suite 'quickstrat'; did you mean"):
        suite_runs("outer")


@pytest.mark.parametrize("change", [("mu: {", "nu: {"), ("  mu:", "  extra: {default: 1, doc: x}\n  mu:")])
def test_a_method_whose_file_and_build_differ_is_refused(change: tuple[str, str], project: Project) -> None:
    file = project.folder / "config/methods/fedprox.yaml"
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change, 1))
    suite = project.folder / "config/suites/tiny.yaml"
    suite.write_text(suite.read_text().replace("[fedavg, local, floral_1]", "[fedprox]"))
    shutil.copytree(ROOT / "reports/template", project.folder / "reports/template")
    fetched = project.call("floral", "fetch", "digits")
    assert fetched.returncode == 0, fetched.stdout
    plan = project.call("floral", "plan", "tiny")
    build = f"`build` in {ROOT}/floral/methods/fedprox.py"
    words = f"config/methods/fedprox.yaml: `parameters` and the arguments of {build} differ"
    assert plan.returncode == main.MISTAKE and words in plan.stdout, plan.stdout


def test_the_plan_names_data_that_are_missing(project: Project, tmp_path: Path) -> None:
    suite = project.folder / "config/suites/tiny.yaml"
    suite.write_text(suite.read_text().replace("digits_rotate", "mnist_rotate"))
    plan = project.call("floral", "plan", "tiny", FLORAL_DATA=str(tmp_path))
    assert plan.returncode == 0 and "data to download: mnist" in plan.stdout, plan.stdout


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
        (["show", "no_such_task/fedavg/seed0"], ["has no runs yet", "snakemake --profile local"]),
        (["track"], ["name a suite"]),
        (["plan", "digits_rotate"], ["'digits_rotate' is a task and not a suite", "--tasks digits_rotate"]),
        (["plan", "floral_1"], ["'floral_1' is a variant and not a suite", "--variants floral_1"]),
        (["tune", "tuned", "digits_rotate"], ["'digits_rotate' is a task and not a suite"]),
        (["status", "no/../quickstart"], ["unknown suite 'no/../quickstart'"]),
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
        (["tasks", "--jsn"], ["floral tasks: unrecognized arguments: --jsn", "'--json'", "usage: floral tasks --help"]),
        (["train", "--suite", "quickstart", *JOB, "--variant", "fedavg", "--threads", "0"], ["'0' is not a positive"]),
        (["plan", "--seeds", "one"], ["'one' is not a whole number"]),
        (["ui", "--port", "70000"], ["'70000' is not the number of a port; give one from 1024 to 65535"]),
        (["ui", "--port", "0"], ["'0' is not the number of a port"]),
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
