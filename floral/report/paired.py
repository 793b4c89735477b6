"""Means and paired differences of methods over seeds, with the intervals that the number of seeds allows."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from floral.core.intervals import ENOUGH, Interval, expanded, resampled, t_interval

MAX_RESAMPLED_CLIENTS = 1000
"""Runs with more clients are resampled by seeds alone: their mean hardly varies with clients, and it saves memory."""


@dataclass(frozen=True, kw_only=True)
class Clients:
    """Values of one run's clients [K], and the weights [K] whose weighted mean is the run's value."""

    values: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """Values by method and seed, and the clients' values by (method, seed) where a value is a mean over clients.

    With fewer than ENOUGH seeds, intervals are Student's. Otherwise they come from one hierarchical bootstrap, which
    resamples seeds and, within a seed, clients. Clients are resampled only if every method in question has at most
    MAX_RESAMPLED_CLIENTS of them for these seeds. All methods share the same resampled seeds and clients.
    """

    values: Mapping[str, Mapping[int, float]]
    clients: Mapping[tuple[str, int], Clients] = field(default_factory=dict)
    _resampled_by_seeds: dict[tuple[int, ...], dict[str, np.ndarray]] = field(default_factory=dict)

    def mean(self, method: str) -> Interval:
        by_seed = self.values[method]
        if len(by_seed) < ENOUGH:
            return t_interval(list(by_seed.values()))
        seeds = tuple(sorted(by_seed))
        return expanded(self._resampled_means(seeds)[method], float(np.mean(list(by_seed.values()))), len(seeds))

    def differences(self, method: str, baseline: str) -> list[float]:
        """method − baseline for each seed that both have."""
        return [self.values[method][seed] - self.values[baseline][seed] for seed in self._shared(method, baseline)]

    def difference(self, method: str, baseline: str) -> Interval | None:
        """Mean of `differences`; None if no seed is shared."""
        by_seed = self.differences(method, baseline)
        if len(by_seed) < ENOUGH:
            return t_interval(by_seed) if by_seed else None
        means = self._resampled_means(self._shared(method, baseline))
        return expanded(means[method] - means[baseline], float(np.mean(by_seed)), len(by_seed))

    def is_separated(self, method: str, baseline: str) -> bool:
        """Whether the 95 % interval of the difference excludes 0, with at least ENOUGH shared seeds."""
        difference = self.difference(method, baseline)
        return difference is not None and difference.n >= ENOUGH and difference.excludes_zero

    def _shared(self, method: str, baseline: str) -> tuple[int, ...]:
        return tuple(sorted(self.values[method].keys() & self.values[baseline].keys()))

    def _resampled_means(self, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Resampled means over these seeds, for all methods that have every one of them."""
        if seeds not in self._resampled_by_seeds:
            methods = [method for method, by_seed in self.values.items() if by_seed.keys() >= set(seeds)]
            values, weights = self._arrays(methods, seeds)
            means = resampled(values, weights).T
            self._resampled_by_seeds[seeds] = dict(zip(methods, means, strict=True))
        return self._resampled_by_seeds[seeds]

    def _arrays(self, methods: list[str], seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
        """Values [seeds, clients, methods] and weights [seeds, clients].

        Without comparable clients: values [seeds, 1, methods] and no weights.
        """
        runs = [[self.clients.get((method, seed)) for method in methods] for seed in seeds]
        if _can_resample([run for row in runs for run in row]) and all(_same_weights(row) for row in runs):
            values = np.array([[run.values for run in row] for row in runs if row])  # type: ignore[union-attr]
            return values.transpose(0, 2, 1), np.array([row[0].weights for row in runs])  # type: ignore[union-attr]
        return np.array([[[self.values[method][seed] for method in methods]] for seed in seeds]), None


def _can_resample(runs: list[Clients | None]) -> bool:
    """Whether all runs have the same number of clients, at most the maximum, with finite values and weights > 0."""
    sizes: Set[int] = {0 if run is None else len(run.values) for run in runs}
    return (
        len(sizes) == 1
        and max(sizes) <= MAX_RESAMPLED_CLIENTS
        and all(run is not None and np.isfinite(run.values).all() and (run.weights > 0).all() for run in runs)
    )


def _same_weights(runs: list[Clients | None]) -> bool:
    return all((run.weights == runs[0].weights).all() for run in runs)  # type: ignore[union-attr]
