"""Find the files of Python packages whose code can change without a new version, such as `pip install -e` packages."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from floral.core.errors import INSTALLED


@cache
def is_source(package: str) -> bool:
    """Return whether a package is read from its source folder: it is editable, or lies in a folder of PYTHONPATH.

    Modules of Python, floral itself and installed packages are none. A package is installed if it lies in
    site-packages, or if the list of installed files (RECORD) beside it has its name.
    """
    spec = _spec(package)
    places = [] if spec is None else [*([spec.origin] if spec.origin else spec.submodule_search_locations or ())]
    if package == "floral" or package in sys.stdlib_module_names or not places or not Path(places[0]).exists():
        return False
    place = Path(places[0]).resolve()
    if INSTALLED & set(place.parts):
        return False
    folder = place.parent if place.name == "__init__.py" else place
    lists = [path.read_text(encoding="utf-8") for path in folder.parent.glob("*.dist-info/RECORD")]
    return not any(line.startswith((f"{package}/", f"{package}.py,")) for text in lists for line in text.splitlines())


def files(modules: Iterable[str], package: str | None = None) -> list[Path]:
    """Return the Python files of these modules and of the modules that they import, sorted by the module's name.

    Modules are followed into the packages for which `is_source` holds, and into `package`. A name may also be that of
    a function in a module. Imports inside functions count; imports by `importlib` are not seen.
    """
    key = tuple(sorted({*modules}))
    if any(_stamp(file) != stamp for file, stamp in _files(key, package)):
        _files.cache_clear()
    return [file for file, _ in _files(key, package)]


@cache
def _files(modules: tuple[str, ...], package: str | None) -> list[tuple[Path, tuple[int, int]]]:
    """Return the same files, each with its time of change and size."""
    file_of: dict[str, Path] = {}
    folders_of: dict[str, list[Path]] = {}
    todo = list(modules)
    while todo:
        parts = todo.pop().split(".")
        if parts[0] != package and not is_source(parts[0]):
            continue
        for name in (".".join(parts[: i + 1]) for i in range(len(parts))):
            if name in folders_of:
                continue
            file, folders_of[name] = _place(name, folders_of)
            if file is None and not folders_of[name]:
                del folders_of[name]
                break
            if file is not None:
                file_of[name] = file
                inside = name if file.name == "__init__.py" else name.rpartition(".")[0]
                todo += imported(file, inside)
    return [(file, _stamp(file)) for _, file in sorted(file_of.items())]


def _stamp(file: Path) -> tuple[int, int]:
    try:
        about = file.stat()
    except OSError:  # it was removed
        return 0, 0
    return about.st_mtime_ns, about.st_size


def imported(file: Path, package: str | None) -> list[str]:
    """Return the absolute names of the modules that a file may import: also names that may be functions in them.

    `package` is the package of the file, to which imports with a dot are relative. Without it, they are left out. The
    list is empty if the file is not valid Python.
    """
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level and package is None:
                continue
            parts = package.split(".") if package else []
            above = parts[: len(parts) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names += [module, *(f"{module}.{name.name}" for name in node.names)]
    return names


def _place(name: str, folders_of: dict[str, list[Path]]) -> tuple[Path | None, list[Path]]:
    """Return the file of a module, if it has one, and the folders with the modules inside it."""
    parent, _, last = name.rpartition(".")
    if not parent:
        spec = _spec(name)
        folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
        file = Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
        return (file if file is not None and file.is_file() else None), folders
    for folder in folders_of[parent]:
        if (file := folder / last / "__init__.py").is_file():
            return file, [folder / last]
        if (file := folder / f"{last}.py").is_file():
            return file, []
    return None, [folder / last for folder in folders_of[parent] if (folder / last).is_dir()]


def _spec(package: str) -> ModuleSpec | None:
    """Return where Python finds a package, which is not imported. Return None if Python does not find it."""
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a module that was made by hand has no place
        return None
