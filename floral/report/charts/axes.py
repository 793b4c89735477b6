"""Describe the axes of charts: scales, ticks at round numbers, and ranges of values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The title, number format, scale, limits and ticks of a chart's axis."""

    title: str
    format: str | None = None
    """A d3 number format."""
    log: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)
    """The smallest and largest possible value."""
    ticks: tuple[float, ...] = ()
    """If given, the ticks of a square-root axis, which has room for 0 and small values."""


def vega_axis(**options: Any) -> alt.Axis:
    return alt.Axis(**{key: value for key, value in options.items() if key != "format" or value is not None})


def tick_options(start: float, stop: float, log: bool) -> dict[str, Any]:
    """Return Vega's options for the ticks of an axis.

    A linear axis gets about four ticks. A logarithmic axis (`log`) gets at most five ticks at round numbers.
    """
    if not log:
        return {"tickCount": 4}
    return {"values": round_numbers(start, stop, 5)}


def round_numbers(start: float, stop: float, most: int = 8) -> list[float]:
    """Return at most `most` round numbers from `start` to `stop`, for the ticks of a logarithmic axis."""
    powers = range(math.floor(math.log10(start)), math.ceil(math.log10(stop)) + 1)
    numbers: list[float] = []
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))[most <= 5 :]:
        numbers = [value for power in powers for factor in factors if start <= (value := factor * 10.0**power) <= stop]
        if len(numbers) <= most:
            return numbers
    return numbers[:: math.ceil(len(numbers) / most)]


def value_domain(frame: pl.DataFrame, axis: Axis) -> tuple[float, float]:
    """Return the two ends of an axis that covers all intervals of the frame, with a small margin.

    The columns `low` and `high` of the frame have the ends of the intervals. A linear axis does not go beyond
    `axis.limits`, such as 0 and 100 for per cent.
    """
    low, high = float(frame["low"].min()), float(frame["high"].max())  # type: ignore[arg-type]
    if axis.log:
        return low / 1.1, high * 1.1
    margin = 0.03 * (high - low) or 0.5
    return max(low - margin, axis.limits[0]), min(high + margin, axis.limits[1])
