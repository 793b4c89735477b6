"""Run one `floral` command. Turn errors of the command into messages and exit codes."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from signal import SIGINT
from typing import TextIO

from floral.cli.parser import MISTAKE, parser
from floral.config.reading import ConfigError
from floral.core.passwords import without_passwords
from floral.io.files import remedy

DONE, FAILED, CONTINUE, INTERRUPTED, CUT = 0, 1, 75, 130, 141
"""Exit codes of `floral`. A diverged run ends with DONE, because divergence is a result.

CONTINUE (EX_TEMPFAIL of sysexits.h): a signal of the scheduler stopped the run after a checkpoint. The same command
continues the run. CUT: the program that reads the output, such as `head`, has ended. Shells use the same code.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    _replace_unprintable(sys.stdout, sys.stderr)
    arguments = parser().parse_args(argv)
    what = getattr(arguments, "kind", None) or getattr(arguments, "measured", None)  # of `floral check` and `bench`
    name = " ".join(filter(None, ("floral", arguments.command, what)))
    try:
        if arguments.log:
            _log_to(arguments.log)
        code = _run(arguments) or DONE
        sys.stdout.flush()
        return code
    except (
        BrokenPipeError
    ):  # `| head` has ended: without this, Python prints an error when it flushes the output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT
    except ConfigError as error:
        return _fail(f"{name}: {error}", MISTAKE)
    except KeyboardInterrupt as error:
        by_user = getattr(error, "by", SIGINT) == SIGINT
        message = f"{name}: interrupted; finished work is kept, and the same command continues"
        return _fail(message, INTERRUPTED if by_user else CONTINUE)
    except Exception as error:
        if reason := remedy(error):
            return _fail(f"{name}: {reason}", FAILED)
        sys.stderr.write(without_passwords(traceback.format_exc()))
        return _fail(without_passwords(f"{name}: failed: {type(error).__name__}: {error}"), FAILED, traced=True)


def _run(arguments: Namespace) -> int | None:
    """Run the command with the settings of the study. `floral init` makes a study, so it has no settings."""
    if arguments.command == "init":
        return arguments.handler(arguments)
    from floral.config.settings import read_settings

    settings = read_settings()
    if precision := getattr(arguments, "precision", None):
        settings = settings.model_copy(update={"precision": precision})
    return arguments.handler(arguments, settings)


def _replace_unprintable(*streams: TextIO) -> None:
    """Print `?` for a character that the terminal does not have, such as × on an ASCII terminal."""
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=path, filemode="w", level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.captureWarnings(True)


def _fail(message: str, code: int, traced: bool = False) -> int:
    """Write the message to standard error and to the log file, and return the exit code `code`."""
    sys.stderr.write(f"{message}\n")  # in one piece, because several runs write at once
    if logging.root.handlers:
        logging.error("%s\n%s", message, without_passwords(traceback.format_exc()) if traced else "")
    return code


if __name__ == "__main__":
    sys.exit(main())
