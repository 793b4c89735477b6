"""Texts of errors."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the error's type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
