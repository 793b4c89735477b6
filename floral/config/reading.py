"""YAML files read and validated, with errors that name file, key and remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Tag, ValidationError

from floral.config.schema.base import Frozen

TAGS = {"named", "drawn", "own"}
"""In the place of a mistake in a task's `data`: which of the kinds of data it was taken for, and no key."""


class ConfigError(ValueError):
    """A value that the user wrote is wrong: the message names file, key and remedy."""


def read(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping."""
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def load_yaml(text: str) -> Any:
    """Plain values from YAML, by libyaml where PyYAML has it: a tenth of a second less at the start of every job."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


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
            key = ".".join(str(part) for part in problem["loc"] if part not in TAGS)
            if problem["type"] == "extra_forbidden":
                lines.append(str(suggest("key", key, _fields_at(model, problem["loc"][:-1]), where)))
            elif problem["type"] == "missing" and (wanted := _fields_at(model, problem["loc"][:-1]).get(key)):
                lines.append(f"{where}: {key} is missing: {wanted}")
            else:
                # without a key the input is the whole mapping, and the message names what is wrong in it
                found = f"{key}: {problem['msg']} (found {shortened(problem['input'])})" if key else problem["msg"]
                lines.append(f"{where}: {found.replace('Value error, ', '', 1)}")
        raise ConfigError("\n".join(lines)) from None


def shortened(value: Any) -> str:
    """What was found, in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> dict[str, str | None]:
    """The fields of the model at a place within another, with their descriptions."""
    members: dict[str, Any] = {}
    for part in location:
        field = model.model_fields.get(str(part))
        inner = field.annotation if field else members.get(str(part))
        tagged = (get_args(member) for member in get_args(inner))
        members = {of[1].tag: of[0] for of in tagged if len(of) > 1 and isinstance(of[1], Tag)}
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return {name: field.description for name, field in model.model_fields.items()}


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` over `base`, mapping by mapping; a mapping with another `kind` replaces the whole."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged
