"""The worst clients by their names in the data, and no column of the worst cluster where there is only one."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
from printed import read_page
from run_folders import CLIENTS, make_run, write_run

from floral.report.build import report
from floral.report.collect import collect
from floral.report.worst_clients import MAX_NAMED_CLIENTS, lowest_named, worst

NAMES = [f"site <{'abcdefgh'[client]}>" for client in range(CLIENTS)]


def named(results: Path, variant: str, seed: int, accuracy: list[float], names=NAMES) -> None:
    run = make_run("digits_rotate", variant, seed)
    path = write_run(results, run, names=names) / "clients.parquet"
    pl.read_parquet(path).with_columns(accuracy=pl.Series(accuracy)).write_parquet(path)


def section_of(page: Path) -> str:
    (section,) = re.findall(r'<section id="worst">.*?</section>', read_page(page), re.DOTALL)
    return section


def test_the_clients_with_the_lowest_accuracy_are_named(tmp_path: Path, results: Path) -> None:
    """Client `h` is the lowest in the mean of both seeds, and the names of a seed belong to its clients."""
    rising = [0.2 + 0.1 * client for client in range(CLIENTS)]
    named(results, "fedavg", 0, rising)
    named(results, "fedavg", 1, [*rising[:-1], 0.0], [*NAMES[:-1], "site <z>"])
    runs = [make_run("digits_rotate", "fedavg", seed) for seed in (0, 1)]
    collected = collect("quickstart", runs, results)
    lowest = lowest_named(collected, collected.configurations[0])["fedavg"]
    assert [name for name, _ in lowest] == ["site <z>", *NAMES[: MAX_NAMED_CLIENTS - 1]]
    assert [round(accuracy, 6) for _, accuracy in lowest] == [0.0, 0.2, 0.3, 0.4, 0.5]
    section = section_of(report("quickstart", runs, results, tmp_path / "reports"))
    assert "site &lt;z&gt;" in section and "site &lt;a&gt;" in section and "<z>" not in section
    assert "20.0 %" in section and "site &lt;h&gt;" not in section
    assert (tmp_path / "reports/quickstart/tables/lowest_digits_rotate.tex").exists()


def test_runs_with_and_without_names_are_in_one_report(tmp_path: Path, results: Path) -> None:
    """A run of an earlier version has no column `name`, and a run on data without names has nulls in it."""
    for variant, names in (("floral_1", NAMES), ("fedavg", None), ("local", [None] * CLIENTS)):
        write_run(results, make_run("digits_rotate", variant, 0), names=names)
    runs = [make_run("digits_rotate", variant, 0) for variant in ("floral_1", "fedavg", "local")]
    collected = collect("quickstart", runs, results)
    assert lowest_named(collected, collected.configurations[0]).keys() == {"floral_1"}
    section = section_of(report("quickstart", runs, results, tmp_path / "reports"))
    assert "site &lt;a&gt;" in section
    figure = pl.read_csv(tmp_path / "reports/quickstart/figures/routes_digits_rotate.csv")
    assert figure.sort("position", "cluster")["name"].to_list()[:2] == [NAMES[0]] * 2


def test_without_names_no_client_is_named(tmp_path: Path, results: Path) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    write_run(results, run)
    section = section_of(report("quickstart", [run], results, tmp_path / "reports"))
    assert "lowest accuracy on" not in section and "Worst cluster" in section


def test_a_single_cluster_has_no_worst_cluster(tmp_path: Path, results: Path) -> None:
    """Its accuracy is that of all clients, which the main table shows."""
    run = make_run("digits_dirichlet", "fedavg", 0)
    path = write_run(results, run) / "clients.parquet"
    pl.read_parquet(path).with_columns(cluster=pl.lit(0, pl.Int32)).write_parquet(path)
    collected = collect("quickstart", [run], results)
    (configuration,) = collected.configurations
    assert worst(collected, configuration, "cluster") == [] and worst(collected, configuration, "decile")
    section = section_of(report("quickstart", [run], results, tmp_path / "reports"))
    assert "Worst cluster, " not in section and "Worst decile, " in section
    assert not list((tmp_path / "reports/quickstart/figures").glob("worst_cluster*"))
