"""What is known of the data before anything is planned: own data that are not there, and what a task asks in vain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from federations import NOT_TUNED

from floral.cli import tasks
from floral.config import catalogue, data_sets
from floral.config.reading import ConfigError
from floral.config.suites import suite_runs
from floral.runs.missing_data import split_by_data, why_missing
from floral.stages import check_data

ROWS = "length,kind,site\n" + "".join(f"{row}.5,{'ab'[row % 2]},{row % 4}\n" for row in range(40))


@pytest.fixture
def flowers(write: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    """Writes a task of own data, a table with classes and clients that is not there yet; returns the table's path."""

    def written(data: dict[str, Any] | None = None, **partition: Any) -> Path:
        path = tmp_path / "flowers.csv"
        table = {"kind": "table", "path": str(path), "label": "kind", "client": "site", **(data or {})}
        write("tasks/flowers", extends="digits_dirichlet", title="Flowers", data=table, clients=3, clusters=1,
              partition={"min_rows": 1, **partition})  # fmt: skip
        return path

    return written


def test_own_data_that_are_not_there_stop_their_own_task_alone(
    flowers: Callable[..., Path], write: Callable[..., None], tmp_path: Path
) -> None:
    path, results = flowers(kind="natural"), tmp_path / "results"
    (row,) = (row for row in tasks.rows(results) if row.task == "flowers")
    assert row.at_hand == "missing" and row.remedy.startswith(
        f"{path} does not exist; remedy: put it there, or name another"
    )
    runs = suite_runs("smoke_all")
    kept, lines = split_by_data(runs, results)
    assert "synthetic_linear" in {run.task.name for run in kept} and "flowers" not in {run.task.name for run in kept}
    assert f"data missing: {path} does not exist; remedy: put it there, or name another in `data.path` of the task" in (
        "".join(line for line in lines if "flowers" in line)
    )
    before = data_sets.stored_data(catalogue.task("flowers").data)
    with pytest.raises(ConfigError, match=r"^config/tasks/flowers\.yaml.*: `data\.path`: .*flowers\.csv does not"):
        check_data.check([run.task for run in runs], results)
    path.write_text(ROWS)
    write("tasks/other", extends="flowers")  # and whatever is remembered is forgotten
    check_data.check([run.task for run in suite_runs("smoke_all", tasks=["flowers"])], results)
    assert data_sets.stored_data(catalogue.task("flowers").data) != before
    assert why_missing(catalogue.task("flowers"), results) is None


def test_a_missing_tokenizer_is_not_advised_to_be_put_under_the_path_of_the_data(tmp_path: Path) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("text,label\na b,0\nc d,1\n")
    keys = {"kind": "table", "path": str(texts), "label": "label", "text": "text", "tokenizer": str(tmp_path / "bert"),
            "tokens": 4}  # fmt: skip
    task = catalogue.task_of({"extends": "digits_rotate", "data": keys, "model": {"kind": "linear"}}, "test")
    with pytest.raises(
        ConfigError, match=r"`data\.tokenizer`: .*bert/tokenizer\.json does not exist; .* `data\.tokenizer`"
    ):
        check_data.check([task], tmp_path / "results")


@pytest.mark.parametrize(
    ("data", "partition", "message"),
    [
        ({"label": "sort"}, {"kind": "natural"}, r"`data`: .*flowers\.csv: `data\.label` names the column 'sort'"),
        ({}, {"kind": "pathological", "classes_per_client": 3}, r"`partition\.classes_per_client: 3` .* set at most 2"),
        ({}, {"kind": "class_groups", "groups": [[1]]}, r"`partition\.groups`: class 0 of the data is in no list"),
        (
            {"client": None, "features": ["length"]},
            {"kind": "natural"},
            r"`partition\.kind: natural` needs .*name the column of clients in",
        ),
    ],
)
def test_what_own_data_cannot_give_is_refused_before_anything_is_planned(
    flowers: Callable[..., Path], tmp_path: Path, data: dict[str, Any], partition: dict[str, Any], message: str
) -> None:
    flowers(data, **partition).write_text(ROWS)
    with pytest.raises(ConfigError, match=rf"^config/tasks/flowers\.yaml: {message}"):
        check_data.check([catalogue.task("flowers")], tmp_path / "results")


def test_rows_that_are_no_images_are_refused_too(flowers: Callable[..., Path], tmp_path: Path) -> None:
    flowers(kind="natural").write_text(ROWS)
    with pytest.raises(ConfigError, match=r"rotate` needs square images, but samples have shape \[1\]"):
        check_data.check(
            [catalogue.task("flowers", {"shift": {"kind": "rotate"}, "partition": {}})], tmp_path / "results"
        )


def test_clients_that_own_data_lack_are_refused_too(flowers: Callable[..., Path], tmp_path: Path) -> None:
    flowers(kind="natural").write_text(ROWS)
    with pytest.raises(ConfigError, match=r"flowers\.yaml \(as the suite changes it\): .* 5 clients .* only 4 natural"):
        check_data.check([catalogue.task("flowers", {"clients": 5})], tmp_path / "results")


@pytest.mark.usefixtures("write")
def test_classes_are_known_from_data_lock_before_anything_is_fetched(tmp_path: Path) -> None:
    rule = {"kind": "pathological", "classes_per_client": 11}
    with pytest.raises(
        ConfigError, match=r"mnist_rotate\.yaml .*: `partition\.classes_per_client: 11` .* set at most 10"
    ):
        check_data.check([catalogue.task("mnist_rotate", {"partition": rule})], tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("write")
def test_every_committed_suite_asks_what_its_data_can_give(tmp_path: Path) -> None:
    suites = [name for name in catalogue.names("suites") if name not in NOT_TUNED]
    asked = {run.task.model_dump_json(): run.task for name in suites for run in suite_runs(name, seeds=[0])}
    assert len(asked) > len(catalogue.names("tasks"))
    check_data.check(list(asked.values()), tmp_path / "results")
