"""Section with a description of the experimental setup and a reproducibility checklist, ready to paste into a paper."""

from __future__ import annotations

import polars as pl

from floral.config.searches import tuning
from floral.report.collect import Collected
from floral.report.description import changed_values, describe
from floral.report.latex import latex
from floral.report.sections.base import Material, Section
from floral.report.sentences import count, state, states

NOT_STATED = "not stated"


def section(material: Material) -> Section | None:
    return Section(id="setup") if material.collected.configurations else None


def paragraphs(collected: Collected, facts: dict[str, str]) -> dict[str, str]:
    """Return the experimental setup in words: as plain `text`, and as `latex` with special characters escaped."""
    sentences = [
        *(describe(collected, configuration) for configuration in collected.configurations),
        _methods(collected),
    ]
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
         f"(section Provenance); number of different partitions: {partitions}."
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


def _methods(collected: Collected) -> str:
    """Return a sentence with the methods, and one with the hyper-parameters that the suite changes."""
    titles = ", ".join(method.title for method in collected.methods)
    changes = [f"{method.title} ({changed_values(method.changes)})" for method in collected.methods if method.changes]
    partly = any(
        len(collected.methods_on(configuration)) < len(collected.methods) for configuration in collected.configurations
    )
    sentences = [
        f"Methods ({len(collected.methods)}): {titles}.",
        "Some methods run on a part of the tasks only." if partly else "",
        f"Changed from the methods' defaults: {'; '.join(changes)}." if changes else "",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _tuning(collected: Collected) -> str:
    tuned = [method.title for method in collected.methods if method.tuned]
    if not tuned:
        return "No values were tuned."
    tasks = dict.fromkeys(configuration.task.name for configuration in collected.configurations)
    rules = [tuning(task) for task in tasks]
    budget, share, at_most = (
        " or ".join(f"{value:g}" for value in sorted(set(values)))
        for values in zip(*((rule.budget, 100 * rule.share, rule.at_most) for rule in rules), strict=True)
    )
    subject = "All methods" if len(tuned) == len(collected.methods) else f"Some methods ({', '.join(tuned)})"
    return (
        f"{subject} were tuned with {budget} candidates each, for every task, by the validation loss after "
        f"{share} % of the rounds (at most {at_most}), on seeds that are not reported."
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
    by_method = collected.summary.group_by("configuration", "method_id").agg(pl.col("seed").n_unique())["seed"]
    partly = " (not all methods have all seeds)" if by_method.min() != len(seeds) else ""
    counts = state(collected)
    return f"Seeds {', '.join(map(str, seeds))}{partly}: {count(counts['all'], 'run')}, {states(counts)}."


def _versions(facts: dict[str, str]) -> str:
    if not facts:
        return ""
    text = f"Computed with {facts['Versions']} (Python {facts['Python']}) on {facts['Machine']}"
    return f"{text}, {facts['Execution']}, commit {facts['Commit']}."
