"""List the keys of a YAML file or of a mapping in it, with type, default and meaning: `floral keys task`."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import annotated_types as limits
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from floral.cli.paragraphs import wrapped
from floral.config import paths
from floral.config.schema import data, method, partition, shift, suite, task, tuning
from floral.config.settings import Settings, Slurm

SCHEMAS: dict[str, type[BaseModel]] = {
    "settings": Settings, "slurm": Slurm, "suite": suite.Suite, "block": suite.Block, "task": task.Task,
    "model": task.Model, "partition": partition.Partition, "shift": shift.Shift, "colour": shift.Colour,
    "normalise": task.Normalise, "unseen": task.Unseen, "local": task.Local, "server": task.Server,
    "custom_data": data.CustomData, "synthetic_data": data.Synthetic, "data_set": data.DataSet,
    "data_file": data.DataFile, "method": method.MethodFile, "parameter": method.Parameter,
    "variant": method.VariantEntry, "search": tuning.SearchFile, "space": tuning.Space, "tuning": tuning.TuningFile,
}  # fmt: skip
"""Argument of `floral keys` → schema of the file or mapping."""
SIGNS = {limits.Ge: "≥ {.ge}", limits.Gt: "> {.gt}", limits.Le: "≤ {.le}", limits.Lt: "< {.lt}"}
WORDS = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", Path: "path", Any: "any value"}


@dataclass(frozen=True)
class Key:
    """A key with its type and default in words, and its meaning, which is empty if the schema does not say it."""

    name: str
    type: str
    default: str
    meaning: str


def keys(schema: type[BaseModel], mapping: Callable[[type[BaseModel]], str]) -> list[Key]:
    """Return the keys of a schema. `mapping` returns the words for the type of a key whose value is a mapping.

    `name` is left out: it is the name of the file.
    """
    docs, comments = _attribute_docs(schema), _comments(schema)
    return [
        Key(
            key,
            type_words(field.annotation, mapping, field.metadata),
            _default(field),
            field.description or docs.get(key) or comments.get(key, ""),
        )
        for key, field in schema.model_fields.items()
        if key != "name"
    ]


def text(name: str) -> str:
    """Return the keys of SCHEMAS[name] as text."""
    schema = SCHEMAS[name]
    names = {value: key for key, value in SCHEMAS.items()}
    about = inspect.cleandoc(vars(schema).get("__doc__") or "").split("\n\n")[0]
    lines = [*wrapped(about, ""), ""]
    for key in keys(schema, lambda inner: f"mapping (floral keys {names[inner]})" if inner in names else "mapping"):
        default = {"none": "", "required": ", required"}.get(key.default, f", default {key.default}")
        lines.append(f"{key.name}: {key.type}{default}")
        lines += wrapped(key.meaning, "    ")
    return "\n".join(lines)


def type_words(annotation: Any, mapping: Callable[[type[BaseModel]], str], metadata: Iterable[Any] = ()) -> str:
    """Return the type of a value in words, with its range."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return type_words(inner[0], mapping, [*metadata, *inner[1:]])
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return mapping(annotation)
    if origin in (typing.Union, types.UnionType):
        words = " or ".join(dict.fromkeys(type_words(part, mapping) for part in inner if part is not type(None)))
    elif origin is typing.Literal:
        words = ", ".join(map(code, inner))
    elif origin is not None:
        of = type_words(inner[0] if origin is tuple else inner[1], mapping)
        words = f"list of {of}" if origin is tuple else f"mapping of names to {of}"
    else:
        words = WORDS.get(annotation, str(annotation))
    bounds = [bound for part in metadata for bound in (part.metadata if isinstance(part, FieldInfo) else [part])]
    ranges = [SIGNS[type(bound)].format(bound) for bound in bounds if type(bound) in SIGNS]
    return ", ".join([words, *ranges, *["at least one" for bound in bounds if isinstance(bound, limits.MinLen)]])


def code(value: object) -> str:
    """Return a value as it is written in YAML, in Markdown's signs for code."""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def _attribute_docs(schema: type[BaseModel]) -> dict[str, str]:
    """Return a mapping from a key to the string below it in the source of its class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(schema))).body
    pairs = itertools.pairwise(getattr(body, "body", ()))
    return {
        key.target.id: str(below.value.value) for key, below in pairs
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }  # fmt: skip


def _comments(schema: type[BaseModel]) -> dict[str, str]:
    """Return a mapping from a setting to its comment in config/config.yaml, where users read it."""
    if (indent := {Settings: "", Slurm: "  "}.get(schema)) is None:
        return {}
    lines = (paths.CONFIG_FOLDER / "config.yaml").read_text(encoding="utf-8")
    return dict(re.findall(rf"^{indent}(\w+):.*?# +(.+)$", lines, re.MULTILINE))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    return "its defaults" if isinstance(value, BaseModel) else code(list(value) if isinstance(value, tuple) else value)
