"""`floral bench report`: the fixed set, its table and its figures under reports/bench/."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from floral.bench import pictures
from floral.bench.cases import CASES, Case, Setting, holds, runs, scale_row
from floral.bench.contenders import prepare, settle
from floral.bench.processes import in_own_process
from floral.bench.scale import scale as measure_scale
from floral.io.files import atomic

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
    """Measure every case, write reports/bench/{bench.json, bench.md, *.svg, *.pdf}, and return the rows.

    Raises:
        ConfigError: data are missing; said before anything is measured.
    """
    cases = list(cases)
    prepare(runs(cases), results, data_dir, also=["mnist"])
    setting = Setting(results=results, backend=backend, threads=threads, rounds=rounds)
    rows = []
    for case in cases:
        began = time.perf_counter()
        rows.append(in_own_process(measured, case, setting))
        say(f"{line(rows[-1])}, in {time.perf_counter() - began:.0f} s")
    scaled = scale(results=results, data_dir=data_dir, backend=backend, threads=threads, rounds=rounds, say=say)
    rows.append(scale_row(scaled))
    say(line(rows[-1]))
    write(reports / FOLDER, rows, scaled, threads)
    return rows


def measured(case: Case, setting: Setting) -> dict[str, Any]:
    """A case's row."""
    settle(setting.threads)
    return case.row(case.measure(case, setting))


def scale_report(
    *, results: Path, reports: Path, data_dir: Path | None, backend: str, threads: int, rounds: int | None
) -> dict[str, Any]:
    """`floral bench scale`: the points, and their figure under reports/bench/."""
    scaled = measure_scale(results=results, data_dir=data_dir, backend=backend, threads=threads, rounds=rounds, say=say)
    draw(reports / FOLDER, [pictures.scale(scaled)])
    atomic(reports / FOLDER / "scale.json", as_json(scaled))
    return scaled


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def line(row: Mapping[str, Any]) -> str:
    sign = "≤" if row["direction"] == "max" else "≥"
    verdict = "holds" if holds(row) else "MISSED"
    return f"{row['case']}: {row['ratio']:.4g} (limit {sign} {row['limit']:g}: {verdict})"


def scale_lines(scaled: Mapping[str, Any]) -> list[str]:
    few, many = scaled["compared"]
    points = [
        f"{point['variant']} K = {point['clients']:,}: {1e3 * point['seconds_per_round']:.3g} ms a round, "
        f"{point['resident_bytes'] / 1e6:.0f} MB resident, {point['mapped_bytes'] / 1e6:.0f} MB mapped"
        for point in scaled["points"]
    ]
    return points + [
        f"{variant} K = {many:,} to K = {few:,}: {found['ratio']:.3f}, spread {found['spread']:.3f}"
        for variant, found in scaled["ratios"].items()
    ]


# ------------------------------------------------------------------------------------------------ files


def write(folder: Path, rows: list[dict[str, Any]], scaled: Mapping[str, Any], threads: int) -> None:
    """The table as JSON and as markdown, and both figures."""
    about = {
        "machine": platform.processor() or platform.machine(),
        "threads": threads,
        "torch": torch.__version__,
        "rows": rows,
        "scale": scaled,
    }
    draw(folder, [pictures.ratios(rows), pictures.scale(scaled)])
    atomic(folder / "bench.json", as_json(about))
    atomic(folder / "bench.md", markdown(about).encode())


def draw(folder: Path, drawn: Iterable[Any]) -> None:
    for figure in drawn:
        atomic(folder / f"{figure.name}.svg", figure.svg.encode())
        atomic(folder / f"{figure.name}.pdf", figure.pdf)


def as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def markdown(about: Mapping[str, Any]) -> str:
    """The rows as a table: ratio, spread, limit, seconds per round of both sides."""
    lines = [
        f"# Rounds at the price of the arithmetic: {about['threads']} threads, torch {about['torch']}",
        "",
        "Each ratio is the median over interleaved pairs of blocks in one process; ± is half the interquartile range.",
        "",
        "| case | measured | limit | | s per round |",
        "|---|---|---|---|---|",
    ]
    for row in about["rows"]:
        sign = "≤" if row["direction"] == "max" else "≥"
        seconds = " to ".join(f"{value:.4g}" for value in row["seconds"])
        lines.append(
            f"| {row['case']} | {row['ratio']:.3g} ± {row['spread'] / 2:.2g} | {sign} {row['limit']:g} "
            f"| {'holds' if holds(row) else '**missed**'} | {seconds} |"
        )
    lines += ["", "| clients | variant | ms per round | resident MB | mapped MB |", "|---|---|---|---|---|"]
    lines += [
        f"| {point['clients']:,} | {point['variant']} | {1e3 * point['seconds_per_round']:.3g} "
        f"| {point['resident_bytes'] / 1e6:.0f} | {point['mapped_bytes'] / 1e6:.0f} |"
        for point in about["scale"]["points"]
    ]
    return "\n".join(lines) + "\n"
