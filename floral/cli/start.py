"""Start the command `floral`. A training run starts faster as a fork of a process that has imported torch."""

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
    "floral.stages.progress_line",
    "floral.stages.train",
    "scipy.optimize",
)
"""Modules that training needs. The process imports them before it forks.

polars is among them, because its import takes a third of a short run's start. The import starts a thread that frees
memory of very large frames. A fork does not have this thread, and has no such frames. `warm_start` sets
_RJEM_MALLOC_CONF, so that the allocator of polars starts no further threads.
"""


def main() -> int:
    """Run the command `floral` and return its exit code.

    Training with one CPU thread runs in a fork if Snakemake has started the process for it (see cluster/warm_start.py).
    """
    arguments, address = sys.argv[1:], os.environ.get(ADDRESS)
    one_cpu_thread = _option(arguments, "--threads") == "1" and _option(arguments, "--device") == "cpu"
    if address and arguments[:1] == ["train"] and one_cpu_thread:
        code = ask(address, arguments)
        if code is not None:
            return code
    return run_command()


def run_command() -> int:
    """Run the command in this process. Its modules are imported only here."""
    from floral.cli.main import main as run

    return run()


def _option(arguments: list[str], name: str) -> str | None:
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else None


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.stdin.buffer, PRELOADED, run_command)
