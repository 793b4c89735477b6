"""The reference pages say what the code has: every table can be made, every column of a run is described."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import zipfile
from collections.abc import Iterator
from types import ModuleType

import polars as pl
import pytest
from projects import ROOT

from floral.config import catalogue
from floral.config.schema.method import STATEMENTS
from floral.runs import layout
from floral.stages import record

PAGE = (ROOT / "docs/reference/run-files.md").read_text(encoding="utf-8")
LONGEST = 150


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """The hook of mkdocs, read as mkdocs reads it, in the project's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def pages() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/reference").glob("*.md"))]


def test_every_table_can_be_made(generate: ModuleType) -> None:
    for text in pages():
        made = generate.on_page_markdown(text)
        assert "<!-- table" not in made
        for table in re.findall(r"(?:^\|.*\n?)+", made, re.M):
            cells = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
            assert len(cells) > 2 and len(set(cells)) == 1, table


def test_the_page_of_methods_has_all_statements_on_their_sources(generate: ModuleType) -> None:
    """Those of a method once, below its title; those of a variant below the variant."""
    page = generate.on_page_markdown((ROOT / "docs/reference/methods.md").read_text(encoding="utf-8"))
    sections = {re.findall(r"Method `(\w+)`", part)[0]: part for part in page.split("\n### ")[1:]}
    assert list(sections) != [] and sections.keys() == set(catalogue.names("methods"))
    for name, section in sections.items():
        file = catalogue.method_file(name)
        of_method, *of_variants = re.split(r"^- `(\w+)`: ", section, flags=re.M)
        texts = dict(zip(of_variants[::2], of_variants[1::2], strict=True))
        assert texts.keys() == file.variants.keys()
        for entry, text in ((file, of_method), *((entry, texts[key]) for key, entry in file.variants.items())):
            for key, heading in STATEMENTS.items():
                statements = getattr(entry, key)
                assert text.count(f"**{heading}**") == bool(statements)
                assert not [one for one in statements if f"- {generate._arxiv(generate._text(one))}" not in text]


def test_every_schema_that_a_file_is_read_with_has_a_table(generate: ModuleType) -> None:
    """One that stands in another's field is linked to, so none is missing below the first."""
    named = {name for text in pages() for name in re.findall(r"table: keys (\w+)", text)}
    assert named == generate._links().keys()
    assert not [name for name in named if "mapping |" in generate.of_keys(name)]


def test_a_run_has_the_columns_that_are_described() -> None:
    """By the first reference run with clients that joined."""
    with zipfile.ZipFile(ROOT / "reports/reference/methods/runs.zip") as runs:
        (name, *_) = [one for one in runs.namelist() if one.endswith("unseen.parquet")]
        folder = name.removesuffix("unseen.parquet")
        tables = {
            one: pl.read_parquet(io.BytesIO(runs.read(f"{folder}{one}.parquet"))) for one in ("clients", "unseen")
        }
        records = {one: json.loads(runs.read(f"{folder}{one}.json")) for one in ("summary", "costs")}
    columns = {one: {key: kind(value) for key, value in table.schema.items()} for one, table in tables.items()}
    for one in columns.values():  # the reference runs are of a version without names
        one["name"] = "String"
    columns |= {"metrics": {key: str(kind()) for key, kind in layout.METRICS.items()}}
    columns |= {
        "routes": {key: str(kind if isinstance(kind, pl.DataType) else kind()) for key, kind in record.ROUTES.items()}
    }
    records["costs"] |= {"code": None, "core_seconds": None}  # nor digests of code and CPU times
    for table, found in columns.items():
        assert described(f"{table}.parquet", 2) == found
    for one, values in records.items():
        assert described(f"{one}.json", 1).keys() == values.keys()


def kind(value: pl.DataType) -> str:
    return str(value).split("(")[0] if isinstance(value, pl.Enum) else str(value)


def described(file: str, cells: int) -> dict[str, str]:
    """Key → type (where the table has one) in the section on a file; a cell may name several keys."""
    section = PAGE.split(f"## {file}\n")[1].split("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (`.*) \|$", section, re.M)]
    return {key: row[1] if cells == 2 else "" for row in rows for key in re.findall(r"`(\w+)`", row[0])}


def test_the_readme_fits_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST
