"""Print one run: its configuration, result, curves, costs and log. For a failed run, also print the reason."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from floral.config import catalogue, layers
from floral.config.reading import ConfigError, parse, suggest
from floral.config.schema.task import Task
from floral.report.compared import change_columns
from floral.report.description import changed_values, clusters_text, cohort_text, data_text
from floral.runs.core_seconds import in_words
from floral.runs.outdated import cannot_continue, stored_run, why_not_continued
from floral.runs.quantities import curve_name
from floral.runs.state import FAILURE, failure, running

BARS = "▁▂▃▄▅▆▇█"
MAX_WIDTH = 60
"""Maximum width of a printed curve, in characters."""
LOG_LINES = 12
"""Number of lines that are printed from the end of the log."""
CURVES = ("train/loss", "validation/accuracy", "validation/loss", "test/accuracy", "test/loss", "route/ari")
RESULTS = (
    "test_accuracy", "test_loss", "official_score", "official_score_sampled", "own_test_accuracy",
    "worst_cluster_accuracy", "worst_decile_accuracy", "ari",
)  # fmt: skip


def show(folder: Path, results: Path) -> None:
    """Print one run. `folder` is the folder of the run, or its name task/variant/seed<k>[-<hash8>] in `results`.

    Raises:
        ConfigError: there is no such run (the message suggests another), or a file of the run is unreadable.
    """
    path = find(folder, results)
    first, place, *rest = lines(path)
    print("\n".join([first, place, *_of_the_same_name(folder, path), *_changes(path), *rest]))


def _of_the_same_name(name: Path, run: Path) -> list[str]:
    """Return a sentence with the other runs of a name that fits several, such as digits_rotate/floral_1/seed0."""
    seed = run.name.partition("-")[0]
    more = [folder for folder in _subfolders(run.parent) if folder != run.name and folder.partition("-")[0] == seed]
    if not more or name.name == run.name:
        return []
    example = Path(*run.parts[-3:-1], more[0])
    return [
        f"{len(more) + 1} runs have the name {name}. This is {run.name}, which changed last. The others have other "
        f"values: {', '.join(more)}. To see one: floral show {example}",
    ]


def _changes(folder: Path) -> list[str]:
    """Return a sentence with the values of a run's task that are not those of the task's file, if there are any."""
    run = stored_run(folder)
    if run is None or run.task.name not in catalogue.names("tasks"):
        return []
    file = layers.file(f"tasks/{run.task.name}.yaml")
    try:
        changed = json.loads(change_columns()(run)["task_changes"])
    except ConfigError as error:
        return [f"Its values cannot be compared with those in {file} today: {error}"]
    return [f"This run has other values than {file}: {changed_values(changed)}"] if changed else []


def find(folder: Path, results: Path) -> Path:
    """Return the folder of a run. `folder` is the path of this folder, or the name of the run.

    The name is task/variant/seed<k>[-<hash8>], a path inside `results`/train. A name without a hash can fit several
    runs. In this case, return the folder that changed last.

    Raises:
        ConfigError: there is no such run.
    """
    train = results / "train"
    for base in (folder, train / folder):
        if (base / "run.yaml").exists() or (base / "failure.json").exists():
            return base
    parts = [part for part in folder.parts if part not in (os.sep, ".", "..")]
    parts = parts[parts.index("train") + 1 :] if "train" in parts else parts
    if not _subfolders(train):
        raise ConfigError(f"{folder}: {train} has no runs yet; make them with `snakemake --profile local`")
    here = train
    for kind, part in zip(("task", "variant", "seed"), parts, strict=False):
        names = _subfolders(here)
        part = f"seed{part}" if kind == "seed" and part.isdigit() else part
        matches = [name for name in names if name == part or (kind == "seed" and name.startswith(f"{part}-"))]
        if not matches:
            raise suggest(f"{kind} of a run", part, names, str(here))
        here /= max(matches, key=lambda name: (here / name).stat().st_mtime)
    if len(parts) >= 3:
        return here
    raise ConfigError(
        f"{folder}: this is not a run; name a run as task/variant/seed, for example digits_rotate/floral_1/seed0 "
        f"(the folder {here} contains: {', '.join(_subfolders(here)) or 'nothing yet'})"
    )


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def lines(folder: Path) -> Iterator[str]:
    """Yield the lines that `floral show` prints about the run in `folder`."""
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    run, summary = _yaml(folder / "run.yaml"), _json(folder / "summary.json")
    error = failure(folder)
    run = run or (error or {}).get("run") or {}
    if error and (stored := stored_run(folder)) and (reasons := why_not_continued(stored, folder)):
        error["hint"] = f"this run {cannot_continue(reasons)}"
    state = summary["status"] if summary else "failed" if error else "running" if running(folder) else "not run yet"
    title = " · ".join(filter(None, (run.get("variant", {}).get("title"), run.get("task", {}).get("title"))))
    seed = run.get("seed", folder.name.partition("-")[0].removeprefix("seed"))
    yield f"{bold}{title or folder.parent.name}{plain} · seed {seed} · {bold}{state}{plain}"
    yield f"{folder}"
    sections = {
        "Failure": _failure(error) if error else [],
        "Configuration": _configuration(run) if run else [],
        "Result": _result(summary) if summary else [],
        "Curves": _curves(folder / "metrics.parquet"),
        "Costs": _costs(_json(folder / "costs.json")),
        f"Log, last {LOG_LINES} lines": _log(folder / "log.txt"),
    }
    for name, body in sections.items():
        if body:
            yield ""
            yield f"{bold}{name}{plain}"
            yield from (f"  {line}" for line in body)


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"{name:<{width}}  {value}" for name, value in rows.items()]


def _failure(error: Mapping[str, Any]) -> list[str]:
    rows = {key: str(error[key]) for key in FAILURE if key != "traceback" and error[key]}
    if (
        error["reason"] == "mistake"
    ):  # The configuration is wrong: the message says all, and the traceback adds nothing.
        return _table(rows)
    return [*_table(rows), *(error["traceback"] or "").rstrip().splitlines()[-6:]]


def _configuration(run: Mapping[str, Any]) -> list[str]:
    variant, fidelity = run["variant"], run["fidelity"]
    task = parse(Task, run["task"], "run.yaml: task")
    rates, tuned = (run["own_rates"], " (tuned)") if run.get("own_rates") else (run["task"], "")
    model = ", ".join(f"{key} {value}" for key, value in run["task"]["model"].items())
    settings = ", ".join(f"{key} {value}" for key, value in variant["params"].items())
    usual = catalogue.fidelity(fidelity["name"]).switches
    changes = {name: value for name, value in fidelity["switches"].items() if value != usual.get(name)}
    return _table({
        "data": f"{data_text(task)}; {task.clients} clients {clusters_text(task)}{_joining(run['task'].get('unseen'))}",
        "model": model,
        "training": f"{task.rounds} rounds, {cohort_text(task)} in each, {task.epochs} epoch(s), "
        f"batch {task.batch}, lr {rates['lr']}, router lr {rates['router_lr']}{tuned}",
        "method": f"{variant['method']}{': ' if settings else ''}{settings}",
        "fidelity": fidelity["name"] + (f", except {changed_values(changes)}" if changes else ""),
    })  # fmt: skip


def _joining(unseen: Mapping[str, Any] | None) -> str:
    if unseen is None:
        return ""
    return (
        f"; {unseen['seen_cluster']} of seen clusters and {unseen['new_concept']} of new concepts join after training"
    )


def _result(summary: Mapping[str, Any]) -> list[str]:
    rows = {"round": str(summary["round"])}
    if summary.get("diverged_at") is not None:
        rows["diverged"] = f"at round {summary['diverged_at']}: the loss was no longer finite, or exploded"
    rows |= {name: f"{summary[name]:.4f}" for name in RESULTS if summary.get(name) is not None}
    return _table(rows)


def _curves(path: Path) -> list[str]:
    if not path.exists():
        return []
    metrics = pl.read_parquet(path).with_columns(name=pl.concat_str("split", "metric", separator="/"))
    width = min(MAX_WIDTH, max(20, shutil.get_terminal_size().columns - 50))
    rows = {}
    for name in CURVES:
        values = metrics.filter(pl.col("name") == name).sort("round")["value"].to_list()
        if len(values) > 1:
            title = curve_name(*name.split("/"))
            rows[title] = f"{sparkline(values, width)}  {_short(values[0])} → {_short(values[-1])}"
    if rows:
        rounds = metrics["round"]
        rows["round"] = f"{rounds.min()} to {rounds.max()}"
    return _table(rows)


def sparkline(values: list[float | None], width: int) -> str:
    """Return a curve of at most `width` characters, from ▁ (lowest value) to █ (highest value).

    The character × stands for a value that is missing or not finite.
    """
    points = (
        [values[round(i * (len(values) - 1) / max(1, width - 1))] for i in range(width)]
        if len(values) > width
        else values
    )
    finite = [value for value in points if _finite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)  # type: ignore[type-var]
    span = (high - low) or 1.0  # type: ignore[operator]
    return "".join(
        BARS[min(len(BARS) - 1, int((value - low) / span * len(BARS)))] if _finite(value) else "×"  # type: ignore[operator]
        for value in points
    )


def _finite(value: float | None) -> bool:
    return value is not None and value == value and abs(value) != float("inf")


def _short(value: float | None) -> str:
    return f"{value:.4g}" if value is not None else "none"


def _costs(costs: Mapping[str, Any]) -> list[str]:
    if not costs:
        return []
    seconds, execution, size = costs["seconds"], costs["execution"], costs["parameters"]
    memory = costs["peak_memory_bytes"]
    return _table({
        "seconds": f"{seconds['total']:.1f} (setup {seconds['setup']:.1f}, train {seconds['train']:.1f}, "
        f"evaluate {seconds['evaluate']:.1f}), {costs['resumptions']} resumption(s)",
        **({"core seconds": in_words(costs["core_seconds"])} if "core_seconds" in costs else {}),
        "memory": "unknown" if memory is None else f"{memory / 1e6:.0f} MB at the peak",
        "parameters": ", ".join(f"{name} {value:,}" for name, value in size.items() if value is not None),
        "sent": f"{costs['bytes_per_round']:,} bytes per round, summed over the cohort, up and down",
        "execution": ", ".join(f"{key} {value}" for key, value in execution.items()),
    })  # fmt: skip


def _log(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:] if path.exists() else []


def _json(path: Path) -> dict[str, Any]:
    return _read(path, json.loads)


def _yaml(path: Path) -> dict[str, Any]:
    return _read(path, yaml.safe_load)


def _read(path: Path, parse: Any) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value: dict[str, Any] = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: unreadable file ({error}); delete the folder of this run and train the run again"
        ) from None
    return value
