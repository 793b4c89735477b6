"""Stage tune: train every candidate of a search and choose the one with the lowest validation loss.

A candidate is one set of learning rates and method parameters. One process trains all candidates. The test samples are
not even loaded, so that they cannot influence the choice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml

from floral.cluster.gpus import hold_device
from floral.config import code
from floral.config.reading import ConfigError
from floral.config.schema.tuning import Configuration, Tuned
from floral.config.search_space import edges
from floral.config.searches import Search
from floral.config.tuned import is_current, study_values, tuned_path
from floral.core.process import configure_process, set_threads
from floral.data import federation
from floral.data.federation import Federation
from floral.engine.simulate import DIVERGED_LOSS, Execution, Simulation
from floral.io.files import atomic
from floral.io.locks import held
from floral.stages.assemble import build_method, client_data, make_problem, make_settings
from floral.stages.choose_execution import configure_device, measure_execution
from floral.stages.provenance import git_commit

HEADER = """\
# Written by the stage tune (floral tune SUITE --write), one entry for each variant; not to be edited by hand.
# losses: mean validation loss of each configuration in the grid's order; null: it diverged or was refused.
"""


def tune(search: Search, results: Path, *, device: str, backend: str, threads: int, runs_per_gpu: int = 1) -> Tuned:
    """Train every candidate of a search on every tuning seed, and return the best candidate.

    A trial is one candidate on one seed. Finished trials are reused: trials.json has an entry for each trial and is
    rewritten after each trial.

    Raises:
        ConfigError: data are missing, the method cannot be used for the task, every candidate diverged or was refused,
            the search began with other code, or the device is missing.
    """
    configure_process(threads)
    folder, plugins = results / search.folder, (search.variant.method, search.task.model.kind)
    with held(folder / ".lock", "tuning"), hold_device(device, runs_per_gpu) as torch_device:
        configure_device(torch_device, "fp32")
        digests = code.digests(*plugins)
        record = read(folder) or {"commit": git_commit(), "execution": None, "code": digests, "trials": []}
        if changed := code.changed_files(record["code"], *plugins):
            raise ConfigError(
                f"{folder}: this search began with other code: {', '.join(changed)}; remove it with `floral forget "
                f"{search.variant.name}`, and search again"
            )
        done = {(trial["configuration"], trial["seed"]) for trial in record["trials"]}
        for seed in search.tuning.seeds:
            data: Federation | None = None
            for number, configuration in enumerate([None, *search.configurations]):
                if (number, seed) in done:
                    continue
                began = time.perf_counter()
                row = result_of_equal_trial(search, configuration, seed, record)
                if row is None:
                    data = data or federation.load(search.trial(seed), results, test=False)
                    row = trial(search, configuration, seed, data, record, (torch_device, backend, threads), results)
                row = {"configuration": number, "seed": seed, **row, "seconds": round(time.perf_counter() - began, 3)}
                record["trials"].append(row)
                atomic(folder / "trials.json", (json.dumps(record, indent=1) + "\n").encode())
        tuned = choose(search, record)
        (folder / "done").write_text(f"{record['commit']}\n")
    print(summary_line(search, tuned, record), flush=True)
    return tuned


def result_of_equal_trial(
    search: Search, configuration: Configuration | None, seed: int, record: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the result with the untuned values if this candidate has the same values. Otherwise, return None."""
    candidate, default = search.trial(seed, configuration), search.trial(seed)
    if configuration is None or (candidate.rates, candidate.variant.params) != (default.rates, default.variant.params):
        return None
    untuned = next(row for row in record["trials"] if (row["configuration"], row["seed"]) == (0, seed))
    return {key: untuned[key] for key in ("status", "reason", "validation_loss")}


