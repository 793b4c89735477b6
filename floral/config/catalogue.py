"""Read the YAML files in config/: tasks, methods, variants, suites and fidelity switches.

A variant is a method with fixed values of its hyper-parameters. A suite is a list of training runs. A fidelity switch
is a setting that chooses how runs behave where the published FLoRAL code differs from its paper.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache, reduce
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, create_model

from floral.config import layers, networks, paths, plugins
from floral.config.layers import names
from floral.config.reading import ConfigError, merge, parse, suggest
from floral.config.schema.base import Frozen
from floral.config.schema.method import STATEMENTS, MethodFile, Parameter, ServerSees, Variant, VariantEntry
from floral.config.schema.suite import Fidelity, Suite, Switch
from floral.config.schema.task import PREPARATION, Model, Task

MAX_BYTES_OF_NAME = 150
"""Names of tasks, variants and suites are parts of file names. File systems allow 255 bytes for a file name."""
UNNAMED = "unnamed"
"""Name of a task that is given as values without a name."""


def check_name(kind: str, name: str, where: str) -> None:
    """Raise ConfigError if a task, variant or suite has a name that cannot be part of a path and of a command.

    Spaces and quotes are allowed. Braces are wildcards of Snakemake. A leading dash would be read as an option.
    """
    if name[:1] in ("", "-", ".", "~") or any(c in "{}[]*?/\\" or not c.isprintable() for c in name):
        raise ConfigError(
            f"{where}: the name {name!r} of this {kind} cannot be part of a path; use letters, digits, spaces, `_`, "
            "`-` and `.`, and begin with a letter or digit"
        )
    if len(name.encode(errors="replace")) > MAX_BYTES_OF_NAME:
        raise ConfigError(
            f"{where}: the name of this {kind} has {len(name)} characters, which is too long for a file name; "
            f"use at most {MAX_BYTES_OF_NAME}"
        )


@cache
def task_files(name: str, children: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return the values in the YAML file of a task, and in those of the tasks that it extends, by the task's name.

    The task itself comes first, and each task is followed by the one that its key `extends` names. This key is left
    out. `children` are the tasks that extend this task, directly or through others. They serve to detect that a task
    extends itself.

    Raises:
        ConfigError: a task is unknown, its file cannot be read, or `extends` is wrong.
    """
    path = layers.file(f"tasks/{name}.yaml")
    if name not in names("tasks"):
        parent = layers.file(f"tasks/{children[-1]}.yaml") if children else None
        raise suggest("task", name, names("tasks"), f"{parent}: extends" if parent else f"{paths.CONFIG_FOLDER}/tasks")
    check_name("task", name, str(path))
    values = layers.read(f"tasks/{name}.yaml")
    parent = values.pop("extends", None)
    if parent is None:
        return {name: values}
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends: expected the name of one task, but found {parent!r}; write one name")
    chain = (*children, name)
    if parent in chain:
        circle = " → ".join((*chain[chain.index(parent) :], parent))
        raise ConfigError(
            f"{path}: these tasks extend each other in a circle: {circle}; remove `extends` from one of them"
        )
    return {name: values, **task_files(parent, chain)}


def task_values(name: str) -> dict[str, Any]:
    """Return the values of a task: those of the tasks that it extends, replaced by those in its YAML file."""
    return reduce(merge, reversed(task_files(name).values()))


def task(name: str, change: Mapping[str, Any] | None = None, where: str | None = None) -> Task:
    """Return the task of the file config/tasks/<name>.yaml. The values in `change` replace those of this file.

    `where` is the file that error messages name; by default, it is the file of the task.

    Raises:
        ConfigError: the task, its model or its data set is unknown, or a value is wrong.
    """
    where = where or str(layers.file(f"tasks/{name}.yaml"))
    return _checked_task({**merge(task_values(name), change or {}), "name": name}, where)


def task_of(values: Mapping[str, Any], where: str) -> Task:
    """Return the task with these values, which are the keys of a task's YAML file and, if wanted, `name`.

    With `extends`, the values of this task are the defaults, and its name is the default of `name`. Such a task equals
    one that a suite changes by the key `task`. Without it, `name` is by default UNNAMED, and `title` is the name.
    `where` is what error messages name.

    Raises:
        ConfigError: the task that is extended, the model or the data set is unknown, or a value is wrong.
    """
    values = dict(values)
    parent = values.pop("extends", None)
    if parent is not None:
        if parent not in names("tasks"):
            raise suggest("task", str(parent), names("tasks"), f"{where}: extends")
        values = {"name": parent, **merge(task_values(parent), values)}
    values = {"name": UNNAMED, **values}
    values = {"title": values["name"], **values}
    if isinstance(values["name"], str):
        check_name("task", values["name"], f"{where}: name")
    return _checked_task(values, where)


