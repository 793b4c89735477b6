"""The report tells tuned values from defaults, marks optima at the edge, and shows what tuning brought."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import run_folders
from printed import read_page

from floral.config.run import Run
from floral.config.searches import tuning
from floral.config.suites import suite_runs, suite_searches
from floral.config.tuned import tuned_values
from floral.report.build import report
from floral.report.collect import collect
from floral.report.compared import MethodRow
from floral.report.sections.base import Material, Part
from floral.report.sections.tuning import _cells, section
from floral.report.style import method_styles
from floral.report.templates import template_yaml

Write = Callable[..., Path]


@pytest.fixture
def gained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuned runs are 7 points better."""
    plain = run_folders.accuracy
    monkeypatch.setattr(run_folders, "accuracy", lambda run: plain(run) + 0.07 * (run.own_rates is not None))


def both(tuned: bool | None = None) -> list[Run]:
    runs = suite_runs("tuned", ["digits_rotate"], ["fedavg", "floral_1"])
    return [run for run in runs if tuned is None or (run.own_rates is not None) == tuned]


def made(results: Path, runs: list[Run]) -> tuple[tuple[MethodRow, ...], tuple[Part, ...]]:
    collected = collect("tuned", runs, results)
    shown, captions = method_styles(collected.methods, template_yaml("styles.yaml")), template_yaml("captions.yaml")
    found = section(Material(collected=collected, styles=shown, captions=captions, figures={}))
    return collected.methods, () if found is None else found.parts


def test_default_and_tuned_stand_side_by_side(results: Path, write: Write, gained: None) -> None:
    for run in both():
        write(run)
    methods, (part,) = made(results, both())
    titles = {one.id: (one.title, one.tuned) for one in methods}
    assert titles["fedavg"] == ("FedAvg", False) and titles["fedavg-tuned"] == ("FedAvg, tuned", True)
    assert "+7.0 ± 0.0" in part.table.html and "60" in part.table.html
    rule = tuning("digits_rotate")
    seeds = "seeds " + ", ".join(map(str, rule.seeds))
    assert len(rule.seeds) > 1 and part.note.startswith(f"{rule.budget} candidates for every method, {seeds}, ")
    assert "config/tuned/digits_rotate.yaml" in part.note


def test_where_all_is_tuned_names_stay_and_the_reference_too(results: Path, write: Write) -> None:
    for run in both(tuned=True):
        write(run)
    methods, (part,) = made(results, both(tuned=True))
    assert [(one.id, one.title) for one in methods] == [("fedavg", "FedAvg"), ("floral_1", "FLoRAL 1 %")]
    assert "difference" not in part.table.html


def test_nothing_tuned_is_no_section(results: Path, write: Write) -> None:
    for run in both(tuned=False):
        write(run)
    _, parts = made(results, both(tuned=False))
    assert parts == ()


def test_edges_and_lost_configurations_are_marked() -> None:
    search = next(iter(suite_searches("tuned", ["digits_rotate"], ["ditto"]).values()))
    first = search.configurations[0]
    entry = tuned_values("digits_rotate")["ditto"].model_copy(
        update={
            "rates": first.rates,
            "params": first.params,
            "losses": (0.25, None, None, *(0.5,) * 9),
            "default": None,
        }
    )
    cells = _cells(search, entry)
    assert cells["lr"].note == "edge" and cells["params"].note == "edge: lam" and "router_lr" not in cells
    assert (cells["ended"].text, cells["best"].text, "default" in cells) == ("10 of 12", "0.250", False)


def test_the_page_has_the_section(results: Path, write: Write, tmp_path: Path) -> None:
    for run in both():
        write(run)
    page = read_page(report("tuned", both(), results, tmp_path / "reports"))
    assert '<section id="tuning">' in page and '<a href="#tuning">its values</a>' in page
    assert (tmp_path / "reports/tuned/tables/tuning_digits_rotate.tex").exists()
