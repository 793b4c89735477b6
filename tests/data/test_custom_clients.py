"""Custom data with one file or folder per client, and the files of PFLlib."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_files import PLAIN, read, refused
from PIL import Image

from floral.data.readers import Labelled

RANDOM = np.random.default_rng(0)


def clients_of(data: Labelled) -> dict[str, int]:
    """Return the number of samples of each client by its name."""
    assert data.train_client is not None and data.test_client is not None and data.client_names is not None
    counts = np.bincount(np.concatenate([data.train_client, data.test_client]))
    return dict(zip(data.client_names, counts.tolist(), strict=True))


# ------------------------------------------------------------------------------------------- one file or folder each


def tables(path: Path) -> Path:
    (folder := path / "sites").mkdir()
    for i, name in enumerate(("north", "south", "08")):
        PLAIN.iloc[i::3].to_csv(folder / f"{name}.csv", index=False)
    return folder


def test_a_table_per_client_equals_one_table_with_a_column_of_clients(tmp_path):
    folder = tables(tmp_path)
    data = read("clients", folder, each="table", label="species")
    assert clients_of(data) == {"08": 10, "north": 10, "south": 10}
    column = PLAIN.assign(site=[("north", "south", "08")[i % 3] for i in range(len(PLAIN))])
    column.sort_values("site", kind="stable").to_csv(tmp_path / "all.csv", index=False)
    whole = read("table", tmp_path / "all.csv", label="species", client="site")
    for name in ("train_x", "train_y", "test_x", "test_y", "train_client", "test_client"):
        assert np.array_equal(getattr(data, name), getattr(whole, name)), name
    assert data.names == whole.names == ("ash", "elm", "oak")


def test_arrays_and_split_folders_of_images_per_client(tmp_path):
    (arrays := tmp_path / "arrays").mkdir()
    for k in range(3):
        np.savez(arrays / f"c{k}.npz", x=RANDOM.normal(size=(6, 4)).astype(np.float32), y=np.arange(6) % 2)
    assert clients_of(read("clients", arrays, each="arrays")) == {"c0": 6, "c1": 6, "c2": 6}
    for client in ("a", "b"):
        for side, count in (("train", 3), ("test", 2)):
            for label in ("cat", "dog"):
                (folder := tmp_path / "images" / client / side / label).mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(RANDOM.integers(0, 256, (5, 5), np.uint8)).save(folder / f"{i}.png")
    data = read("clients", tmp_path / "images", each="folder")
    assert data.train_x.shape == (12, 5, 5) and data.test_x.shape == (8, 5, 5) and data.scale == 255
    assert clients_of(data) == {"a": 10, "b": 10}


def test_wrong_files_of_a_client_are_named(tmp_path):
    folder = tables(tmp_path)
    (folder / "south.csv").rename(folder / "south.csv.bak")
    refused("clients", folder, r"south\.csv\.bak", each="table", label="species")
    (folder / "south.csv.bak").unlink()
    PLAIN.rename(columns={"b": "c"}).to_csv(folder / "west.csv", index=False)
    refused("clients", folder, r"west\.csv: `data\.features` names the column 'b'", each="table", label="species")
    PLAIN.to_csv(folder / "west.csv", index=False)
    PLAIN.to_parquet(folder / "north.parquet")
    refused(
        "clients", folder, r"north\.parquet: north\.csv is of the same client 'north'", each="table", label="species"
    )
    (folder / "north.parquet").unlink()
    (folder / "west.csv").unlink()
    (folder / "west").mkdir()
    for side in ("train", "test"):
        PLAIN.to_csv(folder / "west" / f"{side}.csv", index=False)
    refused("clients", folder, r"are split into train and test, but those of .* are not", each="table", label="species")
    (empty := tmp_path / "empty").mkdir()
    refused("clients", empty, "there are no clients here; add one file or folder", each="arrays")
    np.savez(empty / "a.npz", x=np.zeros((4, 2), np.float32), y=np.arange(4) % 2, client=np.arange(4))
    refused("clients", empty, r"a\.npz: the array client is not expected", each="arrays")


def test_each_domain_of_images_or_tables_is_split_by_class_or_client(tmp_path):
    for domain, count in (("sketch", 10), ("photo", 5)):
        for label in ("cat", "dog"):
            (folder := tmp_path / "images" / domain / label).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(RANDOM.integers(0, 256, (5, 5 + i), np.uint8)).save(folder / f"{i}.png")
    data = read("domains", tmp_path / "images", each="folder", resize=6)
    assert data.domains == ("photo", "sketch") and data.train_client is None and data.train_x.shape == (24, 6, 6)
    assert data.test_domain is not None and sorted(zip(data.test_domain, data.test_y, strict=True)) == [
        (0, 0), (0, 1), (1, 0), (1, 0), (1, 1), (1, 1)
    ]  # fmt: skip
    folder = tables(tmp_path)
    for path in folder.iterdir():
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([f"{head},ward", *(f"{row},w{k % 2}" for k, row in enumerate(rows))]))
    data = read("domains", folder, each="table", label="species", client="ward")
    assert data.domains == ("08", "north", "south") and data.client_names == ("w0", "w1")
    assert data.test_domain is not None and data.test_client is not None
    assert sorted(zip(data.test_domain, data.test_client, strict=True)) == [(d, c) for d in range(3) for c in range(2)]
    (empty := tmp_path / "empty").mkdir()
    refused("domains", empty, "there are no domains here; add one file or folder for each domain", each="folder")


def test_keys_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`data\.each` is missing"):
        read("clients", tmp_path)
    with pytest.raises(ValueError, match=r"`data\.client` is not for `kind: clients`"):
        read("clients", tmp_path, each="table", label="y", client="site")
    with pytest.raises(ValueError, match=r"`data\.label` is missing"):
        read("clients", tmp_path, each="table")
    with pytest.raises(ValueError, match=r"`data\.each` is for `kind: clients` and `kind: domains` only"):
        read("arrays", tmp_path, each="table")
    with pytest.raises(ValueError, match=r"`data\.channels` is for `kind: arrays` and `kind: pflib` only"):
        read("folder", tmp_path, channels="last")


# ------------------------------------------------------------------------------------------------ the files of PFLlib


def write_pflib(root: Path, clients: int = 3, shape: tuple[int, ...] = (1, 6, 5), **more: Any) -> Path:
    """Write files as the scripts of PFLlib do: the dictionary of a client is the only object of the array `data`."""
    for side, count in (("train", 8), ("test", 4)):
        (root / side).mkdir(parents=True)
        for k in range(clients):
            values = {"x": RANDOM.normal(size=(count, *shape)).astype(np.float32), "y": np.arange(count) % 4, **more}
            np.savez_compressed(root / side / f"{k}.npz", data=values)
    (root / "config.json").write_text("{}")
    return root


def test_files_of_pflib_keep_their_clients_and_their_split(tmp_path):
    root = write_pflib(tmp_path / "mnist", clients=12)
    data = read("pflib", root)
    assert clients_of(data) == {str(k): 12 for k in range(12)}  # in the order of the numbers
    assert data.train_x.shape == (96, 6, 5) and data.test_x.shape == (48, 6, 5) and data.classes == 4
    stored = np.load(root / "test" / "10.npz", allow_pickle=True)["data"].tolist()
    mine = data.test_client == 10
    assert np.array_equal(data.test_x[mine], stored["x"][:, 0]) and np.array_equal(data.test_y[mine], stored["y"])
    colours = read("pflib", write_pflib(tmp_path / "cifar", shape=(3, 6, 5)))
    assert colours.train_x.shape == (24, 6, 5, 3)


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_pflib(tmp_path / "harmful", x=Harmful())
    refused("pflib", root, r"0\.npz: .*it contains posix\.mkdir")
    assert not (tmp_path / "ran").exists()
    for name in ("numpy._core.multiarray", "numpy"):  # other names of NumPy may run code too
        with zipfile.ZipFile(root / "train" / "0.npz", "w") as archive:
            header = np.lib.format.header_data_from_array_1_0(np.empty((), object))
            with archive.open("data.npy", "w") as file:
                np.lib.format.write_array_header_1_0(file, header)
                file.write(pickle.dumps(0)[:2] + f"c{name}\nfromfile\n.".encode())
        refused("pflib", root, rf"it contains {name}\.fromfile")


def test_wrong_files_of_pflib_are_named(tmp_path):
    root = write_pflib(tmp_path / "a")
    (root / "test" / "2.npz").unlink()
    refused("pflib", root, r"train/2\.npz: there is no test/2\.npz of the same client")
    root = write_pflib(tmp_path / "b")
    (root / "train" / "one.npz").write_bytes(b"")
    refused("pflib", root, r"one\.npz: files of PFLlib are named 0\.npz")
    root = write_pflib(tmp_path / "c")
    (root / "train" / "1.npz").write_bytes((root / "train" / "1.npz").read_bytes()[:200])
    refused("pflib", root, r"train/1\.npz: this is no file of PFLlib, or it is damaged")
    refused("pflib", write_pflib(tmp_path / "d", z=1), r"0\.npz: `data` has the entries x, y, z, expected x and y")
    root = write_pflib(tmp_path / "e")
    np.savez(root / "train" / "0.npz", x=np.zeros((4, 2)), y=np.zeros(4))
    refused("pflib", root, r"train/0\.npz: this is no file of PFLlib")
    np.savez(root / "train" / "0.npz", data=np.zeros(3))
    refused("pflib", root, r"`data` is an array of shape \[3\] and type float64")
    np.savez(root / "train" / "0.npz", data={"x": np.zeros((8, 1, 6, 7), np.float32), "y": np.arange(8) % 4})
    refused("pflib", root, r"have shape \[6, 5\].*but the training samples of .*0\.npz have \[6, 7\]")
    texts = np.array([[1, 2], [3]], dtype=object)
    refused("pflib", write_pflib(tmp_path / "f", x=texts), r"x holds Python objects, as for texts")
    refused("pflib", tmp_path / "a" / "train", r"contains the folders train and test")
