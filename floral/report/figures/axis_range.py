"""Choose the ends of an axis, whether it is logarithmic, and which methods lie outside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from floral.report.compared import Configuration

LIMITS = {"accuracy": (0.0, 100.0), "loss": (0.0, math.inf)}
"""The possible values of each metric. Intervals that exceed them are cut."""

MIN_METHODS_PER_OUTLIER = 8
"""With fewer methods, an axis covers all that are no controls."""

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


def far_methods(ranges: Mapping[str, Range], controls: set[str]) -> set[str]:
    """Return the methods whose values are so far from all other methods that the axis should not cover them.

    ranges: method → its lowest and highest value. A control (run for comparison only, such as a constant prediction) is
    far if its distance to the range of all other methods exceeds half the width of that range. Another method is far if
    the axis without it has less than half its length; at most one in MIN_METHODS_PER_OUTLIER can be. No control is far
    if the axis without the far controls would still have at least half its length.
    """
    rivals = [ends for method, ends in ranges.items() if method not in controls]
    if not rivals:
        return set()
    low, high = enclosing(rivals)
    margin = (high - low) / 2
    far = {n for n in controls & ranges.keys() if ranges[n][1] < low - margin or ranges[n][0] > high + margin}
    if 2 * _length(ranges, far) >= _length(ranges, set()):
        far = set()
    for _ in range((len(ranges) - len(far)) // MIN_METHODS_PER_OUTLIER):
        method = min(ranges.keys() - far, key=lambda name: (_length(ranges, far | {name}), name))
        if 2 * _length(ranges, far | {method}) >= _length(ranges, far):
            break
        far.add(method)
    return far


def _length(ranges: Mapping[str, Range], excluded: set[str]) -> float:
    """Return the length of an axis that covers all methods but the excluded ones."""
    start, stop = enclosing(ends for method, ends in ranges.items() if method not in excluded)
    return stop - start


def round_outwards(ends: Range, low: float, high: float) -> Range:
    """Return a range whose ends are moved outwards to round numbers, but not beyond `low` and `high`."""
    span = ends[1] - ends[0] or abs(ends[1]) / 10 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span <= 5 * factor * power)
    margin = 0.02 * span
    start, stop = math.floor((ends[0] - margin) / step) * step, math.ceil((ends[1] + margin) / step) * step
    return clip(start, low, high), clip(stop, low, high)
