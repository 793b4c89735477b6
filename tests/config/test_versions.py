"""A version that rises renames the runs that use it and no others; 1 is left out, so that names of before stay."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from run_folders import make_run

from floral.config import catalogue, code, data_sets, paths
from floral.config import run as run_module
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema import partition as partition_schema
from floral.config.searches import search_for

RUNS = [
    ("digits_rotate", "fedavg"), ("digits_rotate", "floral_1"), ("digits_dirichlet", "floral_1"),
    ("cifar10_rotate_reduced", "fedavg"), ("cifar10_rotate_reduced", "floral_1"), ("synthetic_linear", "floral_1"),
    ("shakespeare_tiny", "local_adaptor"),
]  # fmt: skip


def names() -> dict[tuple[str, str], Path]:
    return {(task, variant): make_run(task, variant, 0).folder for task, variant in RUNS}


def renamed(before: dict[tuple[str, str], Path]) -> set[tuple[str, str]]:
    now = names()
    return {run for run in now if now[run] != before[run]}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """A copy of the package's files that `code` reads, and a function that replaces a text in one of them."""
    for folder in (*code.FOLDERS, code.LAYERS):
        shutil.copytree(code.ROOT / folder, tmp_path / folder)
    cached = [value for value in vars(code).values() if hasattr(value, "cache_clear")]

    def forget() -> None:
        for function in cached:
            function.cache_clear()

    def replace(path: str, old: str, new: str) -> None:
        text = (tmp_path / path).read_text()
        assert old in text
        (tmp_path / path).write_text(text.replace(old, new, 1))
        forget()

    with monkeypatch.context() as patch:
        patch.setattr(code, "ROOT", tmp_path)
        forget()
        yield replace
    forget()


def test_the_version_of_a_method_renames_its_runs_only(write) -> None:
    before = names()
    path = paths.CONFIG_FOLDER / "methods" / "fedavg.yaml"
    write("methods/fedavg", **yaml.safe_load(path.read_text()), version=2)
    assert renamed(before) == {run for run in RUNS if run[1] == "fedavg"}
    write("methods/fedavg", **{**yaml.safe_load(path.read_text()), "version": 1})
    assert not renamed(before)
    write("methods/fedavg", **{**yaml.safe_load(path.read_text()), "version": 0})
    with pytest.raises(ConfigError, match=r"fedavg\.yaml: version: "):
        names()


@pytest.mark.parametrize(
    ("path", "uses_it"),
    [
        ("floral/models/mlp.py", lambda task, _: task.startswith("digits")),
        ("floral/adaptors/conv.py", lambda task, variant: task.startswith("cifar10") and variant == "floral_1"),
        ("floral/adaptors/linear.py", lambda _, variant: variant != "fedavg"),
        ("floral/adaptors/embedding.py", lambda task, variant: task == "shakespeare_tiny" and variant != "fedavg"),
    ],
)
def test_the_version_of_a_model_or_adaptor_renames_the_runs_that_use_it(package, path: str, uses_it) -> None:
    before = names()
    package(path, "VERSION = 1", "VERSION = 2")
    assert renamed(before) == {run for run in RUNS if uses_it(*run)}
    package(path, "VERSION = 2", 'VERSION = "two"')
    with pytest.raises(ConfigError, match=rf"{path}: VERSION is not a whole number"):
        names()


def test_versions_of_partitions_and_data_reach_the_partition_and_its_runs(monkeypatch, write) -> None:
    def partitions() -> dict[tuple[str, str], Path]:
        return {key: make_run(*key, 0).partition.folder for key in RUNS}

    runs, before = names(), partitions()

    def changed() -> set[str]:
        now = partitions()
        changed = {run for run in RUNS if now[run] != before[run]}
        assert renamed(runs) == changed, "a run has a new name exactly if its partition has"
        return {task for task, _ in changed}

    with monkeypatch.context() as patch:
        patch.setitem(partition_schema.KINDS, "dirichlet", partition_schema.Kind(skewed=True, version=2))
        assert changed() == {"digits_dirichlet"}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "SYNTHETIC_VERSION", 2)
        assert changed() == {"synthetic_linear"}
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "PARTITION_VERSION", 2)
        assert changed() == {task for task, _ in RUNS}
    lock = yaml.safe_load((paths.CONFIG_FOLDER / "data.lock").read_text())
    lock["digits"]["version"] = 2
    (paths.CONFIG_FOLDER / "data.lock").write_text(yaml.safe_dump(lock))
    data_sets.data_lock.cache_clear()
    assert changed() == {"digits_rotate", "digits_dirichlet"}
    assert make_run("digits_rotate", "fedavg", 0).partition.data == "digits-v2"
    assert data_sets.data_set_in("digits-v2") == data_sets.data_set_in("digits") == "digits"


