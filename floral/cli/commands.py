"""Run the commands of `floral`. Each command has one function, which passes the parsed arguments to other modules.

A function imports these modules only when it is called, so that a training run starts quickly.
"""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from floral.config.reading import ConfigError
from floral.core.precision import PRECISIONS
from floral.core.process import set_library_threads, usable_cores
from floral.core.units import run_count

if TYPE_CHECKING:
    from floral.config.run import Run
    from floral.config.settings import Settings

Handler = Callable[[Namespace, "Settings"], int | None]
"""Type of a function that runs a command. It returns an exit code, or None for success."""


def init(arguments: Namespace, settings: Settings | None = None) -> None:
    """Make the folder of a new study. This command needs no settings, because there is no study yet."""
    from floral.cli.init import init

    del settings
    init(arguments.folder)
    print(f"{arguments.folder}: a new study; its README.md says what is in it. To train its example:")
    print(f"  cd {shlex.quote(str(arguments.folder))} && snakemake --profile local")


# --------------------------------------------------------------------------------------------- stages


def fetch(arguments: Namespace, settings: Settings) -> None:
    from floral.config import data_sets
    from floral.config.suites import custom_data
    from floral.stages.fetch import fetch

    name = arguments.data
    data = data_sets.data_set_in(name) or custom_data(name, arguments.suite)
    fetch(data, settings.results, arguments.data_dir or settings.data_dir)


def partition(arguments: Namespace, settings: Settings) -> None:
    from floral.config.suites import suite_runs, suite_searches
    from floral.stages.export_partition import export_partition
    from floral.stages.partition import partition

    searches = suite_searches(arguments.suite, [arguments.task]).values()
    runs = [trial for search in searches for trial in search.references() if trial.seed == arguments.seed]
    runs = runs or suite_runs(arguments.suite, [arguments.task], None, [arguments.seed], with_tuned=False)
    by_hash = {run.partition.hash8: run for run in runs}
    partitioned = by_hash.values() if arguments.expect is None else [_with_hash(by_hash, arguments.expect)]
    if arguments.export and len(by_hash) > 1 and arguments.expect is None:
        raise ConfigError(
            f"--export: suite {arguments.suite!r} has {len(by_hash)} partitions of {arguments.task} with seed "
            f"{arguments.seed}; choose one with --expect: {', '.join(sorted(by_hash))}"
        )
    for run in partitioned:
        partition(run.partition, settings.results, run.task)
        if arguments.export:
            export_partition(run, settings.results, arguments.export)


def tune(arguments: Namespace, settings: Settings) -> None:
    set_library_threads(arguments.threads)  # This must precede the import of torch.
    from floral.config import catalogue
    from floral.config.suites import suite_searches
    from floral.config.tuned import tune_command

    for suite in arguments.suites:
        catalogue.suite(suite)
    if not (arguments.write or (len(arguments.tasks or ()) == len(arguments.variants or ()) == 1)):
        raise ConfigError(
            "give one task with --tasks and one variant with --variants to run their search, or give --write to write "
            "the chosen values to config/tuned; to run all searches and write their values, call: "
            f"{tune_command(*arguments.suites)}"
        )
    searches = {}
    for suite in arguments.suites:
        searches |= suite_searches(suite, arguments.tasks, arguments.variants)
    if not searches:
        names = ", ".join(arguments.suites)
        raise ConfigError(
            f"suite {names}: no block with `tuned: true` has these tasks and variants; choose others, or set "
            "`tuned: true` in their block"
        )
    from floral.stages import tune

    if arguments.write:
        for path in tune.write(searches.values(), settings.results):
            print(f"tuned values: {path}")
        return
    for search in searches.values():
        tune.tune(
            search,
            settings.results,
            device=arguments.device or settings.device,
            runs_per_gpu=arguments.runs_per_gpu or settings.runs_per_gpu,
            backend=arguments.backend or settings.backend,
            threads=arguments.threads,
        )


def train(arguments: Namespace, settings: Settings) -> int:
    set_library_threads(arguments.threads)  # This must precede the import of torch.
    from floral.config.suites import suite_runs

    runs = suite_runs(arguments.suite, [arguments.task], [arguments.variant], [arguments.seed], settings.precision)
    run = _with_hash({run.hash8: run for run in runs}, arguments.expect)
    from floral.stages.train import train

    return train(
        run,
        settings.results,
        device=arguments.device or settings.device,
        runs_per_gpu=arguments.runs_per_gpu or settings.runs_per_gpu,
        backend=arguments.backend or settings.backend,
        threads=arguments.threads,
        checkpoint_seconds=arguments.checkpoint_seconds or settings.checkpoint_seconds,
        committed_in=settings.reference,
    )


