"""Keep standard output free for the answer of a command."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Within the `with` block, redirect standard output to standard error.

    This applies to this process, to the processes that it starts, and to libraries.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
