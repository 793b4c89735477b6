"""Where the files lie: the folder of the study, and the files that the package brings."""

from __future__ import annotations

import os
from pathlib import Path


def _find_study() -> Path:
    """Return the nearest folder with config/config.yaml: the working directory or one above it.

    The environment variable FLORAL_STUDY names another folder. If there is no such folder, return the working
    directory. The path is relative, so messages are short.
    """
    if named := os.environ.get("FLORAL_STUDY"):
        return Path(named)
    try:
        depth = len(Path.cwd().parts)
    except FileNotFoundError:  # the working directory was removed
        return Path()
    candidates = (Path(*[os.pardir] * level) for level in range(depth))
    return next((folder for folder in candidates if (folder / "config" / "config.yaml").is_file()), Path())


STUDY = _find_study()
"""The folder of the study: the user's config/, methods/ and models/. Results and reports are written here."""

CONFIG_FOLDER = STUDY / "config"
"""Folder of the study's YAML files."""

CODE_FOLDERS = ("methods", "models")
"""Folders of a study with Python files. They extend the packages floral.methods and floral.models."""

_INSTALLED = Path(__file__).parents[1] / "packaged"

PACKAGE = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2]
"""The folder with the package's own config/, workflow/, reports/template/ and Snakefile.

The wheel has copies of them in floral/packaged. In a clone of the repository, they lie at the top.
"""


def in_study(path: str) -> Path:
    """Return the file that a path in a YAML file names: relative to the folder of the study, or from `~` or `/`."""
    return STUDY / os.path.expanduser(path)  # noqa: PTH111 - an unknown user is no error here
