"""Find the Python files of methods and models: those of the package, and those of the study.

The study's folders `methods` and `models` extend the packages floral.methods and floral.models. So the file
methods/mine.py of the study is the module floral.methods.mine.
"""

from __future__ import annotations

import ast
import importlib
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from floral.config import layers, own_code, paths, reading
from floral.config.reading import ConfigError
from floral.core.errors import in_user_code

FLORAL = Path(__file__).parents[1]

INTERFACE_VERSION = 1
"""Version of what the files in methods/ and models/ of a study use of floral, and of the keys of their YAML files.

Increase it if such a file of an earlier version has to be changed, and name the change in CHANGELOG.md.
"""


def folders(kind: str) -> list[Path]:
    """Return the folders with the Python files of a package of floral: that of the study first, if there is one."""
    of_study = [paths.STUDY / kind] if kind in paths.CODE_FOLDERS and (paths.STUDY / kind).is_dir() else []
    return [*of_study, FLORAL / kind]


@cache
def names(kind: str) -> list[str]:
    """Return the names of the modules of a package of floral. A new file is found without registration.

    Raises:
        ConfigError: the study and the package have a file of the same name.
    """
    counts = Counter(path.stem for folder in folders(kind) for path in folder.glob("*.py") if path.stem != "__init__")
    for name in (name for name, number in counts.items() if number > 1):
        _check_replacement(kind, name)
    return sorted(counts)


def _check_replacement(kind: str, name: str) -> None:
    """Raise ConfigError unless the study's method replaces the package's method of the same name, as its YAML says."""
    path, replaced = (folder / f"{name}.py" for folder in folders(kind))
    if kind != "methods":
        raise ConfigError(f"{path}: {replaced} has the same name; rename {path}")
    description = paths.CONFIG_FOLDER / "methods" / f"{name}.yaml"
    if not description.exists() or reading.read(description).get(layers.OVERRIDES) is not True:
        raise ConfigError(
            f"{path}: {replaced} has the same name; rename {path}, or replace the method: write "
            f"{description} with `{layers.OVERRIDES}: true`"
        )


def is_in_file(name: str) -> bool:
    """Return whether a method is named as <file.py>:<function>, and not by a file in a folder `methods`."""
    return ":" in name


def is_known(kind: str, name: str) -> bool:
    """Return whether there is a method or model with this name. A method may also be named as <file.py>:<function>."""
    return file(kind, name).is_file() if is_in_file(name) else name in names(kind)


def file(kind: str, name: str) -> Path:
    """Return the Python file of a method or model. If there is none, return the place where the user can write it."""
    if is_in_file(name):
        return paths.in_study(name.rpartition(":")[0])
    existing = [path for folder in folders(kind) if (path := folder / f"{name}.py").exists()]
    in_study = kind in paths.CODE_FOLDERS and len(layers.folders()) > 1
    path = existing[0] if existing else (paths.STUDY if in_study else FLORAL) / kind / f"{name}.py"
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def file_of_study() -> Path | None:
    """Return a Python file in the folders `methods` and `models` of the study, or None if they have none."""
    files = [path for kind in paths.CODE_FOLDERS for path in sorted((paths.STUDY / kind).glob("*.py"))]
    return next((path for path in files if path.stem != "__init__"), None)


def is_of_study(kind: str, name: str) -> bool:
    """Return whether a method or model has its Python file in the study."""
    *of_study, _ = folders(kind)
    return is_in_file(name) or any((folder / f"{name}.py").exists() for folder in of_study)


def builder(kind: str, name: str) -> Callable[..., Any]:
    """Import a method or model and return its function `build`.

    Raises:
        ConfigError: a file of the study cannot be imported, or has no function `build`.
    """
    path = file(kind, name)
    if is_in_file(name):
        return _function_in_file(path, name.rpartition(":")[2])
    try:
        module = importlib.import_module(f"floral.{kind}.{name}")
    except Exception as error:
        if path.parent.resolve() != (paths.STUDY / kind).resolve():
            raise
        raise _broken(path, error) from error
    if not callable(build := getattr(module, "build", None)):
        raise without_build(kind, path)
    return build


def _function_in_file(path: Path, function: str) -> Callable[..., Any]:
    try:
        module = own_code.from_file(path)
    except (Exception, SystemExit) as error:  # the code of the user may fail in any way
        raise ConfigError(f"{path}: the import fails: {in_user_code(error)}; correct it") from error
    if not callable(built_by := getattr(module, function, None)):
        raise ConfigError(f"{path}: this file has no function {function}; write it, or correct the name")
    return built_by


def without_build(kind: str, path: Path) -> ConfigError:
    """Return the error for a file of a method or model that has no function `build`.

    If a model's file defines PyTorch modules, the remedy names the last one, which usually contains the others.
    """
    remedy = f"write this function, as in floral/{kind}"
    if kind == "models":
        modules = _pytorch_modules(path)
        in_study = path.parent.resolve() == (paths.STUDY / kind).resolve()
        place = f"{kind}/{path.name}" if in_study else path
        module = f"{{kind: module, build: {place}:{modules[-1] if modules else 'NAME'}}}"
        remedy = f"for a torch.nn.Module, write `model: {module}` in the task; for declared layers, {remedy}"
    return ConfigError(f"{path}: this file has no function `build`; {remedy}")


def _pytorch_modules(path: Path) -> list[str]:
    """Return the classes of a Python file that derive from a class `Module`, directly or through each other."""
    modules = ["Module"]
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
            modules += [node.name] * (not set(modules).isdisjoint(bases))
    return modules[1:]


def _broken(path: Path, error: Exception) -> ConfigError:
    """Return the error for a file of the study that cannot be imported. Its message names the last line of the study.

    A line of the study is the cause more often than a line of a package that it calls.
    """
    folder = path.parent.resolve()
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == folder]
    line = f"line {frames[-1].lineno}: " if frames and not isinstance(error, SyntaxError) else ""
    place = path.with_name(Path(frames[-1].filename).name) if frames else path
    remedy = "correct this file"
    if isinstance(error, ModuleNotFoundError):
        remedy = "install this package; files beside this one are imported with a dot: `from .file import name`"
    return ConfigError(f"{place}: {line}{type(error).__name__}: {error}; {remedy}")
