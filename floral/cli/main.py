"""`floral <stage> …`: arguments only. What a stage needs is imported when it is called: a run must start at once."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any, NoReturn

import floral
from floral.config.reading import ConfigError

if TYPE_CHECKING:
    from floral.config.run import Run
    from floral.config.settings import Settings

DONE, FAILED, MISTAKE, CONTINUE, INTERRUPTED, CUT = 0, 1, 2, 75, 130, 141
"""Exit codes. A diverged run is done: that is a result. CONTINUE (EX_TEMPFAIL of sysexits.h): a scheduler's signal
stopped it, a checkpoint is written, call again. CUT is what a shell says of a command that `head` ended."""

Handler = Callable[[argparse.Namespace, "Settings"], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.log:
        _log_to(arguments.log)
    try:
        from floral.config.settings import read_settings

        code = arguments.handler(arguments, read_settings()) or DONE
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in `| head`: what reads has seen enough, and Python must not complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT
    except ConfigError as error:
        return _say(f"floral {arguments.command}: {error}", MISTAKE)
    except KeyboardInterrupt as error:
        return _say(
            f"floral {arguments.command}: interrupted; what is finished is kept, the same command continues",
            INTERRUPTED if getattr(error, "by", SIGINT) == SIGINT else CONTINUE,
        )
    except Exception as error:
        traceback.print_exc()
        return _say(f"floral {arguments.command}: failed: {type(error).__name__}: {error}", FAILED, exc_info=True)


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=path, filemode="w", level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.captureWarnings(True)


def _say(message: str, code: int, exc_info: bool = False) -> int:
    sys.stderr.write(f"{message}\n")  # in one piece: several runs speak at once
    if logging.root.handlers:
        logging.error(message, exc_info=exc_info)
    return code


# --------------------------------------------------------------------------------------------- stages


def _fetch(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.config import data_sets
    from floral.config.suites import custom_data
    from floral.stages.fetch import fetch

    name = arguments.data
    data = name if name in data_sets.data_lock() else custom_data(name, arguments.suite)
    fetch(data, settings.results, arguments.data_dir or settings.data_dir)


def _partition(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.config.suites import suite_runs, suite_searches
    from floral.stages.partition import partition

    searches = suite_searches(arguments.suite, [arguments.task]).values()
    runs = [trial for search in searches for trial in search.references() if trial.seed == arguments.seed]
    runs = runs or suite_runs(arguments.suite, [arguments.task], None, [arguments.seed])
    by_hash = {run.partition.hash8: run for run in runs}
    for run in _expected(by_hash, arguments.expect, every=True):
        partition(run.partition, settings.results, run.task)


def _tune(arguments: argparse.Namespace, settings: Settings) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when torch is imported
        os.environ[variable] = str(arguments.threads)
    from floral.config.suites import suite_searches
    from floral.config.tuned import tune_command

    if not (arguments.write or (len(arguments.tasks or ()) == len(arguments.variants or ()) == 1)):
        raise ConfigError(
            "give one --tasks and one --variants for one search, or --write for config/tuned; all of it at once is "
            + tune_command(*arguments.suites)
        )
    found = [suite_searches(suite, arguments.tasks, arguments.variants) for suite in arguments.suites]
    searches = {folder: search for some in found for folder, search in some.items()}.values()
    if not searches:
        names = ", ".join(arguments.suites)
        raise ConfigError(f"suite {names}: no block with `tuned: true` has these tasks and variants")
    from floral.stages import tune

    if arguments.write:
        for path in tune.write(searches, settings.results):
            print(f"tuned values: {path}")
        return
    for search in searches:
        how = {"device": arguments.device or settings.device, "backend": arguments.backend or settings.backend}
        places = arguments.runs_per_gpu or settings.runs_per_gpu
        tune.tune(search, settings.results, runs_per_gpu=places, threads=arguments.threads, **how)


def _train(arguments: argparse.Namespace, settings: Settings) -> int:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when torch is imported
        os.environ[variable] = str(arguments.threads)
    from floral.config.suites import suite_runs

    runs = suite_runs(arguments.suite, [arguments.task], [arguments.variant], [arguments.seed])
    (run,) = _expected({run.hash8: run for run in runs}, arguments.expect)
    from floral.stages.train import train

    return train(
        run,
        settings.results,
        device=arguments.device or settings.device,
        runs_per_gpu=arguments.runs_per_gpu or settings.runs_per_gpu,
        backend=arguments.backend or settings.backend,
        precision=arguments.precision or settings.precision,
        threads=arguments.threads,
        checkpoint_seconds=arguments.checkpoint_seconds or settings.checkpoint_seconds,
    )


def _expected(by_hash: dict[str, Run], expect: str | None, every: bool = False) -> list[Run]:
    """The one that was asked for: a suite may hold a task, variant and seed with several values or fidelities."""
    if expect is None and (every or len(by_hash) == 1):
        return list(by_hash.values())
    if expect is None:
        raise ConfigError(
            f"several runs have this task, variant and seed; choose one with --expect {' | '.join(by_hash)}"
        )
    if expect not in by_hash:
        raise ConfigError(
            f"--expect {expect}: with the present configuration it is {' or '.join(by_hash)}; "
            "the configuration or the code has changed since this job was planned: start Snakemake again"
        )
    return [by_hash[expect]]


def _track(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.config.suites import suite_runs
    from floral.tracking.store import create_store, default_uri
    from floral.tracking.track import attach, follow, track

    if arguments.create_store:
        create_store(settings.tracking_uri or default_uri(settings.results))
    elif arguments.suite is None:
        raise ConfigError("name a suite, or give --create-store")
    elif arguments.attach:
        attach(arguments.suite, settings.results, settings.reports, settings.tracking_uri)
    else:
        runs = suite_runs(arguments.suite, arguments.tasks, arguments.variants, arguments.seeds)
        bring = follow if arguments.follow else track
        whole = suite_runs(arguments.suite, arguments.tasks, arguments.variants)
        bring(arguments.suite, runs, settings.results, settings.tracking_uri, whole)


def _report(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.config.suites import suite_runs
    from floral.report.build import report

    runs = suite_runs(arguments.suite, arguments.tasks, arguments.variants, arguments.seeds)
    if arguments.partial:  # Snakemake must not take what follows for the whole report
        (settings.results / "report" / f"{arguments.suite}.complete").unlink(missing_ok=True)
    how = {"partial": arguments.partial, "allow_missing": arguments.allow_missing}
    report(arguments.suite, runs, settings.results, reports=settings.reports, **how)
    page = settings.reports / arguments.suite / "index.html"
    print(f"{'partial report' if arguments.partial else 'report'}: {page}")


def _reference(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.config.suites import suite_runs
    from floral.report import words
    from floral.runs import reference

    runs = suite_runs(arguments.suite)
    command = words.command(arguments.suite, runs)
    made = reference.make(arguments.suite, runs, settings.results, settings.reports / arguments.suite, command)
    print(f"reference: {made}; commit it, and its runs are not repeated")


def _show(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.cli.show import show

    os.environ["FLORAL_RESULTS"] = str(settings.results)  # below which a run is found by its name
    show(arguments.run)


def _merge(arguments: argparse.Namespace, settings: Settings) -> int:
    from floral.runs.merge import merge

    merged = merge(arguments.sources, settings.results)
    print(merged)
    return 1 if merged.conflicts else 0


def _methods(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.cli.methods import methods

    del settings
    methods(as_json=arguments.json)


def _tasks(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.cli.tasks import tasks

    tasks(settings.results, settings.data_dir, as_json=arguments.json)


def _plan(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.runs import reference
    from floral.stages import check_data, plan

    named = {"suite": arguments.suites, **{axis: getattr(arguments, axis) for axis in settings.narrowing}}
    chosen = settings.model_copy(update={key: tuple(value) for key, value in named.items() if value})
    runs = chosen.runs()
    check_data.check((run.task for some in runs.values() for run in some), settings.results)
    committed = {run.folder for _, run in reference.available(runs, settings.results)} if settings.reuse else set()
    print(plan.estimate(runs, settings.results, arguments.cores, committed))


def _status(arguments: argparse.Namespace, settings: Settings) -> None:
    from floral.cli import status
    from floral.config.suites import suite_runs

    runs = suite_runs(arguments.suite, arguments.tasks, arguments.variants, arguments.seeds)
    found = status.status(arguments.suite, runs, settings.results)
    print(json.dumps(found, indent=1, ensure_ascii=False) if arguments.json else status.as_text(found))


# ------------------------------------------------------------------------------------------ benchmarks


def _bench(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.threads > (cores := _cores()):
        raise ConfigError(f"--threads {arguments.threads}: this process may use {cores}; give at most so many")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read once, when torch is imported
        os.environ[variable] = str(arguments.threads)
    from floral.bench.stdout import reserved_stdout

    how = {"threads": arguments.threads, "rounds": arguments.rounds, "backend": arguments.backend or settings.backend}
    with reserved_stdout():
        found, text = arguments.measure(arguments, settings, how)
    print(json.dumps(found, indent=1, ensure_ascii=False) if arguments.json else text)


def _bench_engine(arguments: argparse.Namespace, settings: Settings, how: dict[str, Any]) -> tuple[Any, str]:
    from floral.bench import engine

    device = arguments.device or settings.device
    found = engine.engine(
        arguments.task, arguments.variant, results=settings.results, data_dir=settings.data_dir, device=device, **how
    )
    return found, engine.as_text(found)


def _bench_report(arguments: argparse.Namespace, settings: Settings, how: dict[str, Any]) -> tuple[Any, str]:
    del arguments
    from floral.bench import report

    rows = report.report(results=settings.results, reports=settings.reports, data_dir=settings.data_dir, **how)
    return rows, "\n".join(map(report.line, rows))


def _bench_scale(arguments: argparse.Namespace, settings: Settings, how: dict[str, Any]) -> tuple[Any, str]:
    del arguments
    from floral.bench import report

    found = report.scale_report(results=settings.results, reports=settings.reports, data_dir=settings.data_dir, **how)
    return found, "\n".join(report.scale_lines(found))


def _bench_data(arguments: argparse.Namespace, settings: Settings, how: dict[str, Any]) -> tuple[Any, str]:
    from floral.bench import data

    del how
    rows = data.data(arguments.data or data.DATA, results=settings.results, data_dir=settings.data_dir)
    return rows, "\n".join(map(data.line, rows))


def _cores() -> int:
    """Those that this process may use: a job's, where a scheduler has bound it to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ------------------------------------------------------------------------------------------ arguments