def _checked_task(values: Mapping[str, Any], where: str) -> Task:
    """Return the task with these values, of which also the model and the name of the data are checked."""
    parsed: Task = parse(Task, values, where)
    if parsed.model.kind not in (models := plugins.names("models")):
        raise suggest("model", parsed.model.kind, models, f"{where}: model.kind")
    try:
        accepted_keys = model_options(parsed.model.kind)
    except ConfigError as error:  # the file of the model is wrong
        raise ConfigError(f"{where}: model.kind: {parsed.model.kind}: {error}") from None
    options = parse(accepted_keys, parsed.model.arguments, f"{where}: model", PREPARATION)
    typed = options.model_dump(mode="json", include=options.model_fields_set)
    preparation = parsed.model.model_dump(include=PREPARATION)
    parsed = parsed.model_copy(update={"model": Model(kind=parsed.model.kind, **typed, **preparation)})
    if isinstance(parsed.data, str) and not parsed.noop and parsed.data not in (accepted := networks.data_names()):
        raise suggest("data set", parsed.data, accepted, f"{where}: data")
    return parsed


def benchmarks() -> list[str]:
    """Return the names of all tasks except those with `data: nothing`, which train no model."""
    return [name for name in names("tasks") if not task(name).noop]


OPTION_TYPES: Mapping[str, Any] = {
    "int": Annotated[int, Field(strict=True, gt=0)],
    "float": Annotated[float, Field(strict=True, ge=0)],
    "bool": Annotated[bool, Field(strict=True)],
    "str": Annotated[str, Field(strict=True)],
    "dict": dict[str, Any],
}
"""Types that an argument of a model's `build` may have, beside tuples of them, and their allowed values.

Integers are positive, floats are at least 0, and text is any word.
"""


@cache
def model_options(kind: str) -> type[Frozen]:
    """Return a pydantic class that checks the keys below `model:` in the YAML file of a task.

    The allowed keys are the keyword arguments of the function `build` in floral/models/<kind>.py. They are read from
    the source code of this Python file, because importing it would also import torch, which is slow.

    Raises:
        ConfigError: an argument of `build` has no type annotation, or a type that is not in OPTION_TYPES; or the file
            is not valid Python.
    """
    path = plugins.file("models", kind)
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except SyntaxError as error:
        raise ConfigError(f"{path}: line {error.lineno}: {error.msg}; correct this line") from None
    build = next((node.args for node in body if isinstance(node, ast.FunctionDef) and node.name == "build"), None)
    if build is None:
        raise plugins.without_build("models", path)
    fields: dict[str, Any] = {}
    for argument, default in zip(build.kwonlyargs, build.kw_defaults, strict=True):
        if argument.arg != "width":  # Methods set this argument to widen a model; tasks do not.
            option_type = _option_type(argument.annotation, f"{path}: build: {argument.arg}")
            fields[argument.arg] = (option_type, ... if default is None else None)
    return create_model(f"{kind} options", __base__=Frozen, **fields)


def _option_type(annotation: ast.expr | None, where: str) -> Any:
    match annotation:
        case ast.Name(id=name) if name in OPTION_TYPES:
            return OPTION_TYPES[name]
        case ast.Constant() if annotation.value is ...:
            return ...
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=parts)):
            return tuple[*(_option_type(part, where) for part in parts)]
    text = "none" if annotation is None else ast.unparse(annotation)
    raise ConfigError(
        f"{where}: the type annotation of this argument is {text}, so its values cannot be checked; "
        f"use {', '.join(OPTION_TYPES)} or a tuple of these types"
    )


@cache
def common_parameters() -> dict[str, Parameter]:
    """Return the hyper-parameters that all methods have, by name. They are read from config/parameters.yaml."""
    path = layers.file("parameters.yaml")
    return {name: parse(Parameter, row, f"{path}: {name}") for name, row in layers.read("parameters.yaml").items()}


