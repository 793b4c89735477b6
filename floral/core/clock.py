"""Read the time, and how much other work on this machine has slowed this process down."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
"""Linux: the first line has the time of all cores by kind, in ticks since the start of the machine."""
TASKS = Path("/proc/self/task")
"""Linux: one folder per thread of this process."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All times in seconds at one moment. The difference of two readings is what happened between them.

    Only Linux tells `waited`, `stolen` and `busy`. On other systems, they are 0.
    """

    wall: float
    cpu: float
    """CPU time of this process, summed over its threads."""
    waited: float = 0.0
    """Time in which threads of this process could run, but waited for a core, summed over the threads."""
    stolen: float = 0.0
    """Time in which the host of a virtual machine gave cores to other machines, summed over the cores."""
    busy: float = 0.0
    """CPU time of all programs on this machine, summed over the cores."""

    def __sub__(self, earlier: Reading) -> Reading:
        return Reading(
            wall=self.wall - earlier.wall,
            cpu=self.cpu - earlier.cpu,
            waited=self.waited - earlier.waited,
            stolen=self.stolen - earlier.stolen,
            busy=self.busy - earlier.busy,
        )

    @property
    def lost_share(self) -> float:
        """The time that this process did not get a core, divided by the time that passed."""
        return (self.waited + self.stolen) / self.wall if self.wall > 0 else 0.0

    @property
    def other_cores(self) -> float:
        """The number of cores that other programs used on average."""
        return max(0.0, self.busy - self.cpu) / self.wall if self.wall > 0 else 0.0


def read_clock() -> Reading:
    """Return a reading of this moment."""
    busy, stolen = _machine()
    return Reading(
        wall=time.perf_counter(), cpu=time.process_time(), waited=_waited(), stolen=stolen, busy=busy,
    )  # fmt: skip


def _machine() -> tuple[float, float]:
    """Return the CPU time of all programs, and the time that the host has stolen. Both are sums over the cores."""
    if not STAT.exists():
        return 0.0, 0.0
    _name, *ticks = STAT.read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _iowait, irq, softirq, stolen = (int(tick) for tick in ticks[:8])
    per_second = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / per_second, stolen / per_second


def _waited() -> float:
    """Return how long the present threads of this process have waited for a core, summed over the threads."""
    nanoseconds = 0
    for task in TASKS.glob("*/schedstat"):
        with suppress(OSError):  # the thread ended since its folder was listed
            nanoseconds += int(task.read_text().split()[1])
    return nanoseconds / 1e9
