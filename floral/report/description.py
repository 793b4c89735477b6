"""Describe a configuration (a task with its settings) in sentences. The values come from its runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.task import Server, Task
from floral.data.synthetic import rows_per_client
from floral.report.collect import Collected
from floral.report.compared import Configuration

IN_WORDS = {"share", "min_rows", "validation"}
"""Keys of a partition that have a sentence of their own."""


def describe(collected: Collected, configuration: Configuration) -> str:
    """Return a paragraph on one configuration: its data, clients, training, evaluation and fidelity."""
    if configuration.task.noop:
        return f"{configuration.title}: runs without data and without training."
    task = configuration.task
    tuned = set(collected.summary.filter(pl.col("configuration") == configuration.id)["tuned"])
    sentences = [
        _clients(configuration), _joining(task), held_out(configuration), partitions(collected, configuration),
        _training(task), _also(task), _rates(task, tuned),
        f"Clients are evaluated on {evaluation_samples(configuration)}.", _fidelity(configuration),
    ]  # fmt: skip
    return " ".join(sentence for sentence in sentences if sentence)


def partitions(collected: Collected, configuration: Configuration) -> str:
    """Return a sentence that says how many different partitions the seeds have, by the digests of the finished runs.

    The sentence is empty if no run is finished. Synthetic data are generated from the seed of a run.
    """
    seeds, digests = _seeds_and_digests(collected, configuration)
    if not seeds:
        return ""
    if seeds == 1:
        text = "All methods use the same partition"
    elif isinstance(configuration.task.data, Synthetic):
        text = "Each seed generates its own samples, which all methods use"
    elif digests == 1:
        text = f"All {seeds} seeds and all methods use the same partition"
    elif digests == seeds:
        text = "Each seed has its own partition, which all methods use"
    else:
        text = f"The {seeds} seeds have {digests} different partitions; all methods of a seed use the same one"
    return f"{text}."


def has_one_partition(collected: Collected, configuration: Configuration) -> bool:
    """Return whether several seeds have the same partition. Synthetic data never do: each seed has other samples."""
    seeds, digests = _seeds_and_digests(collected, configuration)
    return seeds > 1 and digests == 1 and not isinstance(configuration.task.data, Synthetic)


def _seeds_and_digests(collected: Collected, configuration: Configuration) -> tuple[int, int]:
    """Return the number of seeds with a finished run, and the number of different partition digests of these runs."""
    is_finished = (pl.col("configuration") == configuration.id) & pl.col("partition_digest").is_not_null()
    rows = collected.summary.filter(is_finished)
    return rows["seed"].n_unique(), rows["partition_digest"].n_unique()


def held_out(configuration: Configuration) -> str:
    """Return a sentence on the share of each client's training samples that is kept, and that is held out."""
    rule, switches = configuration.task.partition, configuration.rules
    none = "No samples are held out for validation."
    held = switches["validation"] == "held_out" and rule.validation > 0
    share_held = f"{100 * rule.validation:g} %"
    share_kept = f"{100 * rule.share:g} % (at least {rule.min_rows})"
    if rule.share == 1:
        return f"{share_held} of each client's training samples are held out for validation." if held else none
    if switches["subset"] == "per_variant":
        first = f"{share_held} of each client's training samples are held out for validation." if held else none
        return (
            f"{first} Of each client's other training samples, each method and seed uses its own random {share_kept}."
        )
    first = f"Of each client's training samples, {share_kept} are kept"
    return f"{first}, and {share_held} of these are held out for validation." if held else f"{first}. {none}"


def evaluation_samples(configuration: Configuration) -> str:
    """Return in words on which samples each client is evaluated after the last round."""
    task = configuration.task
    if on_own_samples(configuration):
        return "all their own training samples" if configuration.on_training else "their own test samples"
    if isinstance(task.data, Synthetic):
        return "new samples of their clusters, whose targets have no noise"
    side = "training" if configuration.on_training else "test"
    classes = " of the classes of their clusters" if task.partition.kind == "class_groups" else ""
    shift = ", under the shift of their clusters" if task.shift.kind != "none" and task.concepts > 1 else ""
    return f"all {side} samples of the data{classes}{shift}"


def on_own_samples(configuration: Configuration) -> bool:
    """Return whether each client is evaluated on its own samples, and not on a global test set."""
    return configuration.rules["evaluation"] == "sampled" or configuration.task.skewed


