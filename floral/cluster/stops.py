"""Being asked to stop: a run ends its round or gives it up, keeps what it has and says that it can be continued."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

PATIENCE = 2.0
"""Seconds after the signal in which the present round may still end; then it is given up, to be made again later."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; a scheduler that takes the machine away; one that warns beforehand."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and did."""

    def __init__(self, by: int) -> None:
        super().__init__(f"asked to stop by {signal.Signals(by).name}")
        self.by = by


@dataclass
class Stop:
    """Whether a run was asked to stop: true from the first signal on."""

    by: int | None = None
    at: float = 0.0

    def __bool__(self) -> bool:
        return self.by is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler. A scheduler may signal a process several times, and each time means the same; a second Ctrl-C
        ends it at once."""
        del frame
        if number == signal.SIGINT and self.by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.by is None:
            self.by, self.at = number, time.monotonic()

    def check_stop(self) -> None:
        """Called wherever work can be given up without a trace.

        Raises:
            Stopped: the signal came more than PATIENCE ago.
        """
        if self.by is not None and time.monotonic() - self.at > PATIENCE:
            raise Stopped(self.by)


@contextmanager
def noted() -> Iterator[Stop]:
    """Turns the first of SIGNALS into a Stop, which the work heeds."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
