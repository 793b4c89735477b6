"""YAML in, frozen and validated values out: tasks, methods, suites, fidelity switches, runs and their hashes.

Nothing here imports torch: Snakemake reads this module while it builds the DAG.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from floral import files, grid
from floral.reading import ConfigError, merge, parse, read, suggest
from floral.schema import (
    NOTHING,
    Block,
    Configuration,
    DataFile,
    DataSet,
    Fidelity,
    Frozen,
    MethodFile,
    Own,
    Parameter,
    Partition,
    Rates,
    SearchFile,
    Space,
    Suite,
    Switch,
    Synthetic,
    Task,
    Tuned,
    Tuning,
    Unseen,
    Variant,
)

RESULTS_VERSION = 1
"""Raised by hand when the numerics change, so that new results never mix with old ones."""

OWN = "own-"
"""Own data are stored under this and a hash."""
OWN_VERSION = 2
"""Raised by hand when other rows are made of the same own data, as RESULTS_VERSION is for results."""
OWN_ADVICE = "put it there, or name another in data.path of the task"
"""What to do about own data that are not there."""

CONFIG = Path(os.environ.get("FLORAL_CONFIG", "config"))
"""Folder of the YAML files, relative to the project's root, where every command is typed."""


class Untuned(ConfigError):
    """A suite asks for tuned values that nobody has committed, or that were found in another search."""


# ----------------------------------------------------------------------------------------------- runs


class Run(Frozen):
    """One job: a task, a variant and a seed, fully resolved. Equal runs share their folder, whatever the suite."""

    task: Task
    variant: Variant
    seed: int
    fidelity: Fidelity
    own_rates: Rates | None = None
    """From tuning; None: the task's."""

    @property
    def rates(self) -> Rates:
        return self.own_rates or Rates(lr=self.task.lr, router_lr=self.task.router_lr)

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
            task=task.name, data=stored_data(task.data), data_digest=_data_digest(task.data), data_seed=data_seed,
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

    @property
    def siblings(self) -> Path:
        """<task>/<variant>/<hash8> of what decides the numbers but for the seed: equal for all seeds of a variant."""
        shared = {key: value for key, value in self.identity().items() if key != "seed"}
        whole = {"run": shared, "data": _data_digest(self.task.data), "results_version": RESULTS_VERSION}
        return Path(self.task.name) / self.variant.name / _hash8(whole)

    def identity(self) -> dict[str, Any]:
        """The values that decide the numbers: everything but titles, prose and what only the report reads."""
        task = self.task.model_dump(mode="json", exclude={"title"})
        if isinstance(self.task.data, Own):
            task["data"] = stored_data(self.task.data)  # their content, wherever they lie
        task["model"] = {"kind": self.task.model.kind, **self.task.model.arguments}
        variant = self.variant.model_dump(mode="json", include={"name", "method", "params"})
        known = method_file(self.variant.method).parameters
        later = {name: parameter.default for name, parameter in known.items() if parameter.later}
        given = variant["params"].items()
        variant["params"] = {name: value for name, value in given if name not in later or value != later[name]}
        rules = self.fidelity.model_dump(mode="json")
        rules["switches"] = {k: v for k, v in rules["switches"].items() if not switches()[k].report_only}
        own = {} if self.own_rates is None else {"own_rates": self.own_rates.model_dump(mode="json")}
        return {"task": task, "variant": variant, "seed": self.seed, "fidelity": rules, **own}


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


# ----------------------------------------------------------------------------------- tasks and methods


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
    return merge(_task_values(parent, chain), values)


def task(name: str, change: Mapping[str, Any] | None = None, where: str | None = None) -> Task:
    """Read config/tasks/<name>.yaml over the task it `extends`, with `change` on top."""
    where = where or str(CONFIG / "tasks" / f"{name}.yaml")
    parsed: Task = parse(Task, {**merge(_task_values(name), change or {}), "name": name}, where)
    if parsed.model.kind not in (known := plugins("models")):
        raise suggest("model", parsed.model.kind, known, f"{where}: model.kind")
    parse(model_options(parsed.model.kind), parsed.model.arguments, f"{where}: model")
    if isinstance(parsed.data, str) and not parsed.noop and parsed.data not in (known := list(data_lock())):
        raise suggest("data set", parsed.data, known, f"{where}: data")
    return parsed


