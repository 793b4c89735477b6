"""Start the command `floral`. Training runs start as forks of a server process that has already imported torch."""

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
"""Modules that training needs. The server process imports them before it forks.

They import polars, because that import takes a third of the time in which a short run starts. It also starts a thread
that frees the memory of very large data frames. A fork does not have this thread, but it has no such data frames.
`warm_start` sets _RJEM_MALLOC_CONF, so that the memory allocator of polars starts no further threads.
"""


def main() -> int:
    """Run the command `floral` and return its exit code.

    Snakemake can start a server process that imports torch once (see floral/cluster/warm_start.py). If this server
    runs, a training run with one CPU thread becomes a fork of the server, which starts faster. All other commands and
    training runs are run in this process.
    """
    arguments, address = sys.argv[1:], os.environ.get(ADDRESS)
    one_cpu_thread = _option(arguments, "--threads") == "1" and _option(arguments, "--device") == "cpu"
    if address and arguments[:1] == ["train"] and one_cpu_thread:
        code = ask(address, arguments)
        if code is not None:
            return code
    return run_command()


def run_command() -> int:
    """Run the command in this process and return its exit code.

    Most modules of the package are imported only here, because the imports are slow. A process that only asks the
    server for a fork does not need them.
    """
    from floral.cli.main import main as run

    return run()


def _option(arguments: list[str], name: str) -> str | None:
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else None


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.stdin.buffer, PRELOADED, run_command)
