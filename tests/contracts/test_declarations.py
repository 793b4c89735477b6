"""What config/ promises of the plugins is what floral/ has: parameters, models, tasks; a refusal has a reason."""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from federations import CPU, FIRST, NOT_TUNED, OF_EACH_KIND, VARIANTS
from odd_files import read

from floral.adaptors.attach import adaptors_of
from floral.check.contracts import declaration_is_complete
from floral.config import catalogue, code, data_sets, networks, paths, plugins, reading
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import CustomData, Synthetic
from floral.config.schema.method import STATEMENTS, MethodFile
from floral.config.schema.task import Task
from floral.config.suites import suite_runs
from floral.data.federation import Federation
from floral.stages.assemble import build_method, make_problem

SHAPES = {
    "digits": ((8, 8), 10),
    "mnist": ((28, 28), 10),
    "fashion_mnist": ((28, 28), 10),
    "femnist": ((28, 28), 62),
    "emnist_digits": ((28, 28), 10),
    "cifar10_jpeg90": ((32, 32, 3), 10),
    "cifar100_jpeg90": ((32, 32, 3), 100),
    "shakespeare_tiny": ((80,), 65),
    "shakespeare": ((80,), 90),
    "stackoverflow": ((20,), 10000),
    "digits_two_sources": ((28, 28), 10),
    "sentiment": ((48,), 3),
    "glue_sst2": ((64,), 2),
    "ag_news": ((128,), 4),
}
"""Rows and classes of the data sets; a new one needs a line."""


def explicit(function) -> set[str]:
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds} - {"problem"}


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_a_methods_parameters_are_those_of_its_build(name):
    build = importlib.import_module(f"floral.methods.{name}").build
    taken = explicit(build)
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(build).parameters.values()):
        taken |= explicit(adaptors_of)  # the one function that methods hand further keywords to
    assert taken == catalogue.method_file(name).parameters.keys() - catalogue.common_parameters().keys()


def test_no_number_that_disables_a_method_is_accepted_unless_it_is_named():
    """0 (noise, entropy, …) is refused by the bounds, or the parameter's line in config/methods says what it is."""
    for name in catalogue.names("methods"):
        for key, parameter in catalogue.method_file(name).parameters.items():
            if isinstance(parameter.default, bool | str):
                continue
            try:
                parameter.accept(type(parameter.default)(0))
            except ValueError:
                continue
            assert re.search(r"\b0 [a-z]*s\b", parameter.doc), (
                f"config/methods/{name}.yaml: {key}: its doc does not say what 0 is"
            )


def test_a_variant_with_another_base_has_a_description_of_its_own():
    """A base that is trained in every round and one that is frozen after a warm-up are two kinds of training."""
    files = [catalogue.method_file(name) for name in catalogue.names("methods")]
    entries = {name: (entry, file) for file in files for name, entry in file.variants.items() if "base" in entry.set}
    assert len(entries) > 10
    for name, (entry, file) in entries.items():
        assert entry.set["base"] != file.parameters["base"].default, name
        assert entry.what is not None and entry.what != file.what, name


def test_a_method_that_does_not_say_what_the_server_sees_is_told_so():
    values = reading.read(paths.CONFIG_FOLDER / "methods" / "fedavg.yaml")
    del values["server_sees"]
    with pytest.raises(ConfigError, match=r"fedavg\.yaml: `server_sees` is missing: .* sizes, routes, updates, rows"):
        reading.parse(MethodFile, values, "config/methods/fedavg.yaml")


def test_every_method_of_the_package_says_how_it_relates_to_its_source():
    """A method of the user may say nothing. Methods of the package are those whose code is in code.lock."""
    names = [Path(path).stem for path in code.equal_code() if path.startswith("floral/methods/")]
    assert len(names) > 30
    for name in names:
        values = reading.read(paths.CONFIG_FOLDER / "methods" / f"{name}.yaml")
        assert values.keys() >= STATEMENTS.keys(), name
        assert values["chosen_here"] or values["differs"], name
        assert bool(values["as_published"]) == ("arXiv" in values["source"] or name == "fedavg_finetune"), name


