"""What identifies a model that the user brings: the content of the files that define it, not their paths."""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from floral.config import code, networks, own_code, paths, plugins, pretrained, source_packages
from floral.config.hashing import hash8
from floral.config.reading import ConfigError
from floral.config.schema.task import Model
from floral.io.files import NotPlain, content_sha256

IN_FOLDER = ("huggingface", "bert")
"""Kinds of models whose argument `path` names the folder of a pretrained model."""


def is_of_user(model: Model) -> bool:
    """Return whether a model has the user's code or weights, which are neither in floral nor in config/data.lock."""
    files = {"weights"} if model.weights is not None else set[str]()
    files |= {"path"} if model.kind in IN_FOLDER else set()
    of_user = model.kind == "module" or not files <= networks.used(model).keys()
    return of_user or plugins.is_of_study("models", model.kind)


def identity(model: Model) -> dict[str, Any]:
    """Return the values of a model that determine the results of a run.

    The content of the file of weights replaces its path. For `kind: module`, the code of the user's file or package is
    added, or the version of an installed package. For a pretrained model in a folder, the content of the folder
    replaces its path. For `kind: huggingface`, the version of transformers is added. The files of a network in
    config/data.lock count with the hashes there. A file that cannot be read counts with its path.
    """
    values = model.all_keys
    if model.weights is not None:
        values["weights"] = _weights(model.weights)
    if model.kind == "module":
        place, _, function = str(values["build"]).rpartition(":")
        values["build"] = [function, content(place)] if place else str(values["build"])
    if model.kind in IN_FOLDER:
        version = [content("transformers")] if model.kind == "huggingface" else []
        values["path"] = [*version, *_folder(str(values["path"]))]
    return values


def method_identity(method: str) -> str | list[str]:
    """Return the name of a method. For <file.py>:<function>, return the function and a digest of the file's code."""
    place, _, function = method.rpartition(":")
    return [function, content(place)] if plugins.is_in_file(method) else method


def places(model: Model) -> list[str]:
    """Return what a model of the user names: its code with what this imports, its file of weights, or its folder."""
    keys = model.all_keys
    code_of = [f"{str(keys['build']).rpartition(':')[0]} (or what it imports)"] if model.kind == "module" else []
    version = ["the version of transformers"] if model.kind == "huggingface" else []
    return [*code_of, *(str(keys[key]) for key in networks.KEYS if keys.get(key) is not None), *version]


def _weights(name: str) -> str:
    """Return the hash of a file of weights, which a path or the name of a network names."""
    hashes = networks.hashes(name, networks.WEIGHTS)
    return sha256(paths.in_study(name)) if hashes is None else ",".join(hashes)


def _folder(name: str) -> list[str]:
    """Return the hashes of the configuration and of the weights of a folder, or of a network."""
    configuration, weights = (networks.hashes(name, pattern) for pattern in (pretrained.CONFIG, networks.WEIGHTS))
    if configuration is not None and weights is not None:
        return [*configuration, *weights]
    folder = paths.in_study(name)
    return [sha256(folder / pretrained.CONFIG), *map(sha256, pretrained.weights(folder))]


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or its path if it cannot be read."""
    try:
        about = path.stat()
        return _sha256(path, about.st_mtime_ns, about.st_size)
    except (OSError, NotPlain):
        return str(path)


@cache
def _sha256(path: Path, changed: int, size: int) -> str:
    """Return the SHA-256 of a file. The other arguments tell a changed file from the one that was read before."""
    del changed, size
    return content_sha256(path)


def content(place: str) -> str:
    """Return what identifies the code of <file.py> or <package.module>: a digest, or the version of a package.

    A package that was installed has a version. A digest covers the module and the modules that it imports: those in the
    folder of the file, and those of packages whose code can change without a new version. These are packages in a
    source folder (`pip install -e`, PYTHONPATH), and the module's package if it has no version. Comments and
    docstrings do not count.
    """
    if place.endswith(".py"):
        path = paths.in_study(place).absolute()
        beside = with_imports(path.resolve())
        named = [name for file in beside for name in source_packages.imported(file, None)]
        outside = [name for name in named if not own_code.is_in_folder(name.partition(".")[0], path.resolve().parent)]
        return _digest([*beside, *source_packages.files(outside)]) if beside else str(path)
    package = place.partition(".")[0]
    if not source_packages.is_source(package):
        try:
            return f"{place} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            pass  # no installed distribution has this name, so the source code is read
    files = source_packages.files([place], package)
    return _digest(files) if files else place


def _digest(files: Iterable[Path]) -> str:
    return hash8([_code(file) for file in files])


def _code(file: Path) -> str:
    """Return the digest of the code of a file, or of its bytes if it is not valid Python."""
    try:
        return code.digest(str(file))
    except (ConfigError, ValueError):
        return sha256(file)


def with_imports(path: Path) -> list[Path]:
    """Return a file and what it imports from its folder, directly or through others: files and all files of packages.

    The files are sorted by name. The list is empty if the file does not exist, or is not valid Python.
    """
    files_read: set[Path] = set()
    todo = [path]
    while todo:
        file = todo.pop()
        if file in files_read:
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            return []
        files_read.add(file)
        names = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                is_of_folder = node.level > 0 and file.parents[node.level - 1] == path.parent
                names += [node.module] if node.module else [name.name for name in node.names] if is_of_folder else []
        for name in {name.partition(".")[0] for name in names}:
            beside = path.parent / f"{name}.py"
            todo += [beside] if beside.is_file() else []
            todo += (path.parent / name).rglob("*.py")  # all of a package, whose files import each other by many names
    return sorted(files_read)
