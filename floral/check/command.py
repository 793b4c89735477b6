"""Print what the contracts of a method, model or task show: what holds, what fails and why."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from floral.check import methods, models, tasks
from floral.check.outcomes import printed
from floral.config import layers, paths, plugins
from floral.config.reading import suggest
from floral.core.process import set_threads
from floral.core.units import plural

WIDTH = 110
"""Maximum width of a printed line of a summary, in characters."""


def check_method(name: str) -> int:
    """Check the variants of a method, or one variant. Print the outcomes, and return how many contracts are broken.

    Raises:
        ConfigError: no method or variant has this name.
    """
    set_threads(1)
    failures = sum(printed(f"variant {variant}", methods.checks(variant)) for variant in methods.variants_of(name))
    return _concluded(f"method {name}", failures)


def check_model(
    name: str,
    shape: Sequence[int] | None,
    outputs: int | None,
    arguments: Mapping[str, Any] = {},
    inputs: Mapping[str, str] = {},
) -> int:
    """Check a model: a file in models/, or <file.py>:<function>. Print the outcomes, and return how many are broken.

    `shape` is the shape of a sample; without it, common shapes are tried. `arguments` and `inputs` are as in the key
    `model` of a task's file.

    Raises:
        ConfigError: no model, file or function has this name.
    """
    set_threads(1)
    keys = models.keys_of(name, arguments, inputs)
    pairs = ", ".join(f"{key}: {value}" for key, value in keys.items() if key != "kind")
    title = f"model {name}" if ":" in name else f"model {name} ({plugins.file('models', name)}; {pairs})"
    facts = models.Facts()
    failures = printed(title, models.checks(keys, tuple(shape) if shape else None, outputs, facts))
    for row, text in models.summary(facts).items():
        print(textwrap.fill(text, WIDTH, initial_indent=f"  {row:<13}", subsequent_indent=" " * 15))
    return _concluded(f"model {name}", failures)


def check_task(name: str, results: Path, data_dir: Path | None) -> int:
    """Check a task. Print the outcomes, and return how many contracts are broken.

    Raises:
        ConfigError: no task has this name.
    """
    set_threads(1)
    if name not in (names := layers.names("tasks")):
        raise suggest("task", name, names, str(paths.CONFIG_FOLDER / "tasks"))
    title = f"task {name} ({layers.file(f'tasks/{name}.yaml')})"
    return _concluded(f"task {name}", printed(title, tasks.checks(name, results, data_dir)))


def _concluded(name: str, failures: int) -> int:
    print(f"{name}: {plural(failures, 'contract')} broken" if failures else f"{name}: all contracts hold")
    return failures
