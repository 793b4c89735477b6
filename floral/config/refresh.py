"""Forget what was read from the files of a study, so that a running Python reads changed files again."""

from __future__ import annotations

import sys
from pathlib import Path

from floral.config import catalogue, code, data_sets, own_model, paths, plugins, searches, tuned

MODULES = (catalogue, code, data_sets, own_model, plugins, searches, tuned)
CACHES = [value for module in MODULES for value in vars(module).values() if hasattr(value, "cache_clear")]
"""Functions that keep what they have read."""


def refresh() -> None:
    """Forget all YAML files that were read, and the Python modules of the study's folders `methods` and `models`.

    A command reads each file once. A notebook stays open while its user changes files.
    """
    for cached in CACHES:
        cached.cache_clear()
    folders = [(paths.STUDY / kind).resolve() for kind in paths.CODE_FOLDERS]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is not None and Path(file).resolve().parent in folders:
            del sys.modules[name]