def _with_hash(by_hash: dict[str, Run], expect: str | None) -> Run:
    """Return the run whose hash is `expect`. If there is only one run, `expect` may be None.

    A suite may have several runs of the same task, variant and seed, which differ in other values. Only the hash tells
    them apart.

    Raises:
        ConfigError: no run has this hash, or `expect` is None and there are several runs.
    """
    if expect is None:
        if len(by_hash) > 1:
            raise ConfigError(
                f"several runs have this task, variant and seed; choose one by its hash: --expect {' | '.join(by_hash)}"
            )
        (expect,) = by_hash
    if expect not in by_hash:
        raise ConfigError(
            f"--expect {expect}: the run now has the hash {' or '.join(by_hash)}, because the configuration or the "
            "code has changed since Snakemake planned this job; start Snakemake again"
        )
    return by_hash[expect]


def track(arguments: Namespace, settings: Settings) -> None:
    from floral.cli.labels import labels_of
    from floral.config.suites import suite_runs
    from floral.tracking.mlflow_store import create_store, default_uri
    from floral.tracking.track import attach, follow, track

    if arguments.create_store:
        create_store(settings.tracking_uri or default_uri(settings.results))
    elif arguments.suite is None:
        raise ConfigError("name a suite, or give --create-store to create only the MLflow database")
    elif arguments.attach:
        print(f"MLflow: adding the report of {arguments.suite}", flush=True)
        attach(arguments.suite, settings.results, settings.reports, settings.tracking_uri)
        print(f"MLflow has the report of {arguments.suite}")
    else:
        runs = suite_runs(arguments.suite, arguments.tasks, arguments.variants, arguments.seeds, settings.precision)
        whole_suite = _tuned_runs(arguments, settings)
        print(f"MLflow: logging {run_count(len(runs))} of {arguments.suite}", flush=True)
        sent = arguments.suite, runs, settings.results, settings.tracking_uri, whole_suite
        labels = labels_of(whole_suite)
        if arguments.follow:
            follow(*sent, labels=labels)
        else:
            is_narrowed = any((arguments.tasks, arguments.variants, arguments.seeds))
            suite_has = None if is_narrowed else _runs_of_all_precisions(arguments.suite)
            track(*sent, suite_has=suite_has, labels=labels)
        print(f"MLflow has the finished runs of {arguments.suite}")


def _tuned_runs(arguments: Namespace, settings: Settings) -> list[Run]:
    """Return all runs of the suite, or all seeds of the selected tasks and variants if others are not tuned yet."""
    from floral.config.suites import suite_runs
    from floral.config.tuned import Untuned

    try:
        return suite_runs(arguments.suite, precision=settings.precision)
    except Untuned:
        return suite_runs(arguments.suite, arguments.tasks, arguments.variants, precision=settings.precision)


def _runs_of_all_precisions(suite: str) -> list[Run]:
    from floral.config.suites import suite_runs

    return [run for precision in PRECISIONS for run in suite_runs(suite, precision=precision)]


def ui(arguments: Namespace, settings: Settings) -> int:
    from floral.tracking.ui import ui

    return ui(settings.results, settings.tracking_uri, arguments.port)


def report(arguments: Namespace, settings: Settings) -> None:
    from floral.config.suites import suite_runs
    from floral.report.build import report

    suite, reports = arguments.suite, arguments.reports or settings.reports
    runs = suite_runs(suite, arguments.tasks, arguments.variants, arguments.seeds, settings.precision)
    if reports == settings.reports and (arguments.partial or arguments.reference):
        # The next Snakemake call then replaces this report by the report of all runs in the results folder.
        (settings.results / "report" / f"{suite}.complete").unlink(missing_ok=True)
    if arguments.reference:
        _report_reference(suite, runs, reports, settings)
        return
    print(f"report of {suite}: reading {run_count(len(runs))}", flush=True)
    page = report(suite, runs, settings.results, reports, arguments.partial, arguments.allow_missing, settings.figures)
    print(f"{'partial report' if arguments.partial else 'report'}: {page}")


