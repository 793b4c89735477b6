"""Import the user's Python files that YAML files or functions name by their paths, such as models/net.py."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import time
import types
from collections.abc import Sequence
from contextvars import ContextVar
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

from floral.config.reading import ConfigError

PREFIX = "floral_own_"
"""Start of the name of a package that stands for a folder with files of the user."""
STARTED = time.time()
"""When this process started. A file that was changed later is not the script that runs here."""
_folders: dict[str, Path] = {}
_importing: ContextVar[Path | None] = ContextVar("importing", default=None)


def from_file(path: Path) -> ModuleType:
    """Import a Python file. It may import other files and packages of its folder, by their names or with a dot.

    Files of two folders may have equal names: each file sees only those of its own folder. The script that runs in this
    process is not imported again.

    Raises:
        Exception: whatever the file raises.
    """
    path = path.resolve(strict=True)
    if _is_running_script(path):
        return sys.modules["__main__"]
    package = _package(path.parent)
    name = f"{package}.{path.stem.replace('.', '_')}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _Loader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    before = _importing.set(path)
    try:
        loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        _importing.reset(before)
    return module


def check_not_importing() -> None:
    """Raise ConfigError if a file that is being imported calls floral: its import would train runs without end."""
    if (path := _importing.get()) is not None:
        raise ConfigError(
            f"{path}: this file calls floral while it is imported; write `if __name__ == '__main__':` before this "
            "call, or move the function that builds the module into another file"
        )


def forget() -> None:
    """Forget the imported files, so that changed files are imported again."""
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]


def is_in_folder(name: str, folder: Path) -> bool:
    """Return whether `import name`, in a file of this folder, means a file or a package of the folder.

    As in a script, the folder comes before installed packages. Modules of Python come first, and so do installed
    packages before a folder without `__init__.py`.
    """
    if name in sys.stdlib_module_names:
        return False
    if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
        return True
    if not (folder / name).is_dir() or not any((folder / name).rglob("*.py")):
        return False
    try:
        installed = importlib.util.find_spec(name)
    except ValueError:
        return False
    return installed is None or installed.origin is None


def _is_running_script(path: Path) -> bool:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    return main is not None and Path(main).resolve() == path and path.stat().st_mtime <= STARTED


def _package(folder: Path) -> str:
    """Return the name of the package whose modules are the files of a folder."""
    name = PREFIX + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    _folders[name] = folder
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    importlib.import_module(name)
    return name


class _Finder(MetaPathFinder):
    """Finds the packages of `_package` and their modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _folders:
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(_folders[fullname])]
            return spec
        if not fullname.startswith(PREFIX):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    """Compiles a file of the user. Names of files in its folder are replaced: `import net` by `from . import net`.

    The compiled file is not stored, because another program that imports the file needs it as it is written.
    """

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        package, *inner = fullname.split(".")
        depth = len(inner) if self.is_package(fullname) else len(inner) - 1
        importer = inner[0] if depth == 0 else None  # a file timm.py that imports timm means the package
        return compile(_Relative(_folders[package], depth + 1, importer).visit(tree), path, "exec", dont_inherit=True)


class _Relative(ast.NodeTransformer):
    """Makes imports from the folder relative. `level` is the number of dots that leads to the folder."""

    def __init__(self, folder: Path, level: int, importer: str | None) -> None:
        self.folder, self.level, self.importer = folder, level, importer

    def _is_local(self, module: str) -> bool:
        name = module.partition(".")[0]
        return name != self.importer and is_in_folder(name, self.folder)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if node.level == 0 and node.module and self._is_local(node.module):
            node.level = self.level
        return node

    def visit_Import(self, node: ast.Import) -> list[ast.AST]:
        lines: list[ast.AST] = []
        for name in node.names:
            if not self._is_local(name.name):
                lines.append(ast.Import([name]))
                continue
            module, _, last = name.name.rpartition(".")
            if not module or name.asname:
                lines.append(ast.ImportFrom(module or None, [ast.alias(last, name.asname)], self.level))
                continue
            first = name.name.partition(".")[0]  # `import a.b` imports a.b, and gives the name a
            lines.append(ast.ImportFrom(module, [ast.alias(last, "_")], self.level))
            lines.append(ast.ImportFrom(None, [ast.alias(first)], self.level))
        return [ast.fix_missing_locations(ast.copy_location(line, node)) for line in lines]
