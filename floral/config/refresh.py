"""Forget what was read from the files of a study, so that a running Python reads changed files again."""

from __future__ import annotations

import os
import sys
import time
from functools import cache

from floral.config import (
    catalogue,
    code,
    data_sets,
    own_code,
    own_model,
    paths,
    plugins,
    searches,
    source_packages,
    tuned,
)

MODULES = (catalogue, code, data_sets, own_model, plugins, searches, source_packages, tuned)
CACHES = [value for module in MODULES for value in vars(module).values() if hasattr(value, "cache_clear")]
"""Functions that keep what they have read."""
_last_refresh = own_code.STARTED


def refresh() -> None:
    """Forget all YAML files that were read, and the Python files of the user that were imported.

    A command reads each file once. A notebook stays open while its user changes files. The forgotten Python files are
    those in the study's folders `methods` and `models`, those that `kind: module` names or that they import from their
    folders, and those of packages in source folders that were changed since the last call.

    Raises:
        ConfigError: a file of the user calls floral while it is imported.
    """
    global _last_refresh
    own_code.check_not_importing()
    for cached in CACHES:
        cached.cache_clear()
    own_code.forget()
    folders = {os.path.realpath(paths.STUDY / kind) for kind in paths.CODE_FOLDERS}
    file_of = _files_of_modules()
    last, _last_refresh = _last_refresh, time.time()
    newer = {name.partition(".")[0] for name, file in file_of.items() if _changed_after(file, last)}
    changed = {package for package in newer if source_packages.is_source(package)}
    for name, file in file_of.items():
        if name.partition(".")[0] in changed or os.path.dirname(file) in folders:  # noqa: PTH120
            del sys.modules[name]


def _files_of_modules() -> dict[str, str]:
    """Return the file of each imported module but `__main__`, with links resolved.

    Thousands of modules are imported, in few folders. So each folder is resolved once, and paths are strings.
    """
    resolved = cache(os.path.realpath)
    files = {}
    for name, module in list(sys.modules.items()):
        if name != "__main__" and (file := getattr(module, "__file__", None)):
            folder, base = os.path.split(file)
            files[name] = os.path.realpath(file) if os.path.islink(file) else os.path.join(resolved(folder), base)  # noqa: PTH114, PTH118
    return files


def _changed_after(file: str, moment: float) -> bool:
    """Return whether a file exists and was changed after a time in seconds."""
    try:
        return os.stat(file).st_mtime > moment  # noqa: PTH116
    except FileNotFoundError:
        return False
