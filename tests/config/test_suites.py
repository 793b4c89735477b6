"""The committed suites: each resolves to runs, and a suite of all tasks has all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from floral import config
from floral.config import ConfigError

BLOCK = {"variants": ["fedavg"], "seeds": [0]}


@pytest.mark.parametrize("suite", config.names("suites"))
def test_every_suite_resolves(suite: str) -> None:
    assert config.searches(suite) or config.runs(suite)


def test_all_tasks_are_those_of_the_folder_but_what_does_nothing(write: Callable[..., None]) -> None:
    write("tasks/mine", extends="digits_rotate")
    write("suites/every", title="Every task", runs=[{**BLOCK, "tasks": "all", "task": {"rounds": 1}}])
    found = config.runs("every")
    assert [run.task.name for run in found] == [name for name in config.names("tasks") if name != "noop"]
    assert "mine" in {run.task.name for run in found} and {run.task.rounds for run in found} == {1}
    assert [run.task.name for run in config.runs("every", tasks=["mine"])] == ["mine"]


@pytest.mark.parametrize("tasks", ["every", [], None])
def test_tasks_are_names_or_all(write: Callable[..., None], tasks: object) -> None:
    write("suites/mine", title="Mine", runs=[{**BLOCK, "tasks": tasks}])
    with pytest.raises(ConfigError, match=r"config/suites/mine\.yaml: runs\.0\.tasks"):
        config.runs("mine")


def test_smoke_all_is_of_every_task_and_as_cheap_as_its_words_say() -> None:
    (block,) = yaml.safe_load((config.CONFIG / "suites" / "smoke_all.yaml").read_text())["runs"]
    assert block["tasks"] == "all" and len(block["variants"]) == 3 and len(block["seeds"]) == 1
    assert all(run.task.rounds == 2 for run in config.runs("smoke_all"))
