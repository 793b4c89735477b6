"""Texts of errors."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

FLORAL = Path(__file__).parents[1]
PYTHON = Path(os.__file__).parent
INSTALLED = {"site-packages", "dist-packages"}
"""Names of folders into which packages are copied when they are installed."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the error's type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def in_user_code(error: BaseException) -> str:
    """Return an error's type and first line, and the last line of the user's code that it passed through.

    For example: "KeyError: 'size' (models/net.py, line 7, in make)". Code of the user is what lies neither in floral
    nor in Python nor in an installed package. If there is none, the place is the last line of all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    of_user = [frame for frame in frames if _is_of_user(frame.filename)]
    text = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    if not frames:
        return text
    frame = (of_user or frames)[-1]
    path, here = Path(frame.filename), Path.cwd()
    place = path.relative_to(here) if path.is_relative_to(here) else path
    return f"{text} ({place}, line {frame.lineno}, in {frame.name})"


def _is_of_user(file: str) -> bool:
    path = Path(file)
    if file.startswith("<") or path.is_relative_to(FLORAL) or INSTALLED & set(path.parts):
        return False
    return not path.is_relative_to(PYTHON)
