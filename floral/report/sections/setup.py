"""The experimental setup in words and a reproducibility checklist, ready to paste: all of it read from the runs."""

from __future__ import annotations

from typing import Any

import polars as pl

from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.task import Server, Task
from floral.config.searches import tuning
from floral.report import words
from floral.report.collect import Collected, Configuration
from floral.report.sections.base import Material, Section
from floral.report.tables import latex

NOT_STATED = "not stated"


def section(material: Material) -> Section | None:
    return Section(id="setup") if material.collected.configurations else None


def paragraphs(collected: Collected, facts: dict[str, str]) -> dict[str, str]:
    """The setup as `text` and as `latex`, with special characters escaped."""
    sentences = [
        *(_configuration(configuration) for configuration in collected.configurations),
        _methods(collected),
        _tuning(collected),
    ]
    sentences += [_seeds(collected), _made(facts)]
    text = "\n\n".join(sentence for sentence in sentences if sentence)
    return {"text": text, "latex": latex(text)}


def checklist(collected: Collected, facts: dict[str, str], command: str) -> list[tuple[str, str]]:
    """(question, answer from the runs, or `not stated`), after the questions that conferences ask."""
    partitions = collected.summary["partition_digest"].drop_nulls().n_unique()
    inexact = not collected.summary["data_exact"].fill_null(True).all()
    lost = words.state(collected)
    return [
        ("Is the code given, with its command?", f"Commit: {facts.get('Commit', NOT_STATED)}. Command: {command}"),
        ("Are all hyper-parameters given?", "Yes: run.yaml of every run has each value, and its hash covers them all."),
        ("How were they chosen?", _tuning(collected)),
        ("Are the data and their splits given?", f"Yes: partitions {partitions}, each by its digest (Provenance)."
         + (" Some data are inexact copies, marked on the page." if inexact else "")),
        ("Are licences of the data stated?", NOT_STATED),
        ("Are error bars reported, and what do they vary over?", _bars(collected) + _seeds(collected)),
        ("Are runs without a result reported?", f"Yes: of {lost['all']}, {lost['diverged']} diverged, {lost['failed']} "
         f"failed and {lost['missing']} have not run."),
        ("Are machine and versions stated?", f"{facts['Machine']}. {facts['Versions']}." if facts else NOT_STATED),
        ("Is the computing time stated?", facts.get("Computing time", NOT_STATED)),
        ("Is the computing time of failed and preliminary experiments stated?", NOT_STATED),
        ("Are results deterministic?", "For the same execution and versions, byte for byte; else up to rounding. "
         f"Execution: {facts.get('Execution', NOT_STATED)}."),
        ("Are risks to the clients' privacy discussed?", "What the server sees of a client is declared for every "
         "method (Privacy)."),
        ("Are broader impacts discussed?", NOT_STATED),
    ]  # fmt: skip


def _configuration(configuration: Configuration) -> str:
    task = configuration.task
    given = f"{task.cohort} of them ({100 * task.participation:g} %)" if task.participation < 1 else "all of them"
    local = f"{task.epochs} local epoch{'s' * (task.epochs != 1)}"
    local += f" of {task.steps_per_epoch} steps" if task.steps_per_epoch else ""
    model = ", ".join(f"{key} {value}" for key, value in task.model.arguments.items())
    model = f"{task.model.kind}{f' ({model})' if model else ''}"
    plural = "s" * (task.clusters != 1)
    told = (
        f"{configuration.title}: {_data(task)}, partition {_values(task.partition)}, {task.clients} clients in "
        f"{task.clusters} cluster{plural} (shift {_values(task.shift)}). In each of {task.rounds} rounds {given} train "
        f"for {local} on batches of {task.batch}, by SGD where a method says nothing else. The model is {model}. "
    )
    told += _more(task)
    rates = f"Learning rate {task.lr:g}, of the router {task.router_lr:g}, where they are not tuned. "
    return told + rates + f"Fidelity: {configuration.fidelity}."


def _more(task: Task) -> str:
    """What of the task is not the default and has no place in the sentences."""
    found = [f"training images: {task.augmentation.replace('_', ' and ')}"] if task.augmentation != "none" else []
    if task.normalise is not None:
        found += [f"inputs normalised by mean {list(task.normalise.mean)} and deviation {list(task.normalise.std)}"]
    if task.server != Server():
        found += [f"the server steps by {task.server.optimiser.upper()}, rate {task.server.lr:g}"]
    found += [f"methods are told {task.assumed_clusters} clusters"] if task.assumed_clusters is not None else []
    return f"Also: {'; '.join(found)}. " if found else ""


def _values(part: Any) -> str:
    """`kind (key value, …)` of those values that were set."""
    found = {key: value for key, value in part.model_dump(exclude_defaults=True).items() if key != "kind"}
    inner = ", ".join(f"{key} {value}" for key, value in found.items() if not isinstance(value, dict))
    return f"{part.kind}{f' ({inner})' if inner else ''}".replace("_", " ")


def _data(task: Task) -> str:
    match task.data:
        case Synthetic():
            return f"synthetic data ({task.data.kind})"
        case CustomData():
            return f"own data ({task.data.kind})"
    return f"the data set {task.data}"


def _methods(collected: Collected) -> str:
    return f"Methods ({len(collected.methods)}): " + ", ".join(one.title for one in collected.methods) + "."


def _tuning(collected: Collected) -> str:
    tuned = sum(one.tuned for one in collected.methods)
    if not tuned:
        return "Nothing was tuned here: the values of the tasks and the methods' defaults."
    rules = tuning()
    who = "All methods" if tuned == len(collected.methods) else f"{tuned} of {len(collected.methods)} methods"
    return (
        f"{who} were tuned with {rules.budget} configurations each, on every task, by the validation loss after "
        f"{100 * rules.share:g} % of the rounds (at most {rules.at_most}), on seeds that are not reported."
    )


def _bars(collected: Collected) -> str:
    """No interval is made of one seed."""
    seeds = (
        collected.summary.filter(pl.col("status") == "done")
        .group_by("setting", "contender")
        .agg(pl.col("seed").n_unique())
    )
    if seeds.is_empty() or seeds["seed"].max() == 1:
        return "No, for there is one seed. "
    return "Yes, over seeds: " if seeds["seed"].min() != 1 else "Yes, over seeds, but where a method has one: "


def _seeds(collected: Collected) -> str:
    seeds = collected.summary["seed"].unique().sort().to_list()
    finished = words.state(collected)
    corrected = all(configuration.fidelity == "corrected" for configuration in collected.configurations)
    return (
        f"Seeds {', '.join(map(str, seeds))}: {finished['all']} runs, of which {finished['done']} finished and "
        f"{finished['diverged']} diverged." + (" All methods of a seed share its partition." if corrected else "")
    )


def _made(facts: dict[str, str]) -> str:
    if not facts:
        return ""
    made = f"Made with {facts['Versions']} (Python {facts['Python']}) on {facts['Machine']}"
    return f"{made}, {facts['Execution']}, commit {facts['Commit']}."
