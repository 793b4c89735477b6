"""Turn the arguments of `floral.run` into a run: names, dictionaries with YAML keys, objects, or arrays."""

from __future__ import annotations

import hashlib
import operator
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from floral.config import catalogue, paths, plugins
from floral.config.reading import ConfigError, shortened, suggest
from floral.config.run import Run
from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.method import Variant
from floral.config.schema.task import Task
from floral.config.suites import check_oracle
from floral.core.precision import Precision

PLACE = "floral.run"
ONE_PART = ("x", "y", "client")
TWO_PARTS = ("train_x", "train_y", "train_client", "test_x", "test_y", "test_client")
CLIENTS = ("client", "train_client")
ARRAYS = (*ONE_PART, *TWO_PARTS)
"""Keys of data that are given as arrays."""
OPTIONS = ("test_share", "channels")
"""Keys of a task's `data` that may stand beside arrays."""
FOLDER = "arrays"
"""Folder in the results that has the arrays which were given to `floral.run`."""


def run_of(task: Any, variant: Any, seed: Any, *, data: Any, fidelity: Any, precision: Precision, results: Path) -> Run:
    """Return the run that the arguments of `floral.run` describe. Arrays are written to the folder `results`.

    Raises:
        ConfigError: an argument is wrong. The message names the argument, its value and the remedy.
    """
    if fidelity not in ("corrected", "official"):
        raise ConfigError(f"{PLACE}: fidelity: {fidelity!r} is not allowed; choose corrected or official")
    described = Run(
        task=task_of(task, data, results),
        variant=variant_of(variant),
        seed=seed_of(seed),
        fidelity=catalogue.fidelity(fidelity),
        precision=precision,
    )
    check_oracle(described, f"{PLACE}: variant")
    return described


def task_of(task: Any, data: Any, results: Path) -> Task:
    """Return the task that is given as a name, as a dictionary with the keys of its YAML file, or as an object.

    `data`, if not None, replaces the data of the task. If arrays name the client of each sample, these are by default
    the clients of the task.

    Raises:
        ConfigError: the task is none of these, or a value is wrong.
    """
    where = f"{PLACE}: task"
    if isinstance(task, Task) and data is None:
        return task
    if isinstance(task, str):
        if task not in (names := catalogue.names("tasks")):
            raise suggest("task", task, names, where)
        values: dict[str, Any] = {"extends": task}
    elif isinstance(task, Task):
        values = task.model_dump(exclude_unset=True)
    elif isinstance(task, Mapping):
        values = dict(task)
    else:
        raise ConfigError(
            f"{where}: {shortened(task)} is no task; give the name of a task, or a dictionary with its YAML keys"
        )
    if "model" in values:
        values["model"] = model_of(values["model"])
    data = values.get("data") if data is None else data
    if data is not None:
        values["data"] = data_of(data, results)
    if (
        isinstance(data, Mapping)
        and "kind" not in data
        and (sides := [name for name in CLIENTS if data.get(name) is not None])
    ):
        clients = len(np.unique(np.asarray(data[sides[0]]).astype(str)))
        values = {"partition": {"kind": "natural"}, "clients": clients, **values}
    return catalogue.task_of(values, where)


def model_of(model: Any) -> Any:
    """Return the value of a task's key `model`. A function that builds a torch.nn.Module is named by its file.

    Raises:
        ConfigError: the model is a module and no function, or the function is in no file.
    """
    where = f"{PLACE}: task: model"
    if isinstance(model, Mapping):
        return {**model, "build": _named_in_file(model["build"], where)} if callable(model.get("build")) else model
    return {"kind": "module", "build": _named_in_file(model, where)} if callable(model) else model


def _named_in_file(function: Any, where: str, built: str = "module") -> str:
    """Return <file.py>:<function>. The path begins in the folder of the study, if the file lies there."""
    code, name = getattr(function, "__code__", None), getattr(function, "__qualname__", "")
    path = Path(code.co_filename).resolve() if code is not None else Path()
    if not path.is_file() or not name.isidentifier() or path.suffix != ".py":
        raise ConfigError(
            f"{where}: {shortened(function)} is no function in a file; write a function that builds the {built} into "
            "a file (in a notebook by %%writefile mine.py), and give 'mine.py:function'"
        )
    study = paths.STUDY.resolve()
    return f"{path.relative_to(study) if path.is_relative_to(study) else path}:{name}"


def variant_of(variant: Any) -> Variant:
    """Return the variant that is given as a name, as {"name": …, hyper-parameter: value, …}, or as an object.

    A method may be given as its function `build`: alone, or as {"build": …, "name": …, hyper-parameter: value, …}.

    Raises:
        ConfigError: the variant is none of these, or a hyper-parameter is wrong.
    """
    where = f"{PLACE}: variant"
    if isinstance(variant, Variant):
        return variant
    change = dict(variant) if isinstance(variant, Mapping) else {"build" if callable(variant) else "name": variant}
    name = change.pop("name", None)
    if (build := change.pop("build", None)) is not None:
        return _variant_of_function(build, name, change, where)
    if not isinstance(name, str):
        raise ConfigError(
            f"{where}: {shortened(variant)} names no variant; give a name such as 'floral_1', or a dictionary such as "
            "{'name': 'floral_1', 'rank': 2}"
        )
    if name not in (index := catalogue.variant_index()):
        raise suggest("variant", name, index, where, catalogue.published_names())
    return catalogue.variant(name, change, where)


