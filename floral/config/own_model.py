"""What identifies a model that the user brings: the content of the files that define it, not their paths."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from floral.config import code, networks, paths, plugins, pretrained
from floral.config.hashing import hash8
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

    The content of the file of weights replaces its path. For `kind: module`, the content of the user's file is added,
    or the version of the package. For a pretrained model in a folder, the content of the folder replaces its path. For
    `kind: huggingface`, the version of transformers is added. The files of a network in config/data.lock count with the
    hashes there. A file that cannot be read counts with its path.
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
    """Return a digest of the code of <file.py>, or the name and version of the package of <package.module>.

    Comments and docstrings do not count. Files and packages in the same folder that the file imports count too. A
    package without a version counts with the code of its module.
    """
    if place.endswith(".py"):
        return _digest(paths.in_study(place).absolute())
    package = place.partition(".")[0]
    try:
        return f"{place} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        pass  # no installed distribution has this name, so the source code is read
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:
        spec = None
    for folder in (spec and spec.submodule_search_locations) or ():
        inner = Path(folder).joinpath(*place.split(".")[1:])
        for path in (inner.with_suffix(".py"), inner / "__init__.py"):
            if path.is_file():
                return _digest(path)
    return _digest(Path(spec.origin)) if spec and spec.origin else place


def _digest(path: Path) -> str:
    files = with_imports(path)
    return hash8([code.digest(str(file)) for file in files]) if files else str(path)


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
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        for name in {name.partition(".")[0] for name in names}:
            beside = path.parent / f"{name}.py"
            todo += [beside] if beside.is_file() else []
            todo += (path.parent / name).rglob("*.py")  # all of a package, whose files import each other by many names
    return sorted(files_read)
