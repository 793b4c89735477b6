"""Write the leaderboard of one or several suites: a page and leaderboard.json, in the folder of the reports."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.suites import suite_runs
from floral.core.intervals import Interval
from floral.core.precision import Precision
from floral.io.files import atomic
from floral.report import sentences
from floral.report.collect import collect
from floral.report.leaderboard import COSTS, Board, Entry, boards, families
from floral.report.style import method_styles
from floral.report.suites_page import LEADERBOARD, write_suites_page
from floral.report.summarise import result_unit, usual_seeds
from floral.report.tables import amount, interval_text, number
from floral.report.templates import embedded, environment, template_yaml

VALUES = "leaderboard.json"


def leaderboard(suites: Sequence[str], results: Path, reports: Path, precision: Precision = "fp32") -> Path:
    """Rank the methods of these suites over all their tasks, and return the path of the page.

    The runs are read from the folder `results`. A method with a missing, failed or diverged run is named, but not
    ranked.

    Raises:
        ConfigError: a result file cannot be read, or no two methods have a result on every task.
    """
    suites = list(dict.fromkeys(suites))
    runs: dict[Path, Run] = {}
    for suite in suites:
        runs |= {run.folder: run for run in suite_runs(suite, precision=precision)}
    collected = collect(" ".join(suites), runs.values(), results)
    styles = method_styles(collected.methods, template_yaml("styles.yaml"))
    ranked = boards(collected, styles)
    if not ranked:
        unfinished = f"{len(collected.unfinished)} of {len(runs)} runs have no result"
        raise ConfigError(
            f"{', '.join(suites)}: no two methods have a result on every task ({unfinished} in {results}); finish the "
            f'runs with `snakemake --profile local --config suite="[{",".join(suites)}]"`, or name suites whose '
            "methods have run on the same tasks"
        )
    values = {"suites": suites, "boards": [_values(board) for board in ranked]}
    page = environment().get_template("leaderboard.html.j2").render(
        suites=[sentences.suite(suite) for suite in suites], boards=ranked, families=families, costs=COSTS,
        state=sentences.state(collected), usual=usual_seeds(collected), reported=_reported(suites, reports),
        number=number, amount=amount, position=_position, spread=_spread, text=_text, **embedded(),
    )  # fmt: skip
    reports.mkdir(parents=True, exist_ok=True)
    atomic(reports / VALUES, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    atomic(reports / LEADERBOARD, page.encode())
    write_suites_page(results, reports)
    return reports / LEADERBOARD


def _reported(suites: Sequence[str], reports: Path) -> set[str]:
    return {suite for suite in suites if (reports / suite / "index.html").exists()}


# -------------------------------------------------------------------------------------------- values


def _values(board: Board) -> dict[str, Any]:
    """Return a board in the form of leaderboard.json."""
    tasks = [
        {
            "id": item.id, "task": item.task.name, "title": item.title, "fidelity": item.fidelity,
            "metric": result_unit(item).column, "unit": "%" if result_unit(item).scale == 100 else "",
            "higher_is_better": result_unit(item).higher_is_better,
        }
        for item in board.configurations
    ]  # fmt: skip
    return {
        "values": board.values,
        "tasks": tasks,
        "methods": [_entry_values(entry) for entry in board.entries],
        "families": [
            {
                "family": family.name, "methods": family.methods, "best": family.best.style.id,
                "mean_rank": family.best.mean_rank, "mean_ranks": list(family.mean_ranks),
            }
            for family in families(board)
        ],
        "unranked": [{"id": style.id, "title": style.title, "reason": reason} for style, reason in board.unranked],
    }  # fmt: skip


def _entry_values(entry: Entry) -> dict[str, Any]:
    return {
        "position": entry.position, "position_without_one_task": list(entry.positions),
        "id": entry.style.id, "title": entry.style.title, "variant": entry.variant, "family": entry.style.family,
        "tuned": entry.tuned, "mean_rank": entry.mean_rank, "mean_rank_without_one_task": list(entry.mean_ranks),
        "ranks": dict(entry.ranks), "results": {key: _interval_values(item) for key, item in entry.results.items()},
        "not_told_from_the_best": [key for key in entry.ranks if key in entry.best], "costs": dict(entry.costs),
    }  # fmt: skip


def _interval_values(interval: Interval) -> dict[str, Any]:
    ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    finite = {key: value if value is not None and math.isfinite(value) else None for key, value in ends.items()}
    return {**finite, "seeds": interval.n}


# -------------------------------------------------------------------------------------------- texts


def _position(entry: Entry) -> str:
    low, high = entry.positions
    return f"{low:.0f}" if low == high else f"{low:.0f}\u2013{high:.0f}"


def _spread(ends: tuple[float, float]) -> str:
    return f"{number(ends[0], 1)}\u2013{number(ends[1], 1)}"


def _text(entry: Entry, board: Board) -> dict[str, str]:
    """Return the method's result on each task as text, such as `85.4 ± 3.9 %`, by the configuration's id."""
    texts = {}
    for item in board.configurations:
        unit = result_unit(item)
        percent = " %" if unit.scale == 100 else ""
        texts[item.id] = (
            f"{interval_text(entry.results[item.id], unit.digits)}{percent}, n = {entry.results[item.id].n}"
        )
    return texts
