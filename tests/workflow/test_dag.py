"""Snakemake from raw data to report: which jobs run, which run again after a change, and what survives an interrupt."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time

from projects import BIN, Project, environment

NOTHING = "Nothing to be done"


def planned(project: Project, rule: str, *config: str) -> list[str]:
    """Wildcards of the jobs of `rule` that a call would run."""
    command = ("snakemake", "--profile", "local", "--dry-run", "--quiet", "host", "--config", "suite=tiny", *config)
    blocks = re.split(r"\n(?=\[)", project.call(*command).stdout)
    jobs = [block for block in blocks if f"rule {rule}:" in block]
    return [line.strip() for block in jobs for line in block.splitlines() if "wildcards:" in line]


def test_a_call_makes_runs_report_and_tracking(finished: Project) -> None:
    assert len(finished.paths("results/train/digits_rotate/*/seed0-*/done")) == 3
    assert finished.path("results/partition/digits_rotate/*/partition.parquet").stat().st_size
    assert (finished.folder / "reports/tiny/index.html").stat().st_size
    assert (finished.folder / "reports/tiny/summary.parquet").stat().st_size
    tracked = json.loads((finished.folder / "results/track/tiny.json").read_text())
    assert len(tracked["runs"]) == 3


def test_a_second_call_runs_nothing(finished: Project) -> None:
    again = finished.snakemake()
    assert (again.returncode, NOTHING in again.stdout) == (0, True), again.stdout


def test_a_changed_value_runs_its_method_only(copy: Project) -> None:
    method = copy.folder / "config/methods/floral.yaml"
    changed = method.read_text().replace("temperature: {default: 1.0", "temperature: {default: 2.0")
    assert changed != method.read_text()
    method.write_text(changed)
    (job,) = planned(copy, "train")
    assert "variant=floral_1," in job
    assert planned(copy, "partition") == []
    assert len(planned(copy, "report")) == 1


def test_a_changed_title_runs_no_training(copy: Project) -> None:
    method = copy.folder / "config/methods/fedavg.yaml"
    method.write_text(method.read_text().replace("title: FedAvg}", "title: Federated averaging}"))
    assert planned(copy, "train") == []


def test_another_device_or_backend_runs_nothing(finished: Project) -> None:
    again = finished.snakemake("backend=loop", "checkpoint_seconds=5")
    assert NOTHING in again.stdout, again.stdout


def test_a_new_partition_file_does_not_train_again(copy: Project) -> None:
    table = copy.path("results/partition/digits_rotate/*/partition.parquet")
    table.write_bytes(table.read_bytes() + b" ")
    assert planned(copy, "train") == []


def test_a_deleted_run_is_made_again(copy: Project) -> None:
    copy.path("results/train/digits_rotate/local/*/done").unlink()
    (job,) = planned(copy, "train")
    assert "variant=local," in job


def test_a_narrower_call_makes_the_report_again_and_no_run(copy: Project) -> None:
    assert len(planned(copy, "report", "variants=[fedavg,local]")) == 1
    assert planned(copy, "train", "variants=[fedavg,local]") == []


def test_results_without_snakemakes_records_are_up_to_date(copy: Project) -> None:
    subprocess.run(["rm", "-r", copy.folder / ".snakemake"], check=True)
    again = copy.snakemake()
    assert NOTHING in again.stdout, again.stdout


def test_a_failed_run_leaves_its_reason_and_a_partial_report(copy: Project) -> None:
    suite = copy.folder / "config/suites/tiny.yaml"
    suite.write_text(suite.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    (job,) = planned(copy, "train", "variants=[fedavg]")
    hash8 = re.search(r"hash8=(\w+)", job)
    assert hash8
    in_the_way = copy.folder / f"results/train/digits_rotate/fedavg/seed1-{hash8[1]}/metrics.parquet"
    (in_the_way / "not empty").mkdir(parents=True)

    config = ("variants=[fedavg]", "--until", "report")  # tests/tracking track runs
    failed = copy.snakemake(*config)
    assert failed.returncode != 0
    assert "partial report: reports/tiny/index.html" in failed.stdout, failed.stdout
    reason = json.loads(copy.path("results/train/digits_rotate/fedavg/seed1-*/failure.json").read_text())
    assert reason["reason"] and reason["traceback"]
    assert len(copy.paths("results/train/digits_rotate/fedavg/seed0-*/summary.json")) == 1

    shutil.rmtree(in_the_way)
    second = copy.snakemake(*config)
    assert second.returncode == 0, second.stdout
    assert "report: reports/tiny/index.html" in second.stdout
    third = copy.snakemake(*config)
    assert third.returncode == 0 and "report: reports/tiny/index.html" not in third.stdout, "nothing is done again"


def test_a_partition_that_outlived_its_head_is_used(copy: Project) -> None:
    """The head was killed while the job of the partition ran. The job then wrote the partition, as a whole.

    Snakemake still has its mark of an incomplete file. If it made the partition again, it would skip the runs that read
    the partition, because this input is `ancient`, and report success.
    """
    shutil.rmtree(copy.folder / "results/train")
    (table,) = copy.paths("results/partition/digits_rotate/*/partition.parquet")
    mark = base64.urlsafe_b64encode(str(table.relative_to(copy.folder)).encode()).decode()
    (copy.folder / ".snakemake/incomplete").mkdir(parents=True, exist_ok=True)
    (copy.folder / ".snakemake/incomplete" / mark).write_text('{"external_jobid": null}')
    assert (len(planned(copy, "partition")), len(planned(copy, "train"))) == (0, 3)


def untrained(project: Project) -> Project:
    """The project without its runs. Its data and its partition stay."""
    shutil.rmtree(project.folder / "results" / "train")
    return project


def started(project: Project, pattern: str) -> subprocess.Popen[bytes]:
    """Start Snakemake in a new session and wait for a file of this pattern. Its output goes to output.txt."""
    command = [BIN / "snakemake", "--profile", "local", "--config", "suite=tiny", "variants=[fedavg,local]"]
    with (project.folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=project.folder, env=environment(), start_new_session=True, stdout=output, stderr=output
        )
    until = time.monotonic() + 60
    while not project.paths(pattern):
        assert process.poll() is None and time.monotonic() < until, (project.folder / "output.txt").read_text()
        time.sleep(0.1)
    return process


def test_after_the_head_was_killed_the_same_call_completes_and_no_run_is_trained_twice(copy: Project) -> None:
    project = untrained(copy)
    suite = project.folder / "config/suites/tiny.yaml"
    suite.write_text(suite.read_text().replace("rounds: 2,", "rounds: 100,").replace("seeds: [0]", "seeds: [0, 1]"))
    runs = "results/train/digits_rotate/*/*"

    head = started(project, f"{runs}/done")
    head.kill()  # kill -9: its jobs go on
    head.wait()
    finished = {path: path.stat().st_mtime_ns for path in project.paths(f"{runs}/summary.json")}
    assert 1 <= len(finished) < 4

    config = ("--config", "suite=tiny", "variants=[fedavg,local]")
    done = project.call("snakemake", "--profile", "local", "--until", "train", *config)
    assert done.returncode == 0, done.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(project.paths(f"{runs}/summary.json")) == 4
    # Each process that trains a run writes one segment.
    assert len(project.paths(f"{runs}/segments/*")) == 4


def test_after_an_interrupt_the_same_call_continues(copy: Project) -> None:
    project = untrained(copy)
    suite = project.folder / "config/suites/tiny.yaml"
    suite.write_text(suite.read_text().replace("rounds: 2,", "rounds: 100,"))
    interrupted = started(project, "results/train/digits_rotate/*/*/run.yaml")
    os.killpg(interrupted.pid, signal.SIGINT)
    assert interrupted.wait(timeout=60) != 0
    output = (project.folder / "output.txt").read_text()
    assert "Interrupted: finished runs are kept, and the same command continues" in output, output

    config = ("--config", "suite=tiny", "variants=[fedavg,local]")
    done = project.call("snakemake", "--profile", "local", "--until", "train", *config)
    assert done.returncode == 0, done.stdout
    assert len(project.paths("results/train/digits_rotate/*/*/summary.json")) == 2
