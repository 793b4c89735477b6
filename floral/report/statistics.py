"""Statistics of the report: tests of differences, ranks over tasks, and how low the worst of K clients is by chance."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import binom, chi2, nct, norm, rankdata, studentized_range, wilcoxon
from scipy.stats import t as student

from floral.core.intervals import Interval, t_interval

SIGNIFICANCE_LEVEL = 0.05
CHANCE_DRAWS = 20_000
"""Simulations of the accuracy of the worst clients by chance. The ends of its 95 % range then err by less than half a
point."""
MAX_EXACT_FLIPS = 14
"""Up to this number of differences, all 2^n sign flips are counted; for more, 2^MAX_EXACT_FLIPS flips are sampled."""
MIN_RANKED_TASKS = 6
"""With fewer tasks, no difference of ranks can be significant."""
MAX_RANKED_METHODS = 15
"""With more methods, the critical difference is too large to separate any (15 methods on 48 tasks: 3.1 ranks)."""


def welch_difference(values: Sequence[float], mean: float, deviation: float, n: int, level: float = 0.95) -> Interval:
    """Return Welch's interval for the difference d between the mean of `values` and a published mean.

    The published mean is over n values with the standard deviation `deviation`. The interval is
    d ± t·√(s²/m + deviation²/n). Here m is the number of `values` and s their standard deviation. t is the
    (1 + level)/2 quantile of Student's distribution, with degrees of freedom after Welch and Satterthwaite. If m = 1 or
    n = 1, the ends of the returned interval are None. If s and `deviation` are 0, both ends are d. The attribute `n` of
    the returned interval is the smaller of m and n.

    Raises:
        ValueError: `values` is empty, or a value is not finite.
    """
    sample = t_interval(values, level)
    difference = sample.mean - mean
    count = min(sample.n, n)
    if sample.n == 1 or n == 1:
        return Interval(mean=difference, low=None, high=None, n=count)
    parts = [float(np.var(values, ddof=1)) / sample.n, deviation**2 / n]
    error = math.sqrt(sum(parts))
    half = 0.0
    if error > 0:
        freedom = sum(parts) ** 2 / sum(part**2 / (m - 1) for part, m in zip(parts, (sample.n, n), strict=True))
        half = float(student.ppf((1 + level) / 2, freedom)) * error
    return Interval(mean=difference, low=difference - half, high=difference + half, n=count)


def worst_mean(values: ArrayLike, count: int) -> np.ndarray:
    """Return the mean of the `count` lowest values along the last axis.

    With count = 1, this is the minimum. If `count` is the length of the axis, it is the mean of all values.
    """
    lowest = np.partition(np.asarray(values, dtype=float), count - 1, axis=-1)[..., :count]
    return lowest.mean(axis=-1)


@dataclass(frozen=True, kw_only=True)
class NullBand:
    """The accuracy of the worst clients by chance, if all clients are equally accurate: mean and 95 % range."""

    mean: float
    low: float
    high: float


def binomial_null(
    samples: Sequence[int], accuracy: float, count: int, draws: int = CHANCE_DRAWS, seed: int = 0
) -> NullBand:
    """Simulate how low the `count` worst accuracies are by chance if all clients have the same expected accuracy p.

    In each simulation, client k gets the accuracy X_k/n_k. X_k is the number of correct predictions among its n_k test
    samples, drawn independently from Binomial(n_k, p). The mean of the `count` lowest accuracies is recorded. The
    result has the mean and the central 95 % range of this record.

    `samples` are the numbers n_k; clients with n_k = 0 are left out. `accuracy` is p. `draws` is the number of
    simulations. Clusters can take the place of clients. Calls with equal numbers n_k share their random numbers.

    Raises:
        ValueError: p is outside 0–1, or fewer than `count` clients have samples.
    """
    n = tuple(number for number in samples if number > 0)
    if not 0 <= accuracy <= 1 or not 1 <= count <= len(n):
        raise ValueError(
            f"binomial_null: got accuracy {accuracy} and count {count}; give an accuracy from 0 to 1, and a count from "
            f"1 to {len(n)} (the number of entries with samples)"
        )
    return _binomial_null(n, accuracy, count, draws, seed)


@lru_cache(maxsize=4096)
def _binomial_null(n: tuple[int, ...], accuracy: float, count: int, draws: int, seed: int) -> NullBand:
    """Draw X_k as the quantile of Binomial(n_k, p) at a uniform number (see `binomial_null`)."""
    parts = []
    for number, uniform in _lowest_uniform(n, count, draws, seed).items():
        first, last = binom.ppf([1e-12, 1 - 1e-12], number, accuracy)
        values = np.arange(max(0, int(first)), int(last) + 1)
        parts.append((values[0] + np.searchsorted(binom.cdf(values[:-1], number, accuracy), uniform)) / number)
    lowest = worst_mean(np.concatenate(parts, axis=1), count)
    low, high = np.quantile(lowest, [0.025, 0.975])
    return NullBand(mean=float(lowest.mean()), low=float(low), high=float(high))


@lru_cache(maxsize=4)
def _lowest_uniform(n: tuple[int, ...], count: int, draws: int, seed: int) -> dict[int, np.ndarray]:
    """Return uniform numbers [draws, clients] for each number of samples n_k, only those of its `count` lowest clients.

    Clients with equally many samples have the order of their uniform numbers, so that no other of them is among the
    `count` worst.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    result = {}
    for number in sorted(set(n)):
        uniform = generator.random((draws, n.count(number)))
        last = min(count, uniform.shape[1])
        result[number] = np.partition(uniform, last - 1, axis=1)[:, :last]
    return result


