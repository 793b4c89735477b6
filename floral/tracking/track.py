"""Stage track: log the runs of a suite to MLflow. The MLflow store can be rebuilt from the run folders at any time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from floral.config.run import Run
from floral.core.passwords import without_passwords
from floral.core.units import run_count
from floral.io.files import atomic
from floral.runs import segments
from floral.runs.state import has_failed_for_good, is_finished
from floral.tracking.appearance import Label, appearance_of
from floral.tracking.mlflow_errors import Unreachable
from floral.tracking.mlflow_means import distinct_groups, groups_by_folder, log_means, parent_of
from floral.tracking.mlflow_runs import log, stream
from floral.tracking.mlflow_store import Experiment, default_uri, experiment_of
from floral.tracking.views import MEANS_VIEW, save_views

POLL_SECONDS = 5.0
"""`follow` looks for new rounds every so many seconds."""


def track(
    suite: str,
    runs: Iterable[Run],
    results: Path,
    tracking_uri: str | None = None,
    all_runs: Iterable[Run] | None = None,
    suite_has: Iterable[Run] | None = None,
    labels: Mapping[Path, Label] | None = None,
) -> Path:
    """Log the finished runs that MLflow does not have yet, and the means over seeds of each task × variant.

    The function writes results/track/<suite>.json and returns the path of this file. A second call changes nothing. If
    MLflow has only a part of a run, for example because tracking was killed, the rest is added. If `runs` are only a
    part of the suite, `all_runs` must have all runs of the suite, so that the means include all seeds. `labels` has the
    names and colours of runs by folder. Runs whose metrics have the names of an earlier version are archived, and
    logged again.

    `suite_has` are all runs that the suite has. Runs and means in MLflow that are not among them, or whose folder is
    gone, are archived: MLflow's UI shows them no more, but can restore them. On a server of several machines, only runs
    that this results folder has tracked are archived. With None, nothing is archived.

    Raises:
        ConfigError: the MLflow store cannot be opened or written.
    """
    uri = tracking_uri or default_uri(results)
    runs = list(runs)
    all_runs = list(all_runs or runs)
    finished = {run.folder: run for run in runs if is_finished(results / run.folder)}
    groups = groups_by_folder(all_runs)
    with experiment_of(suite, results, tracking_uri, appearance_of(all_runs, labels)) as experiment:
        _announce_renewal(experiment, finished)
        tracked = {
            str(folder): log(experiment, parent_of(experiment, groups[folder]), run) for folder, run in finished.items()
        }
        for group in distinct_groups(groups, finished):
            log_means(experiment, group)
        save_views(experiment, all_runs)
        value = {
            "tracking_uri": without_passwords(uri), "experiment_id": experiment.id, "view": MEANS_VIEW, "runs": tracked
        }  # fmt: skip
        path = results / "track" / f"{suite}.json"
        if suite_has is not None:
            archivable = set(experiment.stored) if uri == default_uri(results) else _tracked_before(path)
            _archive(experiment, suite_has, archivable)
        atomic(path, (json.dumps(value, indent=1) + "\n").encode())
    return path


def _announce_renewal(experiment: Experiment, folders: Iterable[Path]) -> None:
    """Say how many of these runs have metrics with the names of an earlier version in MLflow."""
    earlier = [folder for folder in folders if (run := experiment.stored.get(str(folder))) and run.earlier]
    if earlier:
        print(f"MLflow: {run_count(len(earlier))} of an earlier version archived, to log again", flush=True)


def _tracked_before(path: Path) -> set[str]:
    """Return the runs, and the means over their seeds, that an earlier call has tracked from this results folder."""
    return set(json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.exists() else set()


def _archive(experiment: Experiment, suite_has: Iterable[Run], archivable: set[str]) -> None:
    """Archive those of the `archivable` runs that the suite no longer has, and means without any run."""
    groups = groups_by_folder(suite_has)
    present = {folder for folder in groups if (experiment.results / folder).exists()}
    runs, means = set(map(str, present)), {group.job_key for group in distinct_groups(groups, present)}
    stored = experiment.stored
    gone = {key for key in archivable & set(stored) if not key.startswith(("mean/", "report/")) and key not in runs}
    if not gone:
        return
    parents = {run.parent for key, run in stored.items() if key not in gone}
    childless = {key for key, run in stored.items() if key.startswith("mean/") and run.id not in parents}
    for key in gone | (childless - means):
        experiment.archive(key)
    print(f"MLflow: {run_count(len(gone))} archived, which {experiment.suite} no longer has", flush=True)


def follow(
    suite: str,
    runs: Iterable[Run],
    results: Path,
    tracking_uri: str | None = None,
    all_runs: Iterable[Run] | None = None,
    poll_seconds: float = POLL_SECONDS,
    labels: Mapping[Path, Label] | None = None,
) -> None:
    """Log every round to MLflow soon after its evaluation, until all runs are finished and completely logged.

    The function also ends when every run is either logged or failed, and then prints the folders of the failed runs.
    Means over seeds are logged when all seeds are finished. If `runs` are only a part of the suite, `all_runs` must
    have all runs of the suite. The state of the MLflow store is read again before each write. So nothing is lost or
    logged twice if the store or this process is restarted, or if another process tracks the same suite.

    Raises:
        ConfigError: the MLflow store refuses the connection or a write. If the store does not answer, `follow` prints a
            message once and tries again.
    """
    runs = list(runs)
    all_runs = list(all_runs or runs)
    groups, appearance = groups_by_folder(all_runs), appearance_of(all_runs, labels)
    todo = {run.folder: run for run in runs}
    logged: dict[Path, tuple[int, bool]] = {}  # folder → (bytes of its segments, whether it is finished) when logged
    unreachable = False
    while True:
        changed = {}
        for folder in todo:
            state = segments.size(results / folder), is_finished(results / folder)
            if state != (0, False) and state != logged.get(folder):
                changed[folder] = state
        try:
            if changed:
                with experiment_of(suite, results, tracking_uri, appearance) as experiment:
                    _announce_renewal(experiment, changed)
                    save_views(experiment, all_runs)
                    for folder, (_, finished) in changed.items():
                        send = log if finished else stream
                        send(experiment, parent_of(experiment, groups[folder]), todo[folder])
                    for group in distinct_groups(groups, changed):
                        if group.finished(results):
                            log_means(experiment, group)
                logged |= changed
            unreachable = False
        except Unreachable as error:
            if not unreachable:
                print(
                    f"{error}\ntrying again every {poll_seconds:g} s; Ctrl-C ends this command, but no run", flush=True
                )
            unreachable = True
        for folder, (_, finished) in logged.items():
            if finished:
                todo.pop(folder, None)
        if not unreachable and all(has_failed_for_good(run, results) for run in todo.values()):
            if todo:
                print(f"{run_count(len(todo))} failed; train them again, then repeat this command:", flush=True)
                print("\n".join(map(str, todo)), flush=True)
            return
        time.sleep(poll_seconds)


def remove(suite: str, folders: Iterable[Path], results: Path, uri: str) -> None:
    """Remove runs of a suite from MLflow, and the means over seeds that include them.

    The other runs of these means stay. A later call of `track` logs their means again.

    Raises:
        ConfigError: the MLflow store cannot be opened or written.
    """
    with experiment_of(suite, results, None if uri == default_uri(results) else uri) as experiment:
        stored = [experiment.stored[str(folder)] for folder in folders if str(folder) in experiment.stored]
        for run_id in {run.id for run in stored} | {run.parent for run in stored if run.parent is not None}:
            experiment.client.delete_run(run_id)


def attach(suite: str, results: Path, reports: Path, tracking_uri: str | None = None) -> str:
    """Attach the report of a suite to an MLflow run named `report of <suite>`, and return MLflow's id of this run.

    The report is the suite's page with tables and figures, in the folder <reports>/<suite>.
    """
    with experiment_of(suite, results, tracking_uri) as experiment:
        stored = experiment.stored.get(f"report/{suite}")
        tags = {"job_key": f"report/{suite}", "kind": "report", "suite": suite}
        run_id = stored.id if stored else experiment.create(f"report of {suite}", tags, None)
        experiment.client.log_artifacts(run_id, str(reports / suite), "report")
        experiment.client.set_terminated(run_id)
    return run_id
