"""Random YAML of every kind: a run, or a ConfigError that names the file. Never another exception, never a traceback.

The generators start from correct files and make the oddities that people make: a wrong type, a misspelt or doubled
key, a deleted part, broken characters, anchors that contain themselves.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from projects import ROOT

from floral.config import catalogue, data_sets, paths, reading, searches, suites, tuned
from floral.config.reading import ConfigError
from floral.config.schema.data import CustomData
from floral.config.settings import read_settings
from floral.stages.fetch import fetch

CACHED = [
    value
    for module in (catalogue, data_sets, searches, suites, tuned)
    for value in vars(module).values()
    if hasattr(value, "cache_clear")
]
KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "config": ("config.yaml", lambda: read_settings().runs()),
    "suite": ("suites/ablations_norm.yaml", lambda: suites.suite_runs("ablations_norm")),
    "task": ("tasks/cifar10_rotate.yaml", lambda: catalogue.task("cifar10_rotate")),
    "synthetic task": ("tasks/synthetic_mlp.yaml", lambda: catalogue.task("synthetic_mlp")),
    "method": ("methods/floral.yaml", lambda: catalogue.variant("floral_1")),
    "search": ("search/floral.yaml", lambda: suites.suite_searches("tuned")),
    "tuning": ("tuning.yaml", lambda: suites.suite_searches("tuned")),
    "tuned": ("tuned/digits_rotate.yaml", lambda: suites.suite_runs("tuned")),
    "switches": ("fidelity.yaml", lambda: catalogue.fidelity("corrected")),
    "parameters": ("parameters.yaml", lambda: catalogue.variant("fedavg")),
    "data": ("data.lock", lambda: [data_sets.data_digest("digits"), catalogue.task("digits_rotate")]),
}
"""Kind of file → its name below config/, and what reads it."""

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(allow_subnormal=False), st.text(max_size=8),
    st.sampled_from(["0,1", "a{b}", "~nobody/x", "1e-3", "../x", "-x", "nan", "\u0000", "é", "all", "quickstart"]),
    st.dates(),
)  # fmt: skip
KEYS = st.text(max_size=5) | st.integers(0, 3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)

ODD_LINES = (
    "<<: *x\n", "a: &a [*a]\n", "{", "]\n", "? [a]\n: b\n", "a: !!bool x\n", "--- \n", "\0", "'", "a: 2020-13-45\n",
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of config/, which the code reads."""
    folder = tmp_path / "config"
    shutil.copytree(ROOT / "config", folder)
    monkeypatch.setattr(paths, "CONFIG_FOLDER", folder)
    for name in ("FLORAL_RESULTS", "FLORAL_REPORTS", "FLORAL_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    clear()


def clear() -> None:
    for cached in CACHED:
        cached.cache_clear()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each part of nested values."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def changed(draw: st.DrawFn, values: dict[str, Any]) -> dict[str, Any]:
    """A file with one to three odd changes."""
    values = copy.deepcopy(values)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(values), key=repr) or [()]))
        if not path:
            break
        parent = values
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["value", "delete", "rename", "wrap", "unwrap"])):
            case "value":
                parent[path[-1]] = draw(VALUES)
            case "delete":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.one_of(st.text(max_size=6), st.just(f"{path[-1]}s")))] = parent.pop(path[-1])
            case "wrap":
                parent[path[-1]] = [parent[path[-1]]]
            case _:
                inner = parent[path[-1]]
                parent[path[-1]] = inner[0] if isinstance(inner, list) and inner else str(inner)
    return values


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """A text with an oddity of YAML or of its characters."""
    lines = text.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines) - 1))
    match draw(st.sampled_from(["double", "cut", "insert", "latin-1", "utf-16", "bom", "crlf", "tab", "deep", "any"])):
        case "double":
            lines.insert(at, lines[at])
        case "cut":
            lines = lines[:at]
        case "insert":
            lines.insert(at, draw(st.sampled_from(ODD_LINES) | st.text(max_size=5)))
        case "latin-1":
            return f"# é\n{text}".encode("latin-1", errors="replace")
        case "utf-16":
            return text.encode("utf-16")
        case "bom":
            return text.encode("utf-8-sig")
        case "crlf":
            return text.replace("\n", "\r\n").encode()
        case "tab":
            lines[at] = f"\t{lines[at]}"
        case "deep":
            lines.insert(at, f"a: {'[' * 5000}\n")
        case _:
            return draw(st.binary(max_size=40))
    return "".join(lines).encode(errors="surrogatepass")


