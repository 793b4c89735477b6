"""Define the commands of `floral` and their options."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import floral
from floral.cli import commands
from floral.cli.commands import Handler
from floral.core.precision import PRECISIONS
from floral.core.process import usable_cores

MISTAKE = 2
"""Exit code for wrong arguments or a wrong configuration."""

BACKENDS = ("auto", "loop", "vmap", "batched")
DEVICES = ("auto", "cpu", "cuda")
AS_JSON = "print JSON and nothing else"


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. In the parsed arguments, `handler` is the function that runs the command."""
    root = _Parser(
        prog="floral",
        description="The commands of FLoRAL-Bench. Snakemake calls the stages in order; each can also be called alone.",
    )
    root.add_argument("--version", action="version", version=floral.__version__)
    root.add_argument("--log", type=Path, metavar="FILE", help="also write messages and errors to this file")
    subparsers = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, handler: Handler, text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=_sentence(text), allow_abbrev=False)
        sub.set_defaults(handler=handler)
        return sub

    init = command("init", commands.init, "make the folder of a new study, with an example of each file")
    init.add_argument("folder", type=Path, metavar="FOLDER", help="a folder that does not exist yet, or is empty")

    # Stages, in the order in which Snakemake calls them.
    fetch = command("fetch", commands.fetch, "download and check a data set, or read a task's custom data")
    fetch.add_argument("data", help="a name in config/data.lock, or a task with custom data")
    fetch.add_argument("--suite", help="the suite that uses the custom data")
    fetch.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="folder that already has the raw files, or several, separated by `:` (default: FLORAL_DATA)",
    )
    partition = command("partition", commands.partition, "divide a task's samples among its clients")
    partition.add_argument(
        "--export", type=Path, metavar="FILE", help="also write the client and split of each sample to a parquet file"
    )
    tune = command(
        "tune", commands.tune, "choose learning rates and hyper-parameters of a variant by the validation loss"
    )
    tune.add_argument("suites", nargs="+", metavar="SUITE")
    tune.add_argument(
        "--write", action="store_true", help="only write the chosen values of finished searches to config/tuned"
    )
    train = command("train", commands.train, "train one run, or continue it from its checkpoint")
    report = command("report", commands.report, "build the page, tables and figures of a suite")
    report.add_argument("suite", metavar="SUITE")
    report.add_argument("--partial", action="store_true", help="report only the finished runs, and list the others")
    report.add_argument("--allow-missing", action="store_true", help="leave out the runs whose data are missing")
    report.add_argument(
        "--reference",
        action="store_true",
        help="report the committed runs in reports/reference/SUITE, and not those in the results",
    )
    leaderboard = command(
        "leaderboard",
        commands.leaderboard,
        "rank the methods of suites over all their tasks: a page and leaderboard.json",
    )
    leaderboard.add_argument("suites", nargs="+", metavar="SUITE")
    track = command("track", commands.track, "show a suite's runs in MLflow")
    track.add_argument("suite", nargs="?", metavar="SUITE")
    track.add_argument("--create-store", action="store_true", help="only create the MLflow database")
    track.add_argument(
        "--follow", action="store_true", help="send new rounds while runs train, until all runs are finished or failed"
    )
    track.add_argument(
        "--attach", action="store_true", help="only add the report of the suite to its MLflow experiment"
    )

    ui = command("ui", commands.ui, "show the tracked runs in MLflow's web page")
    ui.add_argument("--port", type=_port, default=5000, help="port of the page (default: 5000)")

    # Before, during and after the runs of a suite.
    plan = command("plan", commands.plan, "check suites and estimate the time and disk space of their runs")
    plan.add_argument(
        "suites", nargs="*", metavar="SUITE", help="suites to check (default: `suite` in config/config.yaml)"
    )
    plan.add_argument(
        "--cores",
        type=_positive(int),
        default=os.cpu_count() or 1,
        help="number of runs at the same time (default: all cores)",
    )
    status = command("status", commands.status, "count done, running, waiting and failed runs; estimate the time left")
    status.add_argument("suite", metavar="SUITE")
    show = command("show", commands.show, "print one run: configuration, result, curves, costs, log, and why it failed")
    show.add_argument("run", type=Path, metavar="RUN", help="the folder of the run, or its name task/variant/seed<k>")
    export = command("export", commands.export, "write the LoRA adaptor of a client, for the package peft")
    export.add_argument("run", type=Path, metavar="RUN", help="the folder of the run, or its name task/variant/seed<k>")
    export.add_argument("--client", type=_natural, required=True, help="the number of the client, from 0 on")
    export.add_argument("--peft", type=Path, required=True, metavar="DIR", help="the new folder of the adapter")
    merge = command(
        "merge", commands.merge, "check finished runs of other machines and copy them into the results folder"
    )
    merge.add_argument("sources", nargs="+", type=Path, metavar="RESULTS", help="a results folder of another machine")
    forget = command("forget", commands.forget, "remove runs, their searches and their tracking, to train them again")
    forget.add_argument("names", nargs="*", metavar="NAME", help="a variant or a task whose runs are removed")
    forget.add_argument("--outdated", action="store_true", help="only runs made by other code; needs no NAME")
    reference = command("reference", commands.reference, "put a suite's finished runs and page into reports/reference")
    reference.add_argument("suite", metavar="SUITE")

    # Lists and checks of methods, models and tasks.
    methods = command(
        "methods", commands.methods, "list all variants by family, with their sources and parameter scopes"
    )
    methods.add_argument(
        "names", nargs="*", metavar="NAME", help="a variant or method, of which all is printed, also its choices"
    )
    tasks = command("tasks", commands.tasks, "list all tasks by data set, and say whether the data are available")
    tasks.add_argument(
        "names", nargs="*", metavar="NAME", help="a task, of which all values are printed, also those that it extends"
    )

    keys = command("keys", commands.keys, "list the keys of a YAML file, with their types, defaults and meanings")
    keys.add_argument(
        "name", metavar="NAME", nargs="?", help="task, suite, method, settings … (default: list the names)"
    )

    _add_check(command("check", commands.check, "test a method, model or task of your own: what holds, fails and why"))
    _add_bench(command("bench", commands.bench, "measure the time and memory of training, reports and data"))

    for sub in (partition, train):
        sub.add_argument("--suite", required=True)
        sub.add_argument("--task", required=True)
        sub.add_argument("--seed", required=True, type=_natural)
        sub.add_argument(
            "--expect", metavar="HASH8", help="the expected hash; stop if the configuration has another one"
        )
    train.add_argument("--variant", required=True)
    train.add_argument(
        "--checkpoint-seconds",
        type=_positive(float),
        metavar="SECONDS",
        help="seconds between two checkpoints of a run",
    )
    for sub, place in ((report, "the report to FOLDER/SUITE"), (leaderboard, "leaderboard.html to FOLDER")):
        sub.add_argument(
            "--reports", type=Path, metavar="FOLDER", help=f"write {place} (default: `reports` in config.yaml)"
        )
    for sub in (tune, train):
        sub.add_argument("--device", choices=DEVICES)
        sub.add_argument(
            "--runs-per-gpu",
            type=_positive(int),
            metavar="N",
            help="maximum number of runs on one GPU at the same time",
        )
        sub.add_argument("--backend", choices=BACKENDS)
        sub.add_argument("--threads", type=_positive(int), default=1, metavar="N", help="CPU threads (default: 1)")
    for sub in (plan, status, tune, report, track):
        sub.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks")
        sub.add_argument("--variants", nargs="+", metavar="VARIANT", help="only these variants")
    for sub in (plan, status, report, track):
        sub.add_argument("--seeds", nargs="+", type=_natural, metavar="SEED", help="only these seeds")
    for sub in (plan, status, report, leaderboard, track, train, reference):
        sub.add_argument(
            "--precision", choices=PRECISIONS, help="precision of the runs (default: `precision` in config.yaml)"
        )
    status.add_argument("--json", action="store_true", help=f"{AS_JSON}, with every run")
    for sub in (methods, tasks):
        sub.add_argument("--json", action="store_true", help=AS_JSON)
    return root


