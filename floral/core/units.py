"""Counts, durations and sizes as text, the bytes per sent parameter, and the number of clients in the worst decile."""

from __future__ import annotations

BYTES_PER_FLOAT = 4
"""Bytes per sent parameter. Models are sent as float32, even if the simulation computes in another type."""


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, for example "1 client" or "2 clients"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def run_count(runs: int) -> str:
    """Return a number of runs as text, for example "1 run" or "2 runs"."""
    return plural(runs, "run")


def duration(seconds: float) -> str:
    """Return a duration as rounded text, for example "25 s", "3 min" or "1.5 h"."""
    if seconds < 55:
        return f"{max(5, 5 * round(seconds / 5))} s"
    if seconds < 90 * 60:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.1f} h"


def duration_range(low: float, high: float) -> str:
    """Return a range of durations as rounded text, for example "20–45 s", "50 s to 4 min" or "about 3 min"."""
    first, last = duration(low), duration(high)
    if first == last:
        return f"about {last}"
    number, unit = first.split()
    return f"{number}\u2013{last}" if last.endswith(f" {unit}") else f"{first} to {last}"


def file_size(size: float) -> str:
    """Return a size in bytes as rounded text, for example "3 MB" or "1.2 GB"."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"


def decile_count(clients: int) -> int:
    """Return how many clients are in the worst decile: the tenth of all clients that has the worst results.

    The result is a tenth of the number of all clients, rounded, and at least 1.
    """
    return max(1, round(clients / 10))
