"""Read the values that hyper-parameter searches chose. They are committed in config/tuned."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from floral.config import catalogue, layers, paths
from floral.config.reading import ConfigError, parse, read, suggest
from floral.config.run import Run
from floral.config.schema.tuning import Configuration, Tuned
from floral.config.searches import Search, with_values


class Untuned(ConfigError):
    """Error: a suite needs tuned values that config/tuned does not have.

    The values are missing, or they are stale: a search with other settings chose them.
    """


def tune_command(*suites: str) -> str:
    """Return the command that runs the searches of these suites and writes the tuned values to config/tuned."""
    named = suites[0] if len(suites) == 1 else f'"[{", ".join(suites)}]"'
    return f"snakemake --profile local tuned --config suite={named}"


def tuned_path(task_name: str) -> Path:
    """Return the path of the study's file with the tuned values of a task."""
    return paths.CONFIG_FOLDER / "tuned" / f"{task_name}.yaml"


@cache
def tuned_values(task_name: str) -> dict[str, Tuned]:
    """Return the tuned values of a task in config/tuned, by the name of the variant.

    An entry of the study replaces that of the package. A search wrote both, and the digest of the search in the entry
    tells whether the entry is valid. So no `overrides` is needed.

    Raises:
        ConfigError: the file names an unknown variant, or a value is wrong.
    """
    variants = catalogue.variant_index()
    of_package = [folder / "tuned" / f"{task_name}.yaml" for folder in layers.folders()[1:]]
    entries = {name: entry for path in of_package for name, entry in _entries(path).items() if name in variants}
    return entries | study_values(task_name)


def study_values(task_name: str) -> dict[str, Tuned]:
    """Return the tuned values of a task that the study itself has, by the name of the variant.

    Raises:
        ConfigError: the file names an unknown variant, or a value is wrong.
    """
    path = tuned_path(task_name)
    entries = _entries(path)
    for name in entries:
        if name not in (variants := catalogue.variant_index()):
            raise suggest("variant", name, variants, str(path))
    return entries


def _entries(path: Path) -> dict[str, Tuned]:
    return {name: parse(Tuned, row, f"{path}: {name}") for name, row in read(path).items()} if path.exists() else {}


def is_current(search: Search) -> bool:
    """Return whether config/tuned has the values that this search chose, and not those of an older search."""
    entry = tuned_values(search.task.name).get(search.variant.name)
    return entry is not None and entry.search == search.digest


def with_tuned_values(search: Search, run: Run) -> Run:
    """Return a copy of the run with its tuned values from config/tuned.

    Raises:
        Untuned: the file has no values for the variant, or a search with other settings chose them.
        ConfigError: the values in the file are not among those that the search tries.
    """
    name, path = search.variant.name, tuned_path(search.task.name)
    entry = tuned_values(search.task.name).get(name)
    if entry is None:
        raise Untuned(f"{path}: no tuned values yet")
    if entry.search != search.digest:
        raise Untuned(
            f"{path}: stale values (the task, the method's defaults, its search space or tuning.yaml has changed since)"
        )
    if Configuration(rates=entry.rates, params=entry.params) not in search.configurations:
        raise ConfigError(
            f"{path}: {name}: `rates` and `params` are not one of the {entry.budget} configurations of the search, so "
            "this entry was edited; remove the entry, then tune again"
        )
    return with_values(run, entry.rates, entry.params)
