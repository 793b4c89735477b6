"""Every command, key and file name in the README and the documentation exists."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import markdown
import pytest
import yaml
from pages import BLOCKS, FILES, PAGES, Block, inline, prose
from projects import ROOT

from floral.cli.parser import parser as command_parser
from floral.config import catalogue, data_sets, paths, reading
from floral.config.reading import ConfigError
from floral.config.schema.task import Task
from floral.config.schema.tuning import SearchFile
from floral.config.settings import read_settings

LANGUAGES = {"bash", "yaml", "python", "text", "bibtex"}
OTHERS = {
    "cd", "cp", "createdb", "git", "gzip", "pdflatex", "pip", "python", "rm", "ruff", "sha256sum", "source", "squeue",
    "tmux",
}  # fmt: skip
"""Commands of other programs, as the pages use them."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
RULES = {
    name
    for path in (ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk"))
    for name in re.findall(r"^rule (\w+):", path.read_text(encoding="utf-8"), re.M)
}
relative = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed where the Snakefile is, and no variable of ours changes what they mean."""
    monkeypatch.chdir(ROOT)
    for variable in ("FLORAL_RESULTS", "FLORAL_REPORTS", "FLORAL_DATA", "FLORAL_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)


@relative
def test_every_block_says_its_language(page: Path) -> None:
    assert {block.language for block in BLOCKS if block.page == page} <= LANGUAGES
    left = prose(page)
    assert "```" not in left, "a block without a language: `text` is for what cannot be checked"
    assert "<pre>" not in markdown.markdown(left, extensions=["tables"]), "an indented block: fence it"


def test_a_file_has_one_text() -> None:
    for block in BLOCKS:
        if block.title:
            assert block.text == FILES[block.title].text, (
                f"{block.title} differs between {block} and {FILES[block.title]}"
            )


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=str)
def test_commands_exist(block: Block) -> None:
    for line in block.text.splitlines():
        for command in re.split(r" \| ", line):
            if words := shlex.split(command, comments=True):
                check(words)


@relative
def test_commands_in_sentences_exist(page: Path) -> None:
    """Of these only the verb is checked: options may be left out, names may stand for others."""
    verbs = {name for action in command_parser()._actions for name in action.choices or ()}
    for code in inline(page):
        program, _, rest = code.removeprefix(".venv/bin/").partition(" ")
        first = rest.split(" ")[0]
        if program == "floral" and first and not first.isupper():
            assert first in verbs, code
        elif program == "make" and first:
            check(code.split(" "))


@relative
def test_files_in_sentences_exist(page: Path) -> None:
    """Paths of the project; one with capitals, a star or a comma stands for several."""
    for code in inline(page):
        if re.fullmatch(r"(config|docs|floral|tests|workflow|reports/(reference|template))/[\w./+-]*", code):
            made = code in FILES or re.search(r"[A-Z]{2}", code)
            assert made or (ROOT / code).exists(), f"{page.name}: {code}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml" and not block.title], ids=str)
def test_pieces_of_yaml_are_valid(block: Block) -> None:
    check_piece(yaml.safe_load(block.text))


@relative
def test_keys_in_sentences_are_valid(page: Path) -> None:
    for code in inline(page):
        if re.match(r"(partition|shift|unseen|data): \{.*\}$|assumed_clusters: ", code):
            check_piece(yaml.safe_load(code))


def check_piece(values: dict[str, object]) -> None:
    """Keys of a task, which must fit a usual one, or of a search space."""
    if values.keys() <= Task.model_fields.keys():
        base = reading.read(paths.CONFIG_FOLDER / "tasks" / "digits_rotate.yaml")
        if (values.get("partition") or {}).get("kind") == "natural" or isinstance(values.get("data"), dict):
            base["shift"] = {"kind": "none"}
        reading.parse(Task, {**base, **values, "name": "piece"}, "piece")
    else:
        reading.parse(SearchFile, values, "piece")


# ---------------------------------------------------------------------------------------- one command


def check(words: list[str]) -> None:
    """Fail unless the program is known, and what it is told exists."""
    while re.match(r"FLORAL_\w+=", words[0]):
        words = words[1:]
    program, *rest = words
    match program.removeprefix(".venv/bin/"):
        case "floral":
            check_floral(rest)
        case "make":
            check_make(rest)
        case "snakemake":
            check_snakemake(rest)
        case "pytest":
            for path in rest:
                assert "/" not in path or (ROOT / path).exists(), path
        case other:
            assert other in OTHERS, f"{other}: add it to OTHERS if the page means it"


def check_floral(words: list[str]) -> None:
    try:
        told = vars(command_parser().parse_args(words))
    except SystemExit as error:
        pytest.fail(f"floral {shlex.join(words)}: exit {error.code}")
    if "run" in told:
        task, variant, _ = told["run"].parts
        told |= {"task": task, "variant": variant}
    for kind in ("suite", "task", "variant"):
        exist(kind, told.get(kind))
        exist(kind, told.get(f"{kind}s"))
    if told["command"] == "fetch":
        assert told["data"] in {*data_sets.data_lock(), *names("task")}


def check_make(words: list[str]) -> None:
    for word in words:
        name, given, _ = word.partition("=")
        kind = "variable" if given else "target"
        known = re.findall(r"^(\w+) [:?]=", MAKEFILE, re.M) if given else re.findall(r"^([a-z-]+):", MAKEFILE, re.M)
        assert name in known, f"make {word}: no such {kind}"


def check_snakemake(words: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--config", nargs="+", default=[])
    parser.add_argument("--resources", nargs="+", default=[])
    told = parser.parse_args(words)
    assert (ROOT / told.profile / "profile.v9+.yaml").exists(), told.profile
    assert set(told.targets) <= RULES, told.targets
    given = {key: yaml.safe_load(value) for key, value in (one.split("=", 1) for one in told.config)}
    try:
        settings = read_settings(given)
    except ConfigError as error:
        pytest.fail(str(error))
    for kind, asked in (("suite", settings.suite), ("task", settings.tasks), ("variant", settings.variants)):
        exist(kind, asked)


def exist(kind: str, asked: str | tuple[str, ...] | list[str] | None) -> None:
    known = names(kind)
    for name in [asked] if isinstance(asked, str) else asked or ():
        assert name in known, f"no {kind} {name}"


def names(kind: str) -> set[str]:
    """Those of config/ and of the files that the pages define."""
    if kind == "variant":
        defined = [yaml.safe_load(one.text) for title, one in FILES.items() if title.startswith("config/methods/")]
        return {*catalogue.variant_index(), *(variant for values in defined for variant in values["variants"])}
    folder = f"config/{kind}s/"
    return {*catalogue.names(f"{kind}s"), *(Path(title).stem for title in FILES if title.startswith(folder))}
