"""Train one run in this process, with a line that shows the progress."""

from __future__ import annotations

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from floral.api.arguments import PLACE, folder_of, run_of
from floral.api.results import Results
from floral.config import networks
from floral.config.reading import ConfigError
from floral.config.refresh import refresh
from floral.config.run import Run
from floral.config.settings import Settings, check_folder, read_settings
from floral.core.process import usable_cores
from floral.core.units import duration
from floral.runs import outdated
from floral.runs.state import is_finished
from floral.stages.fetch import fetch
from floral.stages.partition import partition
from floral.stages.progress_line import result_line
from floral.stages.train import LOG, complete


def run(
    task: Any,
    variant: Any,
    seed: int = 0,
    *,
    data: Any = None,
    fidelity: Literal["corrected", "official"] = "corrected",
    results: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
    backend: Literal["auto", "loop", "vmap", "batched"] | None = None,
    threads: int | None = None,
    again: bool = False,
    progress: bool = True,
) -> Results:
    """Train one run in this process, and return its results.

    The run is the same as in a suite: it has the same name, folder and numbers. A finished run is not trained again.
    An interrupted run continues from its last checkpoint.

    Args:
        task: the name of a task; a dictionary with the keys of a task's YAML file, such as
            {"extends": "digits_rotate", "rounds": 20}; or a `Task` object. In a dictionary, `model` may be a function
            in a file that builds a torch.nn.Module.
        variant: the name of a variant; a dictionary with the name and hyper-parameters, such as
            {"name": "floral_1", "rank": 2}; a `Variant` object; or a function `build` of a method in a file, also as
            {"build": function, "name": "mine", "rate": 0.1}. The arguments of the function, after the first one, are
            the hyper-parameters.
        seed: a whole number of at least 0, from which all random numbers follow.
        data: what replaces the data of the task: the name of a data set; a dictionary with the keys of `data`; or
            arrays. Arrays are {"x": x, "y": y}, or {"train_x": …, "train_y": …, "test_x": …, "test_y": …}. x is
            float [N, features], uint8 [N, H, W] or uint8 [N, H, W, 3]; y [N] has classes as integers or words. The
            array "client" [N] (or "train_client" and "test_client") has the client of each sample.
        fidelity: "corrected" (as the FLoRAL paper says) or "official" (as its code does).
        results: folder of the results; by default that of the study, or `results` in the working directory.
        device: "cpu", "cuda" or "auto"; by default that of config/config.yaml.
        backend: how clients are simulated; by default that of config/config.yaml.
        threads: number of CPU threads; by default all cores that this process may use.
        again: whether a finished run is removed and trained again.
        progress: whether a line shows the progress.

    Raises:
        ConfigError: an argument, a file of the study or the data are wrong, or the method does not fit the task. The
            message names the place and the remedy.
        RunFailed: another error ended the run; `__cause__` is this error.
        KeyboardInterrupt: the run was interrupted. The same call continues it.
    """
    refresh()
    settings = read_settings(outside=True)
    for name, value, type_ in (("device", device, str), ("backend", backend, str), ("threads", threads, int)):
        if value is not None and (not isinstance(value, type_) or isinstance(value, bool)):
            raise ConfigError(f"{PLACE}: {name}: {value!r} has the wrong type; give a {type_.__name__}")
    for name, value in (("device", device), ("backend", backend)):
        choices = Settings.model_fields[name].annotation.__args__  # type: ignore[union-attr]
        if value is not None and value not in choices:
            raise ConfigError(f"{PLACE}: {name}: {value!r} is not allowed; choose one of {', '.join(choices)}")
    if threads is not None and threads < 1:
        raise ConfigError(f"{PLACE}: threads: {threads} is below 1; give at least 1")
    folder = folder_of(results, settings.results, PLACE)
    check_folder(folder, f"{PLACE}: results")
    described = run_of(
        task, variant, seed, data=data, fidelity=fidelity, precision=settings.precision, results=folder
    )  # fmt: skip
    if again:
        shutil.rmtree(folder / described.folder, ignore_errors=True)
    if not is_finished(folder / described.folder):
        _prepare(described, folder, settings.data_dir)
    else:
        _warn_if_outdated(described, folder)
    with _progress_line(described, progress) as done:
        summary = complete(
            described, folder, device=device or settings.device, runs_per_gpu=settings.runs_per_gpu,
            backend=backend or settings.backend, threads=threads or usable_cores(),
            checkpoint_seconds=settings.checkpoint_seconds, committed_in=settings.reference,
        )  # fmt: skip
        done.append(result_line(folder, described, summary))
    return Results([(folder / described.folder, described)], folder)


def _prepare(run: Run, results: Path, data_dir: Path | None) -> None:
    """Fetch the data and divide them among the clients, unless this was done, and check that the method fits them."""
    if run.task.noop:
        return
    for data in networks.to_fetch(run.task):
        fetch(data, results, data_dir)
    from floral.stages import check_model

    check_model.check([run], results, PLACE)
    if not (results / run.partition.folder / "partition.parquet").exists():
        partition(run.partition, results, run.task)


def _warn_if_outdated(run: Run, results: Path) -> None:
    """Warn if other code trained a finished run than there is now."""
    for reasons in outdated.outdated([run], results).values():
        warnings.warn(
            f"this finished run was made by other code ({' and '.join(reasons)}); train it again with `again=True`",
            stacklevel=3,
        )


@contextmanager
def _progress_line(run: Run, visible: bool) -> Iterator[list[str]]:
    """Show the progress of a run in one line. At the end, the line becomes the text that is added to the list."""
    done: list[str] = []
    if not visible:
        yield done
        return
    handler = _Line(f"{run.task.name} {run.variant.name} seed {run.seed}")
    LOG.addHandler(handler)
    try:
        yield done
    finally:
        LOG.removeHandler(handler)
        handler.end(*done)


class _Line(logging.Handler):
    """Print each evaluated round of a run over the line of the one before. Files get only the last line."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name_of_run, self.started, self.width = name, time.monotonic(), 0
        self.replaces = sys.stdout.isatty() or "ipykernel" in sys.modules

    def emit(self, record: logging.LogRecord) -> None:
        rounds, done = getattr(record, "rounds", 0), getattr(record, "rounds_done", 0)
        if not rounds or not self.replaces:
            return
        seconds = (time.monotonic() - self.started) * (rounds - done) / done if done else 0
        rest = f"; about {duration(seconds)} left" if seconds else ""
        self._print(f"{self.name_of_run}: round {done} of {rounds}: {getattr(record, 'values', '')}{rest}")

    def end(self, text: str = "") -> None:
        """Replace the line by the text, and go to the next line."""
        if text:
            self._print(text)
        if text or self.width:
            print(flush=True)

    def _print(self, text: str) -> None:
        print(f"\r{text:<{self.width}}" if self.replaces else text, end="", flush=True)
        self.width = len(text)
