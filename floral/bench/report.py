"""`floral bench report`: measure all cases of the benchmark, and write their table and figures."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from floral.bench import figures
from floral.bench.cases import CASES, Case, Options, holds, runs, scale_row
from floral.bench.machine import watched
from floral.bench.prepare import prepare
from floral.bench.processes import in_new_process
from floral.bench.scale import scale as measure_scale
from floral.core.process import configure_process
from floral.io.files import atomic
from floral.report.charts.render import Figure

FOLDER = "bench"
Scale = Callable[..., dict[str, Any]]


def report(
    *,
    results: Path,
    reports: Path,
    data_dir: Path | None,
    backend: str,
    threads: int,
    rounds: int | None,
    cases: Iterable[Case] = CASES,
    scale: Scale = measure_scale,
) -> list[dict[str, Any]]:
    """Measure every case, write the table and the figures to reports/bench/, and return the rows of the table.

    The files are bench.json, bench.md, and each figure as SVG and PDF.

    Raises:
        ConfigError: data of a case without `packages` are missing. It is raised before anything is measured.
    """
    cases = list(cases)
    missing = [case.missing(results, data_dir) for case in cases]
    complete = [case for case, reason in zip(cases, missing, strict=True) if reason is None]
    prepare(runs(complete), results, data_dir, also=["mnist"])
    options = Options(results=results, backend=backend, threads=threads, rounds=rounds)
    rows = []
    for case, reason in zip(cases, missing, strict=True):
        began = time.perf_counter()
        rows.append(in_new_process(measure, case, options) if reason is None else case.row_without_result(reason))
        log(f"{line(rows[-1])}, in {time.perf_counter() - began:.0f} s")
    scale_result = scale(results=results, data_dir=data_dir, backend=backend, threads=threads, rounds=rounds, log=log)
    rows.append(scale_row(scale_result))
    log(line(rows[-1]))
    write(reports / FOLDER, rows, scale_result, threads)
    return rows


def measure(case: Case, options: Options) -> dict[str, Any]:
    """Measure one case, and return its row of the table."""
    configure_process(options.threads)
    return case.row(watched(case.measure, case, case.options(options)))


def scale_report(
    *, results: Path, reports: Path, data_dir: Path | None, backend: str, threads: int, rounds: int | None
) -> dict[str, Any]:
    """`floral bench scale`: measure the cost of a round at several numbers of clients, and return the result.

    The result is also written to reports/bench/, as JSON and as a figure.
    """
    result = measure_scale(results=results, data_dir=data_dir, backend=backend, threads=threads, rounds=rounds, log=log)
    write_figures(reports / FOLDER, [figures.scale(result)])
    atomic(reports / FOLDER / "scale.json", as_json(result))
    return result


def log(message: str) -> None:
    """Print a line of progress to standard error."""
    print(message, file=sys.stderr, flush=True)


def line(row: Mapping[str, Any]) -> str:
    """Return one row of the table as a line of text."""
    if row["ratio"] is None:
        return f"{row['case']}: not measured: {row['missing']}"
    sign = "≤" if row["direction"] == "max" else "≥"
    verdict = "holds" if holds(row) else "MISSED"
    unreliable = f"; not reliable: {row['disturbance']}" if row["disturbance"] else ""
    return f"{row['case']}: {row['ratio']:.4g} (limit {sign} {row['limit']:g}: {verdict}){unreliable}"


def scale_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the result of `floral bench scale` as lines of text."""
    few, many = result["compared"]
    points = [
        f"{point['variant']} K = {point['clients']:,}: {1e3 * point['seconds_per_round']:.3g} ms per round, "
        f"{point['resident_bytes'] / 1e6:.0f} MB resident, {point['mapped_bytes'] / 1e6:.0f} MB mapped"
        for point in result["points"]
    ]
    return points + [
        f"{variant} K = {many:,} / K = {few:,}: {comparison['ratio']:.3f}, spread {comparison['spread']:.3f}"
        for variant, comparison in result["ratios"].items()
    ]


# ------------------------------------------------------------------------------------------------ files


def write(folder: Path, rows: list[dict[str, Any]], scale_result: Mapping[str, Any], threads: int) -> None:
    """Write the table as JSON and as Markdown, and write both figures."""
    content = {
        "machine": platform.processor() or platform.machine(),
        "threads": threads,
        "torch": torch.__version__,
        "rows": rows,
        "scale": scale_result,
    }
    write_figures(folder, [figures.ratios(rows), figures.scale(scale_result)])
    atomic(folder / "bench.json", as_json(content))
    atomic(folder / "bench.md", markdown(content).encode())


def write_figures(folder: Path, drawn: Iterable[Figure]) -> None:
    """Write each figure as SVG and PDF."""
    for figure in drawn:
        atomic(folder / f"{figure.name}.svg", figure.svg.encode())
        atomic(folder / f"{figure.name}.pdf", figure.pdf)


def as_json(value: Any) -> bytes:
    """Return the value as indented JSON in UTF-8, with a final newline."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def markdown(content: Mapping[str, Any]) -> str:
    """Return the measured cases and the result of `floral bench scale` as Markdown tables."""
    lines = [
        f"# Cost of a round: {content['threads']} threads, torch {content['torch']}",
        "",
        "Each ratio is the median over interleaved pairs of blocks in one process; ± is half the interquartile range.",
        "",
        "| case | measured | limit | | s per round |",
        "|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        sign = "≤" if row["direction"] == "max" else "≥"
        if row["ratio"] is None:
            lines.append(f"| {row['case']} | not measured | {sign} {row['limit']:g} | | |")
            continue
        verdict = "**not reliable**" if row["disturbance"] else "holds" if holds(row) else "**missed**"
        seconds = " / ".join(f"{value:.4g}" for value in row["seconds"])
        lines.append(
            f"| {row['case']} | {row['ratio']:.3g} ± {row['spread'] / 2:.2g} | {sign} {row['limit']:g} "
            f"| {verdict} | {seconds} |"
        )
    disturbed = [f"- {row['case']}: {row['disturbance']}" for row in content["rows"] if row["disturbance"]]
    if disturbed:
        lines += ["", "Other work disturbed these measurements. Repeat them on an idle machine:", "", *disturbed]
    if unmeasured := [f"- {row['case']}: {row['missing']}" for row in content["rows"] if row["ratio"] is None]:
        lines += ["", "These cases were not measured:", "", *unmeasured]
    lines += ["", "| clients | variant | ms per round | resident MB | mapped MB |", "|---|---|---|---|---|"]
    lines += [
        f"| {point['clients']:,} | {point['variant']} | {1e3 * point['seconds_per_round']:.3g} "
        f"| {point['resident_bytes'] / 1e6:.0f} | {point['mapped_bytes'] / 1e6:.0f} |"
        for point in content["scale"]["points"]
    ]
    return "\n".join(lines) + "\n"
