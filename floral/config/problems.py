"""Explain in plain words what is wrong with a value from YAML. Pydantic names the kind of the problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

TAGS = {"named", "synthetic", "custom"}
"""Pydantic tags of the three kinds of `data`. Pydantic adds them to the location of an error, but they are no keys."""

WHOLE_NUMBER, NUMBER = "must be a whole number, such as 1", "must be a number, such as 0.1"
YES_OR_NO = "must be true or false"
TEXT = "must be text; put the value in quotes"
MAPPING = "must be a mapping; write lines `key: value` below the key"

SENTENCES = {
    "int_type": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_parsing_size": "is a whole number with too many digits; write a smaller number",
    "int_from_float": WHOLE_NUMBER,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "must be a finite number",
    "bool_type": YES_OR_NO,
    "bool_parsing": YES_OR_NO,
    "string_type": TEXT,
    "path_type": "must be the path of a file or folder",
    "dict_type": MAPPING,
    "mapping_type": MAPPING,
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be greater than or equal to {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be less than or equal to {le}",
    "too_long": "must have at most {max_length} entries",
    "missing": "is missing; add this key",
    "invalid_key": "is a key that is not text; write the key as a word",
    "literal_error": "must be {expected}",
}
"""Kind of a problem in pydantic → the end of a sentence about the key. Words in braces are values of pydantic."""


def key_of(location: Iterable[Any]) -> str:
    """Return the key at a location of pydantic, such as "runs.0.seeds".

    Parts of the location that are no keys are left out: tags, and Python types such as "tuple[str, ...]".
    """
    return ".".join(str(part) for part in location if part not in TAGS and "[" not in str(part))


def sentence(problem: ErrorDetails) -> str:
    """Return what is wrong with the value of a key, and what to write. The key itself is not part of the sentence."""
    kind, value = problem["type"], problem["input"]
    if kind in ("tuple_type", "list_type"):
        return f"must be a list; write {_as_list(problem['loc'], value)}"
    if kind == "too_short":
        return _too_short(problem.get("ctx", {}))
    if kind == "missing" and isinstance(problem["loc"][-1], int):
        return "this entry of the list is missing; add it"
    if kind in SENTENCES:
        return SENTENCES[kind].format(**problem.get("ctx", {}))
    return problem["msg"].replace("Value error, ", "", 1)


def _as_list(location: Sequence[Any], value: Any) -> str:
    """Return how a list is written, with the value as its only entry, such as `tasks: [digits_rotate]`."""
    name = next((part for part in reversed(location) if isinstance(part, str) and "[" not in part), "")
    entry = f"[{value}]" if isinstance(value, str | int | float) else "[…]"
    return f"`{name}: {entry}`" if name else f"`{entry}`"


def _too_short(context: Mapping[str, Any]) -> str:
    least = context.get("min_length", 1)
    return f"must have at least {least} {'entry' if least == 1 else 'entries'}; add one"


def distinct(problems: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the problems without those that only repeat another problem in other words.

    Pydantic reports a list with a wrong entry also as too short, and a value of several allowed types once per type.
    """
    reported = [problem for problem in problems if problem["type"] != "too_short"] or problems
    first = {key_of(problem["loc"]): problem for problem in reversed(reported)}
    return [
        problem
        for key, problem in ((key_of(problem["loc"]), problem) for problem in reported)
        if first[key] is problem
        # a wrong entry of a list, where a word such as `all` is allowed in place of the list
        and not (problem["type"] == "literal_error" and any(inner.startswith(f"{key}.") for inner in first))
    ]