def changed_values(values: Mapping[str, Any]) -> str:
    """Return values as a text of the form `key value, key value`. Underscores in keys become spaces."""
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _clients(configuration: Configuration) -> str:
    task = configuration.task
    rule = _kind(task.partition, IN_WORDS)
    return f"{configuration.title}: {data_text(task)}, partition {rule}, {task.clients} clients {clusters_text(task)}."


def data_text(task: Task) -> str:
    """Return in words which data a task has."""
    match task.data:
        case Synthetic():
            train, test = rows_per_client(task.data)
            return f"synthetic data {_kind(task.data)}, {train} training and {test} test samples for each client"
        case CustomData():
            return f"custom data ({task.data.kind} {Path(task.data.path).name})"
    bounds = (
        f", with the bounds {', '.join(f'{bound:g}' for bound in task.thresholds)} of ratings"
        if task.thresholds
        else ""
    )
    return f"the data set {task.data}{bounds}"


def clusters_text(task: Task) -> str:
    """Return in words how many true clusters a task has, and how their data differ."""
    if task.concepts == 1:
        return "without true clusters"
    ways = [f"shift {_kind(task.shift)}"] if task.shift.kind != "none" else []
    ways += ["other classes"] if task.partition.kind == "class_groups" else []
    ways += ["other domains"] if task.partition.kind == "domains" else []
    ways += ["other teachers"] if isinstance(task.data, Synthetic) else []
    return f"in {task.clusters} clusters ({', '.join(ways)})"


def _kind(part: Any, without: set[str] | None = None) -> str:
    """Return a part of the task, such as its partition, as a text of the form `kind (key value, …)`.

    Values that equal their defaults, and the keys `without`, are left out.
    """
    values = part.model_dump(exclude_defaults=True, exclude={"kind", *(without or ())})
    return f"{part.kind.replace('_', ' ')}{f' ({changed_values(values)})' if values else ''}"


def cohort_text(task: Task) -> str:
    """Return in words how many clients train in a round."""
    return f"{task.cohort} of {task.clients} clients" if task.cohort < task.clients else "all clients"


def _joining(task: Task) -> str:
    if task.unseen is None:
        return ""
    new = f", {task.unseen.new_concept} of them with new concepts" if task.unseen.new_concept else ""
    return f"After training, {task.unseen.clients} more clients join{new}."


def _training(task: Task) -> str:
    local = f"{task.epochs} local epoch{'s' * (task.epochs != 1)}"
    local += f" of {task.steps_per_epoch} steps" if task.steps_per_epoch else ""
    model = changed_values({key: value for key, value in task.model.all_keys.items() if key != "kind"})
    return (
        f"In each of {task.rounds} rounds {cohort_text(task)} train for {local} on batches of {task.batch}, with SGD, "
        f"unless a method states otherwise. The task's model is {task.model.kind}{f' ({model})' if model else ''}."
    )


def _also(task: Task) -> str:
    """Return a sentence with those settings of the task that differ from their defaults and have no other sentence."""
    changes = [f"training images: {task.augmentation.replace('_', ' and ')}"] if task.augmentation != "none" else []
    if task.normalise is not None:
        mean, std = list(task.normalise.mean), list(task.normalise.std)
        changes += [f"inputs normalised with mean {mean} and standard deviation {std}"]
    if task.base == "frozen":
        changes += ["only the head of the model and adaptors are trained"]
    if task.server != Server():
        changes += [f"server optimiser {task.server.optimiser.upper()} with learning rate {task.server.lr:g}"]
    if task.assumed != task.concepts:
        changes += [f"methods assume {task.assumed} cluster{'s' * (task.assumed != 1)}"]
    return f"Also: {'; '.join(changes)}." if changes else ""


def _rates(task: Task, tuned: set[bool]) -> str:
    if tuned == {True}:
        return "Learning rates are tuned."
    rates = f"Learning rate {task.lr:g}, of router logits {task.router_lr:g}"
    return f"{rates}; tuned methods have their own." if True in tuned else f"{rates}."


def _fidelity(configuration: Configuration) -> str:
    changes = changed_values(configuration.switches)
    return f"Fidelity: {configuration.fidelity}{f', except {changes}' if changes else ''}."
