"""Fills the reference pages from the code while mkdocs builds the site: mkdocs.yml names this file under `hooks`.

A line `<!-- table: NAME -->` or `<!-- table: NAME ARGUMENT -->` of a page is replaced by what TABLES[NAME] returns.
`python docs/generate.py` prints the keys and options that have no description.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from floral.cli import keys, methods, tasks
from floral.cli.keys import code
from floral.cli.methods import Row
from floral.cli.parser import parser as command_parser
from floral.config import catalogue, data_sets, plugins
from floral.config.schema import data, method, partition, shift, suite, task, tuning
from floral.config.schema.method import STATEMENTS, MethodFile, Parameter, VariantEntry
from floral.config.schema.suite import Switch
from floral.config.settings import Settings, Slurm

REFERENCE = Path(__file__).parent / "reference"
PLACE = re.compile(r"^<!-- table: (\w+) ?(\w*) -->$", re.MULTILINE)
undocumented: list[str] = []
"""Keys and options without a description, as the tables come upon them."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs: the page with its tables."""
    return PLACE.sub(lambda place: TABLES[place[1]](*filter(None, [place[2]])), markdown)


# ------------------------------------------------------------------------------------------------ keys


def of_keys(name: str) -> str:
    """The keys of a schema, below the docstring of its class."""
    schema, rows = _schema(name), []
    for key in keys.keys(schema, _link):
        if not key.meaning:
            undocumented.append(f"{name}.{key.name}")
        rows.append((f"`{key.name}`", key.type, key.default, _text(key.meaning)))
    about = inspect.cleandoc(vars(schema).get("__doc__") or "").split("\n\n")
    return "\n\n".join([*map(_text, about), _table(("Key", "Type", "Default", "Meaning"), rows)])


def _schema(name: str) -> type[BaseModel]:
    classes = {"Settings": Settings, "Slurm": Slurm}
    for module in (data, method, partition, shift, suite, task, tuning):
        classes |= vars(module)
    return classes[name]


def _link(schema: type[BaseModel]) -> str:
    return _links().get(schema.__name__, "mapping")


@cache
def _links() -> dict[str, str]:
    """Schema → a link to the heading above its table."""
    found = {}
    for page in sorted(REFERENCE.glob("*.md")):
        heading = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            heading = line.lstrip("# ") if line.startswith("#") else heading
            if line.startswith("<!-- table: keys "):
                found[line.split()[3]] = f"[{heading}]({page.name}#{heading.lower().replace(' ', '-')})"
    return found


def of_models() -> str:
    """The kinds of models and what a task may set of them."""
    rows = []
    for kind in plugins.names("models"):
        fields = catalogue.model_options(kind).model_fields.items()
        said = [
            f"`{key}`: {keys.type_words(f.annotation, _link)}{', required' if f.is_required() else ''}"
            for key, f in fields
        ]
        rows.append((f"`{kind}`", "; ".join(said)))
    return _table(("Kind", "Arguments"), rows)


# -------------------------------------------------------------------------------------------- commands


def of_commands() -> str:
    """A section for each command of `floral`."""
    parts = []
    for parser in _leaves(command_parser()):
        rows = [row for action in parser._actions if (row := _option(parser, action))]
        parts += [f"## {parser.prog}", _text(_sentence(parser.description or ""))]
        parts.append(_table(("Argument", "Values", "Default", "Meaning"), rows) if rows else "It has no arguments.")
    return "\n\n".join(parts)


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of the commands, below those that only lead to others."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below or any(_option(parser, action) for action in parser._actions):
        yield parser
    for action in below:
        for sub in action.choices.values():
            yield from _leaves(sub)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, ...] | None:
    if isinstance(action, argparse._HelpAction | argparse._VersionAction | argparse._SubParsersAction):
        return None
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if not action.help:
        undocumented.append(f"{parser.prog} {name}")
    values = ", ".join(map(code, action.choices or ())) or (str(action.metavar or "") if action.option_strings else "")
    needed = action.required if action.option_strings else action.nargs not in ("?", "*")
    if action.dest in ("cores", "threads") and action.default != 1:
        default = "the cores"  # of the machine that builds the page, otherwise
    else:
        default = code(action.default) if action.default not in (None, False, argparse.SUPPRESS) else ""
    return f"`{name}`", values, "required" if needed else default, _text(action.help or "")


# ---------------------------------------------------------------------------------- what config/ has


