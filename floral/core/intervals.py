"""Intervals of a mean over seeds: Student's, and the bootstrap of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

ENOUGH = 5
"""From so many seeds on means are bootstrapped and methods ranked; fewer have a t-interval and no ranking."""
DRAWS = 10_000
"""Of a bootstrap. With ENOUGH seeds an expanded interval ends at its tenth lowest and highest draw."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of n values and the ends of its interval, in the values' unit; no ends when n gives none."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """False too when there is no interval: one value decides nothing."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of a mean, m ± t(n - 1, (1 + level)/2) · s/√n, with s² = Σ(x - m)²/(n - 1).

    It assumes independent, roughly normal values. n = 1: no interval; equal values: width 0.

    Raises:
        ValueError: there is no value, or one is not finite (a diverged run has no mean).
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"t_interval needs finite values, at least one: {list(values)}")
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean=mean, low=None, high=None, n=1)
    half = float(student.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean=mean, low=mean - half, high=mean + half, n=int(x.size))


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The interval of a mean over seeds: t_interval below ENOUGH values, from there on the bootstrap of the seeds."""
    if len(values) < ENOUGH or not np.isfinite(values).all():
        return t_interval(values, level)
    x = np.asarray(values, dtype=float)
    return expanded(resampled(x[:, None, None])[:, 0], float(x.mean()), x.size, level)


def resampled(values: np.ndarray, weights: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Hierarchical paired bootstrap of means: `values` [seeds S, clients K, methods M] → [draws, M].

    A draw takes S seeds with replacement, and of each of these K clients with replacement, all methods the same; it is
    the mean over its seeds of Σ_k n_k v_k / Σ_k n_k, with `weights` n > 0 [S, K] (none: equal). A seed taken twice has
    its clients drawn twice. Differences of columns are paired draws of the difference. K = 1 resamples seeds alone.
    Drawn from Philox(seed): equal arguments give equal draws.

    With equal weights the draws have the variance (S - 1)/S · s²/S + v/(S·K), for s² the variance of the S means (by
    S - 1) and v the mean over seeds of the clients' variance (by K). s² has v/K in it already, so that the second term
    errs towards wide intervals (Davison and Hinkley 1997, section 3.8).
    """
    count, clients, methods = values.shape
    weights = np.ones((count, clients)) if weights is None else weights
    generator = np.random.Generator(np.random.Philox(seed))
    found = np.zeros((draws, methods))
    of_seed = np.concatenate([values * weights[:, :, None], weights[:, :, None]], axis=2)
    for taken in generator.integers(count, size=(count, draws)):  # in each draw one seed, taken[draw]
        at = generator.integers(clients, size=(draws, clients)) + clients * np.arange(draws)[:, None]
        times = np.bincount(at.ravel(), minlength=draws * clients).reshape(draws, clients).astype(float)
        for one in range(count):
            rows = taken == one
            sums = times[rows] @ of_seed[one]
            found[rows] += sums[:, :-1] / sums[:, -1:]
    return found / count


def expanded(draws: np.ndarray, mean: float, n: int, level: float = 0.95) -> Interval:
    """Hesterberg's expanded percentile interval of a mean of n seeds from its bootstrap `draws` [D].

    The draws' quantiles at Φ(-√(n/(n - 1))·t(n - 1, (1 + level)/2)) and 1 minus that: of normal values, whose plain
    percentiles are too narrow by √((n - 1)/n) and by z for t, it is the t-interval. No draw is beyond the extreme
    seeds, so that 5 seeds with like clients cover 0.92 instead of 0.95. Source: Hesterberg, The American Statistician
    69 (2015), section 4.4.
    """
    tail = float(norm.cdf(-math.sqrt(n / (n - 1)) * student.ppf((1 + level) / 2, n - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
    return Interval(mean=mean, low=low, high=high, n=n)
