"""The estimate before a call and the line of progress of each run."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from projects import ROOT
from run_folders import make_run

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.settings import read_settings
from floral.config.suites import suite_runs
from floral.core.units import duration, duration_range
from floral.runs.state import failure_lines
from floral.stages import estimate, progress_line

SUMMARY = {"status": "done", "test_accuracy": 0.9134, "test_loss": 0.3, "round": 200, "diverged_at": None}

RECORDED = {
    "apfl": (6.8, 36.9), "cfl": (5.8, 42.9), "ditto": (3.6, 28.2), "ensemble": (3.9, 22.1), "fedavg": (1.3, 3.3),
    "fedprox": (3.0, 6.7), "floral_1": (3.6, 7.7), "floral_10": (4.2, 9.8), "local": (2.1, 21.5), "rolora": (2.6, 4.0),
}  # fmt: skip
"""Variant → seconds of its runs on digits_rotate and on mnist_rotate_reduced: reference results of `methods`."""


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.chdir(ROOT)
    return suite_runs("quickstart", tasks=["digits_rotate"], variants=["fedavg", "local"])


def finish(results: Path, run: Run, seconds: float, **summary: Any) -> None:
    folder = results / run.folder
    folder.mkdir(parents=True)
    (folder / "costs.json").write_text(
        json.dumps({"seconds": {"setup": 0.0, "total": seconds}, "peak_memory_bytes": 5e8})
    )
    (folder / "summary.json").write_text(json.dumps(SUMMARY | summary))


def test_settings_take_one_or_many() -> None:
    one = read_settings({"suite": "a", "seeds": 0, "tasks": None})
    assert (one.suite, one.seeds, one.tasks) == (("a",), (0,), None)
    assert read_settings({"suite": ["a", "b"]}).suite == ("a", "b")


@pytest.mark.parametrize("values", [{"suite": None}, {"suite": []}, {"suite": "a", "tasks": []}])
def test_settings_that_name_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="this list is empty"):
        read_settings(values)


def test_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the file, and not over the command line: tests/workflow/test_work.py."""
    monkeypatch.setenv("FLORAL_RESULTS", "elsewhere")
    assert read_settings({"suite": "a"}).results == Path("elsewhere")


def test_costs_come_from_the_nearest_finished_runs(runs: list[Run], tmp_path: Path) -> None:
    fedavg = [run for run in runs if run.variant.name == "fedavg"]
    local = [run for run in runs if run.variant.name == "local"]
    assert {cost.basis for cost in estimate.expected_costs(runs, tmp_path).values()} == {"rough"}
    finish(tmp_path, fedavg[0], 10.0)
    costs = estimate.expected_costs(runs, tmp_path)
    assert (costs[fedavg[1].folder].basis, costs[local[0].folder].basis) == ("variant", "task")
    assert costs[fedavg[1].folder].seconds == pytest.approx(10.0)
    shorter = fedavg[1].model_copy(update={"task": fedavg[1].task.model_copy(update={"rounds": 100})})
    assert estimate.expected_costs([shorter], tmp_path)[shorter.folder].seconds == pytest.approx(5.0)


def test_the_estimate_says_what_it_rests_on(runs: list[Run], tmp_path: Path) -> None:
    text = estimate.estimate({"quickstart": runs}, tmp_path, 2)
    assert "6 runs" in text and "0 finished, 6 to do" in text and "a rough figure" in text and "free" in text
    own = make_run("digits_rotate", "fedavg", 0, model={"kind": "module", "build": "floral.bench.modules:mlp"})
    text = estimate.estimate({"quickstart": [own]}, tmp_path, 2)
    assert "from a guess for your own or a pretrained model" in text and "to do" in text
    for run in runs:
        finish(tmp_path, run, 10.0)
    assert estimate.estimate({"quickstart": runs}, tmp_path, 2).endswith("all finished")
    changed = make_run("digits_rotate", "fedavg", runs[0].seed, rounds=7)
    text = estimate.estimate({"quickstart": [changed]}, tmp_path, 2)
    assert "1 run to do although a run of this name is finished: that one has other values" in text


def test_what_a_reference_has_is_not_to_do(runs: list[Run], tmp_path: Path) -> None:
    finish(tmp_path, runs[0], 10.0)
    committed = [run.folder for run in runs[1:4]]
    text = estimate.estimate({"quickstart": runs}, tmp_path, 2, committed)
    assert "1 finished, 3 taken from the reference results, 2 to do" in text and "(2 runs from" in text
    text = estimate.estimate({"quickstart": runs}, tmp_path, 2, [run.folder for run in runs[1:]])
    assert text.endswith("1 finished, 5 taken from the reference results, 0 to do")


