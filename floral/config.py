"""YAML in, frozen and validated values out: tasks, methods, suites, fidelity switches, runs and their hashes.

Nothing here imports torch: Snakemake reads this module while it builds the DAG.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model

from floral.schema import (
    DataSet,
    Fidelity,
    Frozen,
    MethodFile,
    Partition,
    Suite,
    Switch,
    Synthetic,
    Task,
    Unseen,
    Variant,
)

RESULTS_VERSION = 1
"""Raised by hand when the numerics change, so that new results never mix with old ones."""

CONFIG = Path(os.environ.get("FLORAL_CONFIG", "config"))
"""Folder of the YAML files, relative to the project's root, where every command is typed."""


class ConfigError(ValueError):
    """A value that the user wrote is wrong: the message names file, key and remedy."""


# ----------------------------------------------------------------------------------------------- runs


class Run(Frozen):
    """One job: a task, a variant and a seed, fully resolved. Equal runs share their folder, whatever the suite."""

    task: Task
    variant: Variant
    seed: int
    fidelity: Fidelity

    @property
    def partition_seed(self) -> int:
        return 42 if self.fidelity["partition"] == "one" else self.seed

    @property
    def partition(self) -> PartitionJob:
        """The partition that this run reads; every method of a task, seed and fidelity reads the same."""
        task = self.task
        full = {"share": 1.0} if self.fidelity["subset"] == "per_variant" else {}
        whole = {"validation": 0.0} if self.fidelity["validation"] == "none" else {}
        data_seed = self.seed if isinstance(task.data, Synthetic) else None
        return PartitionJob(
            task=task.name, data=task.data, data_digest=_data_digest(task.data), data_seed=data_seed,
            clients=task.clients, clusters=task.concepts, partition=task.partition.model_copy(update=full | whole),
            unseen=task.unseen, seed=self.partition_seed,
        )  # fmt: skip

    @property
    def hash8(self) -> str:
        return _hash8({"run": self.identity(), "partition": self.partition.hash8, "results_version": RESULTS_VERSION})

    @property
    def folder(self) -> Path:
        """results/train/<task>/<variant>/seed<k>-<hash8>, relative to the results' parent."""
        return Path("train") / self.task.name / self.variant.name / f"seed{self.seed}-{self.hash8}"

    def identity(self) -> dict[str, Any]:
        """The values that decide the numbers: everything but titles, prose and what only the report reads."""
        task = self.task.model_dump(mode="json", exclude={"title"})
        task["model"] = {"kind": self.task.model.kind, **self.task.model.arguments}
        variant = self.variant.model_dump(mode="json", include={"name", "method", "params"})
        rules = self.fidelity.model_dump(mode="json")
        rules["switches"] = {k: v for k, v in rules["switches"].items() if not switches()[k].report_only}
        return {"task": task, "variant": variant, "seed": self.seed, "fidelity": rules}


class PartitionJob(Frozen):
    """What decides a partition table: one job of the partition stage."""

    task: str
    data: str | Synthetic
    data_digest: str | None
    data_seed: int | None
    clients: int
    clusters: int
    partition: Partition
    unseen: Unseen | None = Field(default=None, exclude_if=lambda unseen: unseen is None)
    seed: int

    @property
    def hash8(self) -> str:
        joining = {"epochs", "samples"}  # what unseen clients do, not which rows they have
        return _hash8(self.model_dump(mode="json", exclude={"task": True, "unseen": joining}))

    @property
    def folder(self) -> Path:
        return Path("partition") / self.task / f"seed{self.seed}-{self.hash8}"