def trial(
    search: Search, configuration: Configuration | None, seed: int, data: Federation, record: dict[str, Any],
    how: tuple[torch.device, str, int], results: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train one candidate on one seed, and return the status, the reason and the validation loss.

    The reason says why the candidate was refused or diverged. `configuration` is the candidate; None stands for the
    untuned values. The first trial of a search measures which backend is fastest, and all later trials use this
    backend.
    """
    run = search.trial(seed, configuration)
    torch_device, backend, threads = how
    problem = make_problem(run, data, torch_device, torch.float32, results)
    try:
        method = build_method(run, problem)
    except ConfigError as refusal:
        return {"status": "refused", "reason": str(refusal), "validation_loss": None}
    plain = Simulation(
        method, client_data(data, method, torch_device, torch.float32), make_settings(run), Execution("loop", 1)
    )
    state = plain.start()
    if record["execution"] is None:
        record["execution"] = asdict(measure_execution(plain, state, backend, threads))
    simulation = Simulation(method, plain.data, plain.settings, Execution(**record["execution"]))
    set_threads(simulation.execution.threads)
    for round in range(1, simulation.settings.rounds + 1):
        loss, _ = simulation.train(state, round)
        if not abs(float(loss)) < DIVERGED_LOSS:
            return {"status": "diverged", "reason": f"at round {round}", "validation_loss": None}
    assert simulation.data.validation is not None, "config refuses a search without validation samples"
    scores = simulation.own_rows(state, simulation.data.validation, np.arange(data.clients))
    value = scores.mean(scores.loss)
    if not abs(value) < DIVERGED_LOSS:
        return {"status": "diverged", "reason": "after the last round", "validation_loss": None}
    return {"status": "done", "reason": None, "validation_loss": value}


def read(folder: Path) -> dict[str, Any] | None:
    """Return the content of trials.json, the trials of a search; None if the search has not started.

    Raises:
        ConfigError: trials.json is damaged.
    """
    path = folder / "trials.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        [(row["configuration"], row["seed"], row["validation_loss"]) for row in record["trials"]]
        return {key: record[key] for key in ("commit", "execution", "trials")} | {"code": record.get("code")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error!r}); remove this file and repeat the command") from None


def choose(search: Search, record: dict[str, Any]) -> Tuned:
    """Return the candidate with the lowest mean validation loss.

    The loss is first averaged over clients, weighted by their numbers of samples, and then over seeds. A candidate that
    diverged or was refused on any seed is excluded. If several candidates have the lowest loss, the first one is
    chosen.

    Raises:
        ConfigError: all candidates are excluded.
    """
    seeds, configurations = search.tuning.seeds, search.configurations
    rows = {(row["configuration"], row["seed"]): row for row in record["trials"]}
    means: list[float | None] = []
    for number in range(1 + len(configurations)):
        losses = [rows[number, seed]["validation_loss"] for seed in seeds]
        means.append(None if None in losses else float(f"{sum(losses) / len(losses):.6g}"))
    default, *losses = means
    finished = [number for number, loss in enumerate(losses) if loss is not None]
    if not finished:
        reasons = dict.fromkeys(f"{row['status']} {row['reason']}" for row in record["trials"])
        raise ConfigError(
            f"{search.task.name} {search.variant.name}: no candidate finished: {'; '.join(reasons)}; set another "
            "search space for this variant"
        )
    best = configurations[min(finished, key=lambda number: cast(float, losses[number]))]
    return Tuned(
        rates=best.rates, params=best.params, search=search.digest, budget=len(configurations), seeds=seeds,
        rounds=search.task.rounds, commit=record["commit"], default=default, losses=tuple(losses),
    )  # fmt: skip


def summary_line(search: Search, tuned: Tuned, record: dict[str, Any]) -> str:
    """Describe in one line the tuned values, the validation loss and the cost of a search."""
    values = {
        name: value for name, value in {**tuned.rates.model_dump(), **tuned.params}.items() if name in search.axes
    }
    at_edge = edges(search.axes, tuned.rates, tuned.params)
    values_text = ", ".join(
        f"{name} {value:g}{' (edge)' if name in at_edge else ''}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if len(search.axes[name]) > 1
    )
    best = min(loss for loss in tuned.losses if loss is not None)
    default = "diverged" if tuned.default is None else f"{tuned.default:.4g}"
    seconds = sum(row["seconds"] for row in record["trials"])
    return (
        f"{search.task.name} {search.variant.name}: {values_text}; validation loss {best:.4g}, untuned {default}; "
        f"{tuned.losses.count(None)} of {tuned.budget} candidates did not finish; {seconds:.1f} s"
    )


def write(searches: Iterable[Search], results: Path) -> list[Path]:
    """Write the tuned values of finished searches to config/tuned/<task>.yaml, and return the paths of these files.

    All other entries in these files are kept. An unfinished search is skipped if config/tuned already has an up-to-date
    entry for it.

    Raises:
        ConfigError: a search is not finished and has no up-to-date entry, or two searches have the same task and
            variant.
    """
    entries_by_task: dict[str, dict[str, Tuned]] = {}
    for search in searches:
        if search.variant.name in entries_by_task.get(search.task.name, {}):
            raise ConfigError(
                f"{search.task.name} {search.variant.name}: two suites tune this variant on this task with different "
                "values, but config/tuned has only one entry for both; set the same values in both suites"
            )
        record = read(results / search.folder)
        if record is None or not (results / search.folder / "done").exists():
            if is_current(search):
                continue
            raise ConfigError(
                f"{results / search.folder}: {search.task.name} {search.variant.name} is not tuned yet; "
                "tune it first with `snakemake --profile local tuned`"
            )
        entries_by_task.setdefault(search.task.name, {})[search.variant.name] = choose(search, record)
    for task, entries in entries_by_task.items():
        merged = {**study_values(task), **entries}
        plain = {name: merged[name].model_dump(mode="json") for name in sorted(merged)}
        text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)
        atomic(tuned_path(task), (HEADER + text).encode())
    return [tuned_path(task) for task in entries_by_task]
