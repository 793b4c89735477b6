"""Read and validate YAML files. Error messages name the file, the key and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Tag, ValidationError

from floral.config.schema.base import Frozen

TAGS = {"named", "synthetic", "custom"}
"""Pydantic tags of the three kinds of `data`. Pydantic adds them to the location of an error, but they are no keys."""


class ConfigError(ValueError):
    """Error: the user has written a wrong value, for example in a YAML file.

    The message names the file, the key and the remedy.
    """


def read(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file, which must be a mapping of keys to values.

    Raises:
        ConfigError: the file is not valid YAML, or the content is not a mapping.
    """
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this file is not valid YAML; correct this place: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: expected a mapping of keys to values, found {type(value).__name__}; write lines `key: value`"
        )
    return value


def load_yaml(text: str) -> Any:
    """Parse YAML text into dictionaries, lists, strings and numbers.

    If PyYAML contains the C library libyaml, this library parses the text, because it is faster.
    """
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def suggest(kind: str, name: str, valid_names: Iterable[str], where: str | None = None) -> ConfigError:
    """Return the error for an unknown name. Its message suggests the closest valid name, or lists all valid names.

    `kind` says what the name stands for, such as "task". `where` is the file and key that contain the name.
    """
    candidates = sorted(valid_names)
    near = difflib.get_close_matches(name, candidates, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(candidates) or 'none'}"
    return ConfigError(f"{where + ': ' if where else ''}unknown {kind} {name!r}{hint}")


def parse(model: type[Frozen], values: Any, where: str) -> Any:
    """Check values against a pydantic model and return an object of this model.

    Raises:
        ConfigError: a value is wrong. The message names the file `where`, the key and the value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        problems = error.errors()
        # Pydantic also reports a mapping with a wrong entry as too short, although the entry is the only mistake.
        reported = [problem for problem in problems if problem["type"] != "too_short"] or problems
        for problem in sorted(reported, key=lambda problem: problem["type"] != "extra_forbidden"):
            *parents, name = problem["loc"] or ("",)
            key = _key(problem["loc"])
            if problem["type"] == "extra_forbidden":
                place = f"{where}: {_key(parents)}" if parents else where
                lines.append(str(suggest("key", str(name), _descriptions_at(model, parents), place)))
            elif problem["type"] == "missing" and (description := _descriptions_at(model, parents).get(str(name))):
                lines.append(f"{where}: `{key}` is missing: {description} Add this key.")
            else:
                # Without a key, the input is the whole mapping; printing it would only repeat the file.
                text = f"{key}: {problem['msg']} (found {shortened(problem['input'])})" if key else problem["msg"]
                lines.append(f"{where}: {text.replace('Value error, ', '', 1)}")
        raise ConfigError("\n".join(lines)) from None


def _key(location: Sequence[Any]) -> str:
    return ".".join(str(part) for part in location if part not in TAGS)


def shortened(value: Any) -> str:
    """Return the `repr` of a value, cut to at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _descriptions_at(model: type[BaseModel], location: Sequence[Any]) -> dict[str, str | None]:
    """Return the description of each YAML key that is allowed at one place of a nested mapping.

    `model` is the pydantic class of the whole mapping. `location` is the path from the top of the mapping to the place,
    in the form of `loc` in a pydantic error: a sequence of keys, list indices and tags. If pydantic chooses between
    several classes for a key, the tag is the name of the chosen class.
    """
    members: dict[str | None, type[BaseModel]] = {}
    for part in location:
        if field := model.model_fields.get(str(part)):
            members = _models_in(field.annotation)
            model = members.get(None, model)
        else:  # This entry is the tag of a kind of data, an index or a name.
            model = members.get(str(part), model)
    return {name: field.description for name, field in model.model_fields.items()}


def _models_in(annotation: Any) -> dict[str | None, type[BaseModel]]:
    """Return the pydantic classes inside a type annotation, as a mapping from tag to class.

    If an annotation allows several classes, each of them can have a name, the tag. A class without a tag has the key
    None.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {None: annotation}
    models: dict[str | None, type[BaseModel]] = {}
    for member in get_args(annotation):
        tag = next((extra.tag for extra in get_args(member) if isinstance(extra, Tag)), None)
        for model in _models_in(member).values():
            models[tag] = model
    return models


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping `base`, updated with the values of `change`. Nested mappings are updated in the same way.

    There is one exception. If `change` gives a nested mapping another `kind`, the whole nested mapping of `base` is
    dropped, because its keys belong to the old kind.
    """
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
