"""Collected results → the sentences and facts of the page. Every number in them is computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from floral.config import catalogue, data_sets
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import CustomData, Synthetic
from floral.config.suites import suite_runs
from floral.core.intervals import Interval
from floral.report.collect import Collected
from floral.report.degenerate import equal
from floral.report.style import Style
from floral.report.summarise import REFERENCE, differences, intervals, marks, unit
from floral.report.tables import MINUS, PLUS_MINUS, number

MANY = 6
"""Settings that are named one by one in the summary; more are counted."""


def command(suite_name: str, runs: Iterable[Run], allow_missing: bool = False) -> str:
    """What completes these runs of a suite and rebuilds their report; typed in the project's root."""
    allowing = " allow_missing=true" if allow_missing else ""
    axes = [f' {axis}="[{",".join(map(str, values))}]"' for axis, values in narrowing(suite_name, runs).items()]
    return f"snakemake --profile local --config suite={suite_name}{''.join(axes)}{allowing}"


def partial_command(suite_name: str, runs: Iterable[Run]) -> str:
    """What reports those of these runs that are finished."""
    axes = [f" --{axis} {' '.join(map(str, values))}" for axis, values in narrowing(suite_name, runs).items()]
    return f"floral report {suite_name} --partial{''.join(axes)}"


def narrowing(suite_name: str, runs: Iterable[Run]) -> dict[str, list[Any]]:
    """The fewest of tasks, variants and seeds that narrow a suite to these runs; empty for all of them.

    Empty too for runs that no narrowing of the suite gives: they were not chosen by one.
    """
    wanted = {run.folder: run for run in runs}
    values = {
        "tasks": list(dict.fromkeys(run.task.name for run in wanted.values())),
        "variants": list(dict.fromkeys(run.variant.name for run in wanted.values())),
        "seeds": list(dict.fromkeys(run.seed for run in wanted.values())),
    }
    for size in range(len(values) + 1):
        for axes in itertools.combinations(values, size):
            chosen = {axis: values[axis] for axis in axes}
            try:
                found = suite_runs(suite_name, **chosen)
            except ConfigError:  # not a task, variant or seed of this suite
                continue
            if {run.folder for run in found} == wanted.keys():
                return chosen
    return {}


def suite(name: str) -> dict[str, str]:
    """The suite's name, title and description, as config/suites has them."""
    chosen = catalogue.suite(name)
    return {"name": chosen.name, "title": chosen.title, "about": chosen.about}


def state(collected: Collected) -> dict[str, int]:
    """status → number of runs, and `all`."""
    counts = dict(collected.summary["status"].value_counts(sort=True).iter_rows())
    return {
        "all": collected.summary.height,
        **{key: counts.get(key, 0) for key in ("done", "diverged", "failed", "missing")},
    }


def without_result(collected: Collected) -> list[dict[str, Any]]:
    """Diverged and failed runs one by one, with the reason; those that are missing by task, variant and reason."""
    diverged = collected.summary.filter(pl.col("status") == "diverged")
    rows: list[dict[str, Any]] = [
        {
            "task": row["task"], "variant": row["variant"], "seeds": str(row["seed"]), "status": "diverged",
            "reason": f"at round {row['diverged_at']}: the loss was no longer finite, or exploded", "exception": "",
        }
        for row in diverged.iter_rows(named=True)
    ]  # fmt: skip
    missing: dict[tuple[str, str, str], dict[str, Any]] = {}
    for lost_run in collected.unfinished:
        run = lost_run.run
        row = {
            "task": run.task.name, "variant": run.variant.name, "seeds": str(run.seed), "status": lost_run.status,
            "reason": lost_run.reason, "exception": lost_run.exception,
        }  # fmt: skip
        if lost_run.status == "failed":
            rows.append({**row, "reason": _sentences(lost_run.reason, lost_run.hint)})
            if lost_run.reason == "mistake":  # its message is written for the user, not for a programmer
                message = lost_run.exception.partition(": ")[2]
                rows[-1] |= {"reason": _sentences(f"mistake: {message}", lost_run.hint), "exception": ""}
        elif (key := (run.task.name, run.variant.name, lost_run.reason)) in missing:
            missing[key]["seeds"] += f", {run.seed}"
        else:
            missing[key] = row
    return [*rows, *missing.values()]


