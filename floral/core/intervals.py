"""Student's confidence interval of a mean over seeds, also for logarithms of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of n values with its confidence interval [low, high], in the unit of the values.

    low and high are None if there is only one value. `neutral` is the value of no difference: 0, or 1 for a ratio.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    neutral: float = 0.0

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval, or None if there is no interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def is_symmetric(self) -> bool:
        """Whether both ends have the same distance from the mean, apart from rounding."""
        if self.low is None or self.high is None:
            return True
        below, above = self.mean - self.low, self.high - self.mean
        return math.isclose(below, above, rel_tol=1e-6, abs_tol=1e-12 * abs(self.mean))

    @property
    def is_decided(self) -> bool:
        """Whether the interval lies completely above or below the value of no difference. Without interval: False."""
        return self.low is not None and self.high is not None and (self.low > self.neutral or self.high < self.neutral)

    def exponential(self) -> Interval:
        """Return the interval of exp(value): that of a geometric mean if the values are logarithms."""
        low, high = (None if end is None else exponential(end) for end in (self.low, self.high))
        return replace(self, mean=exponential(self.mean), low=low, high=high, neutral=exponential(self.neutral))


def exponential(value: float) -> float:
    """Return exp(value), or infinity where it exceeds the largest float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return Student's t-interval of the mean of n values.

    The interval is m ± t · s/√n, with the mean m and the standard deviation s (with divisor n - 1). t is the quantile
    (1 + level)/2 of Student's distribution with n - 1 degrees of freedom.

    The interval assumes independent, approximately normal values. One value gives no interval. Equal values give an
    interval of length 0.

    Raises:
        ValueError: there are no values, or a value is not finite (the mean of a diverged run does not exist).
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"a t-interval needs at least one value, and finite values only; found {list(values)}")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean=mean, low=None, high=None, n=1)
    half = float(student_quantile((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean=mean, low=mean - half, high=mean + half, n=int(x.size))


@cache
def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's distribution with `freedom` degrees of freedom at a probability.

    It has the bits of scipy.stats.t.ppf, whose import takes a second that `floral track` needs for nothing else. SciPy
    takes 0.3 ms for it, and a report needs 14,000.
    """
    return float(stdtrit(freedom, probability))


def mean_interval(values: Sequence[float], logarithmic: bool) -> Interval:
    """Return the t-interval of the mean; if `logarithmic`, that of the geometric mean, from the logarithms.

    The geometric mean of values of which one is 0 is 0, without an interval.
    """
    if not logarithmic:
        return t_interval(values)
    if 0 in values:
        return Interval(mean=0.0, low=None, high=None, n=len(values), neutral=1.0)
    return t_interval([math.log(value) for value in values]).exponential()
