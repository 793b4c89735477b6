"""The report of a small suite with every kind of run in it."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from printed import read_page
from run_folders import CLIENTS, COSTS, accuracy, make_run, write_suite

from floral.config import catalogue
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.suites import suite_runs
from floral.core.units import BYTES_PER_FLOAT
from floral.io.locks import held
from floral.report import build as report_stage
from floral.report import commands, sentences
from floral.report.build import report
from floral.report.charts.render import PRESETS
from floral.report.collect import IDENTITY, collect
from floral.report.compared import CHANGES
from floral.report.draw import draw
from floral.report.frames import unseen_accuracy
from floral.report.route_frames import last_routes
from floral.report.sections.base import Part, Section
from floral.report.sections.costs import client_floats, cost_cells
from floral.report.sections.failures import without_result
from floral.report.sections.main_table import main_cells
from floral.report.statistics import binomial_null
from floral.report.style import method_styles
from floral.report.summarise import differences, intervals
from floral.report.tables import EMPTY, Cell, Column, grid
from floral.report.templates import template_yaml
from floral.report.worst_clients import worst
from floral.runs.state import LOCK

UNSEEN = {"seen_cluster": 4, "new_concept": 4}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with the results and the report of `write_suite`. Building it takes seconds, so the tests share it."""
    folder = tmp_path_factory.mktemp("whole")
    report("quickstart", write_suite(folder / "results"), folder / "results", folder / "reports", partial=True)
    return folder


