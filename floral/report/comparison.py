"""Compare methods on one task: each with a reference method, and all with the best one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from floral.core.intervals import Interval, exponential, t_interval
from floral.report import statistics
from floral.report.paired import Paired

Verdict = Literal["better", "worse", "open", "equal", "one seed"]
MIN_SEEDS_FOR_BEST = 3
"""With fewer seeds, no set of best methods is named."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A method compared with the reference method, paired by seed. All values come from the same paired t-test."""

    difference: Interval
    """Mean difference (ratio, for errors) with its 95 % interval."""
    verdict: Verdict
    """Whether the method is better or worse than the reference. It is open if the interval has the value of no
    difference, and equal if all differences are 0."""
    differences: list[float]
    """One for each seed. Natural logarithms of ratios, for errors."""
    p: float | None
    """p of the paired t-test, after Holm's correction for all methods of the task. None with one seed."""
    sign_flip: float
    """p of the exact sign-flip test, uncorrected. It describes only: with n seeds, it is at least 2/2^n."""

    @property
    def survives(self) -> bool:
        """Whether the verdict is better or worse also after Holm's correction."""
        return self.verdict in ("better", "worse") and self.p is not None and self.p < statistics.SIGNIFICANCE_LEVEL


def compare(paired: Paired, reference: str, higher_is_better: bool) -> dict[str, Comparison]:
    """Compare every method with the reference method. Methods that share no seed with it are left out."""
    if reference not in paired.values:
        return {}
    by_method = {
        method: by_seed
        for method in paired.values
        if method != reference and (by_seed := paired.differences(method, reference))
    }
    uncorrected = {method: statistics.paired_p(by_seed) for method, by_seed in by_method.items() if len(by_seed) > 1}
    corrected = statistics.holm(uncorrected)
    comparisons = {}
    for method, by_seed in by_method.items():
        difference = paired.difference(method, reference)
        assert difference is not None, "a seed is shared"
        comparisons[method] = Comparison(
            difference=difference,
            verdict=_verdict(difference, by_seed, higher_is_better),
            differences=by_seed,
            p=corrected.get(method),
            sign_flip=statistics.sign_flip(by_seed),
        )
    return comparisons


def _verdict(difference: Interval, by_seed: list[float], higher_is_better: bool) -> Verdict:
    if not any(by_seed):
        return "equal"
    if difference.low is None:
        return "one seed"
    if not difference.is_decided:
        return "open"
    return "better" if (difference.mean > difference.neutral) == higher_is_better else "worse"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A method that cannot be told from the best one."""

    may_be_worse: float
    """How much worse than the best other method it may be: the end of a 95 % interval, at least 0 (ratio: 1)."""
    detectable: float
    """The difference (ratio) to the best other method that the same test would detect with a power of 80 %."""


def best_methods(paired: Paired, methods: Iterable[str], higher_is_better: bool) -> dict[str, Member]:
    """Return the methods that cannot be told from the best one. The method with the best mean is first.

    Every other method is compared with the method that has the best mean, by a one-sided paired t-test with Holm's
    correction. It is left out if it is worse at 5 %. In a simulation in tests/statistics, the best method is in the set
    in at least 93 of 100 cases. The set is empty if there are fewer than two methods, or if some share fewer than
    MIN_SEEDS_FOR_BEST seeds.

    Source: multiple comparisons with the best (Hsu 1996), here with a standard deviation for each pair and Holm's
    correction.
    """
    sign = 1.0 if higher_is_better else -1.0
    order = sorted(methods, key=lambda method: sign * paired.mean(method).mean, reverse=True)
    if len(order) < 2:
        return {}
    best, rivals = order[0], order[1:]
    behind = {method: [sign * value for value in paired.differences(method, best)] for method in rivals}
    if min(map(len, behind.values())) < MIN_SEEDS_FOR_BEST:
        return {}
    p = statistics.holm({method: statistics.worse_p(by_seed) for method, by_seed in behind.items()})
    members = {best: _member(paired, best, rivals[0], sign, len(rivals))}
    tied = [method for method in rivals if p[method] >= statistics.SIGNIFICANCE_LEVEL]
    return members | {method: _member(paired, method, best, sign, len(rivals)) for method in tied}


def _member(paired: Paired, method: str, rival: str, sign: float, comparisons: int) -> Member:
    """Return how much worse than its strongest rival a method may be, and which difference the test detects."""
    behind = [sign * value for value in paired.differences(rival, method)]
    end = t_interval(behind).high
    assert end is not None, "there are several seeds"
    bound, detectable = max(end, 0.0), statistics.detectable(behind, comparisons)
    if paired.logarithmic:
        bound, detectable = exponential(bound), exponential(detectable)
    return Member(may_be_worse=bound, detectable=detectable)
