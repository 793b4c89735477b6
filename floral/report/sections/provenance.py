"""Section on the origin of the results: versions, machine, commit, data and partitions, read from the runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from floral.config import data_sets
from floral.config.schema.data import CustomData, Synthetic
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.sections.base import Material, Section
from floral.report.sentences import count, state
from floral.runs.execution import executions


def section(material: Material) -> Section:
    counts, costs = state(material.collected), material.collected.costs
    if costs.is_empty():
        origin = ""
    elif (commits := costs["git_commit"].n_unique()) == 1:
        origin = f", commit {_distinct(costs['git_commit'])}"
    else:
        origin = f", {count(commits, 'commit')}"
    return Section(id="provenance", answer=f"{count(counts['all'], 'run')}{origin}.")


def provenance(collected: Collected) -> dict[str, Any]:
    """Return values for this section and for the notices at the top of the page. The keys are:

    stamp: the time at which the last run finished. facts: name of a fact (such as `Machine`) → its text. partitions:
    one row for each split of a data set over clients. reused: a text with the number of runs copied from stored
    results. on_training: titles of tasks that are evaluated on training samples. inexact: names of data sets of which
    the project has only lossy or partial copies.
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
    """Return a text with the number of results copied from each folder of reports/reference, or "" if none is."""
    counts = references.drop_nulls().value_counts().sort("reference")
    texts = [f"{count(n, 'run')} from reports/reference/{name}" for name, n in counts.iter_rows()]
    return f"not trained here, but copied: {'; '.join(texts)}" if texts else ""


def _facts(costs: pl.DataFrame) -> dict[str, str]:
    machine, versions, execution = (costs[name].struct for name in ("machine", "versions", "execution"))
    seconds = costs["seconds"].struct.field("total").sum()
    return {
        "Versions": ", ".join(f"{name} {_distinct(versions.field(name))}" for name in ("floral", "torch", "numpy")),
        "Python": _distinct(machine.field("python")),
        "Machine": f"{_distinct(machine.field('cpu'))}, {_distinct(machine.field('cores'))} cores; "
        f"{_distinct(machine.field('platform'))}",
        "Execution": f"{_execution(costs)}, {_distinct(execution.field('dtype'))}",
        "Commit": _distinct(costs["git_commit"]),
        "Computing time": f"{seconds:,.0f} s over all runs, {count(int(costs['resumptions'].sum()), 'resumption')}",
    }


def _partitions(collected: Collected) -> list[dict[str, Any]]:
    finished = collected.summary.filter(pl.col("partition_digest").is_not_null())
    groups = finished.group_by("configuration", "partition_digest", maintain_order=True).agg(
        seeds=pl.col("seed").unique().sort(), runs=pl.len(), exact=pl.col("data_exact").all()
    )
    configurations = {configuration.id: configuration for configuration in collected.configurations}
    rows = []
    for row in groups.iter_rows(named=True):
        configuration = configurations[row["configuration"]]
        data, joining = configuration.task.data, configuration.task.unseen
        clients = f"{configuration.task.clients}" + (f" and {joining.clients} unseen" if joining else "")
        rows.append({
            "configuration": configuration.title, "clients": clients,
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
            return f"custom data ({data.kind} {data.path}), {data_sets.stored_data(data)}"
    return f"generated from the seed ({data.kind})"


def several_executions(collected: Collected, configurations: Iterable[Configuration]) -> str:
    """Return a sentence that counts the executions of these configurations' runs. It is empty for one execution."""
    if collected.costs.is_empty():
        return ""
    ids = [configuration.id for configuration in configurations]
    counts = executions(collected.costs.filter(pl.col("configuration").is_in(ids))["execution"])
    if len(counts) < 2:
        return ""
    return f"The runs of this table used {len(counts)} executions, so their last digits can differ: {_counted(counts)}."


def _execution(costs: pl.DataFrame) -> str:
    counts = executions(costs["execution"])
    return ", ".join(counts) if len(counts) == 1 else _counted(counts)


def _counted(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{text} ({count(n, 'run')})" for text, n in counts.items())


def _distinct(values: pl.Series) -> str:
    return ", ".join(str(value) for value in values.drop_nulls().unique().sort()) or "unknown"
