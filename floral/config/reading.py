"""Read and validate YAML files. Error messages name the file, the key and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from floral.config import problems
from floral.config.schema.base import Frozen
from floral.core.passwords import without_passwords

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_DEPTH, MAX_OPENED = 50, 1000
"""Maximum number of YAML lists and mappings inside each other, and the number of signs from which it is counted."""
TOO_DEEP = f"more than {MAX_DEPTH} lists or mappings are inside each other"

NEVER_PRINTED = ("tracking_uri",)
"""Keys whose values may contain a password."""


class ConfigError(ValueError):
    """Error: the user has written a wrong value, for example in a YAML file.

    The message names the file, the key and the remedy. Passwords in addresses are hidden.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_passwords(message))


class _Invalid(yaml.YAMLError):
    """Error: the text is valid YAML, but its meaning is not clear. The message names the line."""


def read(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file, which must be a mapping of keys to values.

    Raises:
        ConfigError: the file cannot be read, is not valid YAML, or the content is not a mapping.
    """
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: this file cannot be read: {error.strerror}; correct the file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: this file is not UTF-8 text (byte {error.start}); save it as UTF-8 in your editor"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: this file is not valid YAML: {_problem(error)}; correct this place") from None
    if value is None:
        raise ConfigError(f"{path}: this file is empty; write lines `key: value`")
    if not isinstance(value, dict):
        raise ConfigError(
            f"{path}: expected a mapping of keys to values, found {type(value).__name__}; write lines `key: value`"
        )
    return value


def _problem(error: Exception) -> str:
    """Return in one line what is wrong with YAML text, and where."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark) is not None:
        tab = " (indent with spaces, not with tabs)" if "cannot start any token" in (error.problem or "") else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{tab}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1}: YAML allows no control characters"
    return " ".join(str(error).split())


def load_yaml(text: str) -> Any:
    """Parse YAML text into dictionaries, lists, strings and numbers.

    If PyYAML contains the C library libyaml, this library parses the text, because it is faster.

    Raises:
        yaml.YAMLError: the text is not valid YAML, has a key twice, or contains itself.
        ValueError: a value looks like a date, but there is no such date.
    """
    if sum(map(text.count, "[{-:?")) > MAX_OPENED and _depth(text) > MAX_DEPTH:
        raise _Invalid(TOO_DEEP)
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, (), set())
        return loader.construct_document(node)
    except (KeyError, TypeError, AttributeError) as error:  # PyYAML raises these for a wrong tag, such as `!!bool x`
        raise _Invalid(f"a value does not fit its tag `!!…` ({error!r})") from None
    finally:
        loader.dispose()


