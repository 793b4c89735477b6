"""Official beside official with one switch corrected, and beside corrected."""

from __future__ import annotations

import re
from dataclasses import replace

import polars as pl
from printed import read_page
from run_folders import make_run

from floral.config import catalogue
from floral.config.suites import suite_runs
from floral.report.build import report
from floral.report.collect import collect
from floral.report.sections.corrections import corrected_configurations, correction_cells
from floral.report.sections.published import comparisons


def runs():
    kinds = [catalogue.fidelity("official"), catalogue.fidelity("official", {"batches": "reshuffled"})]
    kinds.append(catalogue.fidelity("corrected"))
    made = [make_run("digits_rotate", name, seed) for name in ("fedavg", "floral_1") for seed in (0, 1)]
    return [run.model_copy(update={"fidelity": kind}) for kind in kinds for run in made]


def test_each_correction_has_its_paired_difference(results, write):
    for run in runs():
        write(run)
    found = collect("quickstart", runs(), results)
    assert [dict(one.switches) for one in found.configurations] == [{}, {"batches": "reshuffled"}, {}]
    ends = [one.title.removeprefix(one.task.title) for one in found.configurations]
    assert ends == [", fidelity official", ", fidelity official, batches reshuffled", ", fidelity corrected"]
    second = found.configurations[1].id
    more = pl.when((pl.col("configuration") == second) & (pl.col("method_id") == "floral_1")).then(
        0.1 + pl.col("seed") / 50
    )
    found = replace(
        found, summary=found.summary.with_columns(test_accuracy=pl.col("test_accuracy") + more.otherwise(0.0))
    )
    others = corrected_configurations(found, found.configurations[0])
    assert list(others) == ["batches: reshuffled", "corrected"]
    cells = correction_cells(found, found.configurations[0], others)
    assert cells["floral_1"]["batches: reshuffled"].text.startswith("+11.0 ±")  # 10 and 12 points
    assert cells["floral_1"]["batches: reshuffled"].quiet and cells["fedavg"]["corrected"].text == "0.0 ± 0.0"


def test_the_page_has_the_section_only_with_both(results, write, tmp_path):
    for run in runs():
        write(run)
    page = read_page(report("quickstart", runs(), results, tmp_path / "reports"))
    (section,) = re.findall(r'<section id="corrections">.*?</section>', page, re.DOTALL)
    assert (
        "batches: reshuffled" in section
        and "correction of <code>evaluation</code> does not change the training" in section
    )
    page = read_page(report("quickstart", runs()[:4], results, tmp_path / "reports"))
    assert 'id="corrections"' not in page


def test_a_turned_switch_has_tables_and_no_figures(results, write, tmp_path):
    for run in runs():
        write(run)
    page = report("quickstart", runs(), results, tmp_path / "reports")
    first, turned, last = (one.id for one in collect("quickstart", runs(), results).configurations)
    drawn = {path.stem for path in (page.parent / "figures").glob("*.svg")}
    assert {f"result_{first}", f"result_{last}"} <= drawn and not [name for name in drawn if name.endswith(turned)]
    assert "Configurations without figures: 1." in read_page(page)
    report("quickstart", runs()[4:8], results, tmp_path / "reports")
    assert list((page.parent / "figures").glob("result_*.svg")), (
        "where no setting has the switch as it was, it is drawn"
    )


def test_a_corrected_switch_is_not_compared_with_the_published_table(results, write):
    (run,) = suite_runs("paper_cifar10_reduced", ["cifar10_rotate_reduced"], ["floral_1"], [0])
    turned = run.model_copy(update={"fidelity": catalogue.fidelity("official", {"batches": "reshuffled"})})
    for one in (run, turned):
        write(one)
    found = collect("paper_cifar10_reduced", [run, turned], results)
    assert [len(comparisons(found, configuration)) for configuration in found.configurations] == [1, 0]


def test_the_suite_corrects_one_switch_at_a_time():
    kinds = {run.fidelity.model_dump_json(): run.fidelity for run in suite_runs("quirks")}.values()
    official = catalogue.fidelity("official").switches
    changed = [
        sum(kind[name] != value for name, value in official.items()) for kind in kinds if kind.name == "official"
    ]
    assert sorted(changed) == [0, *[1] * 10] and sum(kind.name == "corrected" for kind in kinds) == 1