def test_what_is_as_published_ends_with_its_place():
    place = re.compile(r"\([^()]*(algorithms? \d|figure \d|section|paper|abstract|same file|arXiv|`)[^()]*\)\.$")
    for name in catalogue.names("methods"):
        file = catalogue.method_file(name)
        for entry in (file, *file.variants.values()):
            assert not [text for text in entry.as_published if not place.search(text)], name


@pytest.mark.parametrize("in_variant", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("differs", "the rate", "must be a list; write `differs: [the rate]` (found 'the rate')"),
        ("chosen_here", [{"the rate": 5}], "must be text; put the value in quotes (found {'the rate': 5})"),
        ("as_published", None, "must be a list"),
        ("differ", ["the rate"], "unknown key 'differ'; did you mean 'differs'?"),
    ],
)
def test_wrong_statements_on_the_source_name_file_and_key(key, value, problem, in_variant):
    values = reading.read(paths.CONFIG_FOLDER / "methods" / "fedavg.yaml")
    (values["variants"]["fedavg"] if in_variant else values)[key] = value
    with pytest.raises(ConfigError) as error:
        reading.parse(MethodFile, values, "config/methods/mine.yaml")
    place = "variants.fedavg" if in_variant else ""
    entry = f"{key}.0" if isinstance(value, list) and key != "differ" else key
    shown = place if key == "differ" else ".".join(filter(None, [place, entry]))
    assert str(error.value).startswith(": ".join(filter(None, ["config/methods/mine.yaml", shown, problem])))


def test_every_method_module_has_a_file_and_the_other_way_round():
    assert catalogue.names("methods") == plugins.names("methods")


def own_shape(data: CustomData) -> tuple[tuple[int, ...], int]:
    """Shape of a sample and number of classes of the user's own files."""
    found = read(data.kind, data_sets.custom_path(data), **data.model_dump(exclude={"kind", "path"}))
    return found.train_x.shape[1:], found.classes


@cache
def of_task(name: str) -> Federation:
    return data_of(catalogue.task(name))


def data_of(task: Task) -> Federation:
    """A federation of the task's shapes without a row: what building a method looks at."""
    if isinstance(task.data, Synthetic):
        shape, classes, outputs = (task.data.dimension,), None, task.data.outputs
    else:
        shape, classes = own_shape(task.data) if isinstance(task.data, CustomData) else SHAPES[task.data]
        outputs = classes
    x, y = np.zeros((0, *shape), np.uint8), np.zeros((0, outputs) if classes is None else 0)
    empty = {split: np.zeros((task.clients, 0), np.int64) for split in ("train", "validation", "test")}
    return Federation(
        train_x=x, train_y=y, test_x=x, test_y=y, rows=empty, counts={k: v.sum(1) for k, v in empty.items()},
        cluster=np.arange(task.clients) % task.clusters, clusters=task.clusters, classes=classes, scale=16,
        exact=True, partition_digest="", make_global_test=lambda: (x, y),
    )  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_does_each_task_or_refuses_with_a_reason(variant):
    """Variants that differ from the first of their method by parameters do one task of each kind of model."""
    models: set[str] = set()
    first = variant in FIRST.values()
    fidelities = ("corrected", "official") if variant in OF_EACH_KIND else ("corrected",)
    for name, fidelity in itertools.product(catalogue.names("tasks"), fidelities):
        task = catalogue.task(name)
        if networks.used(task.model):
            continue  # their weights need not be here; tests/pretrained has some of them
        run = Run(task=task, variant=catalogue.variant(variant), seed=0, fidelity=catalogue.fidelity(fidelity))
        if task.noop or (isinstance(task.data, CustomData) and data_sets.why_unreadable(task.data)):
            continue
        shape = f"{task.model} {task.data} {task.clusters} {fidelity}" if first else f"{task.model.kind} {fidelity}"
        if shape in models:
            continue  # builds the same
        models.add(shape)
        problem = make_problem(run, of_task(name), CPU, torch.float32)
        try:
            method = build_method(run, problem)
        except ConfigError as refusal:
            start = f"variant {variant} cannot be used for task {name}: "
            assert str(refusal).startswith(start) and len(str(refusal)) > len(start) + 10
        else:
            declaration_is_complete(method, problem.clients)


