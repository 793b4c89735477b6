"""Forget what was read from the files of a study, so that a running Python reads changed files again."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from floral.config import catalogue, code, data_sets, own_model, paths, plugins, searches, tuned

MODULES = (catalogue, code, data_sets, own_model, plugins, searches, tuned)
CACHES = [value for module in MODULES for value in vars(module).values() if hasattr(value, "cache_clear")]
"""Functions that keep what they have read."""


MODULE = "floral_own_"
"""Start of the name under which floral/models/module.py imports a file of the user."""


def refresh() -> None:
    """Forget all YAML files that were read, and the Python files of the user that were imported.

    A command reads each file once. A notebook stays open while its user changes files. The forgotten Python files are
    those in the study's folders `methods` and `models`, and those that `kind: module` names or that lie beside and are
    imported by it.
    """
    for cached in CACHES:
        cached.cache_clear()
    folders = {os.path.realpath(paths.STUDY / kind) for kind in paths.CODE_FOLDERS}
    file_of = _files_of_modules()
    named = [Path(file) for name, file in file_of.items() if name.startswith(MODULE)]
    files = {str(imported) for file in named for imported in own_model.with_imports(file)}
    for name, file in file_of.items():
        if name.startswith(MODULE) or file in files or os.path.dirname(file) in folders:  # noqa: PTH120
            del sys.modules[name]


def _files_of_modules() -> dict[str, str]:
    """Return the file of each imported module, with links resolved.

    Thousands of modules are imported, in few folders. So each folder is resolved once, and paths are strings.
    """
    resolved = cache(os.path.realpath)
    files = {}
    for name, module in list(sys.modules.items()):
        if file := getattr(module, "__file__", None):
            folder, base = os.path.split(file)
            files[name] = os.path.realpath(file) if os.path.islink(file) else os.path.join(resolved(folder), base)  # noqa: PTH114, PTH118
    return files
