"""The top of the page: its answers and its numbers, on results that are set by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import polars as pl
import pytest
from run_folders import make_run

from floral.report.collect import Collected, collect
from floral.report.overview import Answer, answer, near_the_best, overview
from floral.report.style import Style, method_styles
from floral.report.templates import packed, template_yaml, unpacked

BYTES = {"fedavg": 1000, "local": 0, "ensemble": 4000, "floral_1": 2000, "constant": 0}


def results_of(results, write, by_seed: Mapping[str, list[float]], written: int | None = None) -> Collected:
    """Runs with these accuracies in per cent and with BYTES, of which the first `written` are finished."""
    runs = [make_run("digits_rotate", name, s) for name, own in by_seed.items() for s in range(len(own))]
    for run in runs[:written]:
        write(run)
    found = collect("quickstart", runs, results)
    values = [by_seed[run.variant.name][run.seed] / 100 for run in runs]
    columns = {"test_accuracy": pl.Series(values), "bytes": pl.Series([BYTES[run.variant.name] for run in runs])}
    return replace(found, summary=found.summary.with_columns(**columns))


def styles(found: Collected) -> dict[str, Style]:
    return method_styles(found.methods, template_yaml("styles.yaml"))


def answered(found: Collected) -> Answer:
    return answer(found, styles(found), found.configurations[0])


def test_an_answer_names_the_best_how_far_the_reference_is_and_what_sends_least(results, write):
    said = answered(results_of(results, write, {
        "ensemble": [90.0, 91.0, 92.0], "fedavg": [88.5, 89.5, 90.4], "floral_1": [80.0, 81.1, 81.9],
        "local": [70.0, 70.0, 70.0], "constant": [99.0, 99.0, 99.0],
    }))  # fmt: skip
    assert (said.named, said.claim) == ([("ensemble", "91.0 %")], "is the best")
    assert said.note == "3 of 4 are shown to be worse; 3 seeds"
    assert said.reference == "81.0 %; 10.0 ± 0.2 points lower: worse"
    assert said.cheapest == ("fedavg", "89.5 %, 1\u202fkB")  # Local sends nothing, but is 21 points lower


def test_an_answer_does_not_decide_what_the_seeds_do_not(results, write):
    near = {"floral_1": [90.0, 91.0, 92.0], "local": [89.0, 91.5, 91.9], "fedavg": [89.9, 90.0, 92.2]}
    said = answered(results_of(results, write, near))
    assert [method for method, _ in said.named] == said.near == ["floral_1", "local", "fedavg"]
    assert said.note == "no method is shown to be worse; 3 seeds" and said.far == [] and said.claim == ""
    assert said.cheapest == ("local", "90.8 %, sends nothing")


def test_a_method_that_is_far_below_but_varies_is_not_among_the_best_means(results, write):
    collected = results_of(results, write, {
        "ensemble": [92.0, 93.0, 94.0], "floral_1": [91.25, 92.55, 93.05], "local": [99.0, 50.0, 61.0],
        "fedavg": [50.0, 60.0, 99.0],
    })  # fmt: skip
    said = answered(collected)
    assert said.named == [("ensemble", "93.0 %"), ("floral_1", "92.3 %")] and said.far == ["local", "fedavg"]
    assert said.reference == "92.3 %; 0.7 ± 0.6 points lower: not decided after Holm"  # of three comparisons
    (task,) = overview(collected, styles(collected))["tasks"]
    assert (task["near"], task["far"]) == (["ensemble", "floral_1"], ["local", "fedavg"])


def test_too_few_seeds_and_missing_runs_decide_nothing(results, write):
    one = results_of(results, write, {"floral_1": [90.0], "local": [80.0]})
    assert answered(one).claim == "have the best means: not decided" and answered(one).near == []
    missing = results_of(results / "other", write, {"floral_1": [90.0, 91.0], "local": [80.0, 81.0]}, written=0)
    assert answered(missing).claim == "not decided" and answered(missing).named == []


def test_two_seeds_are_named_as_too_few_for_intervals(results, write):
    two = results_of(results, write, {"floral_1": [90.0, 99.0], "local": [80.0, 70.0]})
    assert answered(two).note.startswith("2 seeds: the intervals are nearly useless; use at least 3; a set of best")


def test_the_overview_has_the_numbers_of_every_cell(results, write):
    found = results_of(results, write, {
        "local": [70.0, 72.0], "floral_1": [80.0, 82.0], "fedavg": [75.0, 77.0], "constant": [10.0, 10.0],
    })  # fmt: skip
    numbers = json.loads(json.dumps(overview(found, styles(found)), allow_nan=False))
    methods = {method["id"]: method for method in numbers["methods"]}
    cell = methods["fedavg"]["cells"]["digits_rotate"]
    assert (cell["text"], cell["rank"], cell["bytes"]) == ("76.0", 2.0, 1000)
    assert cell["difference"]["text"] == "\u22125.0" and cell["difference"]["p"] < 0.05
    assert [run[1] for run in cell["seeds"]] == [75.0, 77.0] and numbers["quantiles"]["2"] == pytest.approx(
        12.706, abs=1e-3
    )
    assert [run[3].rpartition("-")[0] for run in cell["seeds"]] == [f"digits_rotate/fedavg/seed{s}" for s in (0, 1)]
    assert "rank" not in methods["constant"]["cells"]["digits_rotate"], "a control has no rank"


def test_near_the_best_is_a_ratio_of_errors_and_points_of_accuracies(results):
    runs = [make_run(task, "fedavg", 0) for task in ("digits_rotate", "synthetic_linear")]
    configurations = collect("quickstart", runs, results).configurations
    accuracy, error = (near_the_best([item]) for item in configurations)
    assert (accuracy, error) == ("within 2 points of the best", "within 1.1 times the smallest error")
    assert near_the_best(configurations) == f"{accuracy}, or {error}"


def test_two_configurations_of_a_task_are_told_apart_by_their_labels(results):
    runs = [make_run("digits_rotate", "fedavg", 0, fidelity=fidelity) for fidelity in ("official", "corrected")]
    found = collect("quickstart", runs, results)
    labels = [task["label"] for task in overview(found, styles(found))["tasks"]]
    assert labels == ["digits_rotate, fidelity official", "digits_rotate, fidelity corrected"]


def test_what_is_packed_is_unpacked():
    html = "<table><td>1 ± 2 %</td></table>" * 50
    assert len(packed(html)) < len(html) / 5 and unpacked(f"<p>{packed(html)}</p>") == f"<p>{html}</p>"