def test_every_variant_does_a_task_of_custom_data_or_refuses_with_a_reason(tmp_path):
    rows = [f"{row}.5,{row * 7 % 11},{'ab'[row % 2]}" for row in range(40)]
    (tmp_path / "mine.csv").write_text("\n".join(["length,width,kind", *rows]))
    data = {"kind": "table", "path": str(tmp_path / "mine.csv"), "label": "kind"}
    mlp = {"kind": "mlp", "hidden": 4}
    task = catalogue.task("digits_dirichlet", {"data": data, "clients": 8, "clusters": 2, "model": mlp})
    assert data_of(task).shape == (2,) and data_of(task).classes == 2
    built = 0
    for variant in VARIANTS:
        run = Run(task=task, variant=catalogue.variant(variant), seed=0, fidelity=catalogue.fidelity("corrected"))
        problem = make_problem(run, data_of(task), CPU, torch.float32)
        try:
            declaration_is_complete(build_method(run, problem), problem.clients)
        except ConfigError as refusal:
            assert str(refusal).startswith(f"variant {variant} cannot be used for task digits_dirichlet: ")
        else:
            built += 1
    assert built > len(VARIANTS) / 2


def test_a_refusal_is_a_users_mistake_with_the_methods_own_words():
    with pytest.raises(ConfigError, match=r"fedavg_wide cannot be used for task synthetic_linear: .*no hidden layer"):
        task = catalogue.task("synthetic_linear")
        run = Run(task=task, variant=catalogue.variant("fedavg_wide"), seed=0, fidelity=catalogue.fidelity("corrected"))
        build_method(run, make_problem(run, data_of(task), CPU, torch.float32))


@pytest.mark.parametrize("task", ["digits_rotate", "mnist_rotate", "synthetic_mlp"])
def test_fedavg_wide_has_florals_parameters_and_no_model_between(task):
    """At least |u| + C|a|, and less than one hidden unit more."""
    values = catalogue.task(task)

    def size(variant: str) -> int:
        run = Run(task=values, variant=catalogue.variant(variant), seed=0, fidelity=catalogue.fidelity("corrected"))
        groups = build_method(run, make_problem(run, data_of(values), CPU, torch.float32)).groups
        return sum(t.numel() for name, g in groups.items() if name != "router" for t in g.init().values())

    data = data_of(values)
    unit = int(np.prod(data.shape)) + 1 + (data.classes or data.train_y.shape[1])
    assert 0 <= size("fedavg_wide") - size("floral_1") < unit


@pytest.mark.parametrize("kind", plugins.names("models"))
def test_a_models_build_takes_shape_outputs_and_width(kind):
    parameters = inspect.signature(importlib.import_module(f"floral.models.{kind}").build).parameters
    assert list(parameters)[:2] == ["shape", "outputs"]
    assert parameters["width"].default == 1.0


def test_all_methods_of_a_task_and_seed_read_the_same_partition():
    """So differences between methods are paired; test_limits.py has the cohorts and the starts."""
    for name in catalogue.names("suites"):
        if name in NOT_TUNED:
            continue
        for (task, seed), runs in itertools.groupby(suite_runs(name), lambda run: (run.task.name, run.seed)):
            partitions = {(run.partition.folder, run.fidelity.name) for run in runs}
            assert len({folder for folder, _ in partitions}) == len({fidelity for _, fidelity in partitions}), (
                task,
                seed,
            )