def benchmarks() -> list[str]:
    """The names of all tasks but those that do nothing."""
    return [name for name in names("tasks") if not task(name).noop]


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
def common_parameters() -> dict[str, Parameter]:
    """What every method can be asked for: config/parameters.yaml."""
    path = CONFIG / "parameters.yaml"
    return {name: parse(Parameter, row, f"{path}: {name}") for name, row in read(path).items()}


@cache
def method_file(name: str) -> MethodFile:
    """A file of config/methods, its parameters followed by those that all methods have."""
    path = CONFIG / "methods" / f"{name}.yaml"
    parsed: MethodFile = parse(MethodFile, read(path), str(path))
    if name not in (known := plugins("methods")):
        raise suggest("method", name, known, f"{path}: no module floral/methods/{name}.py")
    if twice := sorted(parsed.parameters.keys() & common_parameters().keys()):
        raise ConfigError(f"{path}: parameters: {twice[0]} is one of {CONFIG}/parameters.yaml; give it another name")
    return parsed.model_copy(update={"parameters": {**parsed.parameters, **common_parameters()}})


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
    equals = (*file.equals, *entry.equals)
    for rule in equals:
        if rule.variant not in index:
            raise suggest("variant", rule.variant, index, f"{own}: equals")
    return Variant(
        name=name, method=method, title=entry.title, family=file.family, source=file.source,
        what=entry.what or file.what, oracle=entry.oracle or params.get("router") == "optimal",
        global_only=entry.global_only,
        server_sees=file.server_sees if entry.server_sees is None else entry.server_sees, equals=equals, params=params,
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
        Untuned: some of these runs need tuned values that are not there.
    """
    wanted = {"task": _wanted(tasks), "variant": _wanted(variants), "seed": _wanted(seeds)}
    found: dict[Path, Run] = {}
    untuned: dict[str, list[str]] = {}
    seen: dict[str, set[Any]] = {key: set() for key in wanted}
    for block, where, first in _blocks(suite_name):
        asked = []
        for seed in block.seeds:
            key = {"task": first.task.name, "variant": first.variant.name, "seed": seed}
            for axis, value in key.items():
                seen[axis].add(value)
            if all(chosen is None or key[axis] in chosen for axis, chosen in wanted.items()):
                asked.append(seed)
        try:
            like = _tuned(_search(first, where), first) if block.tuned and asked else first
        except Untuned as reason:
            untuned.setdefault(str(reason), []).append(first.variant.name)
            continue
        for run in (like.model_copy(update={"seed": seed}) for seed in asked):
            if found.setdefault(run.folder, run).fidelity != run.fidelity:
                raise ConfigError(
                    f"{where}: switches: {run.task.name} {run.variant.name} seed {run.seed} stands in two blocks that"
                    " differ in report-only switches alone; give both the same"
                )
    for axis, values in wanted.items():
        for value in sorted((values or set()) - seen[axis], key=str):
            raise suggest(axis, str(value), map(str, seen[axis]), f"suite {suite_name!r} ({axis}s)")
    if untuned:
        lines = [f"{reason}: {', '.join(dict.fromkeys(names))}" for reason, names in untuned.items()]
        raise Untuned("\n".join([*lines, f"tune with: {tune_command(suite_name)}"]))
    if not found:
        raise ConfigError(f"suite {suite_name!r}: no run has these tasks, variants and seeds together")
    return list(found.values())


def _blocks(suite_name: str) -> Iterator[tuple[Block, str, Run]]:
    """Every block's tasks × variants: the block, where it stands, and the untuned run of its first seed."""
    blocks = list(_blocks_of_suites(suite_name))
    if any(block.tuned for block, _ in blocks):
        _check_apart((block for block, _ in blocks), f"{CONFIG}/suites/{suite_name}.yaml")
    for block, where in blocks:
        rules = fidelity(block.fidelity, block.switches, f"{where}: switches")
        tasks = benchmarks() if block.tasks == "all" else block.tasks
        for task_name, variant_name in itertools.product(tasks, block.variants):
            run = Run(
                task=task(task_name, block.task, where if block.task else None),
                variant=variant(variant_name, block.method, f"{where}: method"),
                seed=block.seeds[0],
                fidelity=rules,
            )
            if run.variant.oracle and run.task.assumed_clusters is not None:
                raise ConfigError(
                    f"{where}: variants: {variant_name!r} reads the true clusters, of which it is told another number "
                    f"(assumed_clusters: {run.task.assumed_clusters}); leave the variant out"
                )
            if block.tuned and (both := sorted(block.method.keys() & search_space(variant_name).values.keys())):
                raise ConfigError(
                    f"{where}: method: {', '.join(both)}: tuning chooses it for {variant_name!r}; leave it out"
                )
            yield block, where, run


def _blocks_of_suites(suite_name: str, within: tuple[str, ...] = ()) -> Iterator[tuple[Block, str]]:
    """The blocks of a suite, and before them those of the suites that it names; each with the file it stands in."""
    chosen, where = suite(suite_name), f"{CONFIG}/suites/{suite_name}.yaml"
    if suite_name in within:
        raise ConfigError(f"{where}: suites: {' → '.join((*within, suite_name))}: a suite cannot be a part of itself")
    for name in chosen.suites:
        yield from _blocks_of_suites(name, (*within, suite_name))
    for block in chosen.runs:
        yield block, where


def _wanted(values: Iterable[Any] | None) -> set[Any] | None:
    return None if values is None else set(values)


# --------------------------------------------------------------------------------------------- tuning


class Search(Frozen):
    """The search for a variant's values on a task: one job of the tune stage, 1 + `budget` runs per tuning seed."""

    task: Task
    """With the search's rounds, so that suites of another length share it."""
    variant: Variant
    fidelity: Fidelity
    tuning: Tuning
    axes: Mapping[str, tuple[Any, ...]]

    @property
    def configurations(self) -> list[Configuration]:
        return grid.configurations(self.axes)

    def trial(self, seed: int, configuration: Configuration | None = None) -> Run:
        """The run of a configuration, or of the untuned values."""
        run = Run(task=self.task, variant=self.variant, seed=seed, fidelity=self.fidelity)
        return run if configuration is None else _with_values(run, configuration.rates, configuration.params)

    def references(self) -> list[Run]:
        """The runs of the untuned values, one for each seed."""
        return [self.trial(seed) for seed in self.tuning.seeds]

    @property
    def digest(self) -> str:
        """Of all that decides what is found: the untuned run and its partitions, the grid and the seeds."""
        runs = self.references()
        return _hash8({
            "run": runs[0].identity(), "partitions": [run.partition.hash8 for run in runs],
            "axes": {name: list(values) for name, values in self.axes.items()}, "seeds": self.tuning.seeds,
            "results_version": RESULTS_VERSION,
        })  # fmt: skip

    @property
    def folder(self) -> Path:
        """results/tune/<task>/<variant>/<digest>, relative to the results' parent."""
        return Path("tune") / self.task.name / self.variant.name / self.digest


def searches(
    suite_name: str, tasks: Iterable[str] | None = None, variants: Iterable[str] | None = None
) -> dict[Path, Search]:
    """The searches that a suite's blocks with `tuned: true` rest on, by folder; `tasks` and `variants` narrow them.

    Raises:
        ConfigError: one of them cannot be made: no search space, none of the budget's size, no rows held out.
    """
    found: dict[tuple[str, str], Search] = {}
    for block, where, first in _blocks(suite_name):
        key = first.task.name, first.variant.name
        if block.tuned and all(some is None or name in some for name, some in zip(key, (tasks, variants), strict=True)):
            made = _search(first, where)
            if found.setdefault(key, made) != made:
                raise ConfigError(
                    f"{where}: tuned: {' '.join(key)} stands in two blocks with other values; config/tuned has room for"
                    " one search of a task and variant"
                )
    return {one.folder: one for one in found.values()}


def _check_apart(blocks: Iterable[Block], where: str) -> None:
    """Raises ConfigError where a suite with tuned values reports on the seeds that chose them, of whatever task."""
    chose = {seed for seeds in (tuning().seeds, *tuning().more_seeds.values()) for seed in seeds}
    if both := sorted({seed for block in blocks for seed in block.seeds} & chose):
        raise ConfigError(
            f"{where}: seeds: {both} choose the tuned values ({CONFIG}/tuning.yaml), so no suite with `tuned: true` "
            "may report on them"
        )


def tune_command(*suites: str) -> str:
    """What finds and writes the values of some suites; typed in the project's root."""
    named = suites[0] if len(suites) == 1 else f'"[{", ".join(suites)}]"'
    return f"snakemake --profile local tuned --config suite={named}"


def tuned_path(task_name: str) -> Path:
    return CONFIG / "tuned" / f"{task_name}.yaml"


@cache
def tuned_values(task_name: str) -> dict[str, Tuned]:
    """variant → its committed values on a task."""
    path = tuned_path(task_name)
    if not path.exists():
        return {}
    values = read(path)
    for name in values:
        if name not in (known := variant_index()):
            raise suggest("variant", name, known, str(path))
    return {name: parse(Tuned, entry, f"{path}: {name}") for name, entry in values.items()}


@cache
def tuning() -> Tuning:
    path = CONFIG / "tuning.yaml"
    parsed: Tuning = parse(Tuning, read(path), str(path))
    for name in parsed.more_seeds:
        if name not in (known := names("tasks")):
            raise suggest("task", name, known, f"{path}: more_seeds")
    return parsed


@cache
def search_space(variant_name: str) -> Space:
    """The space of a variant, its own or its method's, checked against the method's parameters and the budget.

    Raises:
        ConfigError: there is none, it names or holds what the method does not take, or has another number of points.
    """
    method = variant_index()[variant_name]
    path = CONFIG / "search" / f"{method}.yaml"
    if not path.exists():
        raise ConfigError(
            f"{path}: no such file, so nothing says what is tuned of {method!r}; write it ({{}} for learning rates "
            f"alone), or name {variant_name!r} in a block without `tuned: true`"
        )
    file: SearchFile = parse(SearchFile, read(path), str(path))
    for name in file.variants:
        if name not in (known := method_file(method).variants):
            raise suggest("variant", name, known, f"{path}: variants")
    own = variant_name in file.variants
    space = file.variants.get(variant_name, file)
    _check_space(space, variant_name, f"{path}: variants.{variant_name}" if own else str(path), own)
    return space


def _check_space(space: Space, variant_name: str, where: str, own: bool) -> None:
    """Raises ConfigError, see `search_space`; `own`: the space is the variant's, not its method's."""
    file = method_file(variant_index()[variant_name])
    for key, values in space.values.items():
        if key not in file.parameters:
            raise suggest("parameter", key, file.parameters, f"{where}: values")
        if key in file.variants[variant_name].set and not own:
            raise ConfigError(
                f"{where}: values: {key} is what {variant_name!r} sets; give it a space of its own under variants"
            )
        for value in values:
            try:
                file.parameters[key].accept(value)
            except ValueError as error:
                raise ConfigError(f"{where}: values: {key}: {error} ({file.parameters[key].doc})") from None
        if len(set(values)) < len(values):
            raise ConfigError(f"{where}: values: {key}: {list(values)} holds a value twice")
    sizes = {"router_lr": space.router_lr, **{key: len(v) for key, v in space.values.items()}}
    if (budget := tuning().budget) % (count := math.prod(sizes.values())):
        product = " × ".join(f"{size} of {key}" for key, size in sizes.items() if size > 1)
        raise ConfigError(
            f"{where}: {product} make {count} combinations, which cannot share the {budget} configurations of every "
            f"variant ({CONFIG}/tuning.yaml) equally"
        )


def _search(run: Run, where: str) -> Search:
    """The search for the values of a run's task and variant; `where` is the suite's file."""
    task, rule = run.task, tuning().of(run.task.name)
    if run.fidelity["validation"] == "none" or task.partition.validation == 0:
        raise ConfigError(
            f"{where}: tuned: {task.name} holds no rows out (fidelity {run.fidelity.name}, switch validation: "
            f"{run.fidelity['validation']}; the task's partition.validation: {task.partition.validation:g}), and test "
            "rows must not choose anything; leave `tuned` out, or use fidelity: corrected"
        )
    space, rates = search_space(run.variant.name), run.rates
    for name in grid.RATES:
        if (name == "lr" or space.router_lr > 1) and getattr(rates, name) == 0:
            raise ConfigError(f"{where}: tuned: {task.name} has {name}: 0, and every multiple of 0 is 0")
    short = {"rounds": rule.rounds(task.rounds), "eval_every": None}
    return Search(
        task=task.model_copy(update=short), variant=run.variant, fidelity=run.fidelity, tuning=rule,
        axes=grid.axes(space, rule, rates),
    )  # fmt: skip


def is_current(search: Search) -> bool:
    """Whether its values are committed, so that it need not be made again."""
    entry = tuned_values(search.task.name).get(search.variant.name)
    return entry is not None and entry.search == search.digest


def _tuned(search: Search, run: Run) -> Run:
    """The run with its committed values.

    Raises:
        Untuned: there are none, or they were found in another search (the message ends before the variant's name).
    """
    name, path = search.variant.name, tuned_path(search.task.name)
    entry = tuned_values(search.task.name).get(name)
    if entry is None:
        raise Untuned(f"{path}: no tuned values yet")
    if entry.search != search.digest:
        raise Untuned(
            f"{path}: stale, for the task, the method's defaults, its search space or tuning.yaml has changed since"
        )
    if Configuration(rates=entry.rates, params=entry.params) not in search.configurations:
        raise ConfigError(
            f"{path}: {name}: rates, params: none of the {entry.budget} configurations of its search; do not edit what "
            "a search has chosen, tune again"
        )
    return _with_values(run, entry.rates, entry.params)


def _with_values(run: Run, rates: Rates, params: Mapping[str, Any]) -> Run:
    tuned = run.variant.model_copy(update={"params": {**run.variant.params, **params}})
    return run.model_copy(update={"variant": tuned, "own_rates": rates})


# ----------------------------------------------------------------------------------------------- data


@cache
def data_lock() -> dict[str, DataSet]:
    """The accepted data sets of config/data.lock."""
    path = CONFIG / "data.lock"
    return {name: parse(DataSet, entry, f"{path}: {name}") for name, entry in read(path).items()}


def data_set(data: str | Own) -> DataSet:
    """Where the data of a task come from: an entry of config/data.lock, or the like of one for its own."""
    if isinstance(data, str):
        return data_lock()[data]
    path = own_path(data)
    return DataSet(
        title=f"Own data, {data.kind} {path.name}", reader=data.kind, options=data.options, own=True,
        files=(DataFile(path=str(path), sha256=_content(path)[0]),),
    )  # fmt: skip


def stored_data(data: str | Synthetic | Own) -> str | Synthetic:
    """Under which name data are stored; own data under one that their content and their options decide (their path,
    while they are not there)."""
    if not isinstance(data, Own):
        return data
    made = data_set(data)
    content = [file.sha256 or file.path for file in made.files]
    return OWN + _hash8([OWN_VERSION, made.reader, dict(made.options), content])


def why_unreadable(data: Own) -> str | None:
    """Which file or folder of own data is not there or cannot be read; None where all can."""
    return _content(own_path(data))[1]


def own_data(name: str, suite_name: str | None = None) -> Own:
    """A task's own data by the task's name, or by the name under which they are stored; as a suite sets them, if given.

    Raises:
        ConfigError: no task of this name has data of its own, or none has data stored so.
    """
    if suite_name is not None:
        tasks = [first.task for _, _, first in _blocks(suite_name)]
    else:
        known = names("tasks")
        tasks = [task(one) for one in known if one == name or name.startswith(OWN)]
    for one in tasks:
        if isinstance(one.data, Own) and name in (one.name, stored_data(one.data)):
            return one.data
    raise suggest("data set", name, data_lock(), f"{CONFIG}/data.lock")


def own_path(data: Own) -> Path:
    return Path(data.path).expanduser().absolute()


@cache
def _content(path: Path) -> tuple[str | None, str | None]:
    """The sha256 of own data, or None and why they cannot be read.

    Read once in a process: own data that change while a command runs are found changed by the next one.
    """
    if not path.exists():
        return None, f"{path} does not exist"
    try:
        return files.content_sha256(path), None
    except OSError as error:
        return None, f"{error.filename or path} cannot be read: {error.strerror}"


def _data_digest(data: str | Synthetic | Own) -> str | None:
    """What is known of the data before they are fetched: the hashes that data.lock promises, or that own data have.
    Where one is open, or the reader has options, how they are read too."""
    if isinstance(data, Synthetic) or data == NOTHING:
        return None
    made = data_set(data)
    known: list[Any] = [stored_data(data), promised := [file.sha256 for file in made.files]]
    return _hash8([*known, made.reader, dict(made.options)] if None in promised or made.options else known)
