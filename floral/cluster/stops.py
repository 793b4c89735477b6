"""Stop a run when a signal arrives. The run writes a checkpoint, so that it can be continued later.

The current round is completed if this takes less than GRACE_SECONDS. Otherwise the round is dropped and repeated later.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

GRACE_SECONDS = 2.0
"""Seconds after the signal in which the current round may still end; then it is given up and repeated later."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""SIGINT: Ctrl-C. SIGTERM: a scheduler ends the job. SIGUSR1: SLURM warns that it will end the job."""


class Stopped(KeyboardInterrupt):
    """Raised when a run stops because a signal asked it to stop."""

    def __init__(self, by: int) -> None:
        super().__init__(f"asked to stop by {signal.Signals(by).name}")
        self.by = by


@dataclass
class Stop:
    """The first signal that asked a run to stop: its number `by`, and the time `at` in seconds of the monotonic clock.

    `bool(stop)` is false until a signal arrives.
    """

    by: int | None = None
    at: float = 0.0

    def __bool__(self) -> bool:
        return self.by is not None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal that arrives. This method handles all SIGNALS.

        Later signals change nothing, except that a second Ctrl-C ends the process at once.
        """
        del frame
        if number == signal.SIGINT and self.by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.by is None:
            self.by, self.at = number, time.monotonic()

    def check_stop(self) -> None:
        """End the current round if a signal arrived more than GRACE_SECONDS ago.

        The simulation calls this method at points where it can drop the round without changing the state.

        Raises:
            Stopped: a signal arrived more than GRACE_SECONDS ago.
        """
        if self.by is not None and time.monotonic() - self.at > GRACE_SECONDS:
            raise Stopped(self.by)


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Yield a `Stop` that records the first of SIGNALS.

    At the end of the context, the earlier signal handlers are restored.
    """
    stop = Stop()
    handlers = {number: signal.signal(number, stop.on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
