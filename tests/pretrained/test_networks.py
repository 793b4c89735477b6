"""Networks in config/data.lock: how they are fetched, how tasks name them, and the folders in FLORAL_DATA."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from tiny_bert import CONFIG

from floral.cli import tasks
from floral.config import catalogue, data_sets, networks, own_model
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import DataFile, DataSet
from floral.config.schema.task import Model
from floral.data.sources import DataError
from floral.io.files import content_sha256
from floral.runs.missing_data import why_missing
from floral.stages import check_model, fetch_missing
from floral.stages.fetch import data_folders, fetch
from floral.stages.fetch_missing import try_to_fetch
from floral.workflow.rules import Rules


@pytest.fixture
def small_entry(small_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The network `small` in data.lock, and FLORAL_DATA with its files; returns the folder of the files."""
    files = tuple(
        DataFile(path=f"small_bert/{path.name}", sha256=content_sha256(path)) for path in sorted(small_bert.iterdir())
    )
    lock = {**data_sets.data_lock(), "small": DataSet(title="Small", reader="weights", files=files)}
    monkeypatch.setattr(data_sets, "data_lock", lambda: lock)
    monkeypatch.setenv("FLORAL_DATA", str(small_bert.parent))
    return small_bert


def test_the_files_of_a_network_are_stored_as_they_are(small_entry: Path, tmp_path: Path) -> None:
    weights = small_entry / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.with_name("model.safetensors.gz").write_bytes(gzip.compress(content))
    folder = fetch("small", tmp_path)
    assert (folder / "model.safetensors").read_bytes() == content
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    card = (folder / "card.json").stat().st_mtime_ns
    assert (fetch("small", tmp_path) / "card.json").stat().st_mtime_ns == card, "a complete folder is left alone"
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        (folder / "model.safetensors").write_bytes(damaged)
        assert (fetch("small", tmp_path) / "model.safetensors").read_bytes() == content


def test_an_altered_file_of_a_network_is_refused(small_entry: Path, tmp_path: Path) -> None:
    (small_entry / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match=r"small_bert/model\.safetensors: the content .* is not as expected"):
        fetch("small", tmp_path)
    assert not (tmp_path / "data" / "small" / "card.json").exists()


def test_a_task_names_a_network_by_its_entry_or_by_its_folder(small_entry: Path, tmp_path: Path) -> None:
    by_name, by_path = Model(kind="bert", path="small"), Model(kind="bert", path=str(small_entry))  # type: ignore[call-arg]
    assert own_model.identity(by_name)["path"] == own_model.identity(by_path)["path"]
    file = Model(kind="mlp", weights=str(small_entry / "model.safetensors"))
    assert own_model.identity(Model(kind="mlp", weights="small"))["weights"] == own_model.identity(file)["weights"]
    with pytest.raises(ConfigError, match="the network 'small' is missing; make it with: floral fetch small"):
        networks.located(by_name, tmp_path)
    folder = fetch("small", tmp_path)
    assert networks.located(by_name, tmp_path).arguments == {"path": str(folder)}
    assert networks.located(Model(kind="mlp", weights="small"), tmp_path).weights == str(folder / "model.safetensors")
    assert networks.located(by_path, None) == by_path


def test_the_hash_of_a_packed_file_of_weights_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(sha256: str) -> object:
        packed = DataFile(path="small/model.safetensors.gz", sha256=sha256)
        lock = {"packed": DataSet(title="Packed", reader="weights", files=(packed,))}
        monkeypatch.setattr(data_sets, "data_lock", lambda: lock)
        return own_model.identity(Model(kind="mlp", weights="packed"))["weights"]

    assert identity("0" * 64) == "0" * 64 and identity("1" * 64) == "1" * 64


def test_a_network_is_fetched_before_training_and_reported_as_missing(small_entry: Path, tmp_path: Path) -> None:
    task = catalogue.task("digits_rotate").model_copy(update={"model": Model(kind="bert", path="small")})  # type: ignore[call-arg]
    assert why_missing(task, tmp_path) == "digits: not fetched yet; remedy: floral fetch digits"
    fetch("digits", tmp_path)
    assert why_missing(task, tmp_path) == "small: not fetched yet; remedy: floral fetch small"
    run = Run(task=task, variant=catalogue.variant("fedavg"), seed=0, fidelity=catalogue.fidelity("corrected"))
    check_model.check([run], tmp_path)  # says nothing as long as the network is unknown
    assert tasks._row(task, tmp_path, None).at_hand == "found"
    (small_entry / "config.json").rename(small_entry / "other.json")
    assert tasks._row(task, tmp_path, None).at_hand == "missing"
    assert check_model.missing_data([task], tmp_path, None)[0].startswith("  WARNING: data missing: small: small_bert/")
    try_to_fetch([task], tmp_path, None)
    assert "this data file is missing" in (tmp_path / "data" / "small" / fetch_missing.FETCH_ERROR).read_text()
    (small_entry / "other.json").rename(small_entry / "config.json")
    try_to_fetch([task], tmp_path, None)
    assert why_missing(task, tmp_path) is None
    with pytest.raises(ConfigError, match=r"bert cannot be used for samples of shape .*samples have the shape"):
        check_model.check([run], tmp_path)
    rules = Rules.__new__(Rules)
    rules.results = tmp_path
    assert rules._inputs(run)[1:] == [f"{tmp_path}/data/small/card.json"]


def test_a_network_is_no_data_set(small_entry: Path) -> None:
    with pytest.raises(ConfigError, match="unknown data set 'small'"):
        catalogue.task("digits_rotate", {"data": "small"})


def test_several_folders_have_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    content = b"right"
    for folder in (first, second):
        (folder / "set").mkdir(parents=True)
        (folder / "set" / "a.txt").write_bytes(content)
    file = DataFile(path="set/a.txt", sha256=content_sha256(first / "set" / "a.txt"))
    monkeypatch.setattr(data_sets, "data_lock", lambda: {"a": DataSet(title="A", reader="weights", files=(file,))})
    monkeypatch.setenv("FLORAL_DATA", os.pathsep.join([str(first), str(second)]))
    assert data_folders(None) == (first, second) and data_folders(second) == (second,)
    (first / "set" / "a.txt").write_bytes(b"other")
    assert (fetch("a", tmp_path / "one") / "a.txt").read_bytes() == content, "the second folder has the right content"
    (first / "set" / "a.txt").unlink()
    assert (fetch("a", tmp_path / "two") / "a.txt").read_bytes() == content
    (second / "set" / "a.txt").write_bytes(b"other")
    with pytest.raises(DataError, match=rf"{second}/set/a\.txt: the content of set/a\.txt is not as expected"):
        fetch("a", tmp_path / "three")
    (first / "set" / "a.txt.gz").write_bytes(gzip.compress(content)[:-4])
    (second / "set" / "a.txt").write_bytes(content)
    assert (fetch("a", tmp_path / "four") / "a.txt").read_bytes() == content, "the first folder has a damaged copy"
    (first / "set" / "a.txt.gz").unlink()
    (second / "set" / "a.txt").unlink()
    with pytest.raises(DataError, match=rf"looked for {first}/set/a\.txt and {second}/set/a\.txt"):
        fetch("a", tmp_path / "three")
    monkeypatch.setenv("FLORAL_DATA", os.pathsep.join([str(first), str(tmp_path / "nowhere")]))
    with pytest.raises(ConfigError, match=r"FLORAL_DATA: .*/nowhere is not a folder"):
        data_folders(None)