def of_methods() -> str:
    """Every method by family: its description, how it relates to its source, its parameters, and its variants."""
    parts = []
    for family, of_family in itertools.groupby(methods.rows(), key=lambda row: row.family):
        parts.append(f"## {family}")
        for name, rows in itertools.groupby(of_family, key=lambda row: row.method):
            parts += _method(name, list(rows))
    return "\n\n".join(parts)


def _method(name: str, rows: list[Row]) -> list[str]:
    """The section on a method. Its first variant is the method with the default parameters, or the closest to it."""
    file, title = catalogue.method_file(name), rows[0].title
    parts = [f"### {title}", f"Source: {_arxiv(_text(file.source))}. Method `{name}`."]
    parts += [*map(_text, file.what), *_statements(file)]
    if own := {key: one for key, one in file.parameters.items() if key not in common()}:
        parts += ["**Parameters**", _parameters(own)]
    return [*parts, "**Variants**", *(_variant(row, file.variants[row.variant]) for row in rows)]


def _variant(row: Row, entry: VariantEntry) -> str:
    """A list item with a variant, and below it what the variant states itself."""
    own = [*map(_text, entry.what or ()), *_statements(entry)]
    about = f"- `{row.variant}`: {_text(row.title)}. {_sentence(_text('; '.join(row.facts)))}"
    return "\n\n".join([about, *(textwrap.indent(part, "    ") for part in own)])


def _statements(entry: MethodFile | VariantEntry) -> Iterator[str]:
    """The headings of the statements that compare with the source, each with its list below it."""
    for key, heading in STATEMENTS.items():
        if statements := getattr(entry, key):
            yield f"**{heading}**"
            yield "\n".join(f"- {_arxiv(_text(statement))}" for statement in statements)


def _arxiv(words: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", words)


common: Callable[[], dict[str, Parameter]] = catalogue.common_parameters


def _parameters(found: dict[str, Parameter]) -> str:
    rows = []
    for key, one in found.items():
        bounds = {"≥": one.at_least, ">": one.above, "≤": one.at_most}
        ranges = [f"{sign} {bound:g}" for sign, bound in bounds.items() if bound is not None]
        rows.append(
            (f"`{key}`", code(one.default), ", ".join([*ranges, *map(code, one.choices or ())]), _text(one.doc))
        )
    return _table(("Parameter", "Default", "Values", "Meaning"), rows)


def of_tasks() -> str:
    """Every task by data set."""
    parts = []
    for data_set, rows in itertools.groupby(tasks.rows(Path("results")), key=lambda row: row.data):
        cells = [(f"`{row.task}`", row.title, *row.counts, *row.kinds.values()) for row in rows]
        parts += [
            f"## {data_set}",
            _table(("Task", "Title", "K", "C", "A round", "Rounds", "Model", "Shift", "Partition"), cells),
        ]
    return "\n\n".join(parts)


def of_suites() -> str:
    """Every suite of config/suites."""
    found = map(catalogue.suite, catalogue.names("suites"))
    return _table(("Suite", "Title", "About"), [(f"`{one.name}`", _text(one.title), _text(one.about)) for one in found])


def of_switches() -> str:
    """A section for each row of config/fidelity.yaml."""

    def section(name: str, one: Switch) -> str:
        values = f"Official: {code(one.official)}. Corrected: {code(one.corrected)}."
        return f"## {name}\n\n{_text(one.doc)}\n\n{values} Values: {', '.join(map(code, one.choices))}."

    return "\n\n".join(section(*item) for item in catalogue.switches().items())


def of_data_sets() -> str:
    """The entries of config/data.lock."""
    found = data_sets.data_lock().items()
    rows = [(f"`{name}`", _text(one.title), "yes" if one.exact else "no", _text(one.note)) for name, one in found]
    return _table(("Name", "Title", "Exact", "Note"), rows)


# ------------------------------------------------------------------------------------------------ text


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (heads, ("---",) * len(heads), *rows))


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _text(words: str) -> str:
    """Words of the code as Markdown: nothing in them is a tag, a cell or emphasis."""
    return re.sub(r"\s+", " ", words).replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").strip()


TABLES: dict[str, Callable[..., str]] = {
    "keys": of_keys, "models": of_models, "commands": of_commands, "methods": of_methods,
    "common_parameters": lambda: _parameters(dict(common())), "tasks": of_tasks, "suites": of_suites,
    "switches": of_switches, "data_sets": of_data_sets,
}  # fmt: skip

if __name__ == "__main__":
    for page in sorted(REFERENCE.glob("*.md")):
        on_page_markdown(page.read_text(encoding="utf-8"))
    print("\n".join(undocumented) or "every key and option has a description")
