"""The command `floral`: asks a process that has imported torch to train, where there is one; else calls cli/main.py."""

from __future__ import annotations

import os
import socket
import sys

from floral.cluster.warm_start import ADDRESS, ask, serve

PRELOADED = (
    "floral.cli.main",
    "floral.engine.checkpoint",
    "floral.engine.execution",
    "floral.engine.simulate",
    "floral.stages.execute",
    "floral.stages.plan",
    "floral.stages.train",
    "scipy.optimize",
)
"""What training needs, polars included: a third of what is left of a short run's start. Importing it starts a thread
that clears up after frames too large for the memory. A fork has no such thread, and no such frame. Its allocator would
start more (`_RJEM_MALLOC_CONF`)."""


def main() -> int:
    """The command `floral`."""
    arguments, address = sys.argv[1:], os.environ.get(ADDRESS)
    one_cpu_thread = _option(arguments, "--threads") == "1" and _option(arguments, "--device") == "cpu"
    if address and arguments[:1] == ["train"] and one_cpu_thread:
        code = ask(address, arguments)
        if code is not None:
            return code
    return run_command()


def run_command() -> int:
    """The command in this process; what it needs is imported only here."""
    from floral.cli.main import main as run

    return run()


def _option(arguments: list[str], name: str) -> str | None:
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else None


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.stdin.buffer, PRELOADED, run_command)
