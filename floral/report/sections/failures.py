"""Section that lists the diverged, failed and missing runs with the reasons."""

from __future__ import annotations

from typing import Any

import polars as pl

from floral.report.collect import Collected
from floral.report.sections.base import Material, Section
from floral.report.sentences import state, states


def section(material: Material) -> Section | None:
    lost = {"diverged", "failed", "missing"} & set(material.collected.summary["status"])
    answer = f"{states(state(material.collected)).capitalize()}."
    return Section(id="failures", answer=answer) if lost else None


def without_result(collected: Collected) -> list[dict[str, Any]]:
    """Return the rows of the table of runs without a result.

    Each diverged or failed run has its own row. Missing runs (not run yet) of one task and variant share a row if the
    reason is the same.
    """
    diverged = collected.summary.filter(pl.col("status") == "diverged")
    rows: list[dict[str, Any]] = [
        {
            "task": row["task"], "variant": row["variant"], "seeds": str(row["seed"]), "status": "diverged",
            "reason": f"at round {row['diverged_at']}: the loss was no longer finite, or exploded", "exception": "",
        }
        for row in diverged.iter_rows(named=True)
    ]  # fmt: skip
    missing: dict[tuple[str, str, str], dict[str, Any]] = {}
    for item in collected.unfinished:
        run = item.run
        row = {
            "task": run.task.name, "variant": run.variant.name, "seeds": str(run.seed), "status": item.status,
            "reason": item.reason, "exception": item.exception,
        }  # fmt: skip
        if item.status == "failed":
            rows.append({**row, "reason": _sentences(item.reason, item.hint)})
            if (
                item.reason == "mistake"
            ):  # The message of a ConfigError says what to do, so users do not need the traceback.
                message = item.exception.partition(": ")[2]
                rows[-1] |= {"reason": _sentences(f"mistake: {message}", item.hint), "exception": ""}
        elif (key := (run.task.name, run.variant.name, item.reason)) in missing:
            missing[key]["seeds"] += f", {run.seed}"
        else:
            missing[key] = row
    return [*rows, *missing.values()]


def _sentences(*parts: str) -> str:
    return " ".join(f"{part.rstrip('. ')}." for part in parts if part)