def _add_check(check: argparse.ArgumentParser) -> None:
    kinds = check.add_subparsers(dest="kind", required=True, metavar="WHAT")
    for name, text, meaning in (
        ("method", "train a method on small models, and test what all methods keep", "a method or a variant"),
        ("model", "train a model on small data, and test what all models keep", "a model, or FILE.py:FUNCTION"),
        ("task", "test a task's data, clients and model, and which methods can be used", "a task"),
    ):
        sub = kinds.add_parser(name, help=text, description=_sentence(text), allow_abbrev=False)
        sub.add_argument("name", metavar="NAME", help=meaning)
        if name == "model":
            sub.add_argument(
                "--shape", nargs="+", type=_positive(int), metavar="N",
                help="shape of a sample, such as 32 32 3 (default: the first of common shapes that fits)",
            )  # fmt: skip
            sub.add_argument("--outputs", type=_positive(int), metavar="N", help="number of outputs (default: 5)")
            sub.add_argument(
                "--arguments", type=_mapping, default={}, metavar="YAML",
                help="arguments of the model, as in a task's file: '{hidden: 8}'",
            )  # fmt: skip
            sub.add_argument(
                "--inputs", type=_mapping, default={}, metavar="YAML",
                help="inputs of a module, as in a task's file: '{input_ids: ids}'",
            )  # fmt: skip


