"""The wheel works in a fresh environment, in a study outside the clone, without files of the clone: make test-wheel."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from projects import ROOT, environment

pytestmark = pytest.mark.wheel

MAX_BYTES = 5_000_000
GUARD = """
import os, sys

CLONE, ENVIRONMENT = {clone!r} + os.sep, {environment!r} + os.sep

def guard(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        path = os.path.abspath(arguments[0])
        if path.startswith(CLONE) and not path.startswith(ENVIRONMENT):
            raise PermissionError(13, "this file of the clone is not needed by the wheel", path)

sys.addaudithook(guard)
"""
"""Python code that refuses to open files of the clone, except those of its environment, which has the dependencies."""


def run(*command: str | Path, folder: Path, fails: bool = False) -> str:
    """Run a command, check its success, and return what it prints."""
    variables = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env=variables, text=True, timeout=900,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT, folder=folder)
    (path,) = folder.glob("floral_bench-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A fresh environment: the wheel, and by a path the dependencies that this environment has already."""
    folder = wheel.parent / "environment"
    venv.create(folder)
    (packages,) = (folder / "lib").glob("python3*/site-packages")
    (dependencies,) = site.getsitepackages()
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")  # its .pth files are not read
    guard = GUARD.format(clone=str(ROOT), environment=sys.prefix)
    (packages / "sitecustomize.py").write_text(guard)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, folder=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def study(installed: Path) -> Path:
    folder = installed.parent.parent / "study"
    assert "a new study" in run(installed / "floral", "init", folder, folder=folder.parent)
    return folder


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= MAX_BYTES


def test_the_guard_refuses_files_of_the_clone(installed: Path) -> None:
    python, code = installed / "python", "open({!r})"
    run(python, "-c", code.format(str(Path(os.__file__))), folder=installed)
    assert "not needed by the wheel" in run(
        python, "-c", code.format(str(ROOT / "Snakefile")), folder=installed, fails=True
    )


def test_the_suite_of_a_new_study_runs(installed: Path, study: Path) -> None:
    said = run(
        installed / "python", "-m", "snakemake", "--profile", "local", "--config", "seeds=[0]", folder=study
    )  # fmt: skip
    page = (study / "reports/flowers/index.html").read_text(encoding="utf-8")
    assert "LG-FedAvg" in page, said
    assert len(list(study.glob("results/train/flowers/*/seed0-*/summary.json"))) == 4
    assert list(study.glob("results/track/flowers.attached")), said


def test_suites_of_the_package_and_other_commands_work_there(installed: Path, study: Path) -> None:
    below = study / "methods"  # a study is found from a folder below, too
    assert "suite quickstart: 128 runs" in run(installed / "floral", "plan", "quickstart", folder=below)
    listed = run(installed / "floral", "methods", folder=below)
    assert "lg_fedavg" in listed and "fedprox" in listed
    assert not (below / "results").exists()


def test_the_examples_of_a_study_keep_the_contracts(installed: Path, study: Path) -> None:
    for kind, name in (("method", "lg_fedavg"), ("model", "two_layers"), ("task", "flowers")):
        assert "all contracts hold" in run(installed / "floral", "check", kind, name, folder=study)


def test_a_broken_copy_of_the_method_is_named_with_its_contract(installed: Path, study: Path) -> None:
    code, description = (study / "methods/lg_fedavg.py", study / "config/methods/lg_fedavg.yaml")
    broken = code.read_text().replace("stream, problem.lr, ", "stream, 0.0, ")
    assert broken != code.read_text()
    code.with_stem("broken").write_text(broken)
    description.with_stem("broken").write_text(description.read_text().replace("  lg_fedavg:", "  broken:"))
    said = run(installed / "floral", "check", "method", "broken", folder=study, fails=True)
    assert "FAILS  training changes what clients predict\n" in said and "as before training" in said
    assert "method broken: 1 contract broken" in said


def test_python_trains_and_reads_there(installed: Path, study: Path) -> None:
    code = (
        "import floral; floral.run({'extends': 'flowers', 'rounds': 2}, 'lg_fedavg', progress=False); "
        "print(floral.load(tasks='flowers', seeds=0).summary['variant'].to_list())"
    )
    assert "'lg_fedavg'" in run(installed / "python", "-c", code, folder=study)
