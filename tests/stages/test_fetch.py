import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from floral.config import data_sets
from floral.config.reading import ConfigError
from floral.config.schema.data import DataFile, DataSet
from floral.data.sources import DataError
from floral.stages.fetch import fetch

NAMES = ("train-x", "train-y", "test-x", "test-y")


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4) for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A data set `toy` of four IDX files of open hash: returns its raw arrays and the folder of its files."""
    random = np.random.default_rng(0)
    arrays = [random.integers(0, size, shape) for size, shape in ((256, (9, 4, 4)), (10, 9), (256, (5, 4, 4)), (10, 5))]
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, array in zip(NAMES, arrays, strict=True):
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    lock = {"toy": DataSet(title="Toy", reader="idx", files=tuple(DataFile(path=f"{name}.gz") for name in NAMES))}
    monkeypatch.setattr(data_sets, "data_lock", lambda: lock)
    monkeypatch.delenv("FLORAL_DATA", raising=False)
    return arrays, folder


def written(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}


def test_raw_files_become_arrays_and_a_card(toy, tmp_path):
    arrays, mine = toy
    folder = fetch("toy", tmp_path, mine)
    assert folder == tmp_path / "data" / "toy"
    for side, array in zip(("train_x", "train_y", "test_x", "test_y"), arrays, strict=True):
        stored = np.load(folder / f"{side}.npy", mmap_mode="r", allow_pickle=False)
        assert np.array_equal(stored, array) and stored.dtype == (np.uint8 if side.endswith("x") else np.int64)
    manifest = json.loads((folder / "card.json").read_text())
    assert (manifest["name"], manifest["title"], manifest["exact"], manifest["classes"], manifest["scale"]) == (
        "toy",
        "Toy",
        True,
        10,
        255,
    )
    assert manifest["shape"] == [4, 4]
    assert [file["verified"] for file in manifest["files"]] == [False] * 4
    assert not (folder / "new").exists()


def test_a_valid_folder_is_left_alone_and_a_damaged_one_made_again(toy, tmp_path, monkeypatch):
    arrays, mine = toy
    monkeypatch.setenv("FLORAL_DATA", str(mine))
    folder = fetch("toy", tmp_path)
    before = written(folder)
    assert written(fetch("toy", tmp_path)) == before
    np.save(folder / "train_y.npy", np.zeros(9, np.int64))
    assert np.array_equal(np.load(fetch("toy", tmp_path) / "train_y.npy"), arrays[1])
    (folder / "card.json").write_text("{")
    assert json.loads((fetch("toy", tmp_path) / "card.json").read_text())["name"] == "toy"


def test_a_file_of_unknown_hash_is_checked_against_the_first_fetch(toy, tmp_path):
    _, mine = toy
    folder = fetch("toy", tmp_path, mine)
    (folder / "card.json").unlink()
    (mine / "train-y.gz").write_bytes(gzip.compress(idx(np.zeros(9))))
    with pytest.raises(DataError, match=r"(?s)train-y.gz.*recorded by the first fetch.*write the found sha256") as said:
        fetch("toy", tmp_path, mine)
    assert not (folder / "card.json").exists()
    lock, before = data_sets.data_lock(), data_sets.data_digest("toy")
    found = str(said.value).split("found    sha256 ")[1][:64]
    files = tuple(
        file.model_copy(update={"sha256": found if file.path == "train-y.gz" else None}) for file in lock["toy"].files
    )
    lock["toy"] = lock["toy"].model_copy(update={"files": files})
    assert data_sets.data_digest("toy") != before, "its runs are named anew"
    assert np.load(fetch("toy", tmp_path, mine) / "train_y.npy").sum() == 0


def test_a_hash_that_data_lock_gains_is_checked_and_marks_the_file_verified(toy, tmp_path):
    _, mine = toy
    manifest = json.loads((fetch("toy", tmp_path, mine) / "card.json").read_text())
    lock = data_sets.data_lock()
    files = [DataFile(path=file["path"], sha256=file["sha256"]) for file in manifest["files"]]
    lock["toy"] = lock["toy"].model_copy(update={"files": tuple(files)})
    manifest = json.loads((fetch("toy", tmp_path, mine) / "card.json").read_text())
    assert [file["verified"] for file in manifest["files"]] == [True] * 4
    lock["toy"] = lock["toy"].model_copy(
        update={"files": (*files[:3], DataFile(path=NAMES[3] + ".gz", sha256="0" * 64))}
    )
    with pytest.raises(DataError, match="expected sha256 0000"):
        fetch("toy", tmp_path, mine)


@pytest.mark.parametrize(
    "content, message",
    [
        (idx(np.zeros(9))[:-1], "this file has 16 bytes, but its header announces 17"),
        (b"<html>no such file</html>", "not an IDX file of unsigned bytes, because it begins with 3c 68 74 6d"),
        (b"", "it begins with nothing"),
        (idx(np.zeros((0,))), r"images of shape \[9, 4, 4\] and labels of shape \[0\] do not match"),
        (idx(np.zeros(8)), r"images of shape \[9, 4, 4\] and labels of shape \[8\] do not match"),
    ],
)
def test_a_raw_file_that_is_not_what_it_should_be_is_named(toy, tmp_path, content, message):
    _, mine = toy
    (mine / "train-y.gz").write_bytes(content)
    with pytest.raises(DataError, match=rf"train-y\.gz.*{message}"):
        fetch("toy", tmp_path, mine)
    assert [path.name for path in (tmp_path / "data" / "toy").iterdir()] == [".lock"]


def test_a_full_disk_leaves_nothing_half_written(toy, tmp_path, monkeypatch):
    _, mine = toy
    opened = Path.open

    def fill(self, *args, **options):
        if self.name == "test_x.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", fill)
    with pytest.raises(DataError, match="the disk is full, nothing was written; free space"):
        fetch("toy", tmp_path, mine)
    left = {path.name for path in (tmp_path / "data" / "toy").iterdir()}
    assert left == {".lock", "raw"}
    monkeypatch.undo()


def test_unknown_names_and_folders_are_explained(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="unknown data set 'mnits'; did you mean 'mnist'"):
        fetch("mnits", tmp_path)
    with pytest.raises(ConfigError, match=r"data_dir: .*nowhere is not a folder"):
        fetch("mnist", tmp_path, tmp_path / "nowhere")
    monkeypatch.setenv("FLORAL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"FLORAL_DATA: .*nowhere is not a folder"):
        fetch("mnist", tmp_path)


def test_digits_are_those_of_scikit_learn(tmp_path, monkeypatch):
    from sklearn.datasets import load_digits

    monkeypatch.delenv("FLORAL_DATA", raising=False)
    folder = fetch("digits", tmp_path)
    x, y = (np.concatenate([np.load(folder / f"{side}_{axis}.npy") for side in ("train", "test")]) for axis in "xy")
    images, labels = load_digits(return_X_y=True)
    order = np.lexsort(images.T)
    mine = np.lexsort(x.reshape(len(x), -1).T)
    assert np.array_equal(x.reshape(len(x), -1)[mine], images[order]) and np.array_equal(y[mine], labels[order])
    assert np.load(folder / "train_x.npy").shape == (1437, 8, 8) and np.load(folder / "test_x.npy").shape == (360, 8, 8)
    manifest = json.loads((folder / "card.json").read_text())
    assert (manifest["scale"], manifest["classes"], manifest["files"][0]["verified"]) == (16, 10, True)


def test_mnist_is_verified_and_read(tmp_path, missing):
    if not os.environ.get("FLORAL_DATA"):
        missing("FLORAL_DATA is not set: MNIST's files are missing")
    folder = fetch("mnist", tmp_path)
    manifest = json.loads((folder / "card.json").read_text())
    assert all(file["verified"] for file in manifest["files"]) and manifest["rows"] == {"train": 60_000, "test": 10_000}
    assert np.load(folder / "train_y.npy")[:5].tolist() == [5, 0, 4, 1, 9]
    assert np.bincount(np.load(folder / "test_y.npy"))[:3].tolist() == [980, 1135, 1032]
    assert np.load(folder / "train_x.npy", mmap_mode="r").mean() == pytest.approx(0.1307 * 255, rel=1e-3)


def test_the_data_part_imports_nothing_heavy():
    code = (
        "import sys, floral.core.seeds, floral.stages.fetch, floral.stages.partition, floral.data.federation; "
        "print(*sorted({'torch', 'sklearn', 'altair', 'mlflow', 'pandas'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_empty_test_split_is_named(toy, tmp_path):
    _, mine = toy
    (mine / "test-x.gz").write_bytes(idx(np.zeros((0, 4, 4))))
    (mine / "test-y.gz").write_bytes(idx(np.zeros((0,))))
    with pytest.raises(DataError, match=r"test-x\.gz: this file has no image; remedy: replace it"):
        fetch("toy", tmp_path, mine)