def least_p(n: int) -> float:
    """Return the smallest possible two-sided p of a sign-flip test with n differences: 2/2^n, at most 1.

    For n = 5 it is 0.0625.
    """
    return min(1.0, 2.0 ** (1 - n))


def attainable(n: int, comparisons: int = 1) -> bool:
    """Return whether a sign-flip or signed-rank test on n pairs can reach p ≤ 0.05 after Holm's correction.

    comparisons: the number of tests that are corrected together. More tests need more pairs.
    """
    return comparisons * least_p(n) <= SIGNIFICANCE_LEVEL


def sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p of a sign-flip test on the paired differences d_i of two methods.

    The null hypothesis is that the methods are exchangeable within a seed, so that each d_i is positive or negative
    with equal probability. p is the share of the 2^n vectors of signs s with |Σ s_i d_i| ≥ |Σ d_i|, including the
    observed signs. It is exact for at most MAX_EXACT_FLIPS differences, otherwise estimated from 2^MAX_EXACT_FLIPS
    vectors of signs drawn from Philox(0).
    """
    x = np.asarray(differences, dtype=float)
    if x.size <= MAX_EXACT_FLIPS:
        signs = 1.0 - 2.0 * (np.arange(2**x.size)[:, None] >> np.arange(x.size) & 1)
    else:
        signs = np.random.Generator(np.random.Philox(0)).choice([-1.0, 1.0], size=(2**MAX_EXACT_FLIPS, x.size))
        signs[0] = 1.0
    sums = np.abs(signs @ x)
    return float(np.mean(sums >= sums[0] - 1e-9 * np.abs(x).sum()))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for multiple comparisons by Holm's step-down method.

    Let there be m p-values. The i-th smallest (counted from 0) is multiplied by m - i and capped at 1. If this product
    is smaller than the corrected value of the p-value before, that value is used instead. If every null hypothesis with
    a corrected p ≤ α is rejected, the probability of any false rejection is at most α, however the tests depend on each
    other. Source: Holm 1979.
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p}


def paired_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of Student's t-test that the mean of n ≥ 2 differences is 0.

    It is below 0.05 exactly if the 95 % t-interval excludes 0. If all differences are equal, it is 0, or 1 if they are
    0.

    Raises:
        ValueError: there are fewer than two differences.
    """
    return float(min(1.0, 2 * student.sf(abs(_t(differences)), len(differences) - 1)))


