"""What the seeds decide, on results that are set by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from printed import decisions, read_page
from run_folders import make_run

from floral.report.build import report
from floral.report.collect import Collected, collect
from floral.report.overview import answer
from floral.report.sections import method_ranks
from floral.report.sections.base import Material
from floral.report.sections.decided import decided_cells, section
from floral.report.sentences import against_reference
from floral.report.style import method_styles
from floral.report.summarise import comparisons
from floral.report.tables import EMPTY
from floral.report.templates import template_yaml

TASKS = ("digits_rotate", "digits_rotate_reduced", "digits_label_shift", "digits_label_shift_reduced", "mnist_rotate",
         "mnist_label_shift")  # fmt: skip


def reached(results, write, by_seed: Mapping[str, list[float]], tasks=("digits_rotate",)) -> Collected:
    """Runs in which a variant has these accuracies, in per cent, of which clients know nothing."""
    runs = [make_run(task, name, s) for task in tasks for name, own in by_seed.items() for s in range(len(own))]
    for run in runs:
        write(run)
    found = collect("quickstart", runs, results)
    values = [by_seed[run.variant.name][run.seed] / 100 for run in runs]
    return replace(
        found, summary=found.summary.with_columns(test_accuracy=pl.Series(values)), clients=found.clients.clear()
    )


def material(collected: Collected) -> Material:
    shown = method_styles(collected.methods, template_yaml("styles.yaml"))
    return Material(collected=collected, styles=shown, captions=template_yaml("captions.yaml"), figures={})


def texts(cells) -> dict[str, str]:
    return {key: cell.text for key, cell in cells.items()}


def test_better_worse_or_open_and_how_many_more_seeds(results, write):
    # minus floral_1: 10 ± small, -10 ± small, and -1, 1, 1 with mean 1/3
    floral = [50.0, 52.0, 54.0]
    found = reached(results, write, {
        "floral_1": floral, "fedavg": [60.0, 62.1, 64.0], "local": [40.0, 41.9, 44.0], "ensemble": [49.0, 53.0, 55.0],
    })  # fmt: skip
    cells = decided_cells(found, found.configurations[0])
    assert {name: row["verdict"].text for name, row in cells.items()} == {
        "fedavg": "better", "local": "worse", "ensemble": "open",
    }  # fmt: skip
    # t-tests: (-1, 1, 1) has t = 0.5 and p = 0.667, the largest of three, so that Holm leaves it
    assert {name: row["p"].text for name, row in cells.items()} == {
        "fedavg": "< 0.001", "local": "< 0.001", "ensemble": "0.667",
    }  # fmt: skip
    flips = {name: item.sign_flip for name, item in comparisons(found, found.configurations[0]).items()}
    assert flips == {"fedavg": 0.25, "local": 0.25, "ensemble": 1.0}
    # effect (1/3)/1.155 = 0.289: 97 pairs have 80 % power, 3 are there
    assert cells["ensemble"]["more"].text == "94" and cells["fedavg"]["more"].text == "\u2013"
    assert "require 6 tasks, and this suite has 1." in section(material(found)).note


def test_one_seed_decides_nothing(results, write):
    found = reached(results, write, {"floral_1": [50.0], "fedavg": [90.0]})
    assert texts(decided_cells(found, found.configurations[0])["fedavg"]) == {
        "difference": "+40.0", "verdict": "no interval", "p": "\u2013", "more": "unknown",
    }  # fmt: skip


@pytest.mark.parametrize(("seeds", "is_shown"), [(5, False), (6, True)])
def test_sign_flips_stand_where_they_can_decide(results, write, seeds, is_shown):
    floral = [50.0 + seed for seed in range(seeds)]
    found = reached(results, write, {"floral_1": floral, "fedavg": [value + 1 for value in floral]})
    cells = decided_cells(found, found.configurations[0])["fedavg"]
    assert ("sign_flip" in cells) == is_shown == ("p, sign flips" in section(material(found)).parts[-1].table.html)
    assert not is_shown or cells["sign_flip"].text == "0.031"


def test_what_holm_takes_back_is_said(results, write):
    floral = [50.0, 60.0, 70.0]
    others = {"fedavg": [51.0, 62.2, 71.9], "local": [51.0, 62.0, 73.0], "ensemble": [50.9, 62.1, 71.9]}
    found = reached(results, write, {"floral_1": floral, **others})
    cells = decided_cells(found, found.configurations[0])
    # FedAvg (1, 2.2, 1.9): p = 0.042, times 3; Ensemble (0.9, 2.1, 1.9): 0.048, times 2; Local (1, 2, 3): 0.074
    assert {name: row["p"].text for name, row in cells.items()} == dict.fromkeys(others, "0.126")
    assert {name: (row["verdict"].text, row["verdict"].note) for name, row in cells.items()} == {
        "fedavg": ("better", "not after Holm"), "local": ("open", ""), "ensemble": ("better", "not after Holm"),
    }  # fmt: skip
    (lead,) = against_reference(found, material(found).styles)
    assert "better in 2, worse in 0, undecided in 1, by" in lead and "in each task: better in 0, worse in 0." in lead


@pytest.mark.parametrize("task", ["digits_rotate", "synthetic_linear"])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_printed_verdict_contradicts_its_interval(results, write, task, seeds):
    """Accuracies, and errors whose ratios are near 1, with differences of all sizes."""
    random = np.random.default_rng(seeds)
    near = {
        name: list(50 + shift + 0.5 * random.normal(size=seeds))
        for name, shift in zip(("floral_1", "fedavg", "local", "ensemble", "fedprox"), (0, 0.1, 0.5, 1, 3), strict=True)
    }
    found = reached(results, write, near, (task,))
    if task == "synthetic_linear":
        found = replace(found, summary=found.summary.with_columns(test_loss=pl.col("test_accuracy")))
    rows = decisions("".join(part.table.html for part in section(material(found)).parts))
    assert len(rows) == 4
    for row in rows:
        row.check()


def test_methods_that_cannot_win_are_counted_apart_with_their_verdicts(results, write):
    label_shift = ("digits_label_shift",)
    found = reached(results, write, {"floral_1": [50.0, 52.0, 54.0], "fedavg": [20.0, 21.8, 24.1]}, label_shift)
    lead = against_reference(found, material(found).styles)
    assert any(
        sentence.startswith("Counted apart: 1 comparison of methods with one model")
        and sentence.endswith(": the method is better in 0, worse in 1, undecided in 0.")
        for sentence in lead
    )
    assert not any("paired comparison" in sentence for sentence in lead)
    assert not any("There are no paired intervals" in sentence for sentence in lead)
    one_seed = replace(found, summary=found.summary.filter(pl.col("seed") == 0))
    assert against_reference(one_seed, material(one_seed).styles)[0].startswith("There are no paired intervals to")


def test_the_best_methods_stand_above_with_what_they_may_hide(results, write):
    found = reached(results, write, {
        "floral_1": [90.0, 91.0, 92.0], "local": [89.8, 91.1, 91.9], "fedavg": [60.0, 61.2, 61.9],
        "ensemble": [99.0, 70.0, 85.0],
    })  # fmt: skip
    best, _ = section(material(found)).parts
    assert best.title.endswith("methods that cannot be told from the best")
    assert "Ensemble" in best.table.html and "FedAvg" not in best.table.html
    said = answer(found, material(found).styles, found.configurations[0])
    assert said.named == [("floral_1", "91.0 %"), ("local", "90.9 %")] and said.far == ["ensemble"]
    order = [best.table.html.index(name) for name in ("FLoRAL", "Local", "Ensemble")]
    assert order == sorted(order), "best mean first, and not by family"
    assert said.note == "1 of 4 are shown to be worse; 3 seeds" and said.reference == "91.0 %, the best mean"


def test_without_the_reference_there_is_nothing_to_decide(results, write):
    assert section(material(reached(results, write, {"fedavg": [50.0, 51.0]}))) is None


def test_six_tasks_are_ranked(results, write):
    by_seed = {"floral_1": [90.0, 91.0], "fedavg": [50.0, 51.0], "local": [70.0, 71.0], "floral_1_optimal": [99.0]}
    found = material(reached(results, write, by_seed, TASKS))
    ranks, why = method_ranks.ranked(found)
    assert why == "" and ranks.tasks == 6
    assert ranks.mean == {"floral_1": 1.0, "local": 2.0, "fedavg": 3.0}, "no oracle is ranked"
    made = section(found)
    assert [figure.name for row in made.figures for figure in row] == ["ranks"]
    # Wilcoxon on 6 tasks has p >= 2/2⁶, of 2 comparisons 0.06
    assert (
        "2 comparisons, the smallest possible p is 0.06" in made.parts[-1].note
        and ">p" not in made.parts[-1].table.html
    )
    assert made.parts[-1].note.startswith("Friedman p = 0.002")


def test_one_task_in_two_settings_is_one_task(results, write):
    runs = [
        make_run("digits_rotate", name, 0, lr=0.01 * (1 + at)) for at in range(6) for name in ("fedavg", "floral_1")
    ]
    for run in runs:
        write(run)
    assert "this suite has 1" in method_ranks.ranked(material(collect("quickstart", runs, results)))[1]


def test_two_methods_are_not_ranked_and_the_page_says_why(results, write, tmp_path):
    runs = [make_run(task, name, 0) for task in TASKS for name in ("fedavg", "floral_1")]
    for run in runs:
        write(run)
    page = read_page(report("quickstart", runs, results, tmp_path / "reports"))
    (found,) = re.findall(r'<section id="decided">.*?</section>', page, re.DOTALL)
    assert "2 methods have a result on all 6 tasks" in found and "<figure" not in found


def test_what_is_equal_bit_by_bit_is_said_and_not_open(results, write):
    found = reached(results, write, {"floral_1": [50.0, 52.0, 54.0], "fedavg": [50.0, 52.0, 54.0]})
    row = decided_cells(found, found.configurations[0])["fedavg"]
    assert row["verdict"].text == "equal" and row["more"] == EMPTY


def test_an_unfinished_grid_is_not_ranked(results, write):
    runs = [make_run(task, name, s) for task in TASKS for name in ("fedavg", "floral_1", "local") for s in (0, 1)]
    for run in runs[:-1]:
        write(run)
    ranks, why = method_ranks.ranked(material(collect("quickstart", runs, results)))
    assert ranks is None and why.endswith("some of the methods' runs are missing or failed.")


@pytest.mark.parametrize(("seventh", "tested"), [("fashion_rotate", True), ("synthetic_linear", False)])
def test_wilcoxon_ranks_differences_of_one_unit_alone(results, write, seventh, tested):
    by_seed = {"floral_1": [90.0, 91.0], "fedavg": [50.0, 51.0], "local": [70.0, 71.0]}
    made = section(material(reached(results, write, by_seed, (*TASKS, seventh))))  # p >= 2/2⁷, of 2 comparisons 0.03
    assert (">Wilcoxon to" in made.parts[-1].table.html) == tested
    assert ("their units differ" in made.parts[-1].note) != tested
