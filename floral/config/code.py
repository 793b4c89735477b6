"""Find the Python files of a run's method, model and adaptors, with their versions and with digests of their code.

The files are parsed and not imported, because importing them would also import torch, which is slow.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from floral.config import catalogue
from floral.config.reading import ConfigError, read

ROOT = Path(__file__).parents[2]
"""The folder that contains the package floral. The paths of files in this module begin here."""
FOLDERS = tuple(f"floral/{name}/" for name in ("methods", "models", "adaptors", "toolkit"))
"""Folders whose files are the code of a run, if the run's method or model imports them."""
LAYERS = "floral/nn/"
"""The folder whose files define the layers of models."""
VERSION = "VERSION"
"""Name of the constant with the version of a file. Each file of a model or an adaptor kind has it."""
WITHOUT_EFFECT = ("annotation", "returns", "kind", "type_comment", "type_params", "type_ignores")
"""Fields of a syntax tree that change no number."""
IMPORTS = (ast.Import, ast.ImportFrom)
EQUAL_CODE = Path(__file__).with_name("code.lock")
"""The file that lists, for each file in FOLDERS, digests of code that gives equal numbers."""


def versions(method: str, model: str) -> dict[str, int]:
    """Return the versions of a method, a model and the adaptor kinds that they use. A version of 1 is left out.

    A version is increased when the same run gives other numbers. The version of a method is the key `version` of its
    YAML file. The version of a model or an adaptor kind is the constant VERSION in its Python file; without it, the
    version is 1. The hash of a run covers these versions, so a new version renames the runs that use it, and no others.

    Raises:
        ConfigError: a VERSION is not a whole number from 1 on.
    """
    version_of = {f"method {method}": catalogue.method_file(method).version}
    for path in files(method, model):
        _, folder, name = path.removesuffix(".py").split("/")
        if folder != "methods":
            version_of[f"{folder} {name}"] = _version(path)
    return {name: version for name, version in version_of.items() if version != 1}


@cache
def files(method: str, model: str) -> tuple[str, ...]:
    """Return the files in FOLDERS that a method and a model import, directly or through other files, sorted.

    Imports inside functions are not followed.
    The file of an adaptor kind is left out if the model has no layer to which this adaptor kind can be attached.
    """
    layers = _layers(f"floral/models/{model}.py")
    paths: set[str] = set()
    todo = [f"floral/methods/{method}.py", f"floral/models/{model}.py"]
    while todo:
        path = todo.pop()
        if path not in paths and not (_is_adaptor_kind(path) and layers.isdisjoint(_layers(path))):
            paths.add(path)
            todo += [module for module, _ in _imports(path) if module.startswith(FOLDERS)]
    return tuple(sorted(paths))


def digests(method: str, model: str) -> dict[str, str]:
    """Return the digest of the code of each file that a method and a model use."""
    return {path: digest(path) for path in files(method, model)}


@cache
def digest(path: str) -> str:
    """Return the first 8 hex digits of a SHA-256 of the code in a Python file.

    The digest does not depend on comments, docstrings, type annotations, messages of exceptions, and the modules from
    which names are imported. So it stays the same if only words change, or if an imported module moves.
    """
    tree = _parsed(path)
    names = [name for node in ast.walk(tree) if isinstance(node, IMPORTS) for name in node.names]
    imported = sorted({f"import {name.name.rpartition('.')[2]} {name.asname}" for name in names})
    return hashlib.sha256("\n".join([*imported, *_code(tree)]).encode()).hexdigest()[:8]


@cache
def equal_code() -> dict[str, list[str]]:
    """Return the content of EQUAL_CODE: for each file, the digests of code that gives equal numbers."""
    return read(EQUAL_CODE)


def changed_files(recorded: dict[str, str] | None, method: str, model: str) -> list[str]:
    """Return the files of a method and a model that may now give other numbers than when a run was trained.

    `recorded` holds the digests of the run's files at that time. It is None for a run of an earlier version, which
    recorded no digests. Such a run was trained with code that is listed in EQUAL_CODE.
    """
    changed = []
    for path, now in digests(method, model).items():
        equal = equal_code().get(path, [])
        before = equal[0] if recorded is None and equal else (recorded or {}).get(path, now)
        if before != now and not {before, now} <= set(equal):
            changed.append(path)
    return changed


@cache
def _version(path: str) -> int:
    """Return the constant VERSION of a Python file; 1 if the file has none.

    Raises:
        ConfigError: VERSION is not a whole number from 1 on.
    """
    value = _version_value(path)
    version = 1 if value is None else getattr(value, "value", None)
    if type(version) is not int or version < 1:
        raise ConfigError(f"{path}: {VERSION} is not a whole number from 1 on; set it to 1 or to a larger number")
    return version


def _version_value(path: str) -> ast.expr | None:
    for node in _parsed(path).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [VERSION]:
            return node.value
    return None


def _is_adaptor_kind(path: str) -> bool:
    """Return whether a file defines a kind of adaptor. In the folder of adaptors, only such files have a VERSION."""
    return path.startswith("floral/adaptors/") and _version_value(path) is not None


def _layers(path: str) -> set[str]:
    """Return the names that a file imports from the modules of LAYERS, for example "Linear"."""
    return {name for module, name in _imports(path) if module.startswith(LAYERS)}


@cache
def _imports(path: str) -> list[tuple[str, str]]:
    """Return each name that a file imports from floral at its top, as a pair (file of the module, name)."""
    names = []
    for node in _parsed(path).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("floral."):
            module = (node.module or "").replace(".", "/")
            for name in node.names:
                is_module = (ROOT / module / f"{name.name}.py").exists()
                names.append((f"{module}/{name.name}.py" if is_module else f"{module}.py", name.name))
    return names


@cache
def _parsed(path: str) -> ast.Module:
    try:
        return ast.parse((ROOT / path).read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ConfigError(f"{path}: line {error.lineno}: {error.msg}; correct this line") from None


def _code(node: ast.AST) -> Iterator[str]:
    """Yield the parts of a syntax tree that can change numbers, except imports. All Python versions yield the same."""
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    if is_docstring or isinstance(node, IMPORTS):
        return
    yield type(node).__name__
    for name, value in () if isinstance(node, ast.Raise) else ast.iter_fields(node):
        if name in WITHOUT_EFFECT:
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST):
                yield name
                yield from _code(part)
            elif part is not None:
                yield f"{name} {part!r}"
    yield "end"
