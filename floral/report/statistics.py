"""Tests of differences, ranks, and what noise alone would give: the statistics of the report."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chi2, nct, rankdata, studentized_range, wilcoxon
from scipy.stats import t as student

from floral.core.intervals import Interval, t_interval

SIGNIFICANT = 0.05
FLIPS = 14
"""Differences whose signs are flipped in all ways; of more, 2^FLIPS ways are drawn."""
TASKS, METHODS = 6, 15
"""Fewest tasks and most methods of a comparison by ranks: the ranks of fewer tasks cannot be significant, and the
critical difference of more methods (3.1 ranks of 15 on 48 tasks) leaves nothing apart."""


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


def least_p(n: int) -> float:
    """The least two-sided p that flipping the signs of n differences can give, 2/2^n: of 5 it is 0.0625."""
    return min(1.0, 2.0 ** (1 - n))


def attainable(n: int, comparisons: int = 1) -> bool:
    """Whether one of so many comparisons of n pairs can be significant after Holm's correction; else no p is shown."""
    return comparisons * least_p(n) <= SIGNIFICANT


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of paired differences under the null that both methods are exchangeable within a seed.

    Then every d_i has either sign with equal chance: p is the share of the 2^n signs s with |Σ s_i d_i| ≥ |Σ d_i|, the
    signs as they are among them. Exact up to FLIPS differences, else over 2^FLIPS signs from Philox(0).
    """
    x = np.asarray(differences, dtype=float)
    if x.size <= FLIPS:
        signs = 1.0 - 2.0 * (np.arange(2**x.size)[:, None] >> np.arange(x.size) & 1)
    else:
        signs = np.random.Generator(np.random.Philox(0)).choice([-1.0, 1.0], size=(2**FLIPS, x.size))
        signs[0] = 1.0
    sums = np.abs(signs @ x)
    return float(np.mean(sums >= sums[0] - 1e-9 * np.abs(x).sum()))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of m p-values: the i-th least (from 0) times m - i, at most 1 and in order.

    Rejecting what is at most α then has a familywise error of at most α, whatever the dependence (Holm 1979).
    """
    found: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        least = max(least, min(1.0, (len(p) - rank) * p[name]))
        found[name] = least
    return {name: found[name] for name in p}


def seeds_to_decide(differences: Sequence[float], power: float = 0.8, most: int = 1000) -> int | None:
    """Least number of seeds at which a two-sided paired t-test at 5 % finds a difference like this one with `power`.

    It takes their mean m and standard deviation s for the true ones: with δ = √N·m/s, the power is
    P(|T| > t(N - 1, 0.975)) for T noncentral t(N - 1, δ). None: more than `most`, or fewer than two differences.
    """
    x = np.asarray(differences, dtype=float)
    if x.size < 2 or not np.isfinite(x).all() or x.mean() == 0:
        return None
    if x.std(ddof=1) == 0:
        return 2
    effect = abs(x.mean()) / x.std(ddof=1)

    def enough(n: int) -> bool:
        edge, shift = student.ppf(0.975, n - 1), effect * math.sqrt(n)
        if shift > edge + 6:  # certain, and beyond what nct computes without trouble
            return True
        # The other side has at most the probability Φ(-δ); far out nct gives NaN for it.
        other = nct.cdf(-edge, n - 1, shift) if shift < 3 else 0.0
        return bool(nct.sf(edge, n - 1, shift) + other >= power)

    return bisect_left(range(most + 1), True, lo=2, key=enough) if enough(most) else None


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Methods' mean ranks over tasks (1 is best), Friedman's p, and the critical difference of two mean ranks."""

    mean: dict[str, float]
    p: float
    critical: float
    tasks: int


def ranks(results: Mapping[str, Sequence[float]], higher_is_better: Sequence[bool]) -> Ranks:
    """Friedman's test and Nemenyi's critical difference; `results`: method → its result on each of N tasks.

    Ranks r within a task, ties sharing their mean. χ² = (k - 1)·Σ_j (R_j - N(k + 1)/2)² / (Σ r² - N·k(k + 1)²/4) with
    the rank sums R_j of k methods has k - 1 degrees of freedom. Two mean ranks differ at 5 % if they are further apart
    than q(0.05, k, ∞)/√2 · √(k(k + 1)/(6N)). Source: Demšar, JMLR 7 (2006).

    Raises:
        ValueError: fewer than TASKS tasks, more than METHODS methods or fewer than three.
    """
    sign = np.where(higher_is_better, -1.0, 1.0)
    table = np.array([np.asarray(row, dtype=float) * sign for row in results.values()])
    k, count = table.shape if table.ndim == 2 else (len(results), 0)
    if count < TASKS or not 3 <= k <= METHODS:
        raise ValueError(f"ranks: {k} methods on {count} tasks; 3 to {METHODS} on at least {TASKS} are needed")
    ranked = rankdata(table, axis=0)
    spread = float((ranked**2).sum()) - count * k * (k + 1) ** 2 / 4
    between = float(((ranked.sum(1) - count * (k + 1) / 2) ** 2).sum())
    p = float(chi2.sf((k - 1) * between / spread, k - 1)) if spread > 0 else 1.0
    critical = float(studentized_range.ppf(1 - SIGNIFICANT, k, np.inf)) / math.sqrt(2)
    critical *= math.sqrt(k * (k + 1) / (6 * count))
    means = dict(zip(results, ranked.mean(1).tolist(), strict=True))
    return Ranks(mean=means, p=p, critical=critical, tasks=count)


def alike(found: Ranks) -> list[tuple[str, ...]]:
    """The largest runs of methods, in order of mean rank, whose ends are no critical difference apart."""
    order = sorted(found.mean, key=lambda name: found.mean[name])
    runs: list[tuple[str, ...]] = []
    for at, first in enumerate(order):
        run = [name for name in order[at:] if found.mean[name] - found.mean[first] <= found.critical]
        if len(run) > 1 and not any(set(run) <= set(other) for other in runs):
            runs.append(tuple(run))
    return runs


def signed_rank(differences: Sequence[float]) -> float:
    """Wilcoxon's two-sided signed-rank p of a difference on each task; zeros are split (Pratt), all zero gives 1."""
    x = np.asarray(differences, dtype=float)
    return float(wilcoxon(x, zero_method="zsplit")[1]) if x.any() else 1.0  # type: ignore[arg-type]
