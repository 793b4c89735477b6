"""The values that searches chose, committed in config/tuned."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from floral.config import catalogue, paths
from floral.config.reading import ConfigError, parse, read, suggest
from floral.config.run import Run
from floral.config.schema.tuning import Configuration, Tuned
from floral.config.searches import Search, with_values


class Untuned(ConfigError):
    """A suite needs tuned values that are not committed, or that come from another search."""


def tune_command(*suites: str) -> str:
    """Return the command, for the project's root, that searches and writes the tuned values of suites."""
    named = suites[0] if len(suites) == 1 else f'"[{", ".join(suites)}]"'
    return f"snakemake --profile local tuned --config suite={named}"


def tuned_path(task_name: str) -> Path:
    """Return the path of the tuned values of a task."""
    return paths.CONFIG_FOLDER / "tuned" / f"{task_name}.yaml"


@cache
def tuned_values(task_name: str) -> dict[str, Tuned]:
    """Read the committed values of a task, by variant.

    Raises:
        ConfigError: the file names an unknown variant, or a value is wrong.
    """
    path = tuned_path(task_name)
    if not path.exists():
        return {}
    values = read(path)
    for name in values:
        if name not in (variants := catalogue.variant_index()):
            raise suggest("variant", name, variants, str(path))
    return {name: parse(Tuned, entry, f"{path}: {name}") for name, entry in values.items()}


def is_current(search: Search) -> bool:
    """Return whether the committed values are those of this search."""
    entry = tuned_values(search.task.name).get(search.variant.name)
    return entry is not None and entry.search == search.digest


def with_tuned_values(search: Search, run: Run) -> Run:
    """Return the run with its committed values.

    Raises:
        Untuned: there are no values, or they come from another search. The caller appends the variant's name.
        ConfigError: the committed values are not a configuration of the search.
    """
    name, path = search.variant.name, tuned_path(search.task.name)
    entry = tuned_values(search.task.name).get(name)
    if entry is None:
        raise Untuned(f"{path}: no tuned values yet")
    if entry.search != search.digest:
        raise Untuned(
            f"{path}: stale, because the task, the method's defaults, its search space or tuning.yaml has changed since"
        )
    if Configuration(rates=entry.rates, params=entry.params) not in search.configurations:
        raise ConfigError(
            f"{path}: {name}: rates and params are none of the {entry.budget} configurations of its search; do not "
            "edit tuned values, tune again"
        )
    return with_values(run, entry.rates, entry.params)
