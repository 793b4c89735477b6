"""Confidence intervals of a mean over seeds: Student's t-interval, and a bootstrap over seeds and clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

MIN_SEEDS_FOR_BOOTSTRAP = 5
"""Minimum number of seeds for bootstrap intervals and for a ranking of methods. Fewer seeds give a t-interval and no
ranking."""
BOOTSTRAP_DRAWS = 10_000
"""Number of draws of a bootstrap. With MIN_SEEDS_FOR_BOOTSTRAP seeds, an expanded interval ends at the tenth lowest and
the tenth highest draw."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of n values with its confidence interval [low, high], in the unit of the values.

    low and high are None if there is only one value.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval, or None if there is no interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies completely above or completely below 0. It is False if there is no interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


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
    half = float(student.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean=mean, low=mean - half, high=mean + half, n=int(x.size))


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the confidence interval of a mean over seeds.

    With fewer than MIN_SEEDS_FOR_BOOTSTRAP seeds, it is Student's t-interval. Otherwise, it is a bootstrap interval
    (see `expanded`).
    """
    if len(values) < MIN_SEEDS_FOR_BOOTSTRAP or not np.isfinite(values).all():
        return t_interval(values, level)
    x = np.asarray(values, dtype=float)
    return expanded(resampled(x[:, None, None])[:, 0], float(x.mean()), x.size, level)


def resampled(
    values: np.ndarray, weights: np.ndarray | None = None, draws: int = BOOTSTRAP_DRAWS, seed: int = 0
) -> np.ndarray:
    """Return bootstrap draws [draws, M] of the mean over seeds, for M methods.

    `values` [S, K, M] holds one value for each of S seeds, K clients and M methods. Each draw takes S seeds with
    replacement, and then K clients with replacement from each of these seeds. Within a draw, all methods have the same
    seeds and clients. So subtracting one column from another gives paired draws of the difference of two methods.

    A draw is the mean over its seeds of Σ_k n_k v_k / Σ_k n_k. Here v_k is the value of client k, and n_k > 0 its
    weight in `weights` [S, K]; None means equal weights. If a seed is taken twice, its clients are drawn twice,
    independently. K = 1 resamples seeds only. The random numbers come from Philox(seed), so equal arguments give equal
    draws.

    With equal weights, the variance of the draws is (S - 1)/S · s²/S + v/(S·K). Here s² is the variance of the S means
    (with divisor S - 1), and v is the mean over seeds of the variance of the clients (with divisor K). s² already
    contains v/K, so the second term makes intervals slightly too wide (Davison and Hinkley 1997, section 3.8).
    """
    count, clients, methods = values.shape
    weights = np.ones((count, clients)) if weights is None else weights
    generator = np.random.Generator(np.random.Philox(seed))
    sum_of_means = np.zeros((draws, methods))
    of_seed = np.concatenate([values * weights[:, :, None], weights[:, :, None]], axis=2)
    for taken in generator.integers(count, size=(count, draws)):  # taken[draw] is one seed of each draw
        at = generator.integers(clients, size=(draws, clients)) + clients * np.arange(draws)[:, None]
        times = np.bincount(at.ravel(), minlength=draws * clients).reshape(draws, clients).astype(float)
        for index in range(count):
            rows = taken == index
            sums = times[rows] @ of_seed[index]
            sum_of_means[rows] += sums[:, :-1] / sums[:, -1:]
    return sum_of_means / count


def expanded(draws: np.ndarray, mean: float, n: int, level: float = 0.95) -> Interval:
    """Return Hesterberg's expanded percentile interval of a mean over n seeds, computed from bootstrap `draws` [D] of
    the mean.

    The ends of the interval are the quantiles α and 1 - α of the draws, with α = Φ(-√(n/(n - 1)) · t). Here Φ is the
    normal distribution function, and t the quantile (1 + level)/2 of Student's distribution with n - 1 degrees of
    freedom. For normal values, the result is the t-interval. The usual percentile interval is too narrow: it lacks the
    factor √(n/(n - 1)), and has the normal quantile in place of t.

    If the clients of a seed are similar, no draw is outside the range of the seeds' means. With 5 such seeds, the
    coverage is therefore 0.92 instead of 0.95.

    Source: Hesterberg, The American Statistician 69 (2015), section 4.4.
    """
    tail = float(norm.cdf(-math.sqrt(n / (n - 1)) * student.ppf((1 + level) / 2, n - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    return Interval(mean=mean, low=low, high=high, n=n)
