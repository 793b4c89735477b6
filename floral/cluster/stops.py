"""Stop a run on a signal: it ends or gives up its round, writes a checkpoint, and can be continued later."""

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
    """A run was asked to stop, and stopped."""

    def __init__(self, by: int) -> None:
        super().__init__(f"asked to stop by {signal.Signals(by).name}")
        self.by = by


@dataclass
class Stop:
    """The first signal that asked a run to stop, and its time (monotonic seconds); false before any signal."""

    by: int | None = None
    at: float = 0.0

    def __bool__(self) -> bool:
        return self.by is not None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; the handler of all SIGNALS.

        Further signals of a scheduler change nothing. A second Ctrl-C ends the process at once.
        """
        del frame
        if number == signal.SIGINT and self.by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.by is None:
            self.by, self.at = number, time.monotonic()

    def check_stop(self) -> None:
        """End the current round if the signal is older than GRACE_SECONDS.

        It is called where the work so far can be given up without a trace.

        Raises:
            Stopped: the signal is older than that.
        """
        if self.by is not None and time.monotonic() - self.at > GRACE_SECONDS:
            raise Stopped(self.by)


@contextmanager
def catch_signals() -> Iterator[Stop]:
    """Yield a Stop that records the first of SIGNALS; restore the earlier handlers afterwards."""
    stop = Stop()
    handlers = {number: signal.signal(number, stop.on_signal) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
