"""The committed suites: each resolves to runs, and a suite of all tasks has all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from floral.config import catalogue, paths
from floral.config.reading import ConfigError
from floral.config.suites import suite_runs, suite_searches

BLOCK = {"variants": ["fedavg"], "seeds": [0]}


@pytest.mark.parametrize("suite", catalogue.names("suites"))
def test_every_suite_resolves(suite: str) -> None:
    assert suite_searches(suite) or suite_runs(suite)


def test_all_tasks_are_those_of_the_folder_but_what_does_nothing(write: Callable[..., None]) -> None:
    write("tasks/mine", extends="digits_rotate")
    write("suites/every", title="Every task", runs=[{**BLOCK, "tasks": "all", "task": {"rounds": 1}}])
    found = suite_runs("every")
    assert [run.task.name for run in found] == [name for name in catalogue.names("tasks") if name != "noop"]
    assert "mine" in {run.task.name for run in found} and {run.task.rounds for run in found} == {1}
    assert [run.task.name for run in suite_runs("every", tasks=["mine"])] == ["mine"]


@pytest.mark.parametrize("tasks", ["every", [], None])
def test_tasks_are_names_or_all(write: Callable[..., None], tasks: object) -> None:
    write("suites/mine", title="Mine", runs=[{**BLOCK, "tasks": tasks}])
    with pytest.raises(ConfigError, match=r"config/suites/mine\.yaml: runs\.0\.tasks"):
        suite_runs("mine")


def test_smoke_all_is_of_every_task_and_as_cheap_as_its_words_say() -> None:
    (block,) = yaml.safe_load((paths.CONFIG_FOLDER / "suites" / "smoke_all.yaml").read_text())["runs"]
    assert block["tasks"] == "all" and len(block["variants"]) == 3 and len(block["seeds"]) == 1
    assert all(run.task.rounds == 2 for run in suite_runs("smoke_all"))


def test_a_suite_may_assume_another_number_of_clusters_but_not_with_the_true_ones(write: Callable[..., None]) -> None:
    block = {"tasks": ["digits_rotate"], "seeds": [0], "task": {"assumed_clusters": 2}}
    write("suites/wrong", title="Wrong", runs=[{**block, "variants": ["floral_1"]}])
    (run,) = suite_runs("wrong")
    assert run.task.assumed == 2 and run.partition == suite_runs("quickstart", ["digits_rotate"])[0].partition
    write("suites/oracle", title="Oracle", runs=[{**block, "variants": ["floral_1_optimal"]}])
    with pytest.raises(ConfigError, match=r"'floral_1_optimal' reads the true clusters, .*assumed_clusters: 2.*remove"):
        suite_runs("oracle")
    write("suites/many", title="Many", runs=[{**block, "variants": ["floral_1"], "task": {"assumed_clusters": 21}}])
    with pytest.raises(ConfigError, match="`assumed_clusters: 21` is more than `clients: 20`"):
        suite_runs("many")


def test_shares_of_the_scarcity_suite_have_the_same_local_steps_rounds_and_rates() -> None:
    runs = suite_runs("scarcity", ["mnist_rotate"])
    assert {run.task.partition.share for run in runs} == {0.025, 0.05, 0.1, 0.25, 1.0}
    assert {(run.task.local_steps(4), run.task.rounds, run.task.router_lr) for run in runs} == {(5, 500, 0.1)}
