"""Time two implementations in alternating blocks of rounds, so that other programs slow both down alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Rounds = Callable[[int], None]
"""Runs this number of further rounds, and returns when they are finished."""

MAX_PAIRS = 15
"""Pairs of blocks, one block of each implementation."""
TIME_LIMIT_S, MIN_PAIRS = 20.0, 7
"""After TIME_LIMIT_S no further pair begins, once MIN_PAIRS are timed. A given number of rounds has no time limit."""
BLOCK_S = 0.25
"""A block holds as many rounds as fit into this time, and at least one."""
WARM_UP_S = 0.5
WARM_UP_ROUNDS = 3
"""The warm-up takes at least WARM_UP_ROUNDS rounds and WARM_UP_S seconds."""


@dataclass(frozen=True)
class Pairs:
    """The seconds per round of two implementations, which are timed in alternating blocks of rounds.

    A pair is one block of each implementation. Each array [P] has one value for each of the P pairs.
    """

    first: np.ndarray
    second: np.ndarray

    @property
    def ratio(self) -> float:
        """The median over all pairs: seconds of the first implementation, divided by those of the second."""
        return float(np.median(self.first / self.second))

    @property
    def spread(self) -> float:
        """The interquartile range over all pairs of this ratio: seconds of the first implementation / those of the
        second.
        """
        return interquartile_range(self.first / self.second)

    @property
    def seconds(self) -> tuple[float, float]:
        """The median seconds per round of the first and of the second implementation."""
        return float(np.median(self.first)), float(np.median(self.second))


def interquartile_range(values: np.ndarray) -> float:
    """Return the 75 % quantile minus the 25 % quantile."""
    low, high = np.quantile(values, (0.25, 0.75))
    return float(high - low)


def warm_up(run: Rounds) -> float:
    """Run the warm-up rounds, and return how many seconds the last of them took."""
    began = time.perf_counter()
    rounds, last = 0, math.inf
    while rounds < WARM_UP_ROUNDS or time.perf_counter() - began < WARM_UP_S:
        last = time_block(run, 1)
        rounds += 1
    return last


def time_block(run: Rounds, rounds: int) -> float:
    """Run one block of rounds, and return its seconds per round."""
    began = time.perf_counter()
    run(rounds)
    return (time.perf_counter() - began) / rounds


def block_sizes(seconds: float, rounds: int | None, max_blocks: int) -> tuple[int, int]:
    """Return the number of blocks, and the number of rounds in each block.

    `seconds` is the duration of one round. `rounds`, if given, is the number of rounds in all blocks together.
    """
    if rounds is None:
        return max_blocks, max(1, round(BLOCK_S / seconds))
    count = min(max_blocks, rounds)
    return count, rounds // count


def time_pairs(first: Rounds, second: Rounds, rounds: int | None = None) -> Pairs:
    """Warm up two implementations, then time blocks of rounds of both in turn.

    In every other pair of blocks, the second implementation comes first. `rounds` is the number of timed rounds of each
    implementation. If it is None, each implementation has at most MAX_PAIRS blocks of about BLOCK_S seconds.
    """
    sizes = [block_sizes(seconds, rounds, MAX_PAIRS) for seconds in (warm_up(first), warm_up(second))]
    seconds_per_round: tuple[list[float], list[float]] = [], []
    began = time.perf_counter()
    for pair in range(min(count for count, _ in sizes)):
        if rounds is None and pair >= MIN_PAIRS and time.perf_counter() - began > TIME_LIMIT_S:
            break
        for turn in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds_per_round[turn].append(time_block((first, second)[turn], sizes[turn][1]))
    return Pairs(np.array(seconds_per_round[0]), np.array(seconds_per_round[1]))


def time_blocks(run: Rounds, rounds: int | None = None) -> np.ndarray:
    """Warm up one implementation, then time P blocks of rounds. Return the seconds per round of each block [P]."""
    count, size = block_sizes(warm_up(run), rounds, MAX_PAIRS)
    return np.array([time_block(run, size) for _ in range(count)])
