"""Run checks one after the other, and say in plain words what holds, what fails and why."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from floral.check.contracts import Broken
from floral.config import paths
from floral.config.reading import ConfigError
from floral.core.spec import Refused


@dataclass(frozen=True)
class Check:
    """One contract of one plug-in.

    `run` raises Broken if the contract is broken. It may return a remark. `hint` says what is often the cause. If a
    check with `needed` fails, the checks after it cannot run.
    """

    name: str
    run: Callable[[], str | None]
    hint: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a check has shown. `text` is the reason of a failure, or a remark."""

    name: str
    state: Literal["holds", "fails", "not checked"]
    text: str = ""
    hint: str = ""

    def __str__(self) -> str:
        lines = [f"  {'FAILS' if self.state == 'fails' else self.state:<6} {self.name}"]
        lines += [f"           {line}" for line in self.text.splitlines()]
        if self.state == "fails" and self.hint:
            lines.append(f"           often: {self.hint}")
        return "\n".join(lines)


def outcomes(checks: Iterable[Check]) -> Iterator[Outcome]:
    """Run the checks in their order, and yield the outcome of each."""
    stopped_by, reason = "", ""
    for check in checks:
        if stopped_by:
            yield Outcome(check.name, "not checked", reason)
            reason = ""  # it is the same for all later checks
            continue
        outcome = _outcome(check)
        if check.needed and outcome.state == "fails":
            stopped_by, reason = check.name, f"because this fails: {check.name}"
        yield outcome


def _outcome(check: Check) -> Outcome:
    try:
        return Outcome(check.name, "holds", check.run() or "")
    except (Broken, ConfigError) as broken:
        return Outcome(check.name, "fails", str(broken), check.hint)
    except Refused as reason:
        return Outcome(check.name, "fails", f"refused: {reason}")
    except Exception as error:  # the code of the user may fail in any way
        return Outcome(check.name, "fails", f"{type(error).__name__}: {error}{_place(error)}")


def _place(error: Exception) -> str:
    """Return the last line of the study that an error came through, or of any file if the study has no such line."""
    frames = traceback.extract_tb(error.__traceback__)
    folders = [(paths.STUDY / kind).resolve() for kind in paths.CODE_FOLDERS]
    of_study = [frame for frame in frames if Path(frame.filename).resolve().parent in folders]
    frame = (of_study or frames)[-1]
    path = Path(frame.filename)
    here = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f" ({here}, line {frame.lineno}: {frame.line})"


def printed(title: str, checks: Iterable[Check]) -> int:
    """Print a title and the outcome of each check, and return how many fail."""
    print(title, flush=True)
    failures = 0
    for outcome in outcomes(checks):
        failures += outcome.state == "fails"
        print(outcome, flush=True)
    return failures