def _report_reference(suite: str, runs: list[Run], reports: Path, settings: Settings) -> None:
    """Build a report from the suite's reference results in the folder `settings.reference`, without training.

    The archive of these results is unpacked into a temporary folder.
    """
    from floral.report.build import report
    from floral.runs.reference import restore_archive
    from floral.runs.state import is_finished

    with TemporaryDirectory(prefix="floral-") as folder:
        results = Path(folder)
        restore_archive(suite, results, settings.reference)
        finished = [run for run in runs if is_finished(results / run.folder)]
        if not finished:
            raise ConfigError(
                f"suite {suite!r}: {settings.reference / suite} has none of the selected runs, because the suite has "
                "changed since results were committed, or only other runs were committed; train the runs with Snakemake"
            )
        page = report(suite, runs, results, reports, partial=len(finished) < len(runs), figures=settings.figures)
    print(f"report of the reference results: {page}")


def leaderboard(arguments: Namespace, settings: Settings) -> None:
    from floral.report.leaderboard_page import leaderboard

    reports = arguments.reports or settings.reports
    print(f"leaderboard: {leaderboard(arguments.suites, settings.results, reports, settings.precision)}")


def reference(arguments: Namespace, settings: Settings) -> None:
    from floral.config.suites import suite_runs
    from floral.report import commands as report_commands
    from floral.runs import reference

    runs = suite_runs(arguments.suite, precision=settings.precision)
    command = report_commands.command(arguments.suite, runs)
    page = settings.reports / arguments.suite
    folder = reference.make(arguments.suite, runs, settings.results, page, command, settings.reference)
    print(f"reference: {folder}; commit this folder, so that its runs need not be repeated")


# --------------------------------------------------------------------------------------------- suites and runs


def plan(arguments: Namespace, settings: Settings) -> None:
    from floral.runs import reference
    from floral.runs.state import is_finished
    from floral.stages import check_data, estimate

    options = {"suite": arguments.suites, **{axis: getattr(arguments, axis) for axis in settings.narrowing}}
    narrowed = settings.model_copy(update={key: tuple(names) for key, names in options.items() if names})
    suites = narrowed.runs()
    check_data.check((run.task for runs in suites.values() for run in runs), settings.results)
    reusable = reference.available(suites, settings.results, settings.reference) if settings.reuse else []
    committed = {run.folder for _, run in reusable}
    from floral.stages import check_model

    runs = [run for group in suites.values() for run in group]
    check_model.check(runs, settings.results)
    print(estimate.estimate(suites, settings.results, arguments.cores, committed))
    needed = {run.folder: run.task for run in runs if run.folder not in committed}
    tasks = [task for folder, task in needed.items() if not is_finished(settings.results / folder)]
    for line in check_model.missing_data(tasks, settings.results, settings.data_dir):
        print(line)


def status(arguments: Namespace, settings: Settings) -> None:
    from floral.cli import status
    from floral.config.suites import suite_runs

    runs = suite_runs(arguments.suite, arguments.tasks, arguments.variants, arguments.seeds, settings.precision)
    progress = status.status(arguments.suite, runs, settings.results)
    print(_json(progress) if arguments.json else status.as_text(progress))


def show(arguments: Namespace, settings: Settings) -> None:
    from floral.cli.show import show

    show(arguments.run, settings.results)


def export(arguments: Namespace, settings: Settings) -> None:
    """Write the adaptor of a client as an adapter of peft."""
    from floral.api.peft import export_peft
    from floral.api.trained import TrainedModel
    from floral.cli.show import find
    from floral.runs.outdated import stored_run
    from floral.runs.state import is_finished

    folder = find(arguments.run, settings.results)
    run = stored_run(folder) if is_finished(folder) else None
    if run is None:
        raise ConfigError(f"{folder}: this run is not finished, or of another version; train it first")
    results = folder.absolute().parents[3]  # the run is <results>/train/<task>/<variant>/<seed and hash>
    for path in export_peft(TrainedModel(run, folder, results), arguments.client, arguments.peft):
        print(path)


def forget(arguments: Namespace, settings: Settings) -> None:
    from floral.cli.forget import forget

    if not arguments.names and not arguments.outdated:
        raise ConfigError("name a variant or a task, or give --outdated for all runs made by other code")
    forget(arguments.names, settings, arguments.outdated)


def merge(arguments: Namespace, settings: Settings) -> int:
    from floral.runs.merge import merge

    merged = merge(arguments.sources, settings.results)
    print(merged)
    return 1 if merged.conflicts else 0


