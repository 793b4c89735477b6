"""Intervals over seeds, and what noise alone would give: the only statistics that the report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student


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


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], level: float = 0.95
) -> Interval | None:
    """t_interval of values[seed] - reference[seed] over the seeds that both have; None when they share none.

    Pairing removes what a seed does to both (its partition, its order of clients). A method against itself: 0 ± 0.
    """
    shared = sorted(values.keys() & reference.keys())
    return t_interval([values[seed] - reference[seed] for seed in shared], level) if shared else None


def welch_difference(values: Sequence[float], mean: float, deviation: float, n: int, level: float = 0.95) -> Interval:
    """Welch's interval of the mean of `values` minus that of n others, of which mean and standard deviation are known.

    d ± t(ν, (1 + level)/2)·√(s²/m + deviation²/n), ν after Welch and Satterthwaite; its n is the smaller of m and n.
    One value has no spread and gives no interval; two samples without any spread give width 0.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    own = t_interval(values, level)
    difference = own.mean - mean
    count = min(own.n, n)
    if own.n == 1 or n == 1:
        return Interval(mean=difference, low=None, high=None, n=count)
    parts = [float(np.var(values, ddof=1)) / own.n, deviation**2 / n]
    error = math.sqrt(sum(parts))
    half = 0.0
    if error > 0:
        freedom = sum(parts) ** 2 / sum(part**2 / (m - 1) for part, m in zip(parts, (own.n, n), strict=True))
        half = float(student.ppf((1 + level) / 2, freedom)) * error
    return Interval(mean=difference, low=difference - half, high=difference + half, n=count)


def decile_count(clients: int) -> int:
    """How many clients the worst decile has: K/10 rounded, at least 1 (as the engine counts it)."""
    return max(1, round(clients / 10))


def worst_mean(values: ArrayLike, count: int) -> np.ndarray:
    """Mean of the `count` lowest values along the last axis. count = 1 is the minimum, count = K the mean."""
    lowest = np.sort(np.asarray(values, dtype=float), axis=-1)[..., :count]
    return lowest.mean(axis=-1)


@dataclass(frozen=True, kw_only=True)
class NullBand:
    """Where a worst-of-K statistic lies by chance alone: its mean and the ends of its central 95 %."""

    mean: float
    low: float
    high: float


def binomial_null(rows: Sequence[int], accuracy: float, count: int, draws: int = 2000, seed: int = 0) -> NullBand:
    """Worst-of-K under equal skill: the mean of the `count` lowest X_k/n_k, X_k ~ Bin(n_k, p) independent.

    `rows` are the test rows n_k (of clients, or of whole clusters) and `accuracy` is the common p = ΣX_k/Σn_k. The
    law is drawn `draws` times from Philox(seed), so equal arguments give equal bands. As n_k → ∞ the band closes on
    p; count = K has mean p. Entries without rows are left out.

    Raises:
        ValueError: p is outside 0–1, or fewer than `count` entries have rows.
    """
    n = np.asarray([row for row in rows if row > 0])
    if not 0 <= accuracy <= 1 or not 1 <= count <= n.size:
        raise ValueError(f"binomial_null: accuracy {accuracy} in 0–1 and 1 <= count {count} <= {n.size} are needed")
    generator = np.random.Generator(np.random.Philox(seed))
    lowest = worst_mean(generator.binomial(n, accuracy, size=(draws, n.size)) / n, count)
    low, high = np.quantile(lowest, [0.025, 0.975])
    return NullBand(mean=float(lowest.mean()), low=float(low), high=float(high))
