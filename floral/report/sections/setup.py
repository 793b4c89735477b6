"""Section with a description of the experimental setup and a reproducibility checklist, ready to paste into a paper."""

from __future__ import annotations

from typing import Any

import polars as pl

from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.task import Server, Task
from floral.config.searches import tuning
from floral.report.collect import Collected
from floral.report.compared import Configuration
from floral.report.sections.base import Material, Section
from floral.report.sentences import state
from floral.report.tables import latex

NOT_STATED = "not stated"


def section(material: Material) -> Section | None:
    return Section(id="setup") if material.collected.configurations else None


def paragraphs(collected: Collected, facts: dict[str, str]) -> dict[str, str]:
    """Return the experimental setup in words: as plain `text`, and as `latex` with special characters escaped."""
    sentences = [*(_configuration(configuration) for configuration in collected.configurations), _methods(collected)]
    sentences += [_tuning(collected), _seeds(collected), _versions(facts)]
    text = "\n\n".join(sentence for sentence in sentences if sentence)
    return {"text": text, "latex": latex(text)}


def checklist(collected: Collected, facts: dict[str, str], command: str) -> list[tuple[str, str]]:
    """Return the questions of conferences' reproducibility checklists, each with its answer.

    The answers come from the runs. The answer is `not stated` if the runs do not record it.
    """
    partitions = collected.summary["partition_digest"].drop_nulls().n_unique()
    inexact = not collected.summary["data_exact"].fill_null(True).all()
    counts = state(collected)
    return [
        ("Is the code given, with its command?", f"Commit: {facts.get('Commit', NOT_STATED)}. Command: {command}"),
        ("Are all hyper-parameters given?", "Yes: run.yaml of every run has each value, and its hash covers them all."),
        ("How were they selected?", _tuning(collected)),
        ("Are the data and their splits given?", "Yes, by the digest of each partition "
         f"(section Provenance); number of partitions: {partitions}."
         + (" Some data are inexact copies, as noted on the page." if inexact else "")),
        ("Are licences of the data stated?", NOT_STATED),
        ("Are error bars reported, and over what do they vary?", _error_bars(collected) + _seeds(collected)),
        ("Are runs without a result reported?", f"Yes. Runs in all: {counts['all']}; diverged: {counts['diverged']}; "
         f"failed: {counts['failed']}; not run yet: {counts['missing']}."),
        ("Are machine and versions stated?", f"{facts['Machine']}. {facts['Versions']}." if facts else NOT_STATED),
        ("Is the computing time stated?", facts.get("Computing time", NOT_STATED)),
        ("Is the computing time of failed and preliminary experiments stated?", NOT_STATED),
        ("Are results deterministic?", "With the same execution and versions they are equal byte "
         "for byte; otherwise up to rounding. "
         f"Execution: {facts.get('Execution', NOT_STATED)}."),
        ("Are risks to the clients' privacy discussed?", "Every method declares what the server sees of a client "
         "(section Privacy)."),
        ("Are broader impacts discussed?", NOT_STATED),
    ]  # fmt: skip


def _configuration(configuration: Configuration) -> str:
    task = configuration.task
    cohort = f"{task.cohort} of them ({100 * task.participation:g} %)" if task.participation < 1 else "all of them"
    local = f"{task.epochs} local epoch{'s' * (task.epochs != 1)}"
    local += f" of {task.steps_per_epoch} steps" if task.steps_per_epoch else ""
    model = ", ".join(f"{key} {value}" for key, value in task.model.arguments.items())
    model = f"{task.model.kind}{f' ({model})' if model else ''}"
    plural = "s" * (task.clusters != 1)
    return (
        f"{configuration.title}: {_data(task)}, partition {_values(task.partition)}, {task.clients} clients in "
        f"{task.clusters} cluster{plural} (shift {_values(task.shift)}). In each of {task.rounds} rounds {cohort} "
        f"train for {local} on batches of {task.batch}, with SGD unless a method states another optimiser. The model "
        f"is {model}. {_changed_defaults(task)}Learning rate {task.lr:g}, of the router {task.router_lr:g}, "
        f"unless tuned. Fidelity: {configuration.fidelity}."
    )


def _changed_defaults(task: Task) -> str:
    """Return a sentence with those of four settings of the task that differ from their defaults.

    The four are image augmentation, normalisation of inputs, the server's optimiser and the number of assumed clusters.
    The text is empty if all have their defaults.
    """
    changes = [f"training images: {task.augmentation.replace('_', ' and ')}"] if task.augmentation != "none" else []
    if task.normalise is not None:
        mean, std = list(task.normalise.mean), list(task.normalise.std)
        changes += [f"inputs normalised with mean {mean} and standard deviation {std}"]
    if task.server != Server():
        changes += [f"server optimiser {task.server.optimiser.upper()} with learning rate {task.server.lr:g}"]
    if task.assumed_clusters is not None:
        changes += [f"methods assume {task.assumed_clusters} clusters"]
    return f"Also: {'; '.join(changes)}. " if changes else ""


def _values(part: Any) -> str:
    """Return a part of the task, such as its partition, as a text of the form `kind (key value, …)`.

    Values that equal their defaults are left out.
    """
    values = {key: value for key, value in part.model_dump(exclude_defaults=True).items() if key != "kind"}
    inner = ", ".join(f"{key} {value}" for key, value in values.items() if not isinstance(value, dict))
    return f"{part.kind}{f' ({inner})' if inner else ''}".replace("_", " ")


def _data(task: Task) -> str:
    match task.data:
        case Synthetic():
            return f"synthetic data ({task.data.kind})"
        case CustomData():
            return f"custom data ({task.data.kind})"
    return f"the data set {task.data}"


def _methods(collected: Collected) -> str:
    return f"Methods ({len(collected.methods)}): " + ", ".join(method.title for method in collected.methods) + "."


def _tuning(collected: Collected) -> str:
    tuned = sum(method.tuned for method in collected.methods)
    if not tuned:
        return "No values were tuned: tasks and methods have their default values."
    rules = tuning()
    subject = "All methods" if tuned == len(collected.methods) else f"{tuned} of {len(collected.methods)} methods"
    return (
        f"{subject} were tuned with {rules.budget} candidates each, on every task, by the validation loss after "
        f"{100 * rules.share:g} % of the rounds (at most {rules.at_most}), on seeds that are not reported."
    )


def _error_bars(collected: Collected) -> str:
    """Return the answer to the checklist's question on error bars. An interval needs at least two seeds."""
    seeds = (
        collected.summary.filter(pl.col("status") == "done")
        .group_by("configuration", "method_id")
        .agg(pl.col("seed").n_unique())
    )
    if seeds.is_empty() or seeds["seed"].max() == 1:
        return "No, because there is one seed. "
    return "Yes, over seeds: " if seeds["seed"].min() != 1 else "Yes, over seeds, except for methods with one seed: "


def _seeds(collected: Collected) -> str:
    seeds = collected.summary["seed"].unique().sort().to_list()
    counts = state(collected)
    corrected = all(configuration.fidelity == "corrected" for configuration in collected.configurations)
    return (
        f"Seeds {', '.join(map(str, seeds))}: {counts['all']} runs, of which {counts['done']} finished and "
        f"{counts['diverged']} diverged." + (" All methods of a seed share its partition." if corrected else "")
    )


def _versions(facts: dict[str, str]) -> str:
    if not facts:
        return ""
    text = f"Computed with {facts['Versions']} (Python {facts['Python']}) on {facts['Machine']}"
    return f"{text}, {facts['Execution']}, commit {facts['Commit']}."
