"""Routes over rounds: whose are drawn, how clusters are matched, what is thinned."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from printed import read_page
from run_folders import make_run, write_run

from floral.report.build import report
from floral.report.charts.render import PRESETS
from floral.report.collect import collect
from floral.report.figures.routes import recovery
from floral.report.route_frames import routes_over_rounds
from floral.report.style import method_styles
from floral.report.templates import template_yaml


def routes(rounds: list[int], clients: int) -> pl.DataFrame:
    """Even clients are of cluster 0 and end on learned cluster 1, odd ones the other way round, but for client 0."""
    rows = []
    for at in rounds:
        for client in range(clients):
            ends = 0 if client == 0 else 1 - client % 2
            weight = 0.5 if at == 0 else 0.9
            route = [weight, 1 - weight] if ends == 0 else [1 - weight, weight]
            rows.append({"round": at, "client": client, "cluster": client % 2, "route": route})
    return pl.DataFrame(rows).cast({name: pl.Int32 for name in ("round", "client", "cluster")})


def test_clusters_are_matched_by_all_clients_and_shown_ones_thinned() -> None:
    frame, right = routes_over_rounds(routes([0, 2, 4, 6, 8], 8), clients=3, rounds=3)
    assert right == 7 / 8
    assert sorted(frame["round"].unique()) == [0, 4, 8] and frame["until"].max() == 12
    ends = frame.filter(pl.col("round") == 8)
    assert ends["client"].to_list() == [0, 2, 4, 1, 3, 5]  # by true cluster
    assert ends["cluster"].to_list() == [1, 0, 0, 1, 1, 1] and set(ends["weight"]) == {0.9}


def test_the_first_done_seed_of_one_variant_has_a_figure(tmp_path: Path) -> None:
    runs = [make_run("digits_rotate", name, seed) for name in ("fedavg", "floral_1") for seed in (0, 1)]
    for run in runs:
        folder = write_run(tmp_path / "results", run, "diverged" if run.seed == 0 else "done")
        routes([0, 2, 4], 8).write_parquet(folder / "routes.parquet")
    page = report("quickstart", runs, tmp_path / "results", tmp_path / "reports")
    assert [path.name for path in page.parent.glob("figures/followed_*.csv")] == ["followed_digits_rotate.csv"]
    text = read_page(page)
    assert "At the end, 88 % of the clients give" in text.replace("\u00a0", " ") and "seed 1: learned cluster" in text


def test_less_mismatch_is_named_first_and_more_recovery(tmp_path: Path) -> None:
    runs = [make_run("digits_rotate", name, 0) for name in ("floral_1", "floral_10")]
    for run, ari, mismatch in zip(runs, (0.9, 0.4), (0.2, 1.5), strict=True):
        path = write_run(tmp_path, run) / "metrics.parquet"
        frame = pl.read_parquet(path).filter(pl.col("split") != "route")
        rows = frame.filter(pl.col("metric") == "loss", pl.col("split") == "test").with_columns(split=pl.lit("route"))
        more = [
            rows.with_columns(metric=pl.lit(metric), value=pl.lit(value))
            for metric, value in (("ari", ari), ("mismatch", mismatch))
        ]
        pl.concat([frame, *more]).write_parquet(path)
    collected = collect("quickstart", runs, tmp_path)
    shown = list(method_styles(collected.methods, template_yaml("styles.yaml")).values())
    for kind in ("recovery", "mismatch"):
        figure = recovery(collected, shown, collected.configurations[0], PRESETS["column"], kind)
        assert figure is not None and figure.see.index("FLoRAL 1") < figure.see.index("FLoRAL 10"), figure
