"""What each true cluster gets, and the top-5 accuracy of tasks with many classes; of runs that have kept them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from printed import read_page
from run_folders import make_run, write_run

from floral.config.run import Run
from floral.report.build import report
from floral.report.collect import collect
from floral.report.sections.clusters import cluster_cells


def kept(results: Path, run: Run, **values: Any) -> Run:
    """A finished run whose summary has more than those of earlier versions."""
    summary = write_run(results, run) / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | values))
    return run


def test_each_cluster_has_its_mean_and_the_gap_is_taken_within_a_seed(tmp_path: Path, results: Path) -> None:
    runs = [
        kept(results, make_run("digits_rotate", "fedavg", 0), cluster_accuracy=[0.5, 0.75]),
        kept(results, make_run("digits_rotate", "fedavg", 1), cluster_accuracy=[0.75, 0.5]),
        make_run("digits_rotate", "ensemble", 0),
    ]
    write_run(results, runs[-1])  # of an earlier version
    collected = collect("quickstart", runs, results)
    cells = cluster_cells(collected, collected.configurations[0])
    assert cells.keys() == {"fedavg"} and cells["fedavg"].keys() == {"0", "1", "gap"}
    assert [cells["fedavg"][key].order for key in ("0", "1", "gap")] == [62.5, 62.5, 25.0]
    page = read_page(report("quickstart", runs, results, tmp_path / "reports"))
    (section,) = re.findall(r'<section id="clusters">.*?</section>', page, re.DOTALL)
    assert "4 clients in each cluster." in section and "Accuracy,\u00a0%, of cluster" in section
    assert (tmp_path / "reports/quickstart/tables/clusters_digits_rotate.tex").exists()


def test_a_regression_has_the_worst_decile_too(results: Path) -> None:
    run = kept(results, make_run("synthetic_linear", "fedavg", 0), cluster_loss=[0.5, 2.0], worst_decile_loss=3.0)
    collected = collect("quickstart", [run], results)
    (row,) = cluster_cells(collected, collected.configurations[0]).values()
    assert [row[key].order for key in ("0", "1", "gap", "decile")] == pytest.approx([0.5, 2.0, 4.0, 3.0])


def test_without_clusters_or_their_means_there_is_no_section(tmp_path: Path, results: Path) -> None:
    runs = [kept(results, make_run("digits_dirichlet", "fedavg", 0), cluster_accuracy=[0.5])]
    runs.append(make_run("digits_rotate", "fedavg", 0))
    write_run(results, runs[-1])
    page = read_page(report("quickstart", runs, results, tmp_path / "reports"))
    assert 'id="clusters"' not in page


def test_the_main_table_has_the_top_five_of_many_classes_alone(tmp_path: Path, results: Path) -> None:
    for seed, (classes, shown) in enumerate(((100, True), (10, False))):
        run = kept(results, make_run("digits_rotate", "fedavg", seed), classes=classes, test_top5_accuracy=0.875)
        page = read_page(report("quickstart", [run], results, tmp_path / "reports"))
        assert ("Top-5,\u00a0%" in page) == ("87.5" in page) == shown
