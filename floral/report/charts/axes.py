"""Describe the axes of charts: scales, ticks at round numbers, and ranges of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import polars as pl

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The title, number format, scale, limits and ticks of a chart's axis."""

    title: str
    format: str | None = None
    """A d3 number format."""
    unit: str = ""
    """Unit that stands behind the number of each tick, such as B."""
    log: bool = False
    limits: tuple[float, float] = (-math.inf, math.inf)
    """The smallest and largest possible value."""
    ticks: tuple[float, ...] = ()
    """If given, the ticks of a square-root axis, which has room for 0 and small values."""


def vega_axis(**options: Any) -> alt.Axis:
    return alt.Axis(**{key: value for key, value in options.items() if key != "format" or value is not None})


def tick_options(axis: Axis, start: float, stop: float, most: int = 5) -> dict[str, Any]:
    """Return Vega's options for the ticks of an axis.

    A linear axis gets about `most` - 1 ticks. A logarithmic axis gets at most `most` ticks at round numbers. If one of
    them is very small or large, all are written as powers of ten.
    """
    if axis.ticks:
        return {"values": list(axis.ticks)}
    if not axis.log:
        return {"tickCount": most - 1}
    values = round_numbers(start, stop, most)
    if axis.unit or axis.format:
        unit = f"regexp('([kMGTP]?)$'), '\u2009$1{axis.unit}'"
        return {"values": values, "labelExpr": f"replace(format(datum.value, '~s'), {unit})"}
    return {"values": values, "labelExpr": f"{number_texts(values)}[indexof({values}, datum.value)]"}


def number_texts(values: Sequence[float]) -> list[str]:
    """Return numbers as texts in one form: as decimals, or all as powers of ten if one is very small or large."""
    if all(1e-3 <= value < 1e5 for value in values):
        return [f"{value:.6g}" for value in values]
    texts = []
    for value in values:
        power = math.floor(math.log10(value) + 1e-9)
        factor = round(value / 10.0**power)
        texts.append(f"{'' if factor == 1 else f'{factor}·'}10{str(power).translate(SUPERSCRIPTS)}")
    return texts


def round_numbers(start: float, stop: float, most: int = 8) -> list[float]:
    """Return at most `most` round numbers from `start` to `stop`, for the ticks of a logarithmic axis."""
    powers = range(math.floor(math.log10(start)), math.ceil(math.log10(stop)) + 1)
    numbers: list[float] = []
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
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