@cache
def method_file(name: str) -> MethodFile:
    """Return the content of config/methods/<name>.yaml. The hyper-parameters that are common to all methods are added.

    Raises:
        ConfigError: a value is wrong, the method has no module in floral/methods, or one of its parameters has the same
            name as a parameter that is common to all methods.
    """
    if plugins.is_in_file(name):
        return _method_in_file(name)
    path = layers.file(f"methods/{name}.yaml")
    parsed: MethodFile = parse(MethodFile, layers.read(f"methods/{name}.yaml"), str(path))
    if name not in (modules := plugins.names("methods")):
        missing = plugins.file("methods", name)
        raise suggest("method", name, modules, f"{path}: there is no module {missing}; write it, or rename this file")
    if reserved := sorted(parsed.parameters.keys() & common_parameters().keys()):
        raise ConfigError(
            f"{path}: parameters: all methods already have {reserved[0]!r} from {layers.file('parameters.yaml')}; "
            "give this parameter another name"
        )
    return parsed.model_copy(update={"parameters": {**parsed.parameters, **common_parameters()}})


def _method_in_file(name: str) -> MethodFile:
    """Return the description of a method that is a function in a file: its arguments are the hyper-parameters.

    The file is not imported, because this would import torch, which is slow.

    Raises:
        ConfigError: the function is missing, or an argument has no default that is a number, a word or a truth value.
    """
    path, function = plugins.file("methods", name), name.rpartition(":")[2]
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError) as error:
        raise ConfigError(f"{path}: this file cannot be read: {error}; correct it") from None
    definition = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == function), None)
    if definition is None:
        raise ConfigError(f"{path}: this file has no function {function}; write it, or correct the name")
    arguments = definition.args
    optional = [*arguments.posonlyargs, *arguments.args][1:]  # the first one is the problem
    missing = [None] * (len(optional) - len(arguments.defaults))
    defaults = [*missing, *arguments.defaults][-len(optional) :] if optional else []
    parameters: dict[str, Parameter] = {}
    for argument, default in zip([*optional, *arguments.kwonlyargs], [*defaults, *arguments.kw_defaults], strict=True):
        try:
            value = None if default is None else ast.literal_eval(default)
        except ValueError:
            value = None
        if not isinstance(value, bool | int | float | str) or argument.arg in common_parameters():
            raise ConfigError(
                f"{path}: {function}: {argument.arg}: give this argument a default that is a number, a word, true or "
                f"false, and a name that is none of {', '.join(common_parameters())}"
            )
        parameters[argument.arg] = Parameter(default=value, doc=f"argument of {function}")
    what, _, more = (ast.get_docstring(definition) or function).partition("\n")
    return MethodFile(
        family="Own", source=name, what=(what, " ".join(more.split())), server_sees=get_args(get_args(ServerSees)[0]),
        parameters={**parameters, **common_parameters()}, variants={function: VariantEntry(title=function)},
    )  # fmt: skip


@cache
def variant_index() -> dict[str, str]:
    """Return a mapping from the name of each variant to the name of its method, for all files of config/methods.

    Raises:
        ConfigError: two methods have variants with the same name.
    """
    index: dict[str, str] = {}
    for method in names("methods"):
        path = layers.file(f"methods/{method}.yaml")
        for name in method_file(method).variants:
            check_name("variant", name, f"{path}: variants")
            if name in index:
                raise ConfigError(
                    f"{path}: the variant {name!r} exists already in {layers.file(f'methods/{index[name]}.yaml')}; "
                    "rename one of the two"
                )
            index[name] = method
    return index


def published_names() -> dict[str, str]:
    """Return name in the publication → first variant, for methods with another name here.

    The publication's name is in brackets in the `source` of the method, such as "arXiv 2102.07623 (FedBN)".
    """
    files = [method_file(method) for method in names("methods")]
    return {title: next(iter(file.variants)) for file in files for title in re.findall(r"\((.+?)\)", file.source)}


def variant(name: str, change: Mapping[str, Any] | None = None, where: str | None = None) -> Variant:
    """Return a variant of a method, with the value of every hyper-parameter.

    The file of the method in config/methods gives the defaults of the method and the values of the variant. The values
    of the variant replace the defaults, and the values in `change` replace both. `where` is the file and key that error
    messages about `change` name.

    Raises:
        ConfigError: the variant or a parameter is unknown, or a value is not allowed.
    """
    if name not in (index := variant_index()):
        raise suggest("variant", name, index, str(paths.CONFIG_FOLDER / "methods"), published_names())
    method = index[name]
    entry_place = f"{layers.file(f'methods/{method}.yaml')}: variants.{name}"
    return _variant(name, method, method_file(method).variants[name], change or {}, entry_place, where)


