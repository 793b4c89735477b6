"""Find the Python files of a run's method, model and adaptors, with their versions and with digests of their code.

The files are parsed and not imported, because importing them would also import torch, which is slow.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from floral.config import catalogue, paths, plugins
from floral.config.reading import ConfigError, read

ROOT = Path(__file__).parents[2]
"""The folder that contains the package floral. The paths of files in this module begin here."""
FOLDERS = tuple(f"floral/{name}/" for name in ("methods", "models", "adaptors", "toolkit"))
"""Folders whose files are the code of a run, if the run's method or model imports them."""
STUDY_FOLDERS = tuple(f"{name}/" for name in paths.CODE_FOLDERS)
"""Folders of the study, whose files are also code of a run. Their paths begin in the folder of the study."""
LAYERS = "floral/nn/"
"""The folder whose files define the layers of models."""
ANY_LAYER = "*"
"""Stands for all layers, where a file imports a whole module."""
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
        folder, *names = path.removeprefix("floral/").removesuffix(".py").split("/")
        if folder != "methods":
            version_of[f"{folder} {'.'.join(names)}"] = _version(path)
    return {name: version for name, version in version_of.items() if version != 1}


@cache
def files(method: str, model: str) -> tuple[str, ...]:
    """Return the files in FOLDERS and STUDY_FOLDERS that a method and a model import, sorted.

    They import these files directly or through others. Imports inside functions are not followed: put imports at the
    top of a file. The file of an adaptor kind is left out if the model has no layer to which this adaptor kind can be
    attached.
    """
    model_files = _closure([_file_of(f"floral.models.{model}")])
    layers = {name for path in model_files for name in _layers(path)}

    def is_used(path: str) -> bool:
        return not _is_adaptor_kind(path) or ANY_LAYER in layers or not layers.isdisjoint(_layers(path))

    of_method = method.rpartition(":")[0] if plugins.is_in_file(method) else _file_of(f"floral.methods.{method}")
    return tuple(sorted(filter(is_used, _closure([of_method, *model_files]))))


def _closure(paths: list[str]) -> set[str]:
    """Return these files and all files in FOLDERS and STUDY_FOLDERS that they import, directly or through others."""
    closure: set[str] = set()
    todo = list(paths)
    while todo:
        path = todo.pop()
        if path not in closure:
            closure.add(path)
            todo += [module for module, _ in _imports(path) if module.startswith((*FOLDERS, *STUDY_FOLDERS))]
    return closure


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

    A file that was not used then is used now because a changed file imports it, and that change is judged by itself. So
    it is enough that EQUAL_CODE lists the code of the file that is new.
    """
    here = digests(method, model)
    if recorded is None:
        before = {path: equal_code()[path][0] for path in here if path in equal_code()}
        before |= {path: digest for path, digest in here.items() if path not in before}
    else:
        gone = {digest for path, digest in recorded.items() if path not in here}
        moved = {path: digest for path, digest in here.items() if path not in recorded and digest in gone}
        before = recorded | moved
        if any(path in before and before[path] != now for path, now in here.items()):
            before |= {
                path: now for path, now in here.items() if path not in before and now in equal_code().get(path, [])
            }
    return [
        path
        for path, now in here.items()
        if before.get(path) != now and not {before.get(path), now} <= set(equal_code().get(path, []))
    ]


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
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == VERSION for target in targets):
            return getattr(node, "value", None)
    return None


def _is_adaptor_kind(path: str) -> bool:
    """Return whether a file defines a kind of adaptor. In the folder of adaptors, only such files have a VERSION."""
    return path.startswith("floral/adaptors/") and _version_value(path) is not None


def _layers(path: str) -> set[str]:
    """Return the names that a file imports from the modules of LAYERS, for example "Linear".

    If the file imports a whole module, the result has ANY_LAYER.
    """
    return {name for module, name in _imports(path) if module.startswith(LAYERS)}


@cache
def _imports(path: str) -> list[tuple[str, str]]:
    """Return what a file imports from floral outside of functions, as pairs (file of the module, name).

    If a whole module is imported, the name is ANY_LAYER.
    """
    names = []
    for node in _outside_functions(_parsed(path)):
        if isinstance(node, ast.Import):
            names += [(_file_of(name.name), ANY_LAYER) for name in node.names if name.name.startswith("floral.")]
        elif isinstance(node, ast.ImportFrom):
            parents = _module_of(path).split(".")[: -node.level] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            if not module.startswith("floral."):
                continue
            for name in node.names:
                inner = _file_of(f"{module}.{name.name}")
                is_module = _place(inner).exists()
                names.append((inner, ANY_LAYER) if is_module else (_file_of(module), name.name))
    return names


def _file_of(module: str) -> str:
    """Return the file of a module, or of a package, such as floral/toolkit/parts.py of floral.toolkit.parts.

    The file methods/mine.py of the study is the module floral.methods.mine.
    """
    path = module.replace(".", "/")
    in_study = path.removeprefix("floral/")
    if in_study.startswith(STUDY_FOLDERS) and (_place(f"{in_study}.py").exists() or _place(in_study).is_dir()):
        path = in_study
    return f"{path}/__init__.py" if _place(path).is_dir() else f"{path}.py"


def _module_of(path: str) -> str:
    """Return the module of a file, such as floral.methods.mine of the study's file methods/mine.py."""
    names = path.removesuffix(".py").replace("/", ".")
    return f"floral.{names}" if path.startswith(STUDY_FOLDERS) else names


def _place(path: str) -> Path:
    """Return where a file or folder of code lies: below ROOT if it is of the package floral, or else in the study."""
    return ROOT / path if path.startswith("floral/") else paths.in_study(path)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a syntax tree, except those inside of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from _outside_functions(child)


@cache
def _parsed(path: str) -> ast.Module:
    try:
        return ast.parse(_place(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: this file is imported, but it does not exist; correct the import") from None
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
