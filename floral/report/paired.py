"""Means and paired differences of methods over seeds, with 95 % intervals where there are enough seeds."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from floral.core.intervals import MIN_SEEDS_FOR_BOOTSTRAP, Interval, expanded, resampled, t_interval

MAX_RESAMPLED_CLIENTS = 1000
"""Runs with more clients are resampled by seeds alone: their mean hardly varies with clients, and it saves memory."""


@dataclass(frozen=True, kw_only=True)
class Clients:
    """The values [K] (accuracies or losses) and the weights [K] of the K clients of one run.

    The run's value is the weighted mean of the clients' values.
    """

    values: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """One value for each method and seed, from which means and paired differences with 95 % intervals are computed.

    With fewer than MIN_SEEDS_FOR_BOOTSTRAP seeds, intervals are Student's t-intervals. With this number or more, they
    come from a hierarchical bootstrap, which resamples seeds and then clients within each seed. All methods share the
    same resampled seeds and clients.

    `clients` has the results of single clients as (method, seed) → values. It can be empty; then only seeds are
    resampled.
    """

    values: Mapping[str, Mapping[int, float]]
    clients: Mapping[tuple[str, int], Clients] = field(default_factory=dict)
    _resampled_by_seeds: dict[tuple[int, ...], dict[str, np.ndarray]] = field(default_factory=dict)

    def mean(self, method: str) -> Interval:
        by_seed = self.values[method]
        if len(by_seed) < MIN_SEEDS_FOR_BOOTSTRAP:
            return t_interval(list(by_seed.values()))
        seeds = tuple(sorted(by_seed))
        return expanded(self._resampled_means(seeds)[method], float(np.mean(list(by_seed.values()))), len(seeds))

    def differences(self, method: str, baseline: str) -> list[float]:
        """Return the value of `method` minus that of `baseline`, for each seed that both methods have."""
        return [self.values[method][seed] - self.values[baseline][seed] for seed in self._shared(method, baseline)]

    def difference(self, method: str, baseline: str) -> Interval | None:
        """Return the mean difference with its interval, paired by seed. Return None if the methods share no seed."""
        by_seed = self.differences(method, baseline)
        if len(by_seed) < MIN_SEEDS_FOR_BOOTSTRAP:
            return t_interval(by_seed) if by_seed else None
        means = self._resampled_means(self._shared(method, baseline))
        return expanded(means[method] - means[baseline], float(np.mean(by_seed)), len(by_seed))

    def is_separated(self, method: str, baseline: str) -> bool:
        """Return whether the 95 % interval of the paired difference excludes 0.

        With fewer than MIN_SEEDS_FOR_BOOTSTRAP shared seeds, the answer is always False.
        """
        difference = self.difference(method, baseline)
        return difference is not None and difference.n >= MIN_SEEDS_FOR_BOOTSTRAP and difference.excludes_zero

    def _shared(self, method: str, baseline: str) -> tuple[int, ...]:
        return tuple(sorted(self.values[method].keys() & self.values[baseline].keys()))

    def _resampled_means(self, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Return the mean of each method in every bootstrap resample of these seeds.

        Methods that lack a value for one of these seeds are left out.
        """
        if seeds not in self._resampled_by_seeds:
            methods = [method for method, by_seed in self.values.items() if by_seed.keys() >= set(seeds)]
            values, weights = self._arrays(methods, seeds)
            means = resampled(values, weights).T
            self._resampled_by_seeds[seeds] = dict(zip(methods, means, strict=True))
        return self._resampled_by_seeds[seeds]

    def _arrays(self, methods: list[str], seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the input of the bootstrap: values [seeds, clients, methods] and weights [seeds, clients].

        If clients cannot be resampled, the mean over clients takes their place: values [seeds, 1, methods], weights
        None.
        """
        runs = [[self.clients.get((method, seed)) for method in methods] for seed in seeds]
        if _can_resample([run for row in runs for run in row]) and all(_same_weights(row) for row in runs):
            values = np.array([[run.values for run in row] for row in runs if row])  # type: ignore[union-attr]
            return values.transpose(0, 2, 1), np.array([row[0].weights for row in runs])  # type: ignore[union-attr]
        return np.array([[[self.values[method][seed] for method in methods]] for seed in seeds]), None


def _can_resample(runs: list[Clients | None]) -> bool:
    """Return whether the bootstrap can resample the clients of these runs.

    All runs must have the same number of clients, at most MAX_RESAMPLED_CLIENTS. Values must be finite and weights > 0.
    """
    sizes: Set[int] = {0 if run is None else len(run.values) for run in runs}
    return (
        len(sizes) == 1
        and max(sizes) <= MAX_RESAMPLED_CLIENTS
        and all(run is not None and np.isfinite(run.values).all() and (run.weights > 0).all() for run in runs)
    )


def _same_weights(runs: list[Clients | None]) -> bool:
    return all((run.weights == runs[0].weights).all() for run in runs)  # type: ignore[union-attr]