def worse_p(differences: Sequence[float]) -> float:
    """Return the one-sided p of Student's t-test that the mean of n ≥ 2 differences is not below 0.

    Raises:
        ValueError: there are fewer than two differences.
    """
    return float(student.cdf(_t(differences), len(differences) - 1))


def _t(differences: Sequence[float]) -> float:
    """Return Student's t of n differences: their mean divided by its standard error."""
    x = np.asarray(differences, dtype=float)
    if x.size < 2:
        raise ValueError("a paired t-test needs two seeds at least")
    mean, error = float(x.mean()), float(x.std(ddof=1)) / math.sqrt(x.size)
    if error == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / error


def detectable(differences: Sequence[float], comparisons: int = 1, power: float = 0.8) -> float:
    """Return the smallest mean difference that a one-sided paired t-test with n seeds detects with `power`.

    The test is at 5 % divided by the number of `comparisons`, as in the first step of Holm's method. The true standard
    deviation is assumed to be that of `differences`. The value is in the unit of the differences.

    Raises:
        ValueError: there are fewer than two differences.
    """
    x = np.asarray(differences, dtype=float)
    if x.size < 2:
        raise ValueError("the detectable difference needs two seeds at least")
    return _detected_noncentrality(x.size, comparisons, power) * float(x.std(ddof=1)) / math.sqrt(x.size)


@cache
def _detected_noncentrality(n: int, comparisons: int, power: float) -> float:
    """Return the noncentrality at which a one-sided t-test at 5 % / comparisons with n values has the power `power`.

    It is the δ with E[Φ(δ − t √(χ²/(n − 1)))] = power. The mean is over χ² with n − 1 degrees of freedom, by its
    quantiles, because scipy's nct is unreliable for large δ.
    """
    edge = float(student.ppf(1 - SIGNIFICANCE_LEVEL / comparisons, n - 1))
    scale = np.sqrt(chi2.ppf((np.arange(4000) + 0.5) / 4000, n - 1) / (n - 1))
    shift: Any = brentq(lambda delta: norm.cdf(delta - edge * scale).mean() - power, 0.0, 4 * edge + 10)
    return float(shift)


def seeds_to_decide(differences: Sequence[float], power: float = 0.8, most: int = 1000) -> int | None:
    """Return the smallest number N of seeds with which a paired t-test detects the mean difference with `power`.

    The test is two-sided at 5 %. It is assumed that the true mean m and standard deviation s are those of
    `differences`. The power is P(|T| > t). Here T has the noncentral t-distribution with N - 1 degrees of freedom and
    noncentrality √N·m/s, and t is the 0.975 quantile of Student's distribution with N - 1 degrees of freedom. The
    result is None if N exceeds `most`, if there are fewer than two differences, if one is not finite, or if m = 0.
    """
    x = np.asarray(differences, dtype=float)
    if x.size < 2 or not np.isfinite(x).all() or x.mean() == 0:
        return None
    if x.std(ddof=1) == 0:
        return 2
    effect = abs(x.mean()) / x.std(ddof=1)

    def enough(n: int) -> bool:
        edge, shift = student.ppf(0.975, n - 1), effect * math.sqrt(n)
        if shift > edge + 6:  # power ≈ 1; scipy's nct is unreliable this far out
            return True
        # The probability of the opposite tail is at most Φ(-δ); scipy's nct returns NaN there for large δ.
        opposite = nct.cdf(-edge, n - 1, shift) if shift < 3 else 0.0
        return bool(nct.sf(edge, n - 1, shift) + opposite >= power)

    return bisect_left(range(most + 1), True, lo=2, key=enough) if enough(most) else None


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Mean ranks of methods over tasks (1 is best), p of Friedman's test, and Nemenyi's critical difference.

    Two methods differ significantly if their mean ranks differ by more than the critical difference.
    """

    mean: dict[str, float]
    p: float
    critical: float
    tasks: int


def rank_table(results: Mapping[str, Sequence[float]], higher_is_better: Sequence[bool]) -> dict[str, list[float]]:
    """Return the ranks of methods within each task, as method → one rank per task. 1 is best.

    results: method → its results on the tasks. higher_is_better: one flag per task. Tied methods share the mean of
    their ranks.
    """
    sign = np.where(higher_is_better, -1.0, 1.0)
    table = np.array([np.asarray(row, dtype=float) * sign for row in results.values()])
    return dict(zip(results, rankdata(table, axis=0).tolist(), strict=True))


def means_without_one(table: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Return the means of each method when each task is left out: one mapping method → mean for each task left out.

    table: method → one value (such as a rank) per task. With a single task, the list is empty.
    """
    count = min(map(len, table.values()), default=0)
    if count < 2:
        return []
    return [
        {method: (math.fsum(values) - values[task]) / (count - 1) for method, values in table.items()}
        for task in range(count)
    ]