def _add_bench(bench: argparse.ArgumentParser) -> None:
    measures = bench.add_subparsers(dest="measured", required=True, metavar="WHAT")
    for name, text in (
        ("engine", "measure the training time of one task and variant, against plain PyTorch"),
        ("report", "measure fixed cases against their limits; write a table and figures to reports/bench"),
        ("scale", "measure seconds per round and memory for several numbers of clients"),
        ("data", "measure time and memory of reading data sets and of partitioning samples, against their limits"),
    ):
        sub = measures.add_parser(name, help=text, description=_sentence(text), allow_abbrev=False)
        if name == "engine":
            sub.add_argument("--task", required=True)
            sub.add_argument("--variant", required=True)
            sub.add_argument("--device", choices=DEVICES)
        if name == "data":
            sub.set_defaults(backend=None, threads=1, rounds=None)
            sub.add_argument(
                "--data",
                nargs="+",
                metavar="NAME",
                help="names in config/data.lock (default: the data sets that have limits)",
            )
        else:
            sub.add_argument(
                "--threads", type=_positive(int), default=usable_cores(), metavar="N",
                help="CPU threads (default: all cores that this process may use)",
            )  # fmt: skip
            sub.add_argument("--backend", choices=BACKENDS)
            sub.add_argument(
                "--rounds", type=_positive(int), metavar="N",
                help="number of measured rounds (default: enough for some seconds)",
            )  # fmt: skip
        sub.add_argument("--json", action="store_true", help=f"{AS_JSON}; progress goes to stderr")


class _Parser(argparse.ArgumentParser):
    """A parser whose error message names its own command, and suggests the closest valid word for a misspelt one."""

    words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.words = sys.argv[1:] if args is None else args
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:  # the parser of a command says so itself; argparse would leave it to the parser of `floral`
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        valid = [str(word) for action in self._actions for word in (*action.option_strings, *(action.choices or ()))]
        misspelt = [word for word in self.words if word not in valid]
        near = [match for word in misspelt for match in difflib.get_close_matches(word, valid, n=1, cutoff=0.75)]
        hint = f"; did you mean {near[0]!r}?" if near else ""
        self.exit(MISTAKE, f"{self.prog}: {message}{hint}\nusage: {self.prog} --help\n")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _natural(text: str) -> int:
    """Return the whole number in `text`, which must be 0 or larger."""
    if not text.isdecimal():
        remedy = "separate several by spaces, such as 0 1" if "," in text else "give 0, 1, …"
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0; {remedy}")
    return int(text)


def _port(text: str) -> int:
    """Return the number of a port, from 1 to 65535."""
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a port; give one from 1024 to 65535")
    return int(text)


def _mapping(text: str) -> dict[str, Any]:
    """Return the mapping that a text in YAML is."""
    import yaml

    from floral.config.reading import load_yaml

    try:
        value = load_yaml(text)
    except (yaml.YAMLError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no mapping; write '{{name: value}}', with quotes around it")
    return value


def _positive(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """Return a function that converts text to a positive number of type `kind`."""

    def convert(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not value > 0:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a positive {'whole ' if kind is int else ''}number; give a number such as 1"
            )
        return value

    return convert
