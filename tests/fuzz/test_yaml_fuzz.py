"""Random YAML of every kind: a run, or a ConfigError that names the file. Never another exception, never a traceback.

The generators start from correct files and make the oddities that people make: a wrong type, a misspelt or doubled
key, a deleted part, broken characters, anchors that contain themselves.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from projects import ROOT

from floral.config import catalogue, data_sets, paths, reading, searches, suites, tuned
from floral.config.reading import ConfigError
from floral.config.settings import read_settings

EXAMPLES = int(os.environ.get("FLORAL_FUZZ_EXAMPLES", "10"))
"""Number of inputs for each kind of file."""
BOUNDED = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


def check_outcome(file: Path, content: bytes, read: Callable[[], Any]) -> None:
    """Write and read a file. Check that an error names the file and has no words of a library."""
    file.write_bytes(content)
    clear()
    try:
        read()
    except ConfigError as error:
        said = str(error)
        assert re.search(r"config/\S+\.(yaml|lock)", said), said  # or the file that no longer fits it
        for words in ("Input should", "Traceback", "validation error", "pydantic", "<unicode string>", "NoneType"):
            assert words not in said, said


@pytest.mark.parametrize("damage", ["values", "text"])
@pytest.mark.parametrize("kind", KINDS)
@BOUNDED
@given(data=st.data())
def test_odd_files_are_read_or_refused(kind: str, damage: str, config: Path, data: st.DataObject) -> None:
    name, read = KINDS[kind]
    original = (ROOT / "config" / name).read_text(encoding="utf-8")
    if damage == "text":
        content = data.draw(damaged(original))
    else:
        values = data.draw(changed(yaml.safe_load(original)))
        content = yaml.safe_dump(values, allow_unicode=True).encode(errors="surrogatepass")
    check_outcome(config / name, content, read)


@BOUNDED
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
