"""The published table beside ours: a rule that can be checked by hand, and a control that it must not pass."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import polars as pl
import pytest
from printed import read_page

from floral.config.suites import suite_runs
from floral.core.intervals import t_interval
from floral.report.build import report
from floral.report.collect import collect
from floral.report.paired import Paired
from floral.report.sections import published
from floral.report.sections.claims import claim, claim_cells
from floral.report.sections.published import Published, compare, comparisons, verdict_counts
from floral.report.statistics import welch_difference


def sample(mean: float, deviation: float) -> list[float]:
    """Three values with that mean and standard deviation."""
    return [mean - deviation, mean, mean + deviation]


def test_welchs_interval_by_hand():
    # s²/n = 1/3 twice: error √(2/3), ν = (2/3)²/(2·(1/3)²/2) = 4, t(4, 0.975) = 2.7764
    found = welch_difference([1.0, 2.0, 3.0], 5.0, 1.0, 3)
    assert found.mean == -3 and found.half_width == pytest.approx(2.7764 * math.sqrt(2 / 3), abs=1e-3)
    assert welch_difference([1.0], 5.0, 1.0, 3).low is None
    assert welch_difference([2.0, 2.0], 1.0, 0.0, 3).half_width == 0


@pytest.mark.parametrize(
    ("ours", "cell", "verdict"),
    [
        (sample(91.0, 0.5), Published(mean=91.5, deviation=0.6), "agrees"),
        (sample(93.0, 0.1), Published(mean=91.5, deviation=0.1), "agrees"),  # 1.5 points, surely, and within 3
        (sample(95.5, 0.5), Published(mean=91.5, deviation=0.6), "differs"),
        (sample(91.5, 5.0), Published(mean=91.5, deviation=0.6), "inconclusive"),
        (sample(91.5, 0.0), Published(mean=91.5, deviation=9.9), "inconclusive"),
        ([91.5], Published(mean=91.5, deviation=0.6), "inconclusive"),
    ],
)
def test_the_rule(ours, cell, verdict):
    assert compare(ours, cell).verdict == verdict
    assert compare(ours, cell, comparable=False).verdict == "not comparable"


def test_a_published_spread_can_make_agreement_impossible():
    # the least t(2·(1 + r)², 0.95)·√(1 + r) is 2.52, at r = 0.6: 2.52·s/√3 exceeds 3 from s = 2.06 on
    assert not Published(mean=50, deviation=2.05).undecidable and Published(mean=50, deviation=2.08).undecidable
    ours = [50 + 1.25 * x for x in (-1, 1) * 8]  # r = 0.06·… of many seeds
    assert compare(ours, Published(mean=50, deviation=1.8)).verdict == "agrees"


def test_swapped_labels_are_flagged():
    """The published values themselves as ours: none differs, until Ensemble and FLoRAL 1 % change names."""
    table = published.published()
    assert len(table) == 80

    def count(name: dict[str, str]) -> dict[str, int]:
        verdicts = [
            compare(sample(cell.mean, cell.deviation), table[task, name.get(variant, variant)]).verdict
            for (task, variant), cell in table.items()
        ]
        return {verdict: verdicts.count(verdict) for verdict in ("agrees", "differs", "inconclusive")}

    assert count({})["differs"] == 0 and count({})["agrees"] > 40
    assert count({"ensemble": "floral_1", "floral_1": "ensemble"})["differs"] >= 8


def test_a_claim_holds_fails_or_stays_open():
    rival = {0: 50.0, 1: 60.0, 2: 55.0}
    above = {seed: value + 2 + 0.1 * seed for seed, value in rival.items()}

    def said(own, other):
        return claim(Paired(values={"own": own, "other": other}).difference("own", "other"))

    assert said(above, rival) == "holds" and said(rival, above) == "fails"
    for open_ in ({0: 52.0}, {0: 52.0, 1: 58.0, 2: 56.0}):
        assert said(open_, rival) == "undecided"


def test_adaptors_that_serve_nobody_are_no_personalisation():
    """Better than a mixture, but worse than one model for all, with routes that find no cluster."""
    better, worse = t_interval([4.0, 5.0, 6.0]), t_interval([-4.0, -5.0, -6.0])
    assert claim(better, worse, ari=0.01) == "no personalisation"
    assert claim(better, better, ari=0.01) == claim(better) == "holds"
    assert claim(better, worse, ari=0.6) == "no personalisation", "one model for all is better"
    unclear = t_interval([-4.0, 5.0, 1.0])
    assert claim(better, unclear, ari=0.01) == "no personalisation" and claim(better, unclear, ari=0.6) == "holds"


def test_a_claim_stands_beside_fedavg_and_the_clusters_found(results, write, tmp_path):
    runs = official(["floral_1", "ensemble", "fedavg"])
    for run in runs:
        write(run)
    found = collect("mine", runs, results)
    floral_1, configuration = "floral_1", found.configurations[0]
    found = replace(found, summary=found.summary.with_columns(ari=pl.lit(0.01)))
    cell = claim_cells(found, [configuration], "scarce")[floral_1][configuration.id]
    assert cell.text == "holds" and re.search(r"; minus FedAvg: \+25\.0 .*; ARI 0\.01$", cell.note)


def official(variants):
    runs = suite_runs("paper_mnist_reduced", variants=variants, seeds=[0, 1, 2])
    return [run for run in runs if run.fidelity.name == "official"]


def test_only_what_has_the_published_values_is_compared(results, write):
    runs = official(["floral_1", "fedavg"])
    changed = [run.model_copy(update={"task": run.task.model_copy(update={"rounds": 300})}) for run in runs]
    for run in [*runs, *changed]:
        write(run)
    (rotate, *_), (other, *_) = (collect("mine", some, results).configurations for some in (runs, changed))
    found = comparisons(collect("mine", runs, results), rotate)
    assert set(found) == {"floral_1", "fedavg"}
    assert found["floral_1"].mean.mean == pytest.approx(84) and found["floral_1"].published.mean == 73.1
    assert comparisons(collect("mine", changed, results), other) == {}
    assert verdict_counts("official", list(found.values())).startswith(
        "Of 2 published cells in this report under official"
    )


def test_the_margin_is_varied_and_the_side_of_the_differences_is_tested():
    cells = [
        compare(sample(50 + shift, 0.1), Published(mean=50, deviation=0.1)) for shift in (-4, -2, -2, -2, -1, -0.5)
    ]
    wide = compare(sample(40, 0.1), Published(mean=50, deviation=9))
    text = verdict_counts("official", [*cells, wide, compare(sample(60, 1), Published(mean=50, deviation=1), False)])
    # a difference of -0.5 has the 90 % interval ±0.17; the wide cell agrees at no margin
    assert "1 within ±1, 2 within ±2, 5 within ±3, 5 within ±4, 6 within ±5, 6 within ±6." in text
    assert "In 1 of the inconclusive cells the published spread is too wide" in text
    assert "lower one in 7 of 7 cells (sign test: p 0.016;" in text, "2 / 2⁷, without the cell that is not comparable"


def test_the_page_has_both_tables(results, write, tmp_path):
    runs = official(["floral_1", "ensemble", "fedavg"])
    for run in runs:
        write(run)
    page = read_page(report("paper_mnist_reduced", runs, results, tmp_path / "reports"))
    assert "Beside the published table" in page and "Which of the paper" in page
    assert "Of 6 published cells" in page and "holds" in page
    assert (tmp_path / "reports/paper_mnist_reduced/tables/claim_scarce.tex").exists()
