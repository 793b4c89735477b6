"""Choose the ends of an axis, whether it is logarithmic, and which methods lie outside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from floral.report.compared import Configuration

LIMITS = {"accuracy": (0.0, 100.0), "loss": (0.0, math.inf)}
"""The possible values of each metric. Intervals that exceed them are cut."""

Range = tuple[float, float]


def is_logarithmic(configuration: Configuration, values: Iterable[float]) -> bool:
    """Return whether the axis should be logarithmic, given all values on it.

    This is the case if the values are losses above 0, and the largest is more than 30 times the smallest.
    """
    values = list(values)
    return configuration.metric == "loss" and 0 < min(values) < max(values) / 30


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def enclosing(ranges: Iterable[Range]) -> Range:
    lows, highs = zip(*ranges, strict=True)
    return min(lows), max(highs)


def far_controls(ranges: Mapping[str, Range], controls: set[str]) -> set[str]:
    """Return the controls whose values are so far from all other methods that the axis should not cover them.

    Controls are run for comparison only, such as a constant prediction. ranges: method → its lowest and highest value.
    A control is far if its distance to the range of all other methods exceeds half the width of that range. The set is
    empty if the axis without the far controls would still have at least half its length.
    """
    others_ranges = [ends for method, ends in ranges.items() if method not in controls]
    if not others_ranges:
        return set()
    low, high = enclosing(others_ranges)
    margin = (high - low) / 2
    far = {n for n in controls & ranges.keys() if ranges[n][1] < low - margin or ranges[n][0] > high + margin}
    first, last = enclosing(ranges.values())
    start, stop = enclosing(ends for method, ends in ranges.items() if method not in far)
    return far if 2 * (stop - start) < last - first else set()


def round_outwards(ends: Range, low: float, high: float) -> Range:
    """Return a range whose ends are moved outwards to round numbers, but not beyond `low` and `high`."""
    span = ends[1] - ends[0] or abs(ends[1]) / 10 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span <= 5 * factor * power)
    margin = 0.02 * span
    start, stop = math.floor((ends[0] - margin) / step) * step, math.ceil((ends[1] + margin) / step) * step
    return clip(start, low, high), clip(stop, low, high)
