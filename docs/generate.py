"""Reference pages that mkdocs makes from the code: keys of the YAML files, commands, methods, tasks, suites, switches.

mkdocs.yml names this file under `hooks`; nothing that it makes is committed. `python docs/generate.py` prints the keys
and options without a description.
"""

from __future__ import annotations

import argparse
import ast
import enum
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import annotated_types as limits
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from floral import config
from floral import schema as keys
from floral.cli import _parser
from floral.stages import methods, tasks
from floral.stages.plan import Settings
from floral.stages.slurm import Slurm

SECTIONS: Mapping[str, tuple[str, str, tuple[tuple[str, type[BaseModel]], ...]]] = {
    "settings": (
        "Settings",
        "The keys of `config/config.yaml`. Each can be changed for one call: `--config KEY=VALUE`.",
        (("settings", Settings), ("slurm", Slurm)),
    ),
    "task": (
        "Keys of a task",
        "A task is a file `config/tasks/NAME.yaml`. `extends: OTHER` takes the values of another task; "
        "the keys beside it replace them.",
        (
            ("task", keys.Task), ("model", keys.Model), ("shift", keys.Shift), ("shift.colours", keys.Colour),
            ("normalise", keys.Normalise), ("unseen", keys.Unseen), ("server", keys.Server),
            ("data: custom data", keys.Own), ("data: synthetic", keys.Synthetic),
        ),
    ),
    "partition": (
        "Keys of a partition",
        "The key `partition` of a task says which client holds which samples.",
        (("partition", keys.Partition),),
    ),
    "suite": (
        "Keys of a suite",
        "A suite is a file `config/suites/NAME.yaml`: blocks of tasks × variants × seeds.",
        (("suite", keys.Suite), ("runs", keys.Block)),
    ),
    "method": (
        "Keys of a method",
        "A method is a module `floral/methods/NAME.py` and a file `config/methods/NAME.yaml`. "
        "`config/search/NAME.yaml` holds its search space, `config/tuning.yaml` the budget of all searches.",
        (
            ("method", keys.MethodFile), ("parameters", keys.Parameter), ("variants", keys.VariantEntry),
            ("equals", keys.Equal), ("search", keys.SearchFile), ("search space", keys.Space),
            ("tuning", keys.Tuning), ("range", keys.Range),
        ),
    ),
    "data": (
        "Keys of a data set",
        "`config/data.lock` has an entry for each data set: its files and their hashes.",
        (("data set", keys.DataSet), ("files", keys.DataFile)),
    ),
}  # fmt: skip
"""page → its title, its first sentence, and the schemas under their headings."""

missing: list[str] = []
"""Keys and options without a description, as the pages come upon them."""


def pages() -> dict[str, str]:
    """Path below docs/ → Markdown of every generated page."""
    missing.clear()
    made = {name: _keys(*page) for name, page in SECTIONS.items()}
    made |= {"commands": _commands(), "methods": _methods(), "tasks": _tasks(), "suites": _suites()}
    made |= {"switches": _switches(), "data-sets": _data_sets()}
    return {f"reference/{name}.md": text for name, text in made.items()}


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: add the generated pages to those of docs/."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


# ------------------------------------------------------------------------------------------------ keys


def _keys(title: str, about: str, sections: tuple[tuple[str, type[BaseModel]], ...]) -> str:
    parts = [f"# {title}", about]
    for heading, model in sections:
        parts += [f"## {heading}", *_paragraphs(inspect.cleandoc(vars(model).get("__doc__") or ""))]
        rows = [_key_row(model, name, field) for name, field in model.model_fields.items() if name != "name"]
        parts.append(_table(("Key", "Type", "Default", "Meaning"), rows))
        if model is keys.Model:
            parts.append(_table(("Model", "Arguments"), _model_rows()))
        if model is keys.MethodFile:
            seen = [(f"`{word}`", _text(meaning)) for word, meaning in keys.SERVER_SEES.items()]
            parts += ["Values of `server_sees`:", _table(("Value", "The server sees of one client"), seen)]
    return "\n\n".join(parts) + "\n"


