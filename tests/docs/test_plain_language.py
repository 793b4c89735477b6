"""The language of the code stays plain: short first sentences, short messages, telling names, sources that exist.

The bounds may fall, but not rise.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from projects import ROOT

MAX_WORDS_OF_FIRST_SENTENCE = 25
MAX_WORDS_OF_MESSAGE = 40
MAX_LINES_OF_README = 150
MAX_EMPTY_NAMES = 1
"""`own` of floral/config/schema/data.py, a key that stored run files have."""

EMPTY_NAMES = frozenset(
    {
        "one", "some", "those", "these", "found", "told", "asked", "owed", "heed", "heeded", "given", "made",
        "kept", "whole", "apart", "chosen", "theirs", "ours", "wanted", "has", "did", "would", "shown", "said",
        "known", "meant", "left", "alone", "other", "others", "another", "them", "its", "own",
    }
)  # fmt: skip
"""Names that do not say what they hold."""

PRIVATE_WORDS = re.compile(
    r"\b(heed|owed|massless|contenders?|looks of|whoever|who asks|is had|can be had|are had|cannot be had|nobody"
    r"|goes by|reckons?)\b",
    re.I,
)
"""Words that this project used in a sense of its own."""

MISSING_SOURCES = re.compile(r"\b(METHODS|THEORY|ARCHITECTURE|PAPER|PERFORMANCE|ECOSYSTEM|LAYOUT)(\.md\b|, section)")
"""Sources that a reader of the repository does not have."""


@dataclass(frozen=True)
class Text:
    """A docstring or a message, with its place."""

    place: str
    words: str

    def __str__(self) -> str:
        return f"{self.place}: {self.words[:120]}"


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "node_modules" not in path.parts:
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def docstrings() -> list[Text]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        Text(f"{path}:{getattr(node, 'lineno', 1)}", " ".join(doc.split()))
        for path, tree in modules("floral")
        for node in ast.walk(tree)
        if isinstance(node, kinds) and (doc := ast.get_docstring(node))
    ]


def messages() -> list[Text]:
    """The string parts of raised exceptions; a value between two parts is written as …."""
    texts = []
    for path, tree in modules("floral"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                for argument in node.exc.args:
                    constants = [part.value for part in ast.walk(argument) if isinstance(part, ast.Constant)]
                    texts.append(Text(f"{path}:{node.lineno}", "…".join(str(value) for value in constants)))
    return texts


def names() -> list[Text]:
    """Names of functions, their arguments, and variables that are assigned."""
    texts = []
    for path, tree in modules("floral"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                texts += [Text(f"{path}:{node.lineno}", name) for name in (node.name, *(a.arg for a in arguments))]
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                texts.append(Text(f"{path}:{node.lineno}", node.id))
    return texts


def test_the_first_sentence_of_a_docstring_is_short() -> None:
    texts = docstrings()
    assert len(texts) > 1000
    first = {text: re.split(r"(?<=[.!?:;])\s", text.words)[0] for text in texts}
    assert not [str(text) for text in texts if len(first[text].split()) > MAX_WORDS_OF_FIRST_SENTENCE]


def test_an_error_message_is_short() -> None:
    texts = messages()
    assert len(texts) > 300
    assert not [str(text) for text in texts if len(text.words.split()) > MAX_WORDS_OF_MESSAGE]


def test_names_say_what_they_hold() -> None:
    empty = [str(text) for text in names() if text.words.strip("_").lower() in EMPTY_NAMES]
    assert len(empty) <= MAX_EMPTY_NAMES, empty


def test_docstrings_and_messages_use_the_words_of_the_field() -> None:
    assert not [str(text) for text in (*docstrings(), *messages()) if PRIVATE_WORDS.search(text.words)]


@pytest.mark.parametrize("folder", ["floral", "tests", "workflow", "config", "docs"])
def test_cited_sources_exist(folder: str) -> None:
    suffixes = {".py", ".md", ".yaml", ".smk"}
    for path in (ROOT / folder).rglob("*"):
        if path.suffix in suffixes and path.name != "test_plain_language.py" and "node_modules" not in path.parts:
            source = MISSING_SOURCES.search(path.read_text(encoding="utf-8"))
            assert source is None, f"{path.relative_to(ROOT)}: {source and source.group()}"


DOUBLED_WORDS = re.compile(r"\b(?:(\w{4,})|(\w+ of)) (?:\1|\2)\b")


def test_yaml_files_and_pages_double_no_word() -> None:
    paths = [*(ROOT / "config").rglob("*.yaml"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    assert not {str(path): match.group() for path in paths if (match := DOUBLED_WORDS.search(path.read_text("utf-8")))}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_LINES_OF_README