def outcome(file: Path, content: bytes, read: Callable[[], Any], named: str = r"config/\S+\.(yaml|lock)") -> Any:
    """Write and read a file. Check that an error names a file (`named`) and has no words of a library.

    The result is what was read, or None after an error.
    """
    file.write_bytes(content)
    clear()
    try:
        return read()
    except ConfigError as error:
        said = str(error)
        assert re.search(named, said), said  # or the file that no longer fits it
        for words in ("Input should", "Traceback", "validation error", "pydantic", "<unicode string>", "NoneType"):
            assert words not in said, said
        return None


@pytest.mark.parametrize("damage", ["values", "text"])
@pytest.mark.parametrize("kind", KINDS)
@bounded(10)
@given(data=st.data())
def test_odd_files_are_read_or_refused(kind: str, damage: str, config: Path, data: st.DataObject) -> None:
    name, read = KINDS[kind]
    original = (ROOT / "config" / name).read_text(encoding="utf-8")
    if damage == "text":
        content = data.draw(damaged(original))
    else:
        values = data.draw(changed(yaml.safe_load(original)))
        content = yaml.safe_dump(values, allow_unicode=True).encode(errors="surrogatepass")
    outcome(config / name, content, read)


TABLE = "a,b,species,site,no\n" + "".join(
    f"{row * 7 % 5 / 2},{row * 3 % 7},{('ash', 'elm')[row % 3 > 1]},{row % 4},{row}\n" for row in range(24)
)
DECLARED: dict[str, tuple[list[Any], list[Any]]] = {
    "kind": (["table", "folder", "arrays"], ["parquet", "Table", ["table"], "mlp"]),
    "path": ([], ["nowhere", ".", "", 3, ["table.csv"], "~nobody/x", "config"]),
    "label": (["species", "site"], ["a", "Species", "", 3, ["species"]]),
    "features": ([["a", "b"], ["b"]], ["a", [], ["species"], ["a", "a"], [1], ["c"], {"a": 1}]),
    "drop": ([["no"], ["no", "a"]], ["no", [], ["species"], ["c"], ["a", "b", "no", "site"], True]),
    "client": (["site"], ["species", "no", "", "Site", ["site"]]),
    "separator": ([","], [";", "::", "", "a", "\t", 3, ","]),
    "decimal": (["."], [",", ";", "", 1.5]),
    "missing": ([["NA"], [-999]], ["NA", [], [""], [None], {"NA": 1}, [["NA"]]]),
    "channels": (["last", "first"], ["middle", True, 1, ["last"]]),
    "test_share": ([0.2, 0.5], [0, 1, -1, "0.2", 1e-9, 0.9999, [0.5], True]),
}
"""Key of custom data → correct values, and odd ones."""
USUAL = {"table": ["label", "drop"], "folder": [], "arrays": []}
FILE_OF_KIND = {"table": "table.csv", "folder": "images", "arrays": "arrays.npz"}


