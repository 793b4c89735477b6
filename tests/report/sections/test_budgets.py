"""The comparison at equal spending, on curves that are read by hand."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from run_folders import make_run

from floral.report.collect import collect
from floral.report.sections.base import Material
from floral.report.sections.budgets import RULES, Reading, level, section
from floral.report.style import Style
from floral.report.templates import template_yaml

BYTES = {"fedavg": 100, "floral_1": 300, "ensemble": 400, "local": 0, "floral_1_optimal": 50}
"""Sent in a round of seed 0; twice that in seed 1."""


def style(name):
    group = "oracle" if name == "floral_1_optimal" else "method"
    return Style(id=name, title=name, short=name, family="F", group=group, colour="#aa0000", dashed=False)


STYLES = {name: style(name) for name in BYTES}


def accuracy(name, round_, seed):
    """The more rounds the better, but for a fall after round 20."""
    return 0.3 + 0.01 * min(round_, 20) - 0.002 * max(0, round_ - 20) + 0.001 * seed + 0.01 * (name == "floral_1")


def sent(run):
    return BYTES[run.variant.name] * (1 + run.seed)


def validation(round_):
    """Least at rounds 10 and 20 alike."""
    return {0: 3.0, 10: 1.0, 20: 1.0, 30: 2.0, 40: 2.5}[round_]


@pytest.fixture
def collected(results, write):
    runs = [make_run("digits_rotate", name, seed) for name in BYTES for seed in (0, 1)]
    for run in runs:
        write(run)
    rows = [
        (
            run.variant.name,
            run.seed,
            metric,
            round_,
            BYTES[run.variant.name] * round_ * (1 + run.seed),
            10.0 * round_,
            value,
        )
        for run in runs
        for round_ in (0, 10, 20, 30, 40)
        for metric, value in (
            ("test/accuracy", accuracy(run.variant.name, round_, run.seed)),
            ("validation/loss", validation(round_)),
        )
    ]
    found = collect("quickstart", runs, results)
    types = {"method_id": pl.String, "seed": found.curves["seed"].dtype, "metric": pl.String, "round": pl.Int32,
             "bytes": pl.Int64, "client_passes": pl.Float64, "value": pl.Float64}  # fmt: skip
    curves = pl.DataFrame(rows, schema=types, orient="row").with_columns(configuration=pl.lit("digits_rotate"))
    return replace(found, curves=curves)


def rounds(found, rule):
    return {name: {seed: one.round for seed, one in seeds.items()} for name, seeds in found.readings[rule].items()}


def test_everyone_is_read_at_the_last_evaluation_within_what_the_thriftiest_method_spends(collected):
    """fedavg ends at 4000 bytes (8000 in seed 1): floral_1 has sent 3000 at round 10 and 6000 at round 20."""
    found = level(collected, STYLES, collected.configurations[0], "bytes")
    assert found.limits == {0: 4000.0, 1: 8000.0}
    assert rounds(found, "last") == {
        "fedavg": {0: 40, 1: 40}, "floral_1": {0: 10, 1: 10}, "ensemble": {0: 10, 1: 10},
        "local": {0: 40, 1: 40}, "floral_1_optimal": {0: 40, 1: 40},
    }  # fmt: skip
    assert found.readings["last"]["floral_1"][1] == Reading(value=pytest.approx(0.411), round=10)


def test_a_budget_that_ends_on_an_evaluation_includes_it_whatever_the_rounding(collected):
    slightly = pl.when(pl.col("method_id") == "ensemble").then(pl.col("client_passes") * (1 + 1e-12))
    moved = replace(
        collected, curves=collected.curves.with_columns(client_passes=slightly.otherwise(pl.col("client_passes")))
    )
    found = level(moved, STYLES, moved.configurations[0], "client_passes")
    assert {round_ for seeds in rounds(found, "last").values() for round_ in seeds.values()} == {40}


def test_the_selected_round_has_the_least_validation_loss_within_the_budget_and_the_first_of_equals(collected):
    """Not the best test accuracy, which is that of round 20."""
    found = level(collected, STYLES, collected.configurations[0], "round")
    assert {round_ for seeds in rounds(found, "selected").values() for round_ in seeds.values()} == {10}
    later = pl.when(pl.col("metric") == "validation/loss").then(-pl.col("round").cast(pl.Float64))
    worse = replace(collected, curves=collected.curves.with_columns(value=later.otherwise(pl.col("value"))))
    found = level(worse, STYLES, worse.configurations[0], "bytes")
    assert rounds(found, "selected") == rounds(found, "last")


def test_test_rows_select_nothing(collected):
    """Other test results change what is read, never where."""
    upside_down = pl.when(pl.col("metric") == "test/accuracy").then(1 - pl.col("value")).otherwise(pl.col("value"))
    other = replace(collected, curves=collected.curves.with_columns(value=upside_down))
    for budget in ("round", "bytes", "client_passes"):
        ours, theirs = (level(one, STYLES, one.configurations[0], budget) for one in (collected, other))
        assert [rounds(ours, rule) for rule in RULES] == [rounds(theirs, rule) for rule in RULES]
        assert ours.readings["last"]["fedavg"] != theirs.readings["last"]["fedavg"]


def parts(collected):
    figures = {"digits_rotate": {}}
    return section(
        Material(collected=collected, styles=STYLES, captions=template_yaml("captions.yaml"), figures=figures)
    ).parts


def test_the_table_has_all_budgets_both_rounds_and_paired_differences(collected):
    material = Material(
        collected=collected, styles=STYLES, captions=template_yaml("captions.yaml"), figures={"digits_rotate": {}}
    )
    (part,) = section(material).parts
    for told in ("Equal rounds: 40", "Equal bytes: 4\u2009k to 8\u2009kB", "Equal client compute: 400 passes"):
        assert told in part.table.html, told
    assert part.table.html.count(">Last round<") == part.table.html.count(">Selected round<") == 3
    # the same round, 1 point apart in both seeds
    assert "<small>\u22121.0 ± 0.0</small>" in part.table.html


def test_without_validation_rows_nothing_is_selected(collected):
    bare = replace(collected, curves=collected.curves.filter(pl.col("metric") == "test/accuracy"))
    (part,) = parts(bare)
    assert "Selected round" not in part.table.html and "Last round" in part.table.html