@pytest.fixture
def built(tmp_path, whole) -> Path:
    """The folder of a report, in a copy of `whole` that a test may change."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    return tmp_path / "reports" / "quickstart"


def test_summary_has_one_row_per_run(suite_runs, built):
    summary = pl.read_parquet(built / "summary.parquet")
    assert summary.columns[: len(IDENTITY)] == list(IDENTITY)
    assert summary.height == len(suite_runs) == 15
    counts = dict(summary["status"].value_counts().iter_rows())
    assert counts == {"done": 12, "diverged": 1, "failed": 1, "missing": 1}
    assert summary["hash8"].to_list() == [run.hash8 for run in suite_runs]
    regression = summary.filter(pl.col("task") == "synthetic_linear")
    assert regression["test_accuracy"].null_count() == 4 and regression["test_loss"].null_count() == 0


def test_summary_says_what_a_suite_changes(tmp_path):
    """Rows of one task and variant are told apart by it."""

    def run(task=None, method=None, switches=None):
        return Run(
            task=catalogue.task("digits_rotate", task), variant=catalogue.variant("floral_1", method), seed=0,
            fidelity=catalogue.fidelity("official", switches),
        )  # fmt: skip

    half, shuffled = {"partition": {"share": 0.5}}, {"batches": "reshuffled"}
    runs = [run(), run(switches=shuffled), run(task=half), run(method={"rank": 4})]
    collected = collect("quickstart", runs, tmp_path)
    assert sentences.tasks(collected) == "1 task in 3 configurations"
    assert collected.summary.select(CHANGES).rows() == [
        ("{}", "{}", "{}"),
        ("{}", "{}", '{"batches": "reshuffled"}'),
        ('{"partition.share": 0.5}', "{}", "{}"),
        ("{}", '{"rank": 4}', "{}"),
    ]


def test_page_stands_alone(built):
    page = read_page(built / "index.html")
    assert not re.search(r'(?:src|href)="(?!#|data:,|(?:figures|tables)/[^"]*" download)', page)
    assert not re.search(r"url\((?!#)", page) and "@import" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r"url\(#([^)]+)\)", page):
        assert reference in ids


def test_page_says_what_is_lost_and_how_to_complete_it(built):
    page = read_page(built / "index.html")
    for told in ("2 of 15 runs", "1/3 diverged", "1/3 failed, 1/3 missing", "out of memory. use --backend loop.",
                 "MemoryError: &lt;none left&gt;", '<span class="word">suite=quickstart</span>', "n = 1;"):  # fmt: skip
        assert told in page, told


def test_every_figure_has_alt_text_and_a_pdf(built):
    page = read_page(built / "index.html")
    assert (
        page.count('<svg role="img" aria-label="')
        == page.count('<figure class="plot"')
        == len(list((built / "figures").glob("*.svg")))
    )
    pdfs = list((built / "figures").glob("*.pdf"))
    assert len(pdfs) == page.count('<figure class="plot"')
    assert all(path.read_bytes().startswith(b"%PDF") for path in pdfs)


def test_tables_are_latex(built):
    main = (built / "tables" / "main.tex").read_text(encoding="utf-8")
    assert main.count(r"\begin{tabular") == main.count(r"\end{tabular") == 1
    assert r"FLoRAL 1 \%" in main and r"$\pm$" in main and not set("−±–Δ") & set(main)


def test_same_results_same_bytes(suite_runs, results, built):
    first = contents(built)
    report("quickstart", suite_runs, results, built.parent, partial=True)
    assert contents(built) == first
    assert {path.name for path in built.parent.iterdir()} == {"quickstart", "index.html"}


def test_incomplete_suite_needs_partial(tmp_path, results, suite_runs):
    with pytest.raises(ConfigError, match=rf"2 of 15 runs have no result in {results} .*snakemake .*--partial"):
        report("quickstart", suite_runs, results, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_last_good_report_survives_a_failure(suite_runs, results, built):
    before = contents(built)
    (results / suite_runs[0].folder / "metrics.parquet").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="the result cannot be read"):
        report("quickstart", suite_runs, results, built.parent, partial=True)
    assert contents(built) == before


def test_needs_nothing_but_the_run_folders(tmp_path, results, suite_runs):
    assert [path.name for path in results.iterdir()] == ["train"]
    assert report("quickstart", suite_runs, results, tmp_path / "reports", partial=True).exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "failure.json of this run is unreadable (Expecting property name"),
        ("[]", "failure.json of this run is unreadable (the content is not a mapping)."),
        ("{}", "no reason was recorded (failure.json lacks reason, exception, traceback, hint, time)."),
        ('{"reason": "disk full", "exception": null, "traceback": "", "hint": "free space", "time": ""}',
         "disk full. free space."),
        ('{"reason": "mistake", "exception": "ConfigError: task x: lr: too low", "traceback": "", "hint": "mend it", '
         '"time": ""}', "mistake: task x: lr: too low. mend it."),
    ],
)  # fmt: skip
def test_whatever_a_failed_run_left_is_told(results, text, reason):
    run = make_run("digits_rotate", "fedavg", 0)
    (results / run.folder).mkdir(parents=True)
    (results / run.folder / "failure.json").write_text(text)
    (row,) = without_result(collect("quickstart", [run], results))
    assert row["status"] == "failed" and row["exception"] == ""
    assert row["reason"].startswith(reason)


def test_a_killed_run_has_failed_and_a_running_one_is_missing(results):
    run = make_run("digits_rotate", "fedavg", 0)
    (results / run.folder).mkdir(parents=True)
    (results / run.folder / "run.yaml").write_text("{}")
    (row,) = without_result(collect("quickstart", [run], results))
    assert row["status"] == "failed"
    assert (
        row["reason"] == "ended without a message: killed, out of memory, or power failure. the same command continues."
    )
    with held(results / run.folder / LOCK, "training this run"):
        (row,) = without_result(collect("quickstart", [run], results))
    assert (row["status"], row["reason"]) == ("missing", "running now")


def test_runs_on_different_partitions_are_not_paired(results, write):
    """The same folder name with other samples, for example after a change of the partition code."""
    first, second = (make_run("digits_rotate", variant, 0) for variant in ("fedavg", "local"))
    write(first)
    changed = write(second) / "summary.json"
    summary = json.loads(changed.read_text())
    changed.write_text(json.dumps(summary | {"partition_digest": "f" * 64}))
    with pytest.raises(ConfigError, match=r"^folder .*: this run used another partition \(ffffffff\)") as refused:
        collect("quickstart", [first, second], results)
    assert str(first.folder) in str(refused.value) and str(second.folder) in str(refused.value)
    assert "cannot be read" not in str(refused.value)
    changed.write_text(json.dumps(summary))
    assert collect("quickstart", [first, second], results).summary.height == 2


def test_measured_costs_are_means_over_the_seeds_that_are_done(results, write):
    runs = [make_run("digits_rotate", "fedavg", seed) for seed in (0, 1, 2)]
    for run, status, seconds in zip(runs, ("done", "done", "diverged"), (1.0, 3.0, 90.0), strict=True):
        spent = {**COSTS, "seconds": {**COSTS["seconds"], "total": seconds}}
        (write(run, status) / "costs.json").write_text(json.dumps(spent))
    found = collect("quickstart", runs, results)
    assert cost_cells(found, found.configurations[0])["fedavg"]["seconds"].order == 2.0
    found = collect("quickstart", runs[2:], results)
    cells = cost_cells(found, found.configurations[0])["fedavg"]
    assert cells["seconds"] == EMPTY and cells["served"].order == 4810


def test_the_adaptors_of_floral_stand_in_per_cent_of_the_base(results, write):
    runs = [make_run("digits_rotate", variant, 0) for variant in ("floral_1", "ensemble", "local")]
    adaptors = runs[0].task.clusters
    for run in runs:
        costs = {**COSTS, "parameters": {**COSTS["parameters"], "server": 4810 + adaptors * 481}}
        (write(run) / "costs.json").write_text(json.dumps(costs))
    found = collect("quickstart", runs, results)
    cells = cost_cells(found, found.configurations[0])
    of_floral = cells["floral_1"]["adaptors"]
    assert (of_floral.text, of_floral.note) == (
        f"{10 * adaptors:.1f}",
        "10.0 each; each rank is at least 1",  # 10 % and not 1 %
    )
    assert cells["ensemble"]["adaptors"] == cells["local"]["adaptors"] == EMPTY


@pytest.mark.parametrize(
    ("narrowing", "typed"),
    [
        ({}, ""),
        ({"tasks": ["digits_rotate"]}, ' tasks="[digits_rotate]"'),
        ({"variants": ["constant"], "seeds": [0]}, ' variants="[constant]"'),
        ({"seeds": [1, 2]}, ' seeds="[1,2]"'),
        ({"tasks": ["digits_rotate"], "variants": ["fedavg", "local"]},
         ' tasks="[digits_rotate]" variants="[fedavg,local]"'),
    ],
)  # fmt: skip
def test_the_completing_command_asks_for_the_same_runs(narrowing, typed):
    runs = suite_runs("quickstart", **narrowing)
    assert commands.command("quickstart", runs) == f"snakemake --profile local --config suite=quickstart{typed}"


def test_nothing_finished_yet(tmp_path, results):
    page = report("quickstart", [make_run("digits_rotate", "fedavg", 0)], results, tmp_path / "reports", partial=True)
    assert "1 not run yet" in read_page(page)


def test_one_seed_invents_no_interval(tmp_path, results, write):
    runs = [make_run("digits_rotate", variant, 0) for variant in ("fedavg", "floral_1")]
    for run in runs:
        write(run)
    path = report("quickstart", runs, results, tmp_path / "reports", figures="slide")
    assert 'width="720"' in (path.parent / "figures" / "rounds_digits_rotate.svg").read_text()
    page = read_page(path)
    cells = re.findall(r'<span class="cell[^>]*>([^<]*)</span>', page)
    assert "60.0" in cells and "85.0" in cells and not any("±" in cell for cell in cells)


# ------------------------------------------------------------------------------------ numbers by hand


def test_intervals_and_differences_by_hand(results, suite_runs):
    collected = collect("quickstart", suite_runs, results)
    configuration = collected.configurations[0]
    floral = intervals(collected, configuration)["floral_1"]
    # seeds 85, 86, 87 %: mean 86, s = 1, half width 4.3027/√3
    assert (floral.mean, floral.n) == (pytest.approx(86), 3) and floral.half_width == pytest.approx(2.4841, abs=1e-4)
    paired = differences(collected, configuration)
    assert paired["constant"].mean == pytest.approx(-75) and paired["constant"].low is None
    assert paired["ensemble"].n == 1 and "floral_1" not in paired
    assert "fedavg" not in paired  # a seed of it diverged
    loss = differences(collected, collected.configurations[1])["fedavg"]
    # errors are compared by their ratios: 1.5/1.25 and 1.49/1.24
    assert loss.mean == pytest.approx(math.sqrt(1.5 / 1.25 * 1.49 / 1.24)) and loss.neutral == 1 and loss.n == 2


def told(collected, configuration=0):
    return main_cells(collected, shown(collected), collected.configurations[configuration])


def shown(collected):
    return method_styles(collected.methods, template_yaml("styles.yaml"))


def test_marks_leave_out_oracles_controls_and_methods_that_diverged(results, write):
    variants = {"fedavg": "diverged", "ensemble": "done", "floral_1": "done", "floral_1_optimal": "done"}
    runs = [make_run("digits_rotate", variant, seed) for variant in (*variants, "local") for seed in range(5)]
    for run in runs[:-5]:
        write(run, variants[run.variant.name])
    finished = told(collect("quickstart", runs[:-5], results))
    assert {name for name, row in finished.items() if row["value"].mark} == {"floral_1"}
    assert not any(row["value"].mark for row in told(collect("quickstart", runs, results)).values())


def test_diverged_seeds_are_counted_and_leave_a_mean_only_where_the_fidelity_drops_them(results, write):
    runs = [make_run("digits_rotate", "fedavg", seed, name) for name in ("corrected", "official") for seed in (0, 1, 2)]
    for run in runs:
        write(run, "diverged" if run.seed == 2 else "done")
    collected = collect("quickstart", runs, results)
    corrected, official = (told(collected, configuration)["fedavg"] for configuration in (0, 1))
    assert corrected == {"value": Cell(text="1/3 diverged", note="no mean; done: 60.0, 61.0")}
    assert official["value"].text.startswith("60.5") and official["value"].note == "n = 2; 1/3 diverged"
    assert official["official"].text.startswith("58.5") and official["official"].note == "n = 2; 1/3 diverged"
    assert set(draw(collected, shown(collected), collected.configurations[0], PRESETS["column"])) >= {
        "rounds",
        "spread",
    }


def test_loss_is_better_when_lower(results, suite_runs):
    cells = told(collect("quickstart", suite_runs, results), 1)
    assert cells["floral_1"]["value"].text.startswith("1.2")  # 2.1 - 0.855
    assert cells["floral_1"]["value"].mark == "", "two seeds rank nothing"


def test_loss_is_best_when_least(results, write):
    runs = [make_run("synthetic_linear", variant, seed) for variant in ("fedavg", "floral_1") for seed in range(5)]
    for run in runs:
        write(run)
    cells = told(collect("quickstart", runs, results))
    assert cells["floral_1"]["value"].mark == "best" and cells["fedavg"]["value"].mark == ""


def test_worst_of_own_rows_and_its_null(results, suite_runs):
    collected = collect("quickstart", suite_runs, results)
    found = {
        which: {one.method: one for one in worst(collected, collected.configurations[0], which)}
        for which in ("decile", "cluster")
    }
    # hits of floral_1, each seed: 11 of client 0, 13 of the others of its cluster, 17 of the other cluster's clients
    decile, cluster = found["decile"]["floral_1"], found["cluster"]["floral_1"]
    assert decile.observed == {0: 11 / 20, 1: 11 / 20, 2: 11 / 20}  # 8 clients: the worst decile is the worst client
    assert cluster.observed == {0: 50 / 80, 1: 50 / 80, 2: 50 / 80}
    assert decile.null == binomial_null([20] * 8, 118 / 160, 1)
    assert cluster.null == binomial_null([80, 80], 118 / 160, 1)
    assert "fedavg" not in found["decile"] and worst(collected, collected.configurations[1], "decile") == []


def test_learned_clusters_are_renumbered_to_match(results, suite_runs):
    collected = collect("quickstart", suite_runs, results)
    frame, seeds = last_routes(collected, collected.configurations[0], ["floral_1"])
    assert seeds == {"floral_1": 0} and frame.height == 2 * CLIENTS
    matched = frame.filter(pl.col("cluster") == pl.col("true_cluster"))
    assert sorted(set(matched["weight"])) == pytest.approx([0.8, 0.9])


def test_namesakes_are_told_apart(results, write):
    runs = [make_run("digits_rotate", "fedavg", 0, fidelity) for fidelity in ("official", "corrected")]
    runs.append(make_run("digits_rotate", "fedavg", 0, lr=0.05))
    for run in runs:
        write(run)
    collected = collect("quickstart", runs, results)
    assert [configuration.id for configuration in collected.configurations] == [
        "digits_rotate",
        "digits_rotate-2",
        "digits_rotate-3",
    ]
    titles = [configuration.title for configuration in collected.configurations]
    assert len(set(titles)) == 3 and "official" in titles[0] and "lr 0.05" in titles[2]
    assert collected.summary["official_score"].to_list() == [pytest.approx(0.58), None, None]
    assert collected.summary["official_score_sampled"].to_list() == [pytest.approx(0.57), None, None]


def test_down_and_up_are_bytes_as_the_engine_bills_them(results, write):
    run = make_run("digits_rotate", "fedavg", 0)
    write(run)
    found = collect("quickstart", [run], results)
    cells = cost_cells(found, found.configurations[0])["fedavg"]
    assert cells["sent_down"].order == cells["sent_up"].order == BYTES_PER_FLOAT * 4810
    assert cells["trainable_per_client"].order == 4810 and cells["client_passes"].order == 40
    assert cells["held"].order == BYTES_PER_FLOAT * (4810 + 4810)  # the model, and a gradient for all of it


@pytest.mark.parametrize(
    ("served", "sent_down", "kept_private", "trained", "floats"),
    [
        pytest.param(10, 40, 0, 10, 50, id="gets four models, trains one"),
        pytest.param(10, 4, 0, 4, 14, id="what is frozen is not sent again"),
        pytest.param(12, 10, 2, 12, 24, id="a head of its own"),
        pytest.param(20, 10, 20, 20, 50, id="a model of its own beside the shared one"),
        pytest.param(10, 0, 0, 10, 0, id="pooled"),
    ],
)
def test_a_client_holds_what_it_gets_serves_or_keeps_and_gradients(served, sent_down, kept_private, trained, floats):
    counted = {"served": served, "sent_down": sent_down, "kept_private": kept_private, "trainable_per_client": trained}
    assert client_floats(counted) == floats


@pytest.mark.parametrize(
    "module", ["report.statistics", "report.tables", "report.charts.render", "report.style", "report.build", "cli.show"]
)
def test_never_imports_torch(module):
    code = f"import sys, floral.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_task_that_is_evaluated_on_training_rows_says_so_at_the_top(tmp_path, results, write):
    runs = [make_run(task, "fedavg", 0, "official") for task in ("cifar100_reduced", "digits_rotate")]
    for run in runs:
        write(run)
    report("quickstart", runs, results, tmp_path / "reports")
    page = read_page(tmp_path / "reports" / "quickstart" / "index.html")
    (notice,) = re.findall(r"<p class=\"notice\">.*?Evaluated on training samples.*?</p>", page)
    assert "CIFAR-100" in notice and "Digits" not in notice


def test_methods_that_serve_one_model_to_all_are_marked(tmp_path, results, write):
    runs = [make_run("digits_rotate", variant, 0) for variant in ("fedavg", "ensemble", "floral_1")]
    for run in runs:
        write(run)
    report("quickstart", runs, results, tmp_path / "reports")
    page = read_page(tmp_path / "reports" / "quickstart" / "index.html")
    told = dict(re.findall(r"<code>(\w+)</code></dt>\s*<dd>(.*?)</dd>", page, re.DOTALL))
    marked = {
        name for name, text in told.items() if "serves one model to all clients and cannot fit a concept shift" in text
    }
    assert told.keys() == {run.variant.name for run in runs} and marked == {"fedavg"}


def test_unseen_clients_are_shown_by_kind_and_number_of_samples(tmp_path, results, write):
    variants = ("fedavg", "ensemble", "floral_1_optimal")
    runs = [make_run("digits_rotate", variant, seed, unseen=UNSEEN) for variant in variants for seed in (0, 1)]
    for run in runs:
        write(run)
    collected = collect("quickstart", runs, results)
    (configuration,) = collected.configurations
    seen = unseen_accuracy(collected, configuration, "seen_cluster")
    row = seen.row(by_predicate=(pl.col("method_id") == "ensemble") & (pl.col("x") == 10), named=True)
    assert row["seeds"] == pytest.approx([(80 + 2 * 70) / 3, (81 + 2 * 71) / 3])  # by test rows: 20 and 40
    assert (row["low"], row["high"]) == pytest.approx(tuple(row["seeds"]))
    assert unseen_accuracy(collected, configuration, "new_concept")["method_id"].unique().sort().to_list() == [
        "ensemble",
        "fedavg",
    ]
    report("quickstart", runs, results, tmp_path / "reports")
    page = read_page(tmp_path / "reports" / "quickstart" / "index.html")
    assert "Seen cluster, highest mean: with 1 sample Ensemble (73.8" in page
    assert "New concept, highest mean: with 1 sample Ensemble (40.2" in page
    assert "In each seed, 4 clients of seen clusters and 4 of new concepts join. Each trains" in page
    assert "8 and 8 unseen" in page
    table = (tmp_path / "reports" / "quickstart" / "tables" / "unseen_digits_rotate.tex").read_text()
    assert table.count("n/a") == 3 and r"73.8 $\pm$" in table
    assert (tmp_path / "reports" / "quickstart" / "figures" / "unseen_new_concept_digits_rotate.svg").exists()


def test_a_suite_without_unseen_clients_has_no_section_on_them(tmp_path, results, write):
    run = make_run("synthetic_linear", "fedavg", 0)
    write(run)
    page = read_page(report("quickstart", [run], results, tmp_path / "reports"))
    assert 'id="unseen"' not in page
    (results / run.folder / "summary.json").unlink()
    lost = make_run("digits_rotate", "fedavg", 0, unseen=UNSEEN)
    (write(lost) / "unseen.parquet").unlink()
    with pytest.raises(ConfigError, match=r"the result cannot be read .*unseen\.parquet.* delete this folder and run"):
        collect("quickstart", [lost], results)


def test_a_skewed_task_says_on_which_rows_it_is_evaluated(tmp_path, results, write):
    run = make_run("digits_dirichlet", "fedavg", 0)
    write(run)
    page = read_page(report("quickstart", [run], results, tmp_path / "reports"))
    assert "on its own test samples, and clients are weighted by their numbers of" in page


def test_text_is_told_per_character_with_its_perplexity(tmp_path, results, write):
    runs = [make_run("shakespeare_tiny", "fedavg", seed) for seed in (0, 1)]
    for run in runs:
        write(run)
    page = read_page(report("quickstart", runs, results, tmp_path / "reports"))
    losses = [2.1 - accuracy(run) for run in runs]
    mean = sum(math.exp(loss) for loss in losses) / 2
    assert "Accuracy\u00a0per\u00a0character" in page or "Accuracy per character" in page.replace("\u00a0", " ")
    assert "Perplexity per character" in page.replace("\u00a0", " ")
    assert f">{mean:.2f} " in page.replace("\u00a0", " ") and "as hard to guess" in page


def test_where_a_task_makes_a_method_another_one_the_report_warns_beside_the_table(tmp_path, results, write):
    """Clients have 50 rows: one step of 64 a round, two of 32."""
    for batch, warned in ((64, True), (32, False)):
        tasks = ("digits_rotate", "digits_label_shift")
        runs = [
            make_run(task, variant, 0, batch=batch, epochs=1) for task in tasks for variant in ("fedavg", "fedprox")
        ]
        for run in runs:
            write(run)
        report("quickstart", runs, results, tmp_path / "reports")
        page = read_page(tmp_path / "reports" / "quickstart" / "index.html")
        told = "FedProx is identical to FedAvg here, because every client takes one local step per round."
        assert page.count(told) == warned, "both tasks share a sentence"
        assert (told in page) == ("One method under two names" in page) == warned


def test_what_a_server_sees_stands_beside_what_uploaded_routes_give_away(built):
    page = read_page(built / "index.html")
    (section,) = re.findall(r'<section id="seen">.*?</section>', page, re.DOTALL)
    rows = {
        unbroken_name(row): re.findall(r'<span class="cell[^>]*>([^<]*)</span>', row)
        for row in re.findall(r"<tr>.*?</tr>", section, re.DOTALL)
        if "swatch" in row
    }
    assert rows["FLoRAL 1 %"] == ["sizes, routes", "yes", "1.00", "1.00"]
    assert rows["FLoRAL 1 % (optimal router)"] == ["sizes, routes", "yes", "\u2013", "\u2013"]  # told, not leaked
    assert rows["FedAvg"][:3] == ["sizes", "yes", "\u2013"] and rows["Constant"][:3] == ["rows", "no", "\u2013"]


def unbroken_name(row: str) -> str:
    return re.search(r"</span>([^<]*)</th>", row)[1].replace("\u00a0", " ")


def test_a_section_is_one_function_and_what_it_makes_is_shown_and_written(tmp_path, results, write, monkeypatch):
    def made(material):
        table = grid("mine", [Column(id="x", title="X")], [(style, {}) for style in material.styles.values()], "")
        return Section(id="main", parts=(Part(title="Of mine", table=table, note="A note."),))

    monkeypatch.setattr(report_stage, "SECTIONS", (made,))
    run = make_run("digits_rotate", "fedavg", 0)
    write(run)
    page = read_page(report("quickstart", [run], results, tmp_path / "reports"))
    assert (
        re.findall(r'<section id="(\w+)">', page) == ["main"]
        and (tmp_path / "reports/quickstart/tables/mine.tex").exists()
    )


def test_titles_name_what_a_run_changes_and_nothing_else(tmp_path):
    """A suite that changes one value at a time names that value, and what it leaves as it is stays short."""
    runs = suite_runs("paper", ["digits_rotate", "mnist_rotate_reduced"], ["floral_1"], [0])
    found = collect("paper", runs, tmp_path)
    titles = {one.title for one in found.methods}
    assert {"FLoRAL 1 %", "FLoRAL 1 %, temperature 5.0", "FLoRAL 1 %, rank full"} <= titles
    configurations = [one.title for one in found.configurations]
    assert "MNIST, rotated per cluster, 5 % of the data, fidelity official" in configurations
    assert "MNIST, rotated per cluster, 5 % of the data, fidelity corrected, router_lr 0.02" in configurations
    assert len(set(configurations)) == len(configurations)