@st.composite
def declarations(draw: st.DrawFn) -> dict[str, Any]:
    """The key `data` of a task with custom data: correct keys, and up to two odd changes."""
    kind = draw(st.sampled_from(sorted(FILE_OF_KIND)))
    keys = {*USUAL[kind], *draw(st.sets(st.sampled_from(["client", "test_share", "missing"]), max_size=2))}
    data = {key: draw(st.sampled_from(DECLARED[key][0])) for key in sorted(keys)}
    data |= {"kind": kind, "path": FILE_OF_KIND[kind]}
    for _ in range(draw(st.integers(0, 2))):
        key = draw(st.sampled_from(sorted(DECLARED)))
        odd = st.sampled_from([*DECLARED[key][0], *DECLARED[key][1]]) | VALUES
        match draw(st.sampled_from(["value", "value", "delete", "rename"])):
            case "value":
                data[key] = draw(odd)
            case "delete":
                data.pop(key, None)
            case _:
                data[f"{key}s"] = data.pop(key, None)
    return data


def test_odd_declarations_of_custom_data_are_read_or_refused(config: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """What is read has all samples of the file. An error names the task's file, or the file of the data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text(TABLE)
    np.savez(tmp_path / "arrays.npz", x=np.random.default_rng(0).normal(size=(24, 4, 4)), y=np.arange(24) % 2)
    for row in range(24):
        path = tmp_path / "images" / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 9 * row).save(path)
    task = {"clients": 2, "clusters": 1, "participation": 1.0, "rounds": 1, "batch": 4, "lr": 0.1, "router_lr": 0.1}
    outcomes: list[Any] = []

    def fetched() -> Any:
        data = catalogue.task("mine").data
        if isinstance(data, CustomData):
            return json.loads((fetch(data, tmp_path / "results") / "card.json").read_text())
        return None

    @bounded(60)
    @given(data=declarations())
    def each(data: dict[str, Any]) -> None:
        values = {"title": "Mine", "data": data, **task, "model": {"kind": "mlp", "hidden": 4}}
        content = yaml.safe_dump(values, allow_unicode=True).encode(errors="surrogatepass")
        outcomes.append(outcome(config / "tasks" / "mine.yaml", content, fetched, r"^/\S+: "))
        if outcomes[-1]:
            assert sum(outcomes[-1]["rows"].values()) == 24 and outcomes[-1]["classes"] in (2, 4)

    each()
    assert sum(map(bool, outcomes)) > 10, "most declarations are refused, so the test says little"


@bounded(10)
@given(text=st.text(alphabet=" \n\t:-[]{}#&*!|>'\"%@`?,a1.~", max_size=40))
def test_yaml_is_understood_as_pyyaml_understands_it(text: str, tmp_path: Path) -> None:
    """Except for keys that appear twice and values that contain themselves."""
    file = tmp_path / "any.yaml"
    file.write_text(text)
    try:
        ours = reading.read(file)
    except ConfigError as error:
        assert str(error).startswith(f"{file}: ")
    else:
        assert repr(ours) == repr(yaml.safe_load(text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "line 2: the key `a` is already on line 1"),
        ("b:\n  - {a: 1, 'a': 2}\n", "line 2: the key `a` is already on line 2"),
        ("b:\n  a: 1\n  c: 1\n  a: 1\n", "line 4: the key `a` is already on line 2"),
        ("a: &a [*a]\n", "contains itself by its anchor"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 lists or mappings are inside each other"),
        ("a: " + "[" * 10_000, "not valid YAML: line 2, column 1"),
        ("\ta: 1\n", "indent with spaces, not with tabs"),
        ("", "this file is empty"),
        ("- a\n", "expected a mapping"),
        ("a: !!timestamp x\n", "does not fit its tag"),
    ],
)
def test_yaml_that_means_nothing_clear_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "any.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        reading.read(file)
    assert str(refused.value).startswith(f"{file}: ") and words in str(refused.value), refused.value


def test_merged_keys_are_no_doubled_keys(tmp_path: Path) -> None:
    (tmp_path / "any.yaml").write_text("base: &base {a: 1, b: 2}\none: {<<: *base, b: 3}\ntwo: {<<: *base}\n")
    assert reading.read(tmp_path / "any.yaml")["one"] == {"a": 1, "b": 3}