def test_precision_is_in_the_name_unless_it_is_fp32() -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    others = [run.model_copy(update={"precision": precision}) for precision in ("tf32", "bf16")]
    assert len({run.hash8, *(other.hash8 for other in others)}) == 3
    assert "precision" not in run.model_dump() and Run.model_validate(others[0].model_dump()) == others[0]
    assert all(other.partition.hash8 == run.partition.hash8 for other in others)


def test_a_search_follows_the_version_of_its_method(write) -> None:
    run = make_run("digits_rotate", "fedavg", 0)
    before = search_for(run, "here").digest
    path = paths.CONFIG_FOLDER / "methods" / "fedavg.yaml"
    write("methods/fedavg", **yaml.safe_load(path.read_text()), version=2)
    assert search_for(make_run("digits_rotate", "fedavg", 0), "here").digest != before


FEDAVG = "floral/methods/fedavg.py"


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (FEDAVG, '"""FedAvg: average', '"""Another text: average'),
        (FEDAVG, "    model = problem", "    # a comment\n    model = problem"),
        (FEDAVG, "from floral.core.streams import", "from floral.elsewhere.streams import"),
        (FEDAVG, "widen: str, rank: float | str", "widen: Any, rank: Any"),
        ("floral/adaptors/attach.py", "choose another model", "take another model"),
    ],
    ids=["docstring", "comment", "moved module", "types", "message"],
)
def test_words_and_places_are_not_code(package, path: str, old: str, new: str) -> None:
    before, recorded = code.digest(path), {method: code.digests(method, "mlp") for method in ("fedavg", "floral")}
    package(path, old, new)
    assert code.digest(path) == before
    assert all(code.changed_files(recorded[method], method, "mlp") == [] for method in recorded)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("problem.lr)", "2 * problem.lr)"),
        ('widen == "floral"', 'widen != "floral"'),
        ("low=1.0", "low=2.0"),
        ("import Stream", "import Shapes as Stream"),
        ("noise=model.noise,", ""),
    ],
)
def test_what_can_change_a_number_is_code(package, old: str, new: str) -> None:
    before = code.digest(FEDAVG)
    package(FEDAVG, old, new)
    assert code.digest(FEDAVG) != before
    assert code.changed_files(code.digests("fedavg", "mlp") | {FEDAVG: before}, "fedavg", "mlp") == [FEDAVG]
    assert code.changed_files(None, "fedavg", "mlp") == [FEDAVG], "a run without digests is of the first version"


def test_code_of_equal_numbers_is_of_one_version(package, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = code.digests("fedavg", "mlp")
    package(FEDAVG, "problem.lr)", "1 * problem.lr)")
    lock = {path: [digest] for path, digest in before.items()}
    (tmp_path / "code.lock").write_text(yaml.safe_dump(lock))
    monkeypatch.setattr(code, "EQUAL_CODE", tmp_path / "code.lock")
    code.equal_code.cache_clear()
    assert code.changed_files(before, "fedavg", "mlp") == [FEDAVG]
    (tmp_path / "code.lock").write_text(yaml.safe_dump({**lock, FEDAVG: [before[FEDAVG], code.digest(FEDAVG)]}))
    code.equal_code.cache_clear()
    assert code.changed_files(before, "fedavg", "mlp") == code.changed_files(None, "fedavg", "mlp") == []


@pytest.mark.parametrize(
    "imported",
    [
        "from floral.models import cnn",
        "import floral.models.cnn",
        "from . import cnn",
        "from .cnn import build as b",
    ],
)
def test_a_model_that_is_built_on_another_one_has_its_layers(package, imported: str) -> None:
    package("floral/models/mlp.py", "import math", f"{imported}\nimport math")
    assert {"floral/adaptors/conv.py", "floral/models/cnn.py"} <= set(code.files("floral", "mlp"))


def test_another_file_in_place_of_one_is_a_change_and_a_moved_file_is_none(package) -> None:
    before = code.digests("fedavg", "mlp")
    parts = (code.ROOT / "floral/toolkit/parts.py").read_text()
    (code.ROOT / "floral/toolkit/parts2.py").write_text(parts)
    package(FEDAVG, "floral.toolkit.parts", "floral.toolkit.parts2")
    assert code.changed_files(before, "fedavg", "mlp") == []
    package("floral/toolkit/parts2.py", "return", "pass\n    return")
    assert code.changed_files(before, "fedavg", "mlp") == ["floral/toolkit/parts2.py"]


def test_an_annotated_version_counts(package) -> None:
    package("floral/models/mlp.py", "VERSION = 1", "VERSION: int = 2")
    assert code.versions("fedavg", "mlp") == {"models mlp": 2}


def test_every_method_and_model_has_its_own_file_among_its_code() -> None:
    for method in catalogue.names("methods"):
        assert f"floral/methods/{method}.py" in code.files(method, "mlp")
    assert "floral/adaptors/conv.py" not in code.files("floral", "mlp")
    assert "floral/adaptors/conv.py" in code.files("floral", "cnn")
