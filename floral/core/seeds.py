"""Named random numbers from one root seed: every random number is a function of the seed, a purpose and counters.

The purpose is a name, and the counters are integers such as round and client. There is no generator state, so a number
does not depend on which numbers were drawn before. Round 7 of client 12 gets the same numbers after an interrupted run
is resumed, and on another backend.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import numpy.typing as npt

MAX_PERMUTED, SPARSE_RATIO = 4096, 8
"""`sample` permutes all `size` numbers if size ≤ MAX_PERMUTED or count > size/SPARSE_RATIO."""

Counter = int | npt.NDArray[np.integer]
"""A counter: one integer, or an array of them that broadcasts against the other counters."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_27, _30, _31, _11 = (np.uint64(value) for value in (27, 30, 31, 11))


def bits(seed: int, purpose: str, *counters: Counter) -> npt.NDArray[np.uint64]:
    """Return 64 random bits for each combination of counters, in the shape to which the counters broadcast.

    The bits are a state z, which starts as the hash of `purpose`. The seed and then each counter change it by z ← mix(z
    + γ·(counter + 1)), where mix and the constant γ are those of SplitMix64. For consecutive values of the last
    counter, this is SplitMix64's own sequence. So two different values of the last counter never give the same bits.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    state = _absorb(_key(purpose), seed)
    for counter in counters:
        state = _absorb(state, counter)
    return state


def uniform(seed: int, purpose: str, *counters: Counter) -> npt.NDArray[np.float64]:
    """Return a uniform random number in [0, 1) for each combination of counters, such as round and client.

    The number has 53 random bits.
    """
    return _unit(bits(seed, purpose, *counters))


def normal(seed: int, purpose: str, *counters: Counter) -> npt.NDArray[np.float64]:
    """Return a standard normal number for each combination of counters, such as round and client.

    The number is √(−2 log(1 − u))·cos(2πv) for two uniform numbers u and v (Box and Muller 1958).
    """
    state = bits(seed, purpose, *counters)
    radius = np.sqrt(-2.0 * np.log1p(-_unit(_absorb(state, 0))))
    return radius * np.cos(2.0 * np.pi * _unit(_absorb(state, 1)))


def dirichlet(seed: int, purpose: str, *counters: Counter, alpha: float, size: int) -> npt.NDArray[np.float64]:
    """Draw a point from the symmetric Dirichlet(alpha) distribution for each combination of counters.

    The counters are integers such as round and client. The point has `size` coordinates, so that the result has the
    shape [*counters, size].

    The point is a vector of gamma variables X(alpha), divided by their sum. X(alpha) is X(alpha + 1)·u^(1/alpha) with a
    uniform u, where X(alpha + 1) comes from the inverse of its distribution function. The variables are computed as
    logarithms, to avoid 0/0 for alpha near 0, where one part gets everything.
    """
    from scipy.special import gammaincinv, softmax  # takes 0.3 s to import, and only skewed partitions need it

    state = bits(seed, purpose, *(np.asarray(counter)[..., None] for counter in counters), np.arange(size))
    inside = 2.0**-54  # moves [0, 1) into (0, 1), so that logarithm and inverse are finite
    first, second = (_unit(_absorb(state, which)) + inside for which in (0, 1))
    return softmax(np.log(gammaincinv(alpha + 1, first)) + np.log(second) / alpha, axis=-1)


def permutation(seed: int, purpose: str, *counters: Counter, size: int) -> npt.NDArray[np.int64]:
    """Return a random order of the numbers 0 … size−1 for each combination of counters, shape [*counters, size].

    The counters are integers such as round and client.
    """
    keys = bits(seed, purpose, *(np.asarray(counter)[..., None] for counter in counters), np.arange(size))
    # Keys that differ only in the last counter are never equal, so every sorting algorithm gives the same order.
    return np.argsort(keys, axis=-1)


def ranks(
    seed: int, purpose: str, counter: npt.NDArray[np.integer], group: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Put N items into a random order within their groups. Return each item's rank in its group, and the group's size.

    Both results are [N], and ranks start at 0. `group` [N] is the group of each item. `counter` [N] is a number that
    identifies the item, for example its row in the data set.
    """
    order = np.lexsort((bits(seed, purpose, counter), group))
    size = np.bincount(group)
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - (np.cumsum(size) - size)[group[order]]
    return place, size[group]


def sample(seed: int, purpose: str, *counters: Counter, size: int, count: int) -> npt.NDArray[np.int64]:
    """Draw `count` different numbers from 0 … size−1 for each combination of counters, and return them sorted.

    The counters are integers such as round and client. The result has the shape [*counters, count]. Each set of `count`
    numbers is equally probable.

    If `size` is much larger than `count`, the function takes the first different numbers of a random sequence, in time
    O(count). Otherwise, it takes the first numbers of a random permutation, in time O(size).

    Raises:
        ValueError: `count` is negative or more than `size`.
    """
    if not 0 <= count <= size:
        raise ValueError(
            f"cannot draw {count} different numbers out of {size}; set `count` to a number from 0 to {size}"
        )
    if size <= MAX_PERMUTED or SPARSE_RATIO * count > size:
        return np.sort(permutation(seed, purpose, *counters, size=size)[..., :count], axis=-1)
    outer = [np.asarray(counter)[..., None] for counter in counters]
    length = count + count // SPARSE_RATIO + 8
    while True:
        numbers = _below(size, bits(seed, purpose, *outer, np.arange(length)))
        taken = (numbers < size) & ~_repeats(numbers)
        taken &= np.cumsum(taken, axis=-1) <= count
        if (taken.sum(-1) == count).all():
            return np.sort(numbers[taken].reshape(*numbers.shape[:-1], count))
        length *= 2  # the sequence starts with the same numbers, so the result does not depend on the length


def _below(size: int, random: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Turn 64 random bits into an exactly uniform number from 0 … size−1, or into `size` if the bits are rejected.

    The bits are rejected if they are at or above the largest multiple of `size` that is at most 2⁶⁴, because such bits
    would make some numbers more likely.
    """
    fair = random <= np.uint64(2**64 // size * size - 1)
    return np.where(fair, random % np.uint64(size), np.uint64(size)).astype(np.int64)


def _repeats(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return a mask, which is True where a number has occurred before along the last axis."""
    order = np.argsort(numbers, axis=-1, kind="stable")
    ordered = np.take_along_axis(numbers, order, axis=-1)
    again = np.zeros(numbers.shape, bool)
    np.put_along_axis(again, order[..., 1:], ordered[..., 1:] == ordered[..., :-1], axis=-1)
    return again


@cache
def _key(purpose: str) -> npt.NDArray[np.uint64]:
    return np.frombuffer(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "<u8")[0]


@np.errstate(over="ignore")
def _absorb(state: npt.NDArray[np.uint64], counter: Counter) -> npt.NDArray[np.uint64]:
    values = np.asarray(counter)
    if values.dtype.kind not in "iu":
        raise TypeError(f"a counter has type {values.dtype}; use an integer or an array of integers")
    mixed = state + (values.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    mixed = (mixed ^ (mixed >> _30)) * _FIRST
    mixed = (mixed ^ (mixed >> _27)) * _SECOND
    return mixed ^ (mixed >> _31)


def _unit(random: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    return (random >> _11).astype(np.float64) * 2.0**-53