def variant_in_file(name: str, method: str, change: Mapping[str, Any], where: str) -> Variant:
    """Return a variant of a method that is a function in a file, <file.py>:<function>.

    Raises:
        ConfigError: the name is that of another variant, the function cannot be a method, or a parameter is wrong.
    """
    check_name("variant", name, where)
    if name in variant_index():
        raise ConfigError(f"{where}: {name!r} is the name of another variant; give the method another `name`")
    return _variant(name, method, VariantEntry(title=name), change, where, where)


def _variant(
    name: str, method: str, entry: VariantEntry, change: Mapping[str, Any], entry_place: str, where: str | None
) -> Variant:
    index, file = variant_index(), method_file(method)
    params = {key: parameter.default for key, parameter in file.parameters.items()}
    place_of = dict.fromkeys((*params, *entry.set), entry_place) | dict.fromkeys(change, where or entry_place)
    for key, value in {**params, **entry.set, **change}.items():
        if key not in file.parameters:
            raise suggest("parameter", key, file.parameters, place_of[key])
        try:
            params[key] = file.parameters[key].accept(value)
        except ValueError as error:
            raise ConfigError(
                f"{place_of[key]}: {key}: {error} (meaning of `{key}`: {file.parameters[key].doc})"
            ) from None
    equals = (*file.equals, *entry.equals)
    statements = {key: (*getattr(file, key), *getattr(entry, key)) for key in STATEMENTS}
    for rule in equals:
        if rule.variant not in index:
            raise suggest("variant", rule.variant, index, f"{entry_place}: equals")
    return Variant(
        name=name, method=method, title=entry.title, family=file.family, source=file.source,
        what=entry.what or file.what, oracle=entry.oracle or params.get("router") == "optimal",
        global_only=entry.global_only,
        server_sees=file.server_sees if entry.server_sees is None else entry.server_sees, equals=equals, params=params,
        **statements,
    )  # fmt: skip


@cache
def switches() -> dict[str, Switch]:
    """Return the fidelity switches of config/fidelity.yaml by name, in the order of the file.

    A fidelity switch is a setting that chooses how runs behave where the published FLoRAL code differs from its paper.
    """
    path = layers.file("fidelity.yaml")
    return {name: parse(Switch, row, f"{path}: {name}") for name, row in layers.read("fidelity.yaml").items()}


def fidelity(
    name: Literal["official", "corrected"], change: Mapping[str, Any] | None = None, where: str = "switches"
) -> Fidelity:
    """Return the value of every fidelity switch, for runs with `fidelity: official` or `fidelity: corrected`.

    A fidelity switch is a setting that chooses how runs behave where the published FLoRAL code differs from its paper.
    With `official`, runs follow the code. With `corrected`, they follow the paper. `change` sets single switches to
    other values. `where` is the file and key that error messages about `change` name.

    Raises:
        ConfigError: a switch is unknown, or a value is not allowed.
    """
    table = switches()
    values = {key: getattr(row, name) for key, row in table.items()}
    for key, value in (change or {}).items():
        if key not in table:
            raise suggest("switch", key, table, where)
        choices = table[key].choices
        same = [choice for choice in choices if choice == value and isinstance(choice, bool) == isinstance(value, bool)]
        if not same:
            words = ", ".join(map(str, choices))
            raise ConfigError(f"{where}: {key}: this switch cannot be {value!r}; choose one of {words}")
        values[key] = same[0]
    return Fidelity(name=name, switches=values)


@cache
def suite(name: str, where: str | None = None) -> Suite:
    """Return the suite (a list of runs) that config/suites/<name>.yaml describes.

    `where` is the file and key that contain the name, if a file contains it.

    Raises:
        ConfigError: the suite is unknown, or a value is wrong.
    """
    path = layers.file(f"suites/{name}.yaml")
    if name not in names("suites"):
        raise _unknown_suite(name, where)
    check_name("suite", name, str(path))
    parsed: Suite = parse(Suite, {**layers.read(f"suites/{name}.yaml"), "name": name}, str(path))
    return parsed


def _unknown_suite(name: str, where: str | None) -> ConfigError:
    """Return the error for an unknown suite. If the name is a task or variant, the message says so."""
    for kind, valid_names in (("task", names("tasks")), ("variant", variant_index())):
        if name in valid_names:
            return ConfigError(
                f"{where or paths.CONFIG_FOLDER / 'suites'}: {name!r} is a {kind} and not a suite; name a suite first, "
                f"and then the {kind} with `--{kind}s {name}`"
            )
    return suggest("suite", name, names("suites"), where or str(paths.CONFIG_FOLDER / "suites"))