class _Parser(argparse.ArgumentParser):
    """Adds to argparse's message what was probably meant."""

    asked: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.asked = sys.argv[1:] if args is None else args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in (*action.option_strings, *(action.choices or ()))]
        words = [word for word in self.asked if word not in known]
        near = [match for word in words for match in difflib.get_close_matches(word, map(str, known), n=1, cutoff=0.75)]
        hint = f"; did you mean {near[0]!r}?" if near else ""
        self.exit(MISTAKE, f"{self.prog}: {message}{hint}\nusage: {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="floral", description="The stages of FLoRAL-Bench. Snakemake calls them in order; each works alone."
    )
    parser.add_argument("--version", action="version", version=floral.__version__)
    parser.add_argument("--log", type=Path, metavar="FILE", help="also write messages and errors there")
    commands = parser.add_subparsers(dest="command", required=True, metavar="STAGE")

    def command(name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(handler=handler)
        return sub

    fetch = command("fetch", _fetch, "download and check a data set of config/data.lock, or read a task's own data")
    fetch.add_argument("data", help="a name in config/data.lock, or a task with data of its own")
    fetch.add_argument("--suite", help="that sets the task's own data")
    fetch.add_argument("--data-dir", type=Path, help="a folder with the raw files already there (or FLORAL_DATA)")

    partition = command("partition", _partition, "divide a task's data among its clients")
    train = command("train", _train, "make one run, or continue it")
    for sub in (partition, train):
        sub.add_argument("--suite", required=True)
        sub.add_argument("--task", required=True)
        sub.add_argument("--seed", required=True, type=_natural)
        sub.add_argument("--expect", metavar="HASH8", help="stop if the configuration resolves to another hash")
    train.add_argument("--variant", required=True)
    train.add_argument("--precision", choices=("fp32", "tf32", "bf16"))
    tune = command("tune", _tune, "choose a variant's learning rates and hyper-parameters by its validation loss")
    tune.add_argument("suites", nargs="+", metavar="SUITE")
    tune.add_argument("--write", action="store_true", help="put what finished searches chose into config/tuned")
    for sub in (tune, train):
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"))
        sub.add_argument("--runs-per-gpu", type=_positive(int))
        sub.add_argument("--backend", choices=("auto", "loop", "vmap", "batched"))
        sub.add_argument("--threads", type=_positive(int), default=1)
    train.add_argument("--checkpoint-seconds", type=_positive(float))

    plan = command("plan", _plan, "check a suite and estimate its runs, time and disk")
    plan.add_argument("suites", nargs="*", metavar="SUITE")
    plan.add_argument("--cores", type=_positive(int), default=os.cpu_count() or 1)
    status = command("status", _status, "how far a suite is: done, running, waiting, failed, time left")
    status.add_argument("suite")
    status.add_argument("--json", action="store_true", help="print JSON and nothing else, with every run")
    report = command("report", _report, "make the page, tables and figures of a suite")
    report.add_argument("suite")
    report.add_argument("--partial", action="store_true", help="of what is finished, with a table of what is not")
    report.add_argument("--allow-missing", action="store_true", help="leave out runs whose data are not there")
    track = command("track", _track, "show a suite's runs in MLflow")
    track.add_argument("suite", nargs="?")
    track.add_argument("--create-store", action="store_true", help="only make the database")
    track.add_argument("--follow", action="store_true", help="stream rounds while runs train, until all are finished")
    track.add_argument("--attach", action="store_true", help="only add the suite's report to its MLflow experiment")
    for sub in (plan, status, tune, report, track):
        sub.add_argument("--tasks", nargs="+", metavar="TASK")
        sub.add_argument("--variants", nargs="+", metavar="VARIANT")
    for sub in (plan, status, report, track):
        sub.add_argument("--seeds", nargs="+", type=_natural, metavar="SEED")

    bench = command("bench", _bench, "time the engine and compare it with a bare PyTorch baseline")
    measures = bench.add_subparsers(dest="measured", required=True, metavar="WHAT")
    for name, measure, text in (
        ("engine", _bench_engine, "one task and variant"),
        ("report", _bench_report, "fixed cases with their limits, as a table and figures in reports/bench"),
        ("scale", _bench_scale, "seconds per round and memory by number of clients"),
        (
            "data",
            _bench_data,
            "processor time and memory of reading data sets and of partitioning samples, with their limits",
        ),
    ):
        sub = measures.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(measure=measure)
        if name == "engine":
            sub.add_argument("--task", required=True)
            sub.add_argument("--variant", required=True)
            sub.add_argument("--device", choices=("auto", "cpu", "cuda"))
        if name == "data":
            sub.set_defaults(backend=None, threads=1, rounds=None)
            sub.add_argument(
                "--data", nargs="+", metavar="NAME", help="of config/data.lock; default: those with limits"
            )
        else:
            sub.add_argument(
                "--threads", type=_positive(int), default=_cores(), help="default: the cores that it may use"
            )
            sub.add_argument("--backend", choices=("auto", "loop", "vmap", "batched"))
            sub.add_argument(
                "--rounds", type=_positive(int), help="timed of each; default: as many as take some seconds"
            )
        sub.add_argument("--json", action="store_true", help="print JSON and nothing else; progress goes to stderr")

    show = command("show", _show, "print one run: configuration, curve, log, reason of failure")
    show.add_argument("run", type=Path, metavar="RUN", help="its folder, or task/variant/seed<k>")

    merge = command("merge", _merge, "copy the finished runs of other machines' results into these, checked first")
    merge.add_argument("sources", nargs="+", type=Path, metavar="RESULTS", help="a results folder of another machine")

    reference = command("reference", _reference, "put a suite's finished runs and its report into reports/reference")
    reference.add_argument("suite")

    methods = command("methods", _methods, "list every method by family: its source, and who holds which parameters")
    tasks = command("tasks", _tasks, "list every task by data set: its clients and clusters, and whether it is at hand")
    for sub in (methods, tasks):
        sub.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _positive(kind: type[int] | type[float]) -> Callable[[str], Any]:
    def convert(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive {'whole ' if kind is int else ''}number")
        return value

    return convert


if __name__ == "__main__":
    sys.exit(main())
