"""Stage tune: every configuration of a search in one process, judged by its validation loss; values for config/tuned.

No test row is read: the federation is loaded without them.
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
from floral.config.reading import ConfigError
from floral.config.schema.tuning import Configuration, Tuned
from floral.config.search_space import edges
from floral.config.searches import Search
from floral.config.tuned import is_current, tuned_path, tuned_values
from floral.core.process import configure_process, set_threads
from floral.data import federation
from floral.data.federation import Federation
from floral.engine.simulate import EXPLODED, Execution, Simulation
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
    """Try every configuration on every tuning seed and return the best; what is finished of it is not made again.

    trials.json holds a row for each configuration and seed, and is rewritten after each of them.

    Raises:
        ConfigError: data are missing, the method refuses the task or every configuration, no such device.
    """
    configure_process(threads)
    folder = results / search.folder
    with held(folder / ".lock", "tuning"), hold_device(device, runs_per_gpu) as where:
        configure_device(where, "fp32")
        found = read(folder) or {"commit": git_commit(), "execution": None, "trials": []}
        done = {(trial["configuration"], trial["seed"]) for trial in found["trials"]}
        for seed in search.tuning.seeds:
            data: Federation | None = None
            for number, configuration in enumerate([None, *search.configurations]):
                if (number, seed) in done:
                    continue
                data = data or federation.load(search.trial(seed), results, test=False)
                began = time.perf_counter()
                row = trial(search, configuration, seed, data, found, (where, backend, threads))
                row = {"configuration": number, "seed": seed, **row, "seconds": round(time.perf_counter() - began, 3)}
                found["trials"].append(row)
                atomic(folder / "trials.json", (json.dumps(found, indent=1) + "\n").encode())
        chosen = choose(search, found)
        (folder / "done").write_text(f"{found['commit']}\n")
    print(told(search, chosen, found), flush=True)
    return chosen


def trial(
    search: Search, configuration: Configuration | None, seed: int, data: Federation, found: dict[str, Any],
    how: tuple[torch.device, str, int],
) -> dict[str, Any]:  # fmt: skip
    """Status, reason and validation loss of one configuration on one seed; None is the untuned values.

    The first one chooses the execution of all.
    """
    run = search.trial(seed, configuration)
    where, backend, threads = how
    problem = make_problem(run, data, where, torch.float32)
    try:
        method = build_method(run, problem)
    except ConfigError as refusal:
        return {"status": "refused", "reason": str(refusal), "validation_loss": None}
    plain = Simulation(
        method, client_data(data, method, where, torch.float32), make_settings(run), Execution("loop", 1)
    )
    state = plain.start()
    if found["execution"] is None:
        found["execution"] = asdict(measure_execution(plain, state, backend, threads))
    simulation = Simulation(method, plain.data, plain.settings, Execution(**found["execution"]))
    set_threads(simulation.execution.threads)
    for round in range(1, simulation.settings.rounds + 1):
        loss, _ = simulation.train(state, round)
        if not abs(float(loss)) < EXPLODED:
            return {"status": "diverged", "reason": f"at round {round}", "validation_loss": None}
    assert simulation.data.validation is not None, "a search without rows held out is refused by config"
    scores = simulation.own_rows(state, simulation.data.validation, np.arange(data.clients))
    value = scores.mean(scores.loss)
    if not abs(value) < EXPLODED:
        return {"status": "diverged", "reason": "after the last round", "validation_loss": None}
    return {"status": "done", "reason": None, "validation_loss": value}


def read(folder: Path) -> dict[str, Any] | None:
    """The trials of a search that was begun.

    Raises:
        ConfigError: trials.json is damaged.
    """
    path = folder / "trials.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        [(row["configuration"], row["seed"], row["validation_loss"]) for row in found["trials"]]
        return {key: found[key] for key in ("commit", "execution", "trials")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: damaged ({error!r}); remove it, and the same command tunes again") from None


def choose(search: Search, found: dict[str, Any]) -> Tuned:
    """The configuration with the least validation loss (mean over clients by their rows, then over seeds).

    One that diverged or was refused on any seed is out; of equal ones the first is taken.

    Raises:
        ConfigError: none is left.
    """
    seeds, configurations = search.tuning.seeds, search.configurations
    rows = {(row["configuration"], row["seed"]): row for row in found["trials"]}
    means: list[float | None] = []
    for number in range(1 + len(configurations)):
        losses = [rows[number, seed]["validation_loss"] for seed in seeds]
        means.append(None if None in losses else float(f"{sum(losses) / len(losses):.6g}"))
    default, *losses = means
    left = [number for number, loss in enumerate(losses) if loss is not None]
    if not left:
        reasons = dict.fromkeys(f"{row['status']} {row['reason']}" for row in found["trials"])
        raise ConfigError(
            f"{search.task.name} {search.variant.name}: no configuration ended: {'; '.join(reasons)}; give it another "
            "search space"
        )
    best = configurations[min(left, key=lambda number: cast(float, losses[number]))]
    return Tuned(
        rates=best.rates, params=best.params, search=search.digest, budget=len(configurations), seeds=seeds,
        rounds=search.task.rounds, commit=found["commit"], default=default, losses=tuple(losses),
    )  # fmt: skip


def told(search: Search, chosen: Tuned, found: dict[str, Any]) -> str:
    """One line: what was chosen, and how."""
    values = {
        name: value for name, value in {**chosen.rates.model_dump(), **chosen.params}.items() if name in search.axes
    }
    at_edge = edges(search.axes, chosen.rates, chosen.params)
    said = ", ".join(
        f"{name} {value:g}{' (edge)' if name in at_edge else ''}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if len(search.axes[name]) > 1
    )
    best = min(loss for loss in chosen.losses if loss is not None)
    default = "diverged" if chosen.default is None else f"{chosen.default:.4g}"
    seconds = sum(row["seconds"] for row in found["trials"])
    return (
        f"{search.task.name} {search.variant.name}: {said}; validation loss {best:.4g}, untuned {default}; "
        f"{chosen.losses.count(None)} of {chosen.budget} did not end; {seconds:.1f} s"
    )


def write(searches: Iterable[Search], results: Path) -> list[Path]:
    """Put what finished searches have chosen into config/tuned/<task>.yaml, beside other entries; returns the files.
    What is committed already stays where its search is not here.

    Raises:
        ConfigError: a search is not finished, or another one is of the same task and variant.
    """
    fresh: dict[str, dict[str, Tuned]] = {}
    for search in searches:
        if search.variant.name in fresh.get(search.task.name, {}):
            raise ConfigError(
                f"{search.task.name} {search.variant.name}: two suites tune it with other values, and config/tuned has "
                "room for one; give both suites the same"
            )
        found = read(results / search.folder)
        if found is None or not (results / search.folder / "done").exists():
            if is_current(search):
                continue
            raise ConfigError(f"{results / search.folder}: {search.task.name} {search.variant.name} is not tuned yet")
        fresh.setdefault(search.task.name, {})[search.variant.name] = choose(search, found)
    for task, entries in fresh.items():
        merged = {**tuned_values(task), **entries}
        plain = {name: merged[name].model_dump(mode="json") for name in sorted(merged)}
        text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=120)
        atomic(tuned_path(task), (HEADER + text).encode())
    return [tuned_path(task) for task in fresh]
