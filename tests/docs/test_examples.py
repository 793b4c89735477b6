"""The files that the tutorials ask for work: their suites are valid, their runs train."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from pages import FILES
from projects import ROOT, Project

SUITES = sorted(Path(title).stem for title in FILES if title.startswith("config/suites/"))


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the project with every file that the pages ask for."""
    project = Project.made(tmp_path_factory.mktemp("clone"))
    shutil.copytree(ROOT / "floral", project.folder / "floral", ignore=shutil.ignore_patterns("__pycache__"))
    for title, block in FILES.items():
        path, text = project.folder / title, block.text
        if title.startswith("config/suites/"):  # two rounds of one seed
            path.with_stem(f"short_{path.stem}").write_text(
                re.sub(r"seeds: \[.*?\]", "seeds: [0], task: {rounds: 2}", text)
            )
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    written = call(project, "python", "flowers.py")
    assert (project.folder / "flowers.csv").read_text().startswith("site,species"), written
    return project


def call(project: Project, *command: str) -> str:
    """Call a command with the copy's own floral, and return what it says."""
    done = project.call(*command, PYTHONPATH=str(project.folder))
    assert done.returncode == 0, done.stdout
    return done.stdout


def call_floral(project: Project, *commands: str) -> list[str]:
    """Call commands of the copy's own floral in one process, and return what each says. Imports take seconds."""
    code = (
        "import sys\n"
        "from floral.cli.main import main\n"
        "for command in sys.argv[1:]:\n"
        "    print('calling', command, flush=True)\n"
        "    assert main(command.split()) == 0, command\n"
    )
    _, *parts = re.split(r"^calling .*$", call(project, "python", "-c", code, *commands), flags=re.MULTILINE)
    return parts


def test_the_suites_of_the_pages_are_valid(clone: Project) -> None:
    plans = call_floral(clone, *(f"plan {suite}" for suite in SUITES))
    assert len(plans) == len(SUITES) > 4 and all("runs" in plan for plan in plans), plans


@pytest.mark.parametrize(
    ("suite", "task", "variant", "data"),
    [
        ("short_mine", "digits_rotate", "lg_fedavg", "digits"),
        ("short_flowers", "flowers", "floral_1", "flowers"),
        ("short_blocks", "digits_blocks", "floral_1", "digits"),
    ],
)
def test_the_examples_train(clone: Project, suite: str, task: str, variant: str, data: str) -> None:
    run = f"--suite {suite} --task {task} --seed 0"
    call_floral(clone, f"fetch {data}", f"partition {run}", f"train {run} --variant {variant}")
    summary = json.loads(clone.path(f"results/train/{task}/{variant}/seed0-*/summary.json").read_text())
    assert summary["status"] == "done" and summary["round"] == 2 and 0 < summary["test_accuracy"] <= 1


def test_an_example_sends_its_last_layer_alone(clone: Project) -> None:
    """What the tutorial says of LG-FedAvg: its server sees the last layer (64 × 10 weights, 10 biases)."""
    costs = json.loads(clone.path("results/train/digits_rotate/lg_fedavg/seed0-*/costs.json").read_text())
    assert costs["parameters"]["sent_up"] == costs["parameters"]["sent_down"] == 650
