"""The page says how the runs of a table were computed if not all of them were computed in the same way."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from printed import read_page
from run_folders import make_run, write_run

from floral.report.build import report

START = "The runs of this table used"
GPU = {"device": "cuda", "precision": "tf32"}


def page_of(tmp_path: Path, results: Path, executions: list[dict[str, Any]]) -> str:
    """The page of a suite in which each seed has another execution."""
    runs = [make_run("digits_rotate", "fedavg", seed) for seed in range(len(executions))]
    for run, execution in zip(runs, executions, strict=True):
        path = write_run(results, run) / "costs.json"
        costs = json.loads(path.read_text())
        path.write_text(json.dumps({**costs, "execution": {**costs["execution"], **execution}}))
    return read_page(report("quickstart", runs, results, tmp_path / "reports"))


@pytest.mark.parametrize(
    ("executions", "counted"),
    [
        ([{}, {}, {"backend": "loop"}], "2 executions; vmap on cpu, 1 thread (2 runs); loop on cpu, 1 thread (1 run)"),
        ([{}, {"threads": 4}], "2 executions; vmap on cpu, 1 thread (1 run); vmap on cpu, 4 threads (1 run)"),
        ([{}, {"workers": 2}], "2 executions; vmap on cpu, 1 thread (1 run); vmap on cpu, 2 workers (1 run)"),
        ([GPU, {}, GPU], "2 executions; vmap on cuda with products in tf32, 1 thread (2 runs); "
         "vmap on cpu, 1 thread (1 run)"),
    ],
)  # fmt: skip
def test_several_executions_are_counted_in_one_sentence(
    tmp_path: Path, results: Path, executions: list[dict[str, Any]], counted: str
) -> None:
    page = page_of(tmp_path, results, executions)
    (said,) = re.findall(rf"{START} (\d+ executions), so their last digits can differ: (.*?)\.</p>", page)
    assert f"{said[0]}; {said[1]}" == counted
    assert counted.partition("; ")[2] in page[page.index('id="setup-text"') :]


@pytest.mark.parametrize("executions", [[{}, {}], [GPU, GPU], [{"chunk": 1}, {"chunk": 2, "reason": "y"}]])
def test_one_execution_has_no_sentence(tmp_path: Path, results: Path, executions: list[dict[str, Any]]) -> None:
    """The size of a chunk depends on the number of clients, so that it differs between tasks."""
    assert START not in page_of(tmp_path, results, executions)


def test_a_table_counts_its_own_runs_only(tmp_path: Path, results: Path) -> None:
    """Five configurations are in two tables: the last one, on a GPU, is alone in the second."""
    runs = [make_run("digits_rotate", "fedavg", 0, rounds=4 + more) for more in range(5)]
    for run in runs:
        write_run(results, run)
    path = results / runs[-1].folder / "costs.json"
    costs = json.loads(path.read_text())
    path.write_text(json.dumps({**costs, "execution": {**costs["execution"], **GPU}}))
    page = read_page(report("quickstart", runs, results, tmp_path / "reports"))
    assert START not in page
    assert "vmap on cpu, 1 thread (4 runs); vmap on cuda with products in tf32, 1 thread (1 run)" in page
