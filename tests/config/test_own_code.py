"""Code of the user in files and packages: what is imported, and what the hash of a run covers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from floral.config import own_code, own_model
from floral.config.reading import ConfigError
from floral.config.refresh import refresh

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """A function that writes a file and forgets what was read. `tmp_path`/lib is a folder of PYTHONPATH."""
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    before = set(sys.modules)

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        importlib.invalidate_caches()
        refresh()
        return path

    yield write_file
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    refresh()


NET = """
import parts.inner
import random
from helpers import SIZE
def make():
    import helpers as later
    from parts import inner
    return SIZE, later.SIZE, inner.SIZE, parts.inner.SIZE, random.Random(0).random() < 1
"""


def test_files_of_two_folders_see_the_files_of_their_own_folder(write: Write) -> None:
    """Also in functions that are called later, in packages beside the file, and if Python has a module of the name."""
    for folder, size in (("a", 1), ("b", 2)):
        write(f"{folder}/helpers.py", f"SIZE = {size}\n")
        write(f"{folder}/random.py", "raise AssertionError('this is not the module of Python')\n")
        write(f"{folder}/parts/__init__.py", "import helpers\n")
        write(f"{folder}/parts/inner.py", "from helpers import SIZE\nfrom parts import helpers\n")
        write(f"{folder}/dotted.py", "from . import helpers\nfrom .parts.inner import SIZE\n")
    for folder in "ab":
        path = write(f"{folder}/net.py", NET)
    functions = [own_code.from_file(path.parents[1] / folder / "net.py").make for folder in "ab"]
    assert own_code.from_file(path.with_name("dotted.py")).SIZE == 2
    refresh()
    assert [function() for function in functions] == [(1, 1, 1, 1, True), (2, 2, 2, 2, True)]
    assert not {"helpers", "parts"} & set(sys.modules)


def test_a_file_that_calls_floral_is_not_imported_without_end(write: Write) -> None:
    path = write("script.py", "from floral.config.refresh import refresh\nrefresh()\n")
    with pytest.raises(ConfigError, match=r"script\.py: this file calls floral while it is imported; write `if __name"):
        own_code.from_file(path)
    refresh()


def test_the_script_that_runs_is_not_imported_again(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("script.py", "raise AssertionError('it is imported again')\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(path), raising=False)
    monkeypatch.setattr(own_code, "STARTED", path.stat().st_mtime)
    assert own_code.from_file(path) is sys.modules["__main__"]
    monkeypatch.setattr(own_code, "STARTED", path.stat().st_mtime - 1)  # the script was changed since
    with pytest.raises(AssertionError, match="imported again"):
        own_code.from_file(path)


IMPORTS = {
    "an absolute import": "from pack_of_test.blocks import SIZE",
    "a module": "from . import blocks",
    "a relative import": "from .blocks import SIZE",
    "in a function": "def make():\n    import pack_of_test.blocks",
    "another package": "from other_of_test import SIZE",
}


@pytest.mark.parametrize("version", [None, "0.1"], ids=["without a version", "editable"])
@pytest.mark.parametrize("line", IMPORTS.values(), ids=IMPORTS)
def test_changed_code_of_a_package_in_a_source_folder_changes_the_hash(
    write: Write, line: str, version: str | None
) -> None:
    """The code counts, its comments do not. A file of the user that imports the package follows it, too."""
    if version is not None:
        write("lib/pack_of_test-0.1.dist-info/METADATA", f"Name: pack_of_test\nVersion: {version}\n")
    write("lib/pack_of_test/__init__.py", "")
    write("lib/pack_of_test/nets.py", f"{line}\n")
    path = write("models/net.py", "from pack_of_test.nets import make\n")
    changed = "lib/other_of_test.py" if "other" in line else "lib/pack_of_test/blocks.py"
    hashes = []
    for text in ("SIZE = 3\n", "# the same\nSIZE = 3\n", "SIZE = 44\n"):
        write(changed, text)
        hashes.append((own_model.content("pack_of_test.nets"), own_model.content(str(path))))
    same, commented, other = hashes
    assert same == commented and not set(same) & set(other)


def test_an_installed_package_counts_with_its_version(write: Write) -> None:
    """Its folder has a list of the installed files, wherever `pip install --target` wrote it."""
    write("lib/pack_of_test-0.1.dist-info/METADATA", "Name: pack_of_test\nVersion: 0.1\n")
    write("lib/pack_of_test-0.1.dist-info/RECORD", "pack_of_test/__init__.py,sha256=0,9\n")
    write("lib/pack_of_test/__init__.py", "SIZE = 1\n")
    path = write("models/net.py", "import pack_of_test\nimport torch\nimport floral.methods\n")
    before = own_model.content(str(path))
    write("lib/pack_of_test/__init__.py", "SIZE = 22\n")
    assert own_model.content("pack_of_test") == "pack_of_test 0.1" and own_model.content(str(path)) == before


def test_changed_code_of_a_package_is_imported_anew(write: Write) -> None:
    for size in (1, 22):
        write("lib/pack_of_test/__init__.py", f"SIZE = {size}\n")
        assert size == importlib.import_module("pack_of_test").SIZE
