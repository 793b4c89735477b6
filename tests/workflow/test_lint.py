"""Style of the workflow, light imports, pinned dependencies, and the list of make targets."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
from projects import BIN, ROOT, Project, environment


def test_snakemake_finds_nothing_to_improve() -> None:
    """Rules name no conda environment: all of them run in the environment that `make setup` pins."""
    command = [BIN / "snakemake", "--lint"]
    output = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True).stderr
    advice = set(re.findall(r"^ +\* (.*)", output, re.MULTILINE))
    assert advice <= {"Specify a conda environment or container for each rule.:"}, output


@pytest.mark.parametrize("profile", ["local", "gpu", "slurm"])
def test_profiles_plan_the_whole_suite(finished: Project, profile: str) -> None:
    dry_run = finished.call("snakemake", "--profile", profile, "--dry-run", "--config", "suite=tiny")
    assert dry_run.returncode == 0, dry_run.stdout


def test_the_command_starts_light() -> None:
    """Each import delays the first round of every run."""
    heavy = {"torch", "mlflow", "altair", "sklearn", "polars", "numpy", "pandas", "snakemake"}
    modules = "floral.cli.main, floral.cli.start, floral.stages.estimate, floral.tracking.track, floral.workflow.work"
    code = f"import sys, {modules}; print(*sorted({heavy} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == ""


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {normal(line.split("==")[0]) for line in lines}
    assert {normal(re.split(r"[<>=!~\[; ]", name)[0]) for name in wanted} <= pinned


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_make_help_lists_every_target() -> None:
    output = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"setup", "quickstart", "test", "check", "clean"} <= set(targets)
    assert all(f"make {target}" in output for target in targets)