def ranks(results: Mapping[str, Sequence[float]], higher_is_better: Sequence[bool]) -> Ranks:
    """Return mean ranks of methods over tasks, p of Friedman's test, and Nemenyi's critical difference.

    results: method → its results on the N tasks. higher_is_better: one flag per task. The k methods are ranked within
    each task; tied methods share the mean of their ranks.
    Friedman's χ² = (k - 1)·Σ_j (R_j - N(k + 1)/2)² / (Σ r² - N·k(k + 1)²/4) has k - 1 degrees of freedom. Here R_j is
    the sum of the ranks of method j, and Σ r² is the sum of the squares of all ranks.
    Two mean ranks differ at 5 % if their distance exceeds q/√2 · √(k(k + 1)/(6N)). Here q is the upper 5 % point of the
    studentised range of k means with infinite degrees of freedom.
    Source: Demšar, JMLR 7 (2006).

    Raises:
        ValueError: fewer than MIN_RANKED_TASKS tasks, fewer than 3 or more than MAX_RANKED_METHODS methods.
    """
    k, count = len(results), min(map(len, results.values()), default=0)
    if count < MIN_RANKED_TASKS or not 3 <= k <= MAX_RANKED_METHODS:
        raise ValueError(
            f"ranks: got results of {k} methods on {count} tasks; give 3 to {MAX_RANKED_METHODS} methods on at least "
            f"{MIN_RANKED_TASKS} tasks"
        )
    ranked = np.array(list(rank_table(results, higher_is_better).values()))
    spread = float((ranked**2).sum()) - count * k * (k + 1) ** 2 / 4
    between = float(((ranked.sum(1) - count * (k + 1) / 2) ** 2).sum())
    p = float(chi2.sf((k - 1) * between / spread, k - 1)) if spread > 0 else 1.0
    critical = float(studentized_range.ppf(1 - SIGNIFICANCE_LEVEL, k, np.inf)) / math.sqrt(2)
    critical *= math.sqrt(k * (k + 1) / (6 * count))
    means = dict(zip(results, ranked.mean(1).tolist(), strict=True))
    return Ranks(mean=means, p=p, critical=critical, tasks=count)


def indistinguishable(ranks: Ranks) -> list[tuple[str, ...]]:
    """Return the largest groups of methods whose mean ranks differ by at most the critical difference.

    A group that is part of a larger group is left out.
    """
    order = sorted(ranks.mean, key=lambda name: ranks.mean[name])
    groups: list[tuple[str, ...]] = []
    for position, first in enumerate(order):
        group = [name for name in order[position:] if ranks.mean[name] - ranks.mean[first] <= ranks.critical]
        if len(group) > 1 and not any(set(group) <= set(larger) for larger in groups):
            groups.append(tuple(group))
    return groups


def signed_rank(differences: Sequence[float]) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test on differences, one per task.

    Differences of 0 are ranked too, and their ranks are split equally between both signs. If all are 0, p is 1.
    """
    x = np.asarray(differences, dtype=float)
    return float(wilcoxon(x, zero_method="zsplit")[1]) if x.any() else 1.0  # type: ignore[arg-type]
