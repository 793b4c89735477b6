"""`floral show`: one run on the terminal."""

import os
from pathlib import Path

import numpy as np
import pytest
from run_folders import make_run

from floral.cli.show import show as show_run
from floral.cli.show import sparkline
from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.io.locks import held
from floral.runs.state import LOCK


@pytest.fixture
def show(results, suite_runs):
    """`show` with these results, in which the runs of the suite lie."""
    return lambda folder: show_run(folder, results)


@pytest.mark.parametrize("name", ["digits_rotate/floral_1/seed0", "digits_rotate/floral_1/0"])
def test_by_name(capsys, name, show):
    show(Path(name))
    output = capsys.readouterr().out
    for words in ("FLoRAL 1 %", "· done", "rank 0.01", "test_accuracy", "0.8500", "█", "last line", "400 MB"):
        assert words in output


def test_a_name_of_two_runs_names_both_and_how_to_see_the_other(capsys, results, write):
    runs = [make_run("digits_rotate", "fedavg", 9, batch=batch) for batch in (4, 8)]
    first, second = (write(run) for run in runs)
    os.utime(first, (1, 1))
    show_run(Path("digits_rotate/fedavg/9"), results)
    _, _, said, changes, *_ = capsys.readouterr().out.splitlines()
    assert said.startswith(f"2 runs have the name digits_rotate/fedavg/9. This is {second.name}, which changed last.")
    assert said.endswith(f"floral show digits_rotate/fedavg/{first.name}")
    assert changes.startswith("This run has other values than ") and "digits_rotate.yaml: batch 8" in changes
    show_run(Path(f"digits_rotate/fedavg/{first.name}"), results)
    assert "2 runs" not in capsys.readouterr().out


def test_a_folder_without_runs_says_how_to_make_them(tmp_path):
    with pytest.raises(ConfigError, match=r"has no runs yet; make them with `snakemake --profile local`"):
        show_run(Path("digits_rotate/fedavg/0"), tmp_path)


def test_by_folder(capsys, results, suite_runs, show):
    show(results / suite_runs[0].folder)
    assert "FedAvg" in capsys.readouterr().out


def test_the_configuration_is_described_as_it_is(capsys, tmp_path, results, write):
    """Custom data, a task with one concept, a cohort of one client and a changed switch."""
    np.savez(tmp_path / "mine.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    data = {"kind": "arrays", "path": str(tmp_path / "mine.npz")}
    run = make_run("digits_rotate", "fedavg", 0, data=data, shift={"kind": "none"}, participation=0.01)
    run = run.model_copy(update={"fidelity": catalogue.fidelity("corrected", {"batches": "fixed"})})
    show_run(write(run), results)
    output = capsys.readouterr().out
    for words in ("custom data (arrays mine.npz); 8 clients without true clusters", "1 of 8 clients in each",
                  "corrected, except batches fixed"):  # fmt: skip
        assert words in output


def test_failed_run_says_why(capsys, show):
    show(Path("digits_rotate/ensemble/1"))
    output = capsys.readouterr().out
    assert "failed" in output and "out of memory" in output and "use --backend loop" in output and "Traceback" in output


def test_a_killed_run_is_failed_unless_its_lock_is_held(capsys, results, show):
    folder = results / "train" / "digits_rotate" / "ensemble" / "seed5-01234567"
    folder.mkdir(parents=True)
    (folder / LOCK).write_text(f"process 7 on {os.uname().nodename}")
    show(Path("digits_rotate/ensemble/5"))
    output = capsys.readouterr().out
    assert (
        "· failed" in output
        and "killed, out of memory, or power failure" in output
        and "the same command continues" in output
    )
    with held(folder / LOCK, "training this run"):
        show(folder)
    assert "· running" in (output := capsys.readouterr().out) and "Failure" not in output


def test_diverged_run_says_when(capsys, show):
    show(Path("digits_rotate/fedavg/2"))
    assert "diverged  at round 3" in " ".join(capsys.readouterr().out.split()).replace("diverged at", "diverged  at")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits_rotat/fedavg/0", "did you mean 'digits_rotate'"),
        ("digits_rotate/fedavq/0", "did you mean 'fedavg'"),
        ("digits_rotate/fedavg/9", "unknown seed"),
        ("digits_rotate", "contains: constant, ensemble"),
    ],
)
def test_unknown_names_suggest(name, words, show):
    with pytest.raises(ConfigError, match=words):
        show(Path(name))


def test_torn_summary_names_the_file(results, suite_runs, show):
    (results / suite_runs[0].folder / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"summary\.json: unreadable"):
        show(results / suite_runs[0].folder)


def test_sparkline():
    assert sparkline([0.0, 1.0], 10) == "▁█" and sparkline([1.0, 1.0], 10) == "▁▁"
    assert sparkline([0.0, float("nan"), None, 1.0], 10) == "▁××█"
    assert len(sparkline([float(i) for i in range(500)], 60)) == 60
