"""Two contenders timed in turns within one process, so that whatever else the machine does slows down both alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Rounds = Callable[[int], None]
"""Go through so many further rounds, and return when they are done."""

PAIRS = 15
"""Pairs of blocks, one of each contender."""
ENOUGH_SECONDS, ENOUGH_PAIRS = 20.0, 7
"""After so long no further pair is begun, if there are so many; where rounds are counted there is no such end."""
BLOCK_SECONDS = 0.25
"""A block has as many rounds as fit into it, and at least one."""
WARM_SECONDS = 0.5
WARM_ROUNDS = 3
"""Rounds before any is timed: at least so many, for at least so long."""


@dataclass(frozen=True)
class Pairs:
    """Seconds per round of two contenders, by pair of blocks [P]."""

    first: np.ndarray
    second: np.ndarray

    @property
    def ratio(self) -> float:
        """Median over pairs of the first's seconds to the second's."""
        return float(np.median(self.first / self.second))

    @property
    def spread(self) -> float:
        """Interquartile range of that ratio over pairs."""
        return interquartile(self.first / self.second)

    @property
    def seconds(self) -> tuple[float, float]:
        """Median seconds per round."""
        return float(np.median(self.first)), float(np.median(self.second))


def interquartile(values: np.ndarray) -> float:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low)


def warm(contender: Rounds) -> float:
    """Run until warm; the seconds of the last round."""
    began = time.perf_counter()
    rounds, last = 0, math.inf
    while rounds < WARM_ROUNDS or time.perf_counter() - began < WARM_SECONDS:
        last = timed(contender, 1)
        rounds += 1
    return last


def timed(contender: Rounds, rounds: int) -> float:
    """Seconds per round of one block."""
    began = time.perf_counter()
    contender(rounds)
    return (time.perf_counter() - began) / rounds


def blocks(seconds: float, rounds: int | None, longest: int) -> tuple[int, int]:
    """Number of blocks and rounds in one, for `seconds` a round; `rounds` in all where it is given."""
    if rounds is None:
        return longest, max(1, round(BLOCK_SECONDS / seconds))
    count = min(longest, rounds)
    return count, rounds // count


def alternate(first: Rounds, second: Rounds, rounds: int | None = None) -> Pairs:
    """Warm both up, then time blocks of rounds in turns; every other pair begins with the second.

    `rounds` is how many are timed of each; by default PAIRS blocks of about BLOCK_SECONDS.
    """
    seconds = warm(first), warm(second)
    sizes = [blocks(each, rounds, PAIRS) for each in seconds]
    found: tuple[list[float], list[float]] = [], []
    began = time.perf_counter()
    for pair in range(min(count for count, _ in sizes)):
        if rounds is None and pair >= ENOUGH_PAIRS and time.perf_counter() - began > ENOUGH_SECONDS:
            break
        for turn in (0, 1) if pair % 2 == 0 else (1, 0):
            found[turn].append(timed((first, second)[turn], sizes[turn][1]))
    return Pairs(np.array(found[0]), np.array(found[1]))


def alone(contender: Rounds, rounds: int | None = None) -> np.ndarray:
    """Seconds per round by block [P] of a single contender, after it is warm."""
    count, size = blocks(warm(contender), rounds, PAIRS)
    return np.array([timed(contender, size) for _ in range(count)])
