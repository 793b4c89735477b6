"""The leaderboard over suites, and the page that lists all reports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import run_folders
from run_folders import make_run, write_suite

from floral.cli import main
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.suites import suite_runs
from floral.report import leaderboard_page
from floral.report.collect import collect
from floral.report.leaderboard import Board, boards, families
from floral.report.statistics import means_without_one
from floral.report.style import method_styles
from floral.report.suites_page import write_suites_page
from floral.report.templates import template_yaml

Write = Callable[..., Path]
TASKS = ("digits_rotate", "digits_label_shift", "digits_dirichlet")
ACCURACY = {"fedavg": (0.6, 0.6, 0.9), "local": (0.7, 0.7, 0.7), "floral_1": (0.8, 0.5, 0.8), "ensemble": (0.9,) * 3}
"""On the three tasks; an ensemble does not run on the last one. A seed adds a hundredth."""


@pytest.fixture
def runs(write: Write, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    runs = [
        make_run(task, variant, seed)
        for task in TASKS
        for variant in [*ACCURACY, "constant", "floral_1_optimal"]
        for seed in range(3)
        if (task, variant) != ("digits_dirichlet", "ensemble")
    ]
    known = {**ACCURACY, "fedprox": (0.5,) * 3, "constant": (1.0,) * 3, "floral_1_optimal": (1.0,) * 3}
    monkeypatch.setattr(
        run_folders,
        "accuracy",
        lambda run: known[run.variant.name][TASKS.index(run.task.name)] + 0.01 * run.seed,
    )
    for run in runs:
        write(run)
    return runs


def ranked(runs: list[Run], results: Path) -> list[Board]:
    collected = collect("quickstart", runs, results)
    return boards(collected, method_styles(collected.methods, template_yaml("styles.yaml")))


def test_ranks_and_their_range_when_a_task_is_left_out(runs: list[Run], results: Path) -> None:
    (board,) = ranked(runs, results)
    assert board.values == "default" and [item.id for item in board.configurations] == list(TASKS)
    rows = {entry.variant: entry for entry in board.entries}
    assert {name: list(entry.ranks.values()) for name, entry in rows.items()} == {
        "fedavg": [3, 2, 1], "local": [2, 1, 3], "floral_1": [1, 3, 2],
    }  # fmt: skip
    assert {(entry.position, entry.mean_rank) for entry in board.entries} == {(1, 2.0)}  # they share a position
    assert rows["fedavg"].mean_ranks == (1.5, 2.5) and rows["fedavg"].positions == (1, 3)
    assert [item.id for item in board.configurations if item.id in rows["fedavg"].best] == ["digits_dirichlet"]
    assert rows["fedavg"].costs == {"bytes": 12000.0, "client_passes": 120.0, "seconds_total": pytest.approx(3.9)}
    assert {style.id: reason for style, reason in board.unranked} == {
        "ensemble": f"{board.configurations[2].title}: not run"
    }
    assert [(family.name, family.methods) for family in families(board)] == [("FLoRAL", 1), ("Global", 1), ("Local", 1)]


def test_one_task_has_no_range() -> None:
    assert means_without_one({"a": [1.0], "b": [2.0]}) == []
    assert means_without_one({"a": [1.0, 3.0, 5.0]}) == [{"a": 4.0}, {"a": 3.0}, {"a": 2.0}]


def test_a_diverged_or_missing_seed_is_not_ranked(runs: list[Run], results: Path, write: Write) -> None:
    diverged, missing = make_run("digits_rotate", "fedprox", 0), make_run("digits_label_shift", "fedprox", 0)
    write(diverged, "diverged")
    (board,) = ranked([*runs, diverged, missing], results)
    reasons = {style.id: reason for style, reason in board.unranked}
    first, second, third = (item.title for item in board.configurations)
    assert reasons["fedprox"] == f"{first}: 1/1 diverged; {second}: 1/1 missing; {third}: not run"


def test_default_and_tuned_values_are_ranked_apart_and_together(results: Path, write: Write) -> None:
    runs = suite_runs("tuned", ["digits_rotate"], ["fedavg", "floral_1"])
    for run in runs:
        write(run)
    found = {board.values: [entry.style.id for entry in board.entries] for board in ranked(runs, results)}
    assert found == {
        "default": ["floral_1", "fedavg"], "tuned": ["floral_1-tuned", "fedavg-tuned"],
        "both": ["floral_1", "floral_1-tuned", "fedavg", "fedavg-tuned"],
    }  # fmt: skip


def test_the_command_writes_a_page_and_numbers(
    runs: list[Run], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLORAL_RESULTS", str(results))
    by_suite = {"quickstart": runs[: len(runs) // 2], "methods": runs[len(runs) // 3 :]}
    monkeypatch.setattr(leaderboard_page, "suite_runs", lambda suite, precision: by_suite[suite])
    place = tmp_path / "pages"
    assert main.main(["leaderboard", "quickstart", "methods", "--reports", str(place)]) == 0
    assert capsys.readouterr().out == f"leaderboard: {place / 'leaderboard.html'}\n"
    values = json.loads((place / "leaderboard.json").read_text())
    assert values["suites"] == ["quickstart", "methods"]
    (board,) = values["boards"]
    (fedavg,) = [method for method in board["methods"] if method["variant"] == "fedavg"]
    assert fedavg["ranks"] == {"digits_rotate": 3.0, "digits_label_shift": 2.0, "digits_dirichlet": 1.0}
    assert fedavg["mean_rank_without_one_task"] == [1.5, 2.5]
    assert fedavg["results"]["digits_rotate"]["mean"] == pytest.approx(61.0)
    page = (place / "leaderboard.html").read_text(encoding="utf-8")
    assert "1.5–2.5" in page and ">1–3<" in page and "61.0\u00a0±\u00a02.5\u00a0%, n = 3" in page
    assert 'href="leaderboard.html"' in (place / "index.html").read_text()
    first = (place / "leaderboard.html").read_bytes()
    assert main.main(["leaderboard", "quickstart", "methods", "--reports", str(place)]) == 0
    assert (place / "leaderboard.html").read_bytes() == first


def test_without_a_common_task_the_command_says_what_to_do(results: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"quickstart: no two methods .*suite=\"\[quickstart\]\""):
        leaderboard_page.leaderboard(["quickstart"], results, tmp_path / "pages")


def test_the_page_of_reports_lists_each_suite(results: Path, tmp_path: Path) -> None:
    runs, reports = write_suite(results), tmp_path / "reports"
    for suite in ("quickstart", "a renamed <suite>"):
        (reports / suite).mkdir(parents=True)
    collect("quickstart", runs, results).summary.write_parquet(reports / "quickstart" / "summary.parquet")
    write_suites_page(results, reports)
    assert "quickstart" not in (reports / "index.html").read_text(encoding="utf-8")  # it has no page
    (reports / "quickstart" / "index.html").write_text("page")
    write_suites_page(results, reports)
    listed = (reports / "index.html").read_text(encoding="utf-8")
    assert 'href="quickstart/index.html"' in listed and "12 finished, 1 diverged, 1 failed, 1 not run yet" in listed
    for path in (reports / "quickstart").glob("*.*"):
        (reports / "a renamed <suite>" / path.name).write_bytes(path.read_bytes())
    write_suites_page(results, reports)
    listed = (reports / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'href="([^"]+/index.html)"', listed) == [
        "a%20renamed%20%3Csuite%3E/index.html",
        "quickstart/index.html",
    ]
    assert "no readable suite of this name" in listed
