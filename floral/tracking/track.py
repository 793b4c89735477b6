"""Stage track: a suite's runs as MLflow runs. A view of the run folders, which can be rebuilt at any time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from floral.config.run import Run
from floral.io.files import atomic
from floral.runs import segments
from floral.runs.state import is_finished
from floral.tracking.means import distinct, log_means, parent_of, siblings_of
from floral.tracking.runs import log, stream
from floral.tracking.store import Silent, default_uri, experiment_of

if TYPE_CHECKING:
    pass


EVERY = 5.0
"""Seconds between two looks at the runs."""


def track(
    suite: str,
    runs: Iterable[Run],
    results: Path,
    tracking_uri: str | None = None,
    whole: Iterable[Run] | None = None,
) -> Path:
    """Log each finished run that the suite's MLflow experiment does not hold yet, and the means over the seeds of each
    task × variant; write results/track/<suite>.json.

    Times are those of the runs, so tracking twice changes nothing. A run of which only a part was logged, because
    tracking was killed or followed it while it trained, is completed. Where `runs` are some of a suite's, `whole` are
    all of them: means are over all seeds.

    Raises:
        ConfigError: the store cannot be opened or written.
    """
    uri = tracking_uri or default_uri(results)
    runs = list(runs)
    finished = [run.folder for run in runs if is_finished(results / run.folder)]
    siblings = siblings_of(whole or runs)
    with experiment_of(suite, results, tracking_uri) as place:
        tracked = {str(folder): log(place, parent_of(place, siblings[folder]), folder) for folder in finished}
        for one in distinct(siblings, finished):
            log_means(place, one)
        value = {"tracking_uri": uri, "experiment_id": place.experiment, "runs": tracked}
        path = results / "track" / f"{suite}.json"
        atomic(path, (json.dumps(value, indent=1) + "\n").encode())
    return path


def follow(
    suite: str,
    runs: Iterable[Run],
    results: Path,
    tracking_uri: str | None = None,
    whole: Iterable[Run] | None = None,
    every: float = EVERY,
) -> None:
    """Log the rounds of all runs as they come, until every run is finished and logged whole.

    Means over seeds come when the last of them has ended; `whole` is that of `track`. What the store has is asked anew
    whenever there is something to log, and other processes may track the same suite meanwhile: so a store that dies
    and comes back, or this process, lose and double nothing.

    Raises:
        ConfigError: the store refuses; one that does not answer is tried again, and that is said once.
    """
    runs = list(runs)
    siblings = siblings_of(whole or runs)
    todo = {run.folder: run for run in runs}
    seen: dict[Path, tuple[int, bool]] = {}
    silent = False
    while True:
        news = {}
        for folder in todo:
            mark = segments.size(results / folder), is_finished(results / folder)
            if mark != (0, False) and mark != seen.get(folder):
                news[folder] = mark
        try:
            if news:
                with experiment_of(suite, results, tracking_uri) as place:
                    for folder, (_, finished) in news.items():
                        bring = log if finished else stream
                        bring(place, parent_of(place, siblings[folder]), folder)
                    for one in distinct(siblings, news):
                        if one.finished(results):
                            log_means(place, one)
                seen |= news
            silent = False
        except Silent as error:
            if not silent:
                print(f"{error}\ntrying again every {every:g} s; Ctrl-C ends this, and no run notices", flush=True)
            silent = True
        for folder, (_, finished) in seen.items():
            if finished:
                todo.pop(folder, None)
        if not todo:
            return
        time.sleep(every)


def attach(suite: str, results: Path, reports: Path, tracking_uri: str | None = None) -> str:
    """Put the suite's page, tables and figures into an MLflow run named after the suite; return that run's id."""
    with experiment_of(suite, results, tracking_uri) as place:
        found = place.known.get(f"report/{suite}")
        tags = {"job_key": f"report/{suite}", "kind": "report", "suite": suite}
        run_id = found.id if found else place.create(f"report of {suite}", tags, None)
        place.client.log_artifacts(run_id, str(reports / suite), "report")
        place.client.set_terminated(run_id)
    return run_id
