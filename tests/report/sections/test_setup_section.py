"""The setup paragraph and the checklist say what the runs say, and what nobody recorded is not stated."""

from __future__ import annotations

from run_folders import make_run

from floral.report.collect import collect
from floral.report.sections.provenance import provenance
from floral.report.sections.setup import NOT_STATED, checklist, paragraphs


def test_the_setup_has_the_values_of_the_runs(results, suite_runs):
    collected = collect("quickstart", suite_runs, results)
    made = paragraphs(collected, provenance(collected)["facts"])
    for fact in (
        "8 clients in 2 clusters",
        "In each of 4 rounds",
        "Seeds 0, 1, 2 (not all methods have all seeds): 15 runs, 12 finished, 1 diverged, 1 failed, 1 not run yet.",
        "1 diverged",
        "a CPU",
        "torch 2",
    ):
        assert fact in made["text"], fact
    assert "No values were tuned" in made["text"]
    assert "%" not in made["latex"].replace(r"\%", "") and "_" not in made["latex"].replace(r"\_", "")


def test_what_is_unknown_is_not_stated(results, suite_runs):
    answers = dict(checklist(collect("quickstart", suite_runs[-1:], results), {}, "snakemake …"))
    assert answers["Is the computing time stated?"] == NOT_STATED
    assert answers["Are licences of the data stated?"] == NOT_STATED
    assert answers["Are runs without a result reported?"].startswith("Yes. Runs in all: 1; diverged: 0")


def test_what_differs_from_the_default_has_its_words(results, write):
    change = {
        "server": {"optimiser": "adam", "lr": 0.01}, "augmentation": "flip_crop", "assumed_clusters": 3,
        "normalise": {"mean": [0.5], "std": [0.25]},
    }  # fmt: skip
    runs = [make_run("digits_rotate", "fedavg", 0), make_run("digits_rotate", "fedavg", 0, **change)]
    for run in runs:
        write(run)
    plain, other = (paragraphs(collect("quickstart", [run], results), {})["text"] for run in runs)
    told = (
        "Also: training images: flip and crop; inputs normalised with mean [0.5] and standard deviation [0.25]; "
        "server optimiser ADAM with learning rate 0.01; methods assume 3 clusters. "
    )
    assert told in other and "Also:" not in plain