def _depth(text: str) -> int:
    """Return how deep lists and mappings are inside each other. libyaml crashes if they are too deep."""
    depth = deepest = 0
    for event in yaml.parse(text, Loader=LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        deepest = max(deepest, depth)
    return deepest


def _check_node(node: yaml.Node, parents: tuple[yaml.Node, ...], checked: set[int]) -> None:
    """Raise _Invalid if a mapping has a key twice, or if a value contains itself.

    `parents` are the nodes that contain this node. `checked` are the ids of the nodes that were already checked. A
    node with an anchor (`&name`) is in several places.
    """
    if node in parents:
        raise _Invalid(f"line {node.start_mark.line + 1}: this value contains itself by its anchor `&…`")
    if id(node) in checked or not isinstance(node, yaml.CollectionNode):
        return
    if len(parents) > MAX_DEPTH:
        raise _Invalid(TOO_DEEP)
    inside: list[yaml.Node] = node.value
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                continue
            if first := lines.get(name := (key.tag, key.value)):
                raise _Invalid(f"line {line}: the key `{key.value}` is already on line {first}; keep one of the two")
            lines[name] = line
        inside = [part for pair in node.value for part in pair]
    for part in inside:
        _check_node(part, (*parents, node), checked)
    checked.add(id(node))


def suggest(
    kind: str,
    name: str,
    valid_names: Iterable[str],
    where: str | None = None,
    published: Mapping[str, str] | None = None,
) -> ConfigError:
    """Return the error for an unknown name. Its message suggests the closest valid name, or lists all valid names.

    `kind` says what the name stands for, such as "task". `where` is the file and key that contain the name. `published`
    maps names of publications to valid names. Case and punctuation in them do not count.
    """
    candidates = sorted(set(valid_names))
    same = [valid for title, valid in (published or {}).items() if _letters(title) == _letters(name)]
    near = next(iter(same), closest(name, candidates))
    hint = f"; did you mean {near!r}?" if near else f"; known: {', '.join(candidates) or 'none'}"
    return ConfigError(f"{where + ': ' if where else ''}unknown {kind} {name!r}{hint}")


def closest(name: str, valid_names: Iterable[str]) -> str | None:
    """Return the valid name that is most similar to a wrong name, or None if none is similar."""
    return next(iter(difflib.get_close_matches(name, sorted(valid_names), n=1)), None)


def _letters(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return "".join(filter(str.isalnum, name)).casefold()


def parse(model: type[Frozen], values: Any, where: str, other_keys: Collection[str] = ()) -> Any:
    """Check values against a pydantic model and return an object of this model.

    `other_keys` are keys of the same mapping that are checked elsewhere. A message about an unknown key names them too.

    Raises:
        ConfigError: a value is wrong. The message names the file `where`, the key and the value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        distinct = problems.distinct(error.errors())
        intended = _intended(distinct)
        for problem in sorted(distinct, key=lambda problem: problem["type"] != "extra_forbidden"):
            location = problem["loc"]
            *parents, name = location or ("",)
            key = problems.key_of(location)
            if location in intended.values():
                continue  # another message says which wrong key stands for this missing key
            if problem["type"] == "extra_forbidden":
                place = f"{where}: {problems.key_of(parents)}" if parents else where
                valid = [str(intended[location][-1])] if location in intended else _descriptions_at(model, parents)
                lines.append(str(suggest("key", str(name), [*valid, *(() if parents else other_keys)], place)))
            elif problem["type"] == "missing" and (description := _descriptions_at(model, parents).get(str(name))):
                lines.append(f"{where}: `{key}` is missing: {description} Add this key.")
            else:
                # Without a key, the input is the whole mapping; printing it would only repeat the file.
                text, value = problems.sentence(problem), shortened(problem["input"])
                in_brackets = "" if name in NEVER_PRINTED else f" (found {value})"
                if location in intended:
                    what, _, _ = text.partition(";")  # without the remedy for the wrong key
                    lines.append(f"{where}: {key}: {what}{in_brackets}; did you mean {intended[location][-1]!r}?")
                else:
                    lines.append(f"{where}: {key}: {text}{in_brackets}" if key else f"{where}: {text}")
        raise ConfigError("\n".join(lines)) from None


Location = tuple[int | str, ...]
"""A place in a nested mapping: keys, indices of lists, and tags of pydantic."""


def _intended(distinct: list[ErrorDetails]) -> dict[Location, Location]:
    """Return the wrong keys that stand for a missing key with a similar name: wrong key → missing key.

    A wrong key does not exist, or should have a mapping and has no mapping, such as `task: [mine]` for `tasks: [mine]`.
    """
    missing = [problem["loc"] for problem in distinct if problem["type"] == "missing"]
    intended: dict[Location, Location] = {}
    for problem in distinct:
        *parents, name = problem["loc"] or ("",)
        if problem["type"] == "extra_forbidden" or problems.SENTENCES.get(problem["type"]) == problems.MAPPING:
            beside = {str(location[-1]): location for location in missing if list(location[:-1]) == parents}
            if near := closest(str(name), beside):
                intended[problem["loc"]] = beside[near]
    return intended


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
