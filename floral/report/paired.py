"""What contenders reached, seed by seed: their means and paired differences, with the interval that the seeds allow."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from floral.core.intervals import ENOUGH, Interval, expanded, resampled, t_interval

MOST_CLIENTS = 1000
"""Of a run, that are resampled: the mean of more hardly varies with them, and drawing them takes memory."""


@dataclass(frozen=True, kw_only=True)
class Clients:
    """What the clients of one run got: values [K], and the weights [K] with which their mean is the run's value."""

    values: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Paired:
    """contender → seed → value; and (contender, seed) → its clients, where the values are means over clients.

    Below ENOUGH seeds intervals are Student's. From there on they are those of one hierarchical bootstrap: the seeds,
    and within a seed the clients, where all contenders of the seeds in question have them, at most MOST_CLIENTS; all
    contenders alike.
    """

    values: Mapping[str, Mapping[int, float]]
    clients: Mapping[tuple[str, int], Clients] = field(default_factory=dict)
    _drawn: dict[tuple[int, ...], dict[str, np.ndarray]] = field(default_factory=dict)

    def mean(self, name: str) -> Interval:
        seeds = self.values[name]
        if len(seeds) < ENOUGH:
            return t_interval(list(seeds.values()))
        own = tuple(sorted(seeds))
        return expanded(self._draws(own)[name], float(np.mean(list(seeds.values()))), len(own))

    def differences(self, name: str, other: str) -> list[float]:
        """Seed by seed, over the seeds that both have."""
        return [self.values[name][seed] - self.values[other][seed] for seed in self._shared(name, other)]

    def difference(self, name: str, other: str) -> Interval | None:
        """Mean of `differences`; None without a shared seed."""
        found = self.differences(name, other)
        if len(found) < ENOUGH:
            return t_interval(found) if found else None
        drawn = self._draws(self._shared(name, other))
        return expanded(drawn[name] - drawn[other], float(np.mean(found)), len(found))

    def apart(self, name: str, other: str) -> bool:
        """Whether at least ENOUGH shared seeds tell the two apart: the 95 % interval of the difference excludes 0."""
        found = self.difference(name, other)
        return found is not None and found.n >= ENOUGH and found.excludes_zero

    def _shared(self, name: str, other: str) -> tuple[int, ...]:
        return tuple(sorted(self.values[name].keys() & self.values[other].keys()))

    def _draws(self, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Resampled means over these seeds, of all contenders that have them all."""
        if seeds not in self._drawn:
            names = [name for name, own in self.values.items() if own.keys() >= set(seeds)]
            values, weights = self._table(names, seeds)
            self._drawn[seeds] = dict(zip(names, resampled(values, weights).T, strict=True))
        return self._drawn[seeds]

    def _table(self, names: list[str], seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | None]:
        """[seeds, clients, contenders] and [seeds, clients]; [seeds, 1, contenders] where clients are not at hand."""
        found = [[self.clients.get((name, seed)) for name in names] for seed in seeds]
        if _alike([one for row in found for one in row]) and all(_same_weights(row) for row in found):
            values = np.array([[one.values for one in row] for row in found if row])  # type: ignore[union-attr]
            return values.transpose(0, 2, 1), np.array([row[0].weights for row in found])  # type: ignore[union-attr]
        return np.array([[[self.values[name][seed] for name in names]] for seed in seeds]), None


def _alike(found: list[Clients | None]) -> bool:
    """Whether all are there, of one number of clients that is not too large, each with a finite value and a weight."""
    sizes: Set[int] = {0 if one is None else len(one.values) for one in found}
    return (
        len(sizes) == 1
        and max(sizes) <= MOST_CLIENTS
        and all(one is not None and np.isfinite(one.values).all() and (one.weights > 0).all() for one in found)
    )


def _same_weights(found: list[Clients | None]) -> bool:
    return all((one.weights == found[0].weights).all() for one in found)  # type: ignore[union-attr]
