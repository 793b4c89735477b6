"""Wrap the text that lists of methods and tasks print."""

from __future__ import annotations

import textwrap

COLUMNS = 100
"""Maximum width of the text, in characters."""


def wrapped(words: str, start: str = "  ") -> list[str]:
    """Return lines of at most COLUMNS characters. `start` comes before the first word; later lines have its indent."""
    return textwrap.wrap(
        words, COLUMNS, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