def test_a_line_of_progress_counts_and_looks_ahead(runs: list[Run], tmp_path: Path) -> None:
    progress_line.write_plan({"quickstart": runs}, tmp_path, 1)
    for run in runs[:3]:
        finish(tmp_path, run, 3.0)
    line = progress_line.progress_line(tmp_path, runs[2], SUMMARY)
    assert line.startswith("[3/6] ") and line.endswith("0.913, 3.0 s"), "few runs do not tell how long the others take"
    for run in runs[3:5]:
        finish(tmp_path, run, 3.44)
    line = progress_line.progress_line(tmp_path, runs[4], SUMMARY)
    assert re.fullmatch(
        r"\[5/6\] digits_rotate \w+ seed \d: done, test accuracy 0\.913, 3\.4 s; (about )?[\d–]+ s left", line
    )
    failed = tmp_path / runs[5].folder
    failed.mkdir(parents=True)
    (failed / "failure.json").write_text(json.dumps({"exception": "MemoryError: no more\n"}))
    line = progress_line.progress_line(tmp_path, runs[1], SUMMARY)
    assert line.startswith("[5/6, 1 failed] ") and "left" not in line
    (line,) = failure_lines({"quickstart": runs}, tmp_path)
    assert "MemoryError: no more" in line and str(failed) in line


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_first_minute_never_says_three_times_the_truth(at_once: int) -> None:
    """Recorded runs of a fresh suite, of which only rough estimates are known, begin in any order in free slots."""
    runs = [f"train/{task}/{variant}/{seed}" for variant in RECORDED for task in (0, 1) for seed in range(3)]
    seconds = {folder: RECORDED[folder.split("/")[2]][int(folder.split("/")[1])] for folder in runs}
    rough = {folder: (8.0, 5.0)[int(folder.split("/")[1])] for folder in runs}
    plan = {"seconds": rough, "basis": dict.fromkeys(runs, "rough")}
    ratios = []
    for order in range(5):
        random.Random(order).shuffle(runs)
        slots, ends = [0.0] * at_once, {}
        for folder in runs:
            free = slots.index(min(slots))
            slots[free] = ends[folder] = slots[free] + seconds[folder] + 0.3
        for now in sorted(end for end in ends.values() if end < 60):
            measured = {folder: seconds[folder] for folder in runs if ends[folder] <= now}
            left, truth = progress_line.seconds_left(plan, measured, (), at_once, now), max(slots) - now
            ratios += [[end / truth for end in left]] if left else []
    assert max(high for _, high in ratios) < 3
    assert sum(low <= 1 <= high for low, high in ratios) > len(ratios) / 3, "many ranges have the truth"


def test_a_killed_run_counts_as_failed(runs: list[Run], tmp_path: Path) -> None:
    before, since = (tmp_path / run.folder / ".lock" for run in runs[1:3])
    for lock in (before, since):
        lock.parent.mkdir(parents=True)
        lock.write_text(f"process 7 on {os.uname().nodename}")
    os.utime(before, (0, 0))  # of an earlier call: this one has not come to it yet
    progress_line.write_plan({"quickstart": runs}, tmp_path, 1)
    os.utime(since, (time.time() + 1,) * 2)
    finish(tmp_path, runs[0], 1.0)
    assert progress_line.progress_line(tmp_path, runs[0], SUMMARY).startswith("[1/6, 1 failed] ")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seconds": null}', '{"seconds": {"setup": 0, "total": null}}'])
def test_damaged_costs_stop_no_call(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for run in runs[:2]:
        finish(tmp_path, run, 10.0)
    damaged = tmp_path / runs[0].folder / "costs.json"
    damaged.write_text(text)
    progress_line.write_plan({"quickstart": runs}, tmp_path, 1)
    assert "1 from" not in estimate.estimate({"quickstart": runs}, tmp_path, 1)
    assert estimate.expected_costs(runs, tmp_path)[runs[2].folder].seconds == pytest.approx(10.0)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(damaged.parent) in said and "the estimate leaves this run out" in said
    assert progress_line.progress_line(tmp_path, runs[0], SUMMARY).endswith("done, test accuracy 0.913")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"seconds": null}'])
def test_a_damaged_plan_fails_no_finished_run(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "other.json").write_text(text)
    progress_line.write_plan({"quickstart": runs}, tmp_path, 1)
    finish(tmp_path, runs[0], 1.0)
    assert progress_line.progress_line(tmp_path, runs[0], SUMMARY).startswith("[1/6] ")
    assert "other.json: damaged" in capsys.readouterr().err


def test_a_line_of_progress_without_a_plan(runs: list[Run], tmp_path: Path) -> None:
    diverged = SUMMARY | {"status": "diverged", "diverged_at": 12}
    assert (
        progress_line.progress_line(tmp_path, runs[0], diverged) == "digits_rotate fedavg seed 0: diverged at round 12"
    )
    regression = SUMMARY | {"test_accuracy": None, "test_loss": 0.012345}
    assert progress_line.progress_line(tmp_path, runs[0], regression).endswith("done, test loss 0.01235")
    published = SUMMARY | {"official_score": 0.8876}
    assert progress_line.progress_line(tmp_path, runs[0], published).endswith("done, official score 0.8876")


@pytest.mark.parametrize(
    ("ends", "words"),
    [((20, 44), "20–45 s"), ((50, 240), "50 s to 4 min"), ((178, 182), "about 3 min"), ((9000, 14400), "2.5–4.0 h")],
)
def test_a_range_of_durations(ends: tuple[float, float], words: str) -> None:
    assert duration_range(*ends) == words


@pytest.mark.parametrize(("seconds", "words"), [(1, "5 s"), (42, "40 s"), (200, "3 min"), (9000, "2.5 h")])
def test_durations_claim_no_more_than_is_known(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_jobs_write_where_the_call_says(monkeypatch):
    """A job reads its folders from the environment, which the call's settings fill."""
    given = read_settings({"suite": "quickstart", "results": "here", "reports": "there"}).environment()
    for name in ("FLORAL_RESULTS", "FLORAL_REPORTS"):
        monkeypatch.setenv(name, given[name])
    found = read_settings()
    assert (str(found.results), str(found.reports)) == ("here", "there")