def _variant_of_function(build: Any, name: Any, change: Mapping[str, Any], where: str) -> Variant:
    """Return the variant of a method that is given as a function in a file, or as <file.py>:<function>.

    The function `build` of a file in a folder `methods` is the method with its YAML file. The arguments of any other
    function, after the first one, are the hyper-parameters.

    Raises:
        ConfigError: the function is in no file, its variant is not clear, or a hyper-parameter is wrong.
    """
    place = build if isinstance(build, str) else _named_in_file(build, where, "method")
    path, function = paths.in_study(place.rpartition(":")[0]), place.rpartition(":")[2]
    if function == "build" and path.resolve().parent in [folder.resolve() for folder in plugins.folders("methods")]:
        variants = catalogue.method_file(path.stem).variants
        if name is None and len(variants) == 1:
            (name,) = variants
        if not isinstance(name, str) or name not in variants:
            raise ConfigError(f"{where}: {path} has the variants {', '.join(variants)}; give one of them as `name`")
        return catalogue.variant(name, change, where)
    name = name or (path.stem if function == "build" else function)
    return catalogue.variant_in_file(name, place, change, where)


def folder_of(results: Any, default: Path, place: str) -> Path:
    """Return the results folder that is given as text or as a path; without one, the default.

    Raises:
        ConfigError: it is neither text nor a path.
    """
    if results is None:
        return default
    if not isinstance(results, str | os.PathLike) or not os.fspath(results):
        raise ConfigError(f"{place}: results: {results!r} is no folder; give its path, such as 'results'")
    return Path(results).expanduser()


def seed_of(seed: Any) -> int:
    """Return the seed as an integer. NumPy's integers are accepted.

    Raises:
        ConfigError: the seed is not a whole number of at least 0.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(f"{PLACE}: seed: {seed!r} is not a whole number of at least 0; give one, such as 0")
    return number


def data_of(data: Any, results: Path) -> Any:
    """Return the value of a task's key `data`: a name, the keys of custom data, or an object of them.

    Arrays are written to the folder `results`, and the keys of these files are returned.

    Raises:
        ConfigError: a key is unknown, an array is missing, or an array has no number per sample.
    """
    where = f"{PLACE}: data"
    if isinstance(data, str | Synthetic | CustomData) or (isinstance(data, Mapping) and "kind" in data):
        return data
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"{where}: {shortened(data)} is no data; give a name, a dictionary with the keys of `data`, or arrays as "
            "{'x': x, 'y': y, 'client': client}"
        )
    for key in data:
        if key not in (*ARRAYS, *OPTIONS):
            raise suggest("key", str(key), (*ARRAYS, *OPTIONS, "kind"), where)
    parts = [part for part in (ONE_PART, TWO_PARTS) if any(name in data for name in part)]
    if len(parts) != 1:
        raise ConfigError(f"{where}: give either x and y, or train_x, train_y, test_x and test_y")
    needed = [name for name in parts[0] if "client" not in name]
    if missing := [name for name in needed if data.get(name) is None]:
        raise ConfigError(f"{where}: {missing[0]} is missing; give {', '.join(needed)}")
    arrays = {name: _array(data[name], f"{where}: {name}") for name in parts[0] if data.get(name) is not None}
    for side in ("", "train_", "test_"):
        lengths = {name: len(array) for name, array in arrays.items() if name.startswith(side or ("x", "y", "client"))}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise ConfigError(f"{where}: {listed} entries; give each array one entry per sample")
    options = {name: data[name] for name in OPTIONS if name in data}
    return {"kind": "arrays", "path": str(_stored(arrays, results).absolute()), **options}


def _array(values: Any, where: str) -> np.ndarray:
    """Return the values as an array. Columns of words, such as those of pandas, become arrays of text.

    Raises:
        ConfigError: the values are no array with one entry per sample.
    """
    try:
        array = np.asarray(values)
        if array.dtype == object and all(isinstance(value, str) for value in array.flat):
            array = array.astype(str)
    except (TypeError, ValueError, RuntimeError) as error:  # of torch: a tensor on a GPU, or one that needs a gradient
        raise ConfigError(f"{where}: this is no array: {error}; give a NumPy array, or a tensor on the CPU") from None
    if array.ndim == 0 or array.dtype == object:
        raise ConfigError(
            f"{where}: {shortened(values)} is no array with one entry per sample; give a NumPy array of numbers"
        )
    return array


def _stored(arrays: Mapping[str, np.ndarray], results: Path) -> Path:
    """Write the arrays to results/arrays/<hash>, unless they are there, and return this folder."""
    content = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        content.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    folder = results / FOLDER / content.hexdigest()[:8]
    if not folder.exists():
        new = folder.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(new / f"{name}.npy", array, allow_pickle=False)
        new.replace(folder)
    return folder