def _hash8(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


# -------------------------------------------------------------------------------------------- reading


def read(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def suggest(kind: str, name: str, known: Iterable[str], where: str | None = None) -> ConfigError:
    """The error for an unknown name: what exists and what was probably meant."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known) or 'none'}"
    return ConfigError(f"{where + ': ' if where else ''}unknown {kind} {name!r}{hint}")


def parse(model: type[Frozen], values: Any, where: str) -> Any:
    """Validated values, or a ConfigError that names file, key and what was found."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        problems = error.errors()
        # a mapping that lost an entry to a mistake is "too short" only because of it
        told = [problem for problem in problems if problem["type"] != "too_short"] or problems
        for problem in sorted(told, key=lambda problem: problem["type"] != "extra_forbidden"):
            key = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                fields = _fields_at(model, problem["loc"][:-1])
                lines.append(str(suggest("key", key, fields, where)))
            else:
                # without a key the input is the whole mapping, and the message names what is wrong in it
                found = f"{key}: {problem['msg']} (found {shortened(problem['input'])})" if key else problem["msg"]
                lines.append(f"{where}: {found.replace('Value error, ', '', 1)}")
        raise ConfigError("\n".join(lines)) from None


def shortened(value: Any) -> str:
    """What was found, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`, mapping by mapping; a mapping with another `kind` replaces the whole."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def names(folder: str) -> list[str]:
    """The names of the YAML files in a folder of config/."""
    return sorted(path.stem for path in (CONFIG / folder).glob("*.yaml"))


@cache
def _task_values(name: str, children: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a task over those that it extends; `children` are the tasks that led here, the first one first."""
    path = CONFIG / "tasks" / f"{name}.yaml"
    if not path.exists():
        where = f"{CONFIG}/tasks/{children[-1]}.yaml: extends" if children else str(CONFIG / "tasks")
        raise suggest("task", name, names("tasks"), where)
    values = read(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: expected the name of one task (found {parent!r})")
    chain = (*children, name)
    if parent in chain:
        circle = " → ".join((*chain[chain.index(parent) :], parent))
        raise ConfigError(f"{path}: extends: {circle} never ends; let one of these tasks extend none of the others")
    return _merge(_task_values(parent, chain), values)


def task(name: str, change: Mapping[str, Any] | None = None, where: str | None = None) -> Task:
    """Read config/tasks/<name>.yaml over the task it `extends`, with `change` on top."""
    where = where or str(CONFIG / "tasks" / f"{name}.yaml")
    parsed: Task = parse(Task, {**_merge(_task_values(name), change or {}), "name": name}, where)
    if parsed.model.kind not in (known := plugins("models")):
        raise suggest("model", parsed.model.kind, known, f"{where}: model.kind")
    parse(model_options(parsed.model.kind), parsed.model.arguments, f"{where}: model")
    if isinstance(parsed.data, str) and parsed.data not in (known := list(data_lock())):
        raise suggest("data set", parsed.data, known, f"{where}: data")
    return parsed


@cache
def plugins(folder: str) -> list[str]:
    """The modules of floral/<folder>: a new file is known on arrival."""
    return sorted(path.stem for path in (Path(__file__).parent / folder).glob("*.py") if path.stem != "__init__")


OPTION_TYPES: Mapping[str, Any] = {
    "int": Annotated[int, Field(strict=True, gt=0)],
    "float": Annotated[float, Field(strict=True, ge=0)],
    "bool": Annotated[bool, Field(strict=True)],
    "str": Annotated[str, Field(strict=True)],
}
"""What a model's `build` may ask of a task, and tuples of these: sizes are positive, rates are not negative."""


@cache
def model_options(kind: str) -> type[Frozen]:
    """What a task may set in `model:`, the keyword arguments of the model's `build`, read without importing torch.

    Raises:
        ConfigError: an argument of `build` has no type, or one that is not in OPTION_TYPES.
    """
    source = (Path(__file__).parent / "models" / f"{kind}.py").read_text(encoding="utf-8")
    body = ast.parse(source).body
    (build,) = (node.args for node in body if isinstance(node, ast.FunctionDef) and node.name == "build")
    fields: dict[str, Any] = {}
    for argument, default in zip(build.kwonlyargs, build.kw_defaults, strict=True):
        if argument.arg != "width":  # the methods' own: they widen a model
            kind_of = _option_type(argument.annotation, f"floral/models/{kind}.py: build: {argument.arg}")
            fields[argument.arg] = (kind_of, ... if default is None else None)
    return create_model(f"{kind} options", __base__=Frozen, **fields)


def _option_type(annotation: ast.expr | None, where: str) -> Any:
    match annotation:
        case ast.Name(id=name) if name in OPTION_TYPES:
            return OPTION_TYPES[name]
        case ast.Constant() if annotation.value is ...:
            return ...
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=parts)):
            return tuple[*(_option_type(part, where) for part in parts)]
    found = "no type" if annotation is None else ast.unparse(annotation)
    raise ConfigError(f"{where}: {found} cannot be checked; use {', '.join(OPTION_TYPES)} or a tuple of these")


@cache
def method_file(name: str) -> MethodFile:
    path = CONFIG / "methods" / f"{name}.yaml"
    parsed: MethodFile = parse(MethodFile, read(path), str(path))
    if name not in (known := plugins("methods")):
        raise suggest("method", name, known, f"{path}: no module floral/methods/{name}.py")
    return parsed


@cache
def variant_index() -> dict[str, str]:
    """variant name → method name, over every file of config/methods."""
    index: dict[str, str] = {}
    for method in names("methods"):
        for name in method_file(method).variants:
            if name in index:
                raise ConfigError(f"{CONFIG}/methods/{method}.yaml: variant {name!r} stands in {index[name]}.yaml too")
            index[name] = method
    return index


def variant(name: str, change: Mapping[str, Any] | None = None, where: str | None = None) -> Variant:
    """Resolve a variant: its method's defaults, its own values, then `change`, which stands at `where`."""
    if name not in (index := variant_index()):
        raise suggest("variant", name, index, str(CONFIG / "methods"))
    method = index[name]
    own = f"{CONFIG}/methods/{method}.yaml: variants.{name}"
    file = method_file(method)
    entry = file.variants[name]
    params = {key: parameter.default for key, parameter in file.parameters.items()}
    origin = {**dict.fromkeys((*params, *entry.set), own), **dict.fromkeys(change or {}, where or own)}
    for key, value in {**params, **entry.set, **(change or {})}.items():
        if key not in file.parameters:
            raise suggest("parameter", key, file.parameters, origin[key])
        try:
            params[key] = file.parameters[key].accept(value)
        except ValueError as error:
            raise ConfigError(f"{origin[key]}: {key}: {error} ({file.parameters[key].doc})") from None
    return Variant(
        name=name, method=method, title=entry.title, family=file.family, source=file.source,
        what=entry.what or file.what, oracle=entry.oracle or params.get("router") == "optimal",
        global_only=entry.global_only, params=params,
    )  # fmt: skip


@cache
def switches() -> dict[str, Switch]:
    """The fidelity switches of config/fidelity.yaml, in the file's order."""
    path = CONFIG / "fidelity.yaml"
    return {name: parse(Switch, row, f"{path}: {name}") for name, row in read(path).items()}


def fidelity(
    name: Literal["official", "corrected"], change: Mapping[str, Any] | None = None, where: str = "switches"
) -> Fidelity:
    """All switches of a fidelity, with single ones changed by `change`."""
    table = switches()
    values = {key: getattr(row, name) for key, row in table.items()}
    for key, value in (change or {}).items():
        if key not in table:
            raise suggest("switch", key, table, where)
        if value not in table[key].choices:
            raise ConfigError(f"{where}: {key}: {value!r} is not one of {', '.join(map(str, table[key].choices))}")
        values[key] = value
    return Fidelity(name=name, switches=values)


@cache
def suite(name: str) -> Suite:
    path = CONFIG / "suites" / f"{name}.yaml"
    if not path.exists():
        raise suggest("suite", name, names("suites"), str(CONFIG / "suites"))
    parsed: Suite = parse(Suite, {**read(path), "name": name}, str(path))
    return parsed


def runs(
    suite_name: str,
    tasks: Iterable[str] | None = None,
    variants: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
) -> list[Run]:
    """All runs of a suite, in its order; `tasks`, `variants` and `seeds` narrow it.

    Raises:
        ConfigError: a name is unknown, or the narrowing leaves nothing.
    """
    chosen = suite(suite_name)
    wanted = {"task": _wanted(tasks), "variant": _wanted(variants), "seed": _wanted(seeds)}
    found: dict[Path, Run] = {}
    seen: dict[str, set[Any]] = {key: set() for key in wanted}
    for block in chosen.runs:
        where = f"{CONFIG}/suites/{suite_name}.yaml"
        rules = fidelity(block.fidelity, block.switches, f"{where}: switches")
        for task_name, variant_name in itertools.product(block.tasks, block.variants):
            resolved_task, resolved_variant = (
                task(task_name, block.task, where if block.task else None),
                variant(variant_name, block.method, f"{where}: method"),
            )
            for seed in block.seeds:
                key = {"task": task_name, "variant": variant_name, "seed": seed}
                for axis, value in key.items():
                    seen[axis].add(value)
                if all(chosen_ is None or key[axis] in chosen_ for axis, chosen_ in wanted.items()):
                    run = Run(task=resolved_task, variant=resolved_variant, seed=seed, fidelity=rules)
                    if found.setdefault(run.folder, run).fidelity != run.fidelity:
                        raise ConfigError(
                            f"{where}: switches: {task_name} {variant_name} seed {seed} stands in two blocks that"
                            " differ in report-only switches alone; give both the same"
                        )
    for axis, values in wanted.items():
        for value in sorted((values or set()) - seen[axis], key=str):
            raise suggest(axis, str(value), map(str, seen[axis]), f"suite {suite_name!r} ({axis}s)")
    if not found:
        raise ConfigError(f"suite {suite_name!r}: no run has these tasks, variants and seeds together")
    return list(found.values())


def _wanted(values: Iterable[Any] | None) -> set[Any] | None:
    return None if values is None else set(values)


# ----------------------------------------------------------------------------------------------- data


@cache
def data_lock() -> dict[str, DataSet]:
    """The accepted data sets of config/data.lock."""
    path = CONFIG / "data.lock"
    return {name: parse(DataSet, entry, f"{path}: {name}") for name, entry in read(path).items()}


def _data_digest(data: str | Synthetic) -> str | None:
    """What is known of the data before they are fetched: the hashes that data.lock promises."""
    if isinstance(data, Synthetic):
        return None
    return _hash8([data, [file.sha256 for file in data_lock()[data].files]])