def _sentences(*parts: str) -> str:
    return " ".join(f"{part.rstrip('. ')}." for part in parts if part)


def verdict(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    """What the main table says, in neutral sentences."""
    counts = state(collected)
    seeds = collected.summary.group_by("setting", "contender").agg(pl.col("seed").n_unique())["seed"]
    some = str(seeds.max()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    sentences = [
        f"{_count(len(collected.methods), 'method variant')} on {_tasks(collected)}, "
        f"{some} seed{'s' if seeds.max() != 1 else ''} each: {counts['all']} runs, {_ended(counts)}."
    ]
    sentences += _against_reference(collected, styles)
    sentences += _recovery(collected, styles)
    return sentences


def degenerate(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    """Where a task makes a method another one, task by task: the two rows are no two results."""
    told = []
    for configuration in collected.configurations:
        for method, variant, why in equal(collected, configuration):
            other = catalogue.variant(variant).title.replace(" ", "\u00a0")
            told.append(f"{configuration.title}: {_name(styles[method])} is {other} here, for {why}.")
    return told


def _name(style: Style) -> str:
    """A title that no line break tears apart."""
    return style.title.replace(" ", "\u00a0")


def _count(number_: int, noun: str) -> str:
    return f"{number_} {noun}{'' if number_ == 1 else 's'}"


def _tasks(collected: Collected) -> str:
    """A task under two fidelities, or with values that the suite changes, is one task in two settings."""
    tasks, configurations = len({one.task.name for one in collected.configurations}), len(collected.configurations)
    return _count(tasks, "task") + (f" in {configurations} settings" if configurations > tasks else "")


def _ended(counts: Mapping[str, int]) -> str:
    told = {"done": "finished", "diverged": "diverged", "failed": "failed", "missing": "not run yet"}
    return ", ".join(f"{counts[key]} {word}" for key, word in told.items() if counts[key])


def leaders(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    """`task: method (mean), then method (mean)` for each task of a small suite in which all methods have finished."""
    told = []
    for configuration in collected.configurations if len(collected.configurations) <= MANY else ():
        found, means, measured = (
            marks(collected, styles, configuration),
            intervals(collected, configuration),
            unit(collected, configuration),
        )
        percent = " %" if measured.scale == 100 else ""
        places = []
        for mark in ("best", "second"):
            names = [name for name, own in found.items() if own == mark]
            if names:
                mean = _told(means[names[0]], measured.digits, percent)
                places.append(f"{' and '.join(_name(styles[name]) for name in names)} ({mean})")
        if places:
            told.append(f"{configuration.title}: {', then '.join(places)}")
    return told


def _told(interval: Interval, digits: int | None, unit_: str) -> str:
    if interval.half_width is None:
        return f"{number(interval.mean, digits)}{unit_}, one seed"
    return f"{number(interval.mean, digits)} {PLUS_MINUS} {number(interval.half_width, digits)}{unit_}"


def _against_reference(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    if REFERENCE not in styles:
        return []
    better = worse = open_ = single = 0
    for configuration in collected.configurations:
        sign = 1 if unit(collected, configuration).higher_is_better else -1
        for name, difference in differences(collected, configuration).items():
            if styles[name].group != "method":
                continue
            if difference.low is None:
                single += 1
            elif not difference.excludes_zero:
                open_ += 1
            elif sign * difference.mean > 0:
                better += 1
            else:
                worse += 1
    decided = better + worse + open_
    if not decided:
        return [f"No paired interval to {styles[REFERENCE].title}: that takes two seeds of both."] if single else []
    return [
        f"Of {_count(decided, 'paired 95 % interval')} of another method {MINUS} {_name(styles[REFERENCE])}, {better} "
        f"lie{'s' if better == 1 else ''} on the better side of zero, {worse} on the worse side and {open_} "
        f"contain{'s' if open_ == 1 else ''} zero (not corrected for making several comparisons)."
    ]


def _recovery(collected: Collected, styles: Mapping[str, Style]) -> list[str]:
    rows = collected.summary.filter((pl.col("status") == "done") & pl.col("ari").is_not_null())
    learned = [name for name, style in styles.items() if style.group == "method"]
    means = rows.filter(pl.col("contender").is_in(learned)).group_by("contender").agg(pl.col("ari").mean(), n=pl.len())
    if means.is_empty():
        return []
    found = {row["contender"]: row for row in means.iter_rows(named=True)}
    told = ", ".join(f"{_name(styles[n])} {number(found[n]['ari'], 2)}" for n in styles if n in found)
    what = (
        "Agreement of learned routes with the true clusters (adjusted Rand index, mean over runs; 1 perfect, 0 chance)"
    )
    return [f"{what}: {told}."]


def provenance(collected: Collected) -> dict[str, Any]:
    """Who made the results, with what, from which data; all read from the runs.

    `stamp`: the last run's end, the page's only time. `facts`: name → text. `partitions`: one row for each partition.
    `inexact`: data sets that are lossy or partial copies. `on_training`: settings evaluated on rows of the training.
    """
    partitions = _partitions(collected)
    return {
        "stamp": collected.summary["finished_at"].max(),
        "facts": {} if collected.costs.is_empty() else _facts(collected.costs),
        "partitions": partitions,
        "reused": _reused(collected.summary["reference"]),
        "on_training": [configuration.title for configuration in collected.configurations if configuration.on_training],
        "inexact": sorted({row["data"] for row in partitions if not row["exact"]}),
    }


def _reused(references: pl.Series) -> str:
    """How many runs were not made here; empty where all were."""
    counts = references.drop_nulls().value_counts().sort("reference")
    told = [f"{_count(n, 'run')} of reports/reference/{name}" for name, n in counts.iter_rows()]
    return f"not made here: {'; '.join(told)}" if told else ""


def _facts(costs: pl.DataFrame) -> dict[str, str]:
    machine, versions, execution = (costs[name].struct for name in ("machine", "versions", "execution"))
    seconds = costs["seconds"].struct.field("total").sum()
    return {
        "Versions": ", ".join(f"{name} {_distinct(versions.field(name))}" for name in ("floral", "torch", "numpy")),
        "Python": _distinct(machine.field("python")),
        "Machine": f"{_distinct(machine.field('cpu'))}, {_distinct(machine.field('cores'))} cores; "
        f"{_distinct(machine.field('platform'))}",
        "Execution": f"{_distinct(execution.field('backend'))} on {_distinct(execution.field('device'))}, "
        f"{_distinct(execution.field('dtype'))}{_precisions(costs['execution'])}",
        "Commit": _distinct(costs["git_commit"]),
        "Computing time": f"{seconds:,.0f} s over all runs, {_count(int(costs['resumptions'].sum()), 'resumption')}",
    }


def _partitions(collected: Collected) -> list[dict[str, Any]]:
    known = collected.summary.filter(pl.col("partition_digest").is_not_null())
    groups = known.group_by("setting", "partition_digest", maintain_order=True).agg(
        seeds=pl.col("seed").unique().sort(), runs=pl.len(), exact=pl.col("data_exact").all()
    )
    configurations = {configuration.id: configuration for configuration in collected.configurations}
    rows = []
    for row in groups.iter_rows(named=True):
        configuration = configurations[row["setting"]]
        data, joining = configuration.task.data, configuration.task.unseen
        clients = f"{configuration.task.clients}" + (f" and {joining.clients} unseen" if joining else "")
        rows.append({
            "setting": configuration.title, "clients": clients,
            "data": _data(data),
            "exact": row["exact"], "seeds": ", ".join(map(str, row["seeds"])), "runs": row["runs"],
            "digest": row["partition_digest"][:16],
        })  # fmt: skip
    return rows


def _data(data: str | Synthetic | CustomData) -> str:
    match data:
        case str():
            return data
        case CustomData():
            return f"own data ({data.kind} {data.path}), {data_sets.stored_data(data)}"
    return f"drawn from the seed ({data.kind})"


def _precisions(execution: pl.Series) -> str:
    """Said where a run's products were not in single precision; runs of older versions had no choice."""
    fields = execution.struct.fields
    kinds = execution.struct.field("precision").fill_null("fp32") if "precision" in fields else pl.Series(["fp32"])
    return f" (products in {_distinct(kinds)})" if (kinds != "fp32").any() else ""


def _distinct(values: pl.Series) -> str:
    return ", ".join(str(value) for value in values.drop_nulls().unique().sort()) or "unknown"
