"""Means and paired differences of methods over seeds, with Student's 95 % intervals. The seed is the only unit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from floral.core.intervals import Interval, exponential, mean_interval, t_interval


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """One value for each method and seed, from which means and paired differences with 95 % intervals are computed.

    Clients are fixed by the task, and share the global test set and often the model. So the values of the clients of a
    run are no independent sample, and only seeds are.

    If `logarithmic` is True, the values are errors, which can span powers of ten. Then means are geometric means,
    differences are ratios, and both are computed from the logarithms of the values.
    """

    values: Mapping[str, Mapping[int, float]]
    logarithmic: bool = False

    def mean(self, method: str) -> Interval:
        """Return the mean of a method over seeds, with its interval."""
        return mean_interval(list(self.values[method].values()), self.logarithmic)

    def deviation(self, method: str) -> float | None:
        """Return the standard deviation of a method over seeds, or None with a single seed.

        If the values are logarithmic, return the geometric standard deviation: the factor exp(s), where s is the
        standard deviation of the logarithms. It is infinite if a value is 0.
        """
        values = list(self.values[method].values())
        if len(values) < 2:
            return None
        if not self.logarithmic:
            return statistics.stdev(values)
        return exponential(statistics.stdev(map(math.log, values))) if min(values) > 0 else math.inf

    def differences(self, method: str, baseline: str) -> list[float]:
        """Return the value of `method` minus that of `baseline`, for each seed that both methods have.

        If the values are logarithmic, return the natural logarithms of their ratios. Seeds with an error of 0 have no
        ratio and are left out.
        """
        first, second = self.values[method], self.values[baseline]
        pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
        if self.logarithmic:
            return [math.log(value / base) for value, base in pairs if value > 0 and base > 0]
        return [value - base for value, base in pairs]

    def difference(self, method: str, baseline: str) -> Interval | None:
        """Return the mean difference with its interval, paired by seed. Return None if the methods share no seed.

        If the values are logarithmic, return the geometric mean of the ratios with its interval.
        """
        if not (by_seed := self.differences(method, baseline)):
            return None
        interval = t_interval(by_seed)
        return interval.exponential() if self.logarithmic else interval
