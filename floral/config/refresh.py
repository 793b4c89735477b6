"""Forget what was read from the files of a study, so that a running Python reads changed files again."""

from __future__ import annotations

import sys
import time
from pathlib import Path

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
    folders = {(paths.STUDY / kind).resolve() for kind in paths.CODE_FOLDERS}
    file_of = {
        name: Path(file)
        for name, module in list(sys.modules.items())
        if name != "__main__" and (file := getattr(module, "__file__", None))
    }
    last, _last_refresh = _last_refresh, time.time()
    newer = {name.partition(".")[0] for name, file in file_of.items() if file.exists() and file.stat().st_mtime > last}
    changed = {package for package in newer if source_packages.is_source(package)}
    for name, file in file_of.items():
        if name.partition(".")[0] in changed or file.resolve().parent in folders:
            del sys.modules[name]
