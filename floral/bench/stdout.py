"""Keep standard output free for the result of a command. All other output goes to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Within the `with` block, redirect standard output to standard error.

    This also redirects the output of libraries, and of processes that this process starts.
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