def _key_row(model: type[BaseModel], name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    doc = field.description or _attribute_docs(model).get(name) or _comments(model).get(name) or ""
    if not doc:
        missing.append(f"{model.__name__}.{name}")
    return f"`{name}`", _type(field.annotation, field.metadata), _default(field), _text(doc)


def _attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """field → the string below it in the source of its class."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    found: dict[str, str] = {}
    for node, below in itertools.pairwise(getattr(body, "body", ())):
        text = getattr(getattr(below, "value", None), "value", None)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(text, str):
            found[node.target.id] = inspect.cleandoc(text).replace("\n", " ")
    return found


def _comments(model: type[BaseModel]) -> dict[str, str]:
    """key → its comment in config/config.yaml, which documents the settings where they are edited."""
    if model not in (Settings, Slurm):
        return {}
    indent = "  " if model is Slurm else ""
    text = (config.CONFIG / "config.yaml").read_text(encoding="utf-8")
    return dict(re.findall(rf"^{indent}(\w+):.*?#\s+(.+)$", text, re.MULTILINE))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see there"
    if value is None or value is PydanticUndefined:
        return "none"
    plain = list(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value
    return f"`{plain}`" if plain != "" else "empty"


def _type(annotation: Any, metadata: Any = ()) -> str:
    """The type of a value in words, with its range."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0], [*inner[1:], *metadata])
    if origin in (typing.Union, types.UnionType):
        return _range(" or ".join(dict.fromkeys(_type(one) for one in inner if one is not type(None))), metadata)
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return _range("list of " + _type(inner[0]), metadata)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _link(annotation)
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path", Any: "any value"}
    return _range(names.get(annotation, "mapping" if origin else str(annotation)), metadata)


def _range(words: str, metadata: Any) -> str:
    signs = {limits.Ge: "≥ {.ge}", limits.Gt: "> {.gt}", limits.Le: "≤ {.le}", limits.Lt: "< {.lt}"}
    found = [signs[type(one)].format(one) for one in metadata if type(one) in signs]
    nonempty = any(isinstance(one, limits.MinLen) for one in metadata)
    return ", ".join([words, *found, *(["at least one"] if nonempty else [])])


def _link(model: type[BaseModel]) -> str:
    for page, (_, _, sections) in SECTIONS.items():
        for heading, one in sections:
            if one is model:
                return f"[{heading}]({page}.md#{slug(heading)})"
    return "mapping"


def slug(heading: str) -> str:
    """The anchor that Markdown gives a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


def _model_rows() -> list[tuple[str, str]]:
    rows = []
    for kind in config.plugins("models"):
        fields = config.model_options(kind).model_fields.items()
        said = [f"`{name}`: {_type(f.annotation)}{', required' if f.is_required() else ''}" for name, f in fields]
        rows.append((f"`{kind}`", "; ".join(said) or "none"))
    return rows


# -------------------------------------------------------------------------------------------- commands


def _commands() -> str:
    parts = [
        "# Commands",
        "In the virtual environment (`source .venv/bin/activate`). `floral COMMAND --help` prints the same.",
    ]
    for parser in _leaves(_parser()):
        rows = [row for action in parser._actions if (row := _option(parser, action))]
        parts += [f"## {parser.prog}", _sentence(parser.description)]
        parts.append(_table(("Argument", "Values", "Default", "Meaning"), rows) if rows else "No arguments.")
    return "\n\n".join(parts) + "\n"


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its subcommands; of one that only leads to others, these alone."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below or any(_option(parser, action) for action in parser._actions):
        yield parser
    for action in below:
        for sub in action.choices.values():
            yield from _leaves(sub)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str, str, str] | None:
    if isinstance(action, argparse._HelpAction | argparse._VersionAction | argparse._SubParsersAction):
        return None
    if not action.help:
        missing.append(f"{parser.prog} {action.option_strings[0] if action.option_strings else action.dest}")
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    values = " \\| ".join(f"`{choice}`" for choice in action.choices or ()) or (
        "" if action.nargs == 0 else str(action.metavar or "")
    )
    needed = action.required if action.option_strings else action.nargs not in ("?", "*")
    default = (
        "required" if needed else "" if action.default in (None, False, argparse.SUPPRESS) else f"`{action.default}`"
    )
    return (
        f"`{name}`",
        values,
        "the machine's cores" if action.dest in ("cores", "threads") and action.default != 1 else default,
        _text(action.help or ""),
    )


# ---------------------------------------------------------------------------- methods, tasks, suites, switches


def _methods() -> str:
    parts = [
        "# Methods",
        "The variants of every method, by family. `floral methods` prints the same. *Told the clusters*: it reads the true clusters, so it is a ceiling or a control and not a rival.",
    ]
    shown: set[str] = set()
    for family, rows in itertools.groupby(methods.rows(), key=lambda row: row.family):
        parts += [f"## {family}"]
        for row in rows:
            held = ", ".join(f"{group} {scope}" for group, scope in row.scopes.items())
            marks = ["told the clusters"] * row.oracle + ["one model for all clients"] * row.global_only
            facts = [
                f"Source: {row.source}",
                f"parameters: {held}",
                f"the server sees {', '.join(row.server_sees) or 'nothing'} of a client",
                "secure aggregation is possible" if row.secure_aggregation else "no secure aggregation",
                *marks,
            ]
            parts += [f"### `{row.variant}`: {row.title}", *map(_text, row.what), _text("; ".join(facts)) + "."]
            if row.refusal:
                parts.append(f"Needs a model with batch norm: {_text(row.refusal)}.")
            if (method := config.variant(row.variant).method) not in shown:
                shown.add(method)
                parts += _parameters(method)
    return "\n\n".join(parts) + "\n"


def _parameters(method: str) -> list[str]:
    rows = []
    for name, one in config.method_file(method).parameters.items():
        bounds = [
            f"≥ {one.at_least:g}" if one.at_least is not None else "",
            f"> {one.above:g}" if one.above is not None else "",
            f"≤ {one.at_most:g}" if one.at_most is not None else "",
        ]
        allowed = [f"`{choice}`" for choice in one.choices or ()] + [", ".join(filter(None, bounds))]
        rows.append((f"`{name}`", f"`{one.default}`", " \\| ".join(filter(None, allowed)), _text(one.doc)))
    return [f"Parameters of the method `{method}`:", _table(("Parameter", "Default", "Values", "Meaning"), rows)]


def _tasks() -> str:
    parts = [
        "# Tasks",
        "K clients, of which some take part in a round; C clusters. `floral tasks` also says whether the data are at hand.",
    ]
    for data, rows in itertools.groupby(tasks.rows(Path("results")), key=lambda row: row.data):
        together = list(rows)
        parts += [f"## {data}", *([] if together[0].exact else [f"Not exact: {_text(together[0].note)}"])]
        cells = [(f"`{row.task}`", row.title, *row.cells[1:8]) for row in together]
        parts.append(_table(("Task", "Title", "K", "C", "A round", "Rounds", "Model", "Shift", "Partition"), cells))
    return "\n\n".join(parts) + "\n"


def _suites() -> str:
    rows = []
    for name in config.names("suites"):
        suite = config.suite(name)
        rows.append((f"`{name}`", _text(suite.title), _text(suite.about)))
    return (
        "# Suites\n\nA suite is one experiment: tasks × variants × seeds. `floral plan NAME` counts its runs.\n\n"
        + _table(("Suite", "Title", "About"), rows)
        + "\n"
    )


def _switches() -> str:
    """One section per row of config/fidelity.yaml."""
    parts = [
        "# Fidelity switches",
        "Each switch is one difference between the published code and the method as described. `fidelity: official` and `fidelity: corrected` set all of them; a block of a suite may set single ones under `switches`.",
    ]
    for name, switch in config.switches().items():
        parts += [
            f"## {name}",
            _text(switch.doc),
            f"Official: `{switch.official}`. Corrected: `{switch.corrected}`. Values: {', '.join(f'`{one}`' for one in switch.choices)}.",
        ]
    return "\n\n".join(parts) + "\n"


def _data_sets() -> str:
    rows = [
        (f"`{name}`", _text(one.title), "yes" if one.exact else "no", _text(one.note))
        for name, one in config.data_lock().items()
    ]
    return (
        "# Data sets\n\nThe entries of `config/data.lock`. An inexact data set is a lossy or partial copy; the report marks it.\n\n"
        + _table(("Name", "Title", "Exact", "Note"), rows)
        + "\n"
    )


# ------------------------------------------------------------------------------------------------ text


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _text(words: str) -> str:
    """Words of the code as Markdown: nothing in them is a tag, a cell or emphasis."""
    return re.sub(r"\s+", " ", words).replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").strip()


def _paragraphs(docstring: str | None) -> list[str]:
    return [_text(part) for part in (docstring or "").split("\n\n") if part]


def _sentence(text: str | None) -> str:
    return _text(f"{(text or '')[:1].upper()}{(text or '')[1:]}.")


if __name__ == "__main__":
    pages()
    print("\n".join(missing) or "every key and option has a description", file=sys.stdout)
