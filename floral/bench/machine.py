"""Say when other programs use the machine during a measurement, because the result can then not be trusted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from floral.core.clock import Reading, read_clock

MAX_OTHER_CORES = 0.25
"""Cores that other programs may use on average during a measurement."""
MAX_LOST_SHARE = 0.05
"""Share of a measurement in which the process may lack a core, because other programs or virtual machines have it."""
SAMPLE_S = 0.5
"""Time in seconds over which the use of the machine is measured before a benchmark."""


def disturbance(took: Reading) -> str | None:
    """Return in words how other work disturbed a measurement; None if it did not.

    `took` is the difference of the readings after and before the measurement.
    """
    reasons = []
    if took.other_cores > MAX_OTHER_CORES:
        reasons.append(f"other programs used {took.other_cores:.1f} cores")
    if (share := took.waited / took.wall) > MAX_LOST_SHARE:
        reasons.append(f"threads waited for a core in {share:.0%} of the time")
    if (share := took.stolen / took.wall) > MAX_LOST_SHARE:
        reasons.append(f"the host of this virtual machine took {share:.0%} of a core")
    return ", ".join(reasons) or None


def watched(measure: Callable[..., Mapping[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the result of measure(*arguments), with the key `disturbance`: how other work disturbed it, or None."""
    before = read_clock()
    result = measure(*arguments)
    return {**result, "disturbance": disturbance(read_clock() - before)}


def warning() -> str | None:
    """Return a warning if other programs use the machine now; None if it is idle.

    The use is measured over SAMPLE_S seconds.
    """
    before = read_clock()
    time.sleep(SAMPLE_S)
    reason = disturbance(read_clock() - before)
    if reason is None:
        return None
    load = os.getloadavg()[0]
    return f"the machine is busy: {reason} (load {load:.1f}); the results are not reliable until the other work is over"