def check(arguments: Namespace, settings: Settings) -> int:
    """Check the contracts of a method, model or task, and return 1 if one is broken."""
    set_library_threads(1)  # This must precede the import of torch.
    from floral.check.command import check_method, check_model, check_task

    failures = {
        "method": lambda: check_method(arguments.name),
        "model": lambda: check_model(
            arguments.name, arguments.shape, arguments.outputs, arguments.arguments, arguments.inputs
        ),
        "task": lambda: check_task(arguments.name, settings.results, settings.data_dir),
    }[arguments.kind]()
    return 1 if failures else 0


def methods(arguments: Namespace, settings: Settings) -> None:
    from floral.cli import methods

    del settings
    rows = methods.rows(arguments.names)
    text = methods.details if arguments.names else methods.text
    print(_json([row.values for row in rows]) if arguments.json else text(rows))


def tasks(arguments: Namespace, settings: Settings) -> None:
    from floral.cli import tasks
    from floral.config import catalogue

    mistakes = {} if arguments.names else tasks.mistakes()
    names = arguments.names or [name for name in catalogue.names("tasks") if name not in mistakes]
    rows = tasks.rows(settings.results, settings.data_dir, names)
    if arguments.json:
        errors = [{"task": name, "error": message} for name, message in mistakes.items()]
        print(_json([*(row.values for row in rows), *errors]))
    else:
        print(tasks.details(rows) if arguments.names else tasks.text(rows, mistakes))


def keys(arguments: Namespace, settings: Settings) -> None:
    from floral.cli import keys
    from floral.config.reading import suggest

    del settings
    if arguments.name is None:
        print("\n".join(f"floral keys {name}" for name in keys.SCHEMAS))
    elif arguments.name not in keys.SCHEMAS:
        raise suggest("name", arguments.name, keys.SCHEMAS)
    else:
        print(keys.text(arguments.name))


# ------------------------------------------------------------------------------------------ benchmarks


def bench(arguments: Namespace, settings: Settings) -> None:
    """Measure the speed of a part of floral (`floral bench`), and print the result.

    Nothing else is printed to standard output. If other programs use the machine, a warning comes first.
    """
    if arguments.threads > (cores := usable_cores()):
        raise ConfigError(
            f"--threads {arguments.threads}: this process may use only {cores} cores; give at most {cores}"
        )
    set_library_threads(arguments.threads)  # This must precede the import of torch.
    from floral.bench.machine import warning
    from floral.bench.stdout import reserved_stdout

    with reserved_stdout():
        if message := warning():
            print(f"warning: {message}")
        values, text = BENCHMARKS[arguments.measured](arguments, settings)
    print(_json(values) if arguments.json else text)


def _bench_engine(arguments: Namespace, settings: Settings) -> tuple[Any, str]:
    from floral.bench import engine

    device = arguments.device or settings.device
    result = engine.engine(
        arguments.task, arguments.variant, results=settings.results, data_dir=settings.data_dir, device=device,
        **_timing(arguments, settings),
    )  # fmt: skip
    return result, engine.as_text(result)


def _bench_report(arguments: Namespace, settings: Settings) -> tuple[Any, str]:
    from floral.bench import report

    rows = report.report(
        results=settings.results, reports=settings.reports, data_dir=settings.data_dir, **_timing(arguments, settings)
    )
    return rows, "\n".join(map(report.line, rows))


def _bench_scale(arguments: Namespace, settings: Settings) -> tuple[Any, str]:
    from floral.bench import report

    result = report.scale_report(
        results=settings.results, reports=settings.reports, data_dir=settings.data_dir, **_timing(arguments, settings)
    )
    return result, "\n".join(report.scale_lines(result))


def _bench_data(arguments: Namespace, settings: Settings) -> tuple[Any, str]:
    from floral.bench import data

    rows = data.data(arguments.data or data.DATA, results=settings.results, data_dir=settings.data_dir)
    return rows, "\n".join(map(data.line, rows))


BENCHMARKS = {"engine": _bench_engine, "report": _bench_report, "scale": _bench_scale, "data": _bench_data}
"""Name of a benchmark → function that runs the benchmark and returns the result twice: for JSON, and as text."""


def _timing(arguments: Namespace, settings: Settings) -> dict[str, Any]:
    backend = arguments.backend or settings.backend
    return {"threads": arguments.threads, "rounds": arguments.rounds, "backend": backend}


# ------------------------------------------------------------------------------------------ shared


def _json(value: Any) -> str:
    encoding = (sys.stdout.encoding or "ascii").lower()
    return json.dumps(value, indent=1, ensure_ascii=not encoding.startswith("utf"))
