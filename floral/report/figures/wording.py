"""Texts of figures: rankings for captions, and lists of values for readers who cannot see the figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from floral.core.intervals import Interval
from floral.report.compared import Configuration
from floral.report.style import Style
from floral.report.tables import number

MAX_NAMED = 3


def ranking(values: Mapping[str, float], styles: Sequence[Style], digits: int | None, higher: bool = True) -> str:
    """Return a text with the best three methods and the last one, such as `A 84.3, B 83.9, C 81.0 … Z 10.2`.

    values: method → value. If there are at most four methods, the text names all of them.
    """
    names = {style.id: style.short for style in styles}
    ranked = sorted(((n, v) for n, v in values.items() if v is not None), key=lambda pair: pair[1], reverse=higher)
    texts = [f"{names[method]} {number(value, digits)}" for method, value in ranked]
    return ", ".join(texts) if len(texts) <= MAX_NAMED + 1 else f"{', '.join(texts[:MAX_NAMED])} … {texts[-1]}"


def overlap(means: Mapping[str, Interval], higher: bool) -> str:
    """Return the end of a caption, which says how many methods have an interval that overlaps that of the best mean.

    If the best mean has no interval, or there is only one method, the text is a full stop.
    """
    ranked = sorted(means.values(), key=lambda interval: interval.mean, reverse=higher)
    if len(ranked) < 2 or ranked[0].low is None:
        return "."
    best, rest = ranked[0], [interval for interval in ranked[1:] if interval.low is not None]
    count = sum(item.high >= best.low if higher else item.low <= best.high for item in rest)  # type: ignore[operator]
    return f"; {count} of the other {len(rest)} intervals overlap the first."


def values_text(
    quantity: str, configuration: Configuration, styles: Sequence[Style], values: Mapping[str, Interval],
    digits: int | None,
) -> str:  # fmt: skip
    """Return a text with the values and intervals of all methods.

    For example: `quantity, configuration: A 84.3 (83.1 to 85.5); B …`.
    """
    texts = []
    for style in styles:
        if (interval := values.get(style.id)) is not None:
            ends = (
                ""
                if interval.low is None or interval.high is None
                else f" ({number(interval.low, digits)} to {number(interval.high, digits)})"
            )
            texts.append(f"{style.short} {number(interval.mean, digits)}{ends}")
    return f"{quantity}, {configuration.title}: {'; '.join(texts)}."


def name_few(names: Iterable[str]) -> str:
    """Return the names, separated by commas, or only their number if there are more than MAX_NAMED."""
    names = list(names)
    return ", ".join(names) if len(names) <= MAX_NAMED else f"{len(names)} methods"
