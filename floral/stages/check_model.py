"""Check before any run starts that the models and methods fit the data, without training and without the data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

import torch

from floral.config import catalogue, networks, plugins
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import Synthetic
from floral.config.schema.task import Task
from floral.core.errors import first_line, in_user_code
from floral.core.spec import Problem, Refused
from floral.core.streams import Shapes
from floral.stages.assemble import build_method, problem_of
from floral.stages.check_data import facts, place_of

EXAMPLES: dict[Any, Any] = {int: 8, float: 0.1, bool: False}
"""Values for arguments of a model that have no default, where only the shape of the samples matters."""


def check(runs: Iterable[Run], results: Path, caller: str | None = None) -> None:
    """Build the model and the method of each run, and apply the model to one sample without values (device "meta").

    Runs that differ only in the seed are checked once. Runs whose data or networks are not fetched are left out,
    because the shape of their samples or the values of their model are unknown.

    `caller` is the Python function, if any, that got the runs. Messages name it as the place of a task in no file.

    Raises:
        ConfigError: a model or a method cannot be used for a task; the message names models that can.
    """
    checked: set[str] = set()
    for run in runs:
        key = run.model_copy(update={"seed": 0}).model_dump_json()
        sizes = None if key in checked or run.task.noop else sizes_of(run.task, results, caller)
        checked.add(key)
        if sizes is not None:
            cluster = torch.arange(run.task.clients) % run.task.concepts
            problem = problem_of(run, *sizes, cluster, torch.device("cpu"), torch.float32, results)
            _check_model(run.task, problem, caller)
            build_method(run, problem)


def sizes_of(task: Task, results: Path, caller: str | None) -> tuple[tuple[int, ...], int] | None:
    """Return the shape of one sample and the number of outputs; None if the data or the networks are not fetched."""
    if isinstance(task.data, Synthetic):
        return (task.data.dimension,), task.data.outputs
    sizes = facts(task, results, caller)
    fetched = all(card.exists() for card in networks.cards(task.model, results))
    if "shape" not in sizes or not sizes.get("classes") or not fetched:
        return None
    return tuple(sizes["shape"]), sizes["classes"]


def _check_model(task: Task, problem: Problem, caller: str | None) -> None:
    """Raise ConfigError if the task's model cannot be built or applied to one sample."""
    try:
        model = problem.build_model()
        if model.start is None:  # otherwise, `build` has applied it
            _apply(model, problem.shape, problem.outputs)
    except Exception as error:
        of_user = plugins.is_of_study("models", task.model.kind)
        if not of_user and not isinstance(error, Refused | RuntimeError | ValueError | TypeError | IndexError):
            raise
        reason = in_user_code(error) if of_user and not isinstance(error, Refused) else first_line(error)
        fitting = ""
        if task.model.kind != "module":  # who brings a module wants this one
            names = [name for name in plugins.names("models") if _fits(name, problem.shape, problem.outputs)]
            fitting = f"; models that fit: {', '.join(names) or 'none'}"
        raise ConfigError(
            f"{place_of(task, caller)}: model: {task.model.kind} cannot be used for samples of shape "
            f"{list(problem.shape)}: {reason}{fitting}"
        ) from None


def _apply(model: Any, shape: tuple[int, ...], outputs: int) -> None:
    """Compute the outputs for one sample on the device "meta", which has shapes but no values.

    Raises:
        ValueError: the outputs have a wrong shape.
    """
    with torch.device("meta"), torch.no_grad():
        params = {name: torch.empty(value.shape) for name, value in model.init(Shapes(0, "size")).items()}
        y, _ = model(params, model.statistics(), torch.empty(1, *shape), None, None)
    if y.shape[0] != 1 or y.shape[-1] != outputs:
        raise ValueError(f"its outputs have the shape {list(y.shape)}, but the last axis must be {outputs}")


def _fits(kind: str, shape: tuple[int, ...], outputs: int) -> bool:
    """Return whether a model, with its default arguments, can be applied to a sample of this shape."""
    try:
        _apply(plugins.builder("models", kind)(shape, outputs, **example_arguments(kind)), shape, outputs)
    except Exception:  # a model of the user may fail in any way, and then it does not fit
        return False
    return True


def example_arguments(kind: str) -> dict[str, Any]:
    """Return small values for the arguments of a model's `build` that have no default."""
    fields = catalogue.model_options(kind).model_fields
    return {name: _example(field.annotation) for name, field in fields.items() if field.is_required()}


def _example(annotation: Any) -> Any:
    if get_origin(annotation) is tuple:
        return tuple(_example(part) for part in get_args(annotation) if part is not ...)
    return EXAMPLES.get(annotation, EXAMPLES.get(next(iter(get_args(annotation)), None)))


def missing_data(tasks: Iterable[Task], results: Path, data_dir: Path | None) -> list[str]:
    """Return one line for each data set or network that is not stored yet: what happens, or what the user must do."""
    from floral.stages.fetch import availability

    lines = dict[str, None]()
    for task in tasks:
        for name in (data for data in networks.to_fetch(task) if isinstance(data, str)):
            state, remedy = availability(name, results, data_dir)
            if state == "missing":
                lines[f"  WARNING: data missing: {name}: {remedy}"] = None
            elif state == "to download":
                lines[f"  data to download: {name}"] = None
    return list(lines)
