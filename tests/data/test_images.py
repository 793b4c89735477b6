"""Encoded images in parquet files, from the raw files to the tensors that a model sees."""

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pictures import encoded, made, write

from floral.config import data_sets, reading
from floral.config.reading import ConfigError
from floral.config.schema.data import DataFile, DataSet
from floral.config.schema.task import Task
from floral.data import images, readers, sources
from floral.data.sources import DataError, RawFile
from floral.engine.client_data import Rows
from floral.stages.fetch import fetch


def raw(path):
    return RawFile(file=DataFile(path=path.name), location=path, sha256="", verified=False)


@pytest.mark.parametrize("shape", [(6, 6, 3), (5, 7)])
@pytest.mark.parametrize("column", ["label", "fine_label"])
def test_lossless_images_are_read_pixel_by_pixel(tmp_path, shape, column):
    train, test = made(0, 9, shape), made(1, 5, shape)
    files = [
        raw(write(tmp_path / f"{name}.parquet", *part, column))
        for name, part in (("train", train), ("test", test))
    ]  # fmt: skip
    found = readers.image_parquet(files)
    for ours, expected in ((found.train_x, train[0]), (found.test_x, test[0])):
        assert ours.dtype == np.uint8 and np.array_equal(ours, expected)
    for ours, expected in ((found.train_y, train[1]), (found.test_y, test[1])):
        assert ours.dtype == np.int64 and np.array_equal(ours, expected)
    assert (found.classes, found.scale) == (4, 255)


def test_coarse_labels_are_left_alone_and_jpeg_is_read(tmp_path):
    images = np.broadcast_to(np.array([200, 40, 90], np.uint8), (3, 8, 8, 3)).copy()
    path = write(tmp_path / "a.parquet", images, [0, 1, 2], "fine_label", "JPEG")
    pl.read_parquet(path).with_columns(coarse_label=pl.lit(7)).write_parquet(path)
    found = readers.image_parquet([raw(path), raw(path)])
    assert found.train_y.tolist() == [0, 1, 2]
    assert np.abs(found.train_x.astype(int) - images).max() <= 4


def altered(path, change):
    images, labels = made(2, 4)
    table = pl.read_parquet(write(path, images, labels))
    match change:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-40])
        case "no parquet":
            path.write_bytes(b"<html>not found</html>")
        case "empty":
            table.clear().write_parquet(path)
        case "no labels":
            table.drop("label").write_parquet(path)
        case "other images":
            table.with_columns(img=pl.lit("a.png")).write_parquet(path)
        case "no class":
            table.with_columns(label=pl.Series([0, None, 1, 2])).write_parquet(path)
        case "negative class":
            table.with_columns(label=pl.Series([0, -1, 1, 2])).write_parquet(path)
        case "half an image" | "no image" | "larger":
            image = {
                "half an image": encoded(images[2])[:40],
                "no image": None,
                "larger": encoded(np.zeros((7, 7, 3), np.uint8)),
            }[change]
            cells = table["img"].to_list()
            cells[2]["bytes"] = image
            table.with_columns(img=pl.Series(cells, dtype=table.schema["img"])).write_parquet(path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("truncated", r"this is not a parquet file, or it is truncated .*remedy"),
        ("no parquet", r"this is not a parquet file, or it is truncated .*remedy"),
        ("empty", r"column label is empty, or has a value"),
        ("no labels", r"expected a column img or image \(struct of bytes and path\) and a column label or fine_label"),
        ("other images", r"expected a column img or image \(struct of bytes and path\)"),
        ("no class", r"column label is empty, or has a value that is not a class 0, 1, …; remedy"),
        ("negative class", r"column label is empty, or has a value"),
        ("half an image", r"row 2: the image cannot be decoded .*remedy"),
        ("no image", r"row 2: the image cannot be decoded"),
        ("larger", r"row 2: the image has shape \[7, 7, 3\]"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named_with_its_row(tmp_path, change, message):
    good = write(tmp_path / "good.parquet", *made(0, 3))
    bad = altered(tmp_path / "bad.parquet", change)
    with pytest.raises(DataError, match=rf"(?s)bad\.parquet: {message}"):
        readers.image_parquet([raw(good), raw(bad)])


def test_training_and_test_images_of_other_sizes_do_not_fit_together(tmp_path):
    paths = [write(tmp_path / f"{side}.parquet", *made(0, 3, (side, side, 3))) for side in (6, 8)]
    with pytest.raises(
        DataError,
        match=r"6\.parquet and .*8\.parquet: training images have shape \[6, 6, 3\], but test images \[8, 8, 3\]",
    ):
        readers.image_parquet([raw(path) for path in paths])


def test_fetch_stores_the_decoded_arrays_once(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    train, test = made(0, 9), made(1, 5)
    for name, part in (("train", train), ("test", test)):
        write(tmp_path / "mine" / f"{name}.parquet", *part)
    files = tuple(DataFile(path=f"{name}.parquet") for name in ("train", "test"))
    entry = DataSet(title="Toy", reader="image_parquet", exact=False, note="lossy", files=files)
    monkeypatch.setattr(data_sets, "data_lock", lambda: {"toy": entry})
    folder = fetch("toy", tmp_path, tmp_path / "mine")
    assert np.array_equal(np.load(folder / "train_x.npy", mmap_mode="r"), train[0])
    monkeypatch.setattr(images.Image, "open", None)
    assert fetch("toy", tmp_path, tmp_path / "mine") == folder


# ------------------------------------------------------------------------------------- normalisation


def rows(x, mean=None, std=None, dtype=torch.float32):
    count = len(x)
    channels = {name: torch.tensor(v, dtype=dtype) for name, v in (("mean", mean), ("std", std)) if v is not None}
    return Rows(
        x=x, y=torch.zeros(count, dtype=torch.long), index=np.arange(count)[None], count=np.array([count]), scale=255,
        dtype=dtype, **channels,
    )  # fmt: skip


def test_inputs_are_normalised_channel_by_channel():
    x = torch.from_numpy(made(0, 4)[0])
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    found = rows(x, mean, std).decode(x)
    assert found.dtype == torch.float32
    for image, ours in zip(x, found, strict=True):
        for channel in range(3):
            expected = (image[..., channel].double() / 255 - mean[channel]) / std[channel]
            torch.testing.assert_close(ours[..., channel].double(), expected, rtol=0, atol=1e-6)
    gathered, _ = rows(x, mean, std).gather(torch.tensor([[2, 0], [1, 1]]))
    assert torch.equal(gathered, found[torch.tensor([[2, 0], [1, 1]])])
    grey = rows(x[..., 0], (0.1307,), (0.3081,)).decode(x[..., 0])
    torch.testing.assert_close(grey, (x[..., 0] / 255 - 0.1307) / 0.3081)


def test_without_a_mean_inputs_are_divided_by_their_scale_alone():
    x = torch.arange(256, dtype=torch.uint8).reshape(4, 8, 8)
    assert torch.equal(rows(x).decode(x), x.float() / 255)


def task(**change):
    values = {
        "name": "toy", "title": "Toy", "data": "toy", "clients": 4, "clusters": 2, "participation": 1.0, "rounds": 1,
        "batch": 2, "lr": 0.1, "router_lr": 0.1, "model": {"kind": "cnn"}, **change,
    }  # fmt: skip
    return reading.parse(Task, values, "toy.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"normalise": {"mean": [0.5], "std": [0.5, 0.5]}},
            "`mean` has 1 values and `std` has 2; give each one value per channel",
        ),
        ({"normalise": {"mean": [0.5], "std": [0.0]}}, r"normalise.std.0.*greater than 0"),
        ({"normalise": {"mean": [0.5]}}, r"`normalise.std` is missing"),
        (
            {"augmentation": "flip_crop", "shift": {"kind": "rotate"}, "clusters": 3},
            r"quarter turns \(1, 2 or 4 `clusters`, or `angles` that are multiples of 90\), but `clusters` is 3",
        ),
    ],
)
def test_what_a_task_gets_wrong_about_its_images_is_said(change, message):
    with pytest.raises(ConfigError, match=message):
        task(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"augmentation": "flip_crop"},
        {"normalise": {"mean": [0.0], "std": [1.0]}},
        {"partition": {"kind": "class_groups"}},
        {"published_split": "train"},
    ],
)
def test_synthetic_data_have_no_images_classes_or_published_split(change):
    with pytest.raises(
        ConfigError, match=f"{next(iter(change))}.* (needs? a data set|cannot be used with synthetic data)"
    ):
        task(data={"kind": "linear", "samples_per_client": 8}, loss="mse", **change)


# ---------------------------------------------------------------------------------------- real files


@pytest.mark.parametrize("family", ["cifar10", "cifar100"])
def test_cifar_is_verified_and_read(missing, family):
    """Whichever copy is there; of the training images only the hash, because they take seconds to decode."""
    folder = Path(os.environ.get("FLORAL_DATA", "none"))
    test = data_sets.data_lock()[family].files[1]
    if not (folder / test.path).is_file():
        missing(f"FLORAL_DATA has no {test.path}")
    digest = sources.content_sha256(folder / test.path)
    copies = {name: data_sets.data_lock()[name] for name in (f"{family}_jpeg90", family)}
    (name,) = (name for name, entry in copies.items() if entry.files[1].sha256 == digest)
    assert copies[name].exact == (name == family)
    assert sources.obtain(copies[name].files[0], folder / "none", [folder]).verified
    found = sources.obtain(copies[name].files[1], folder / "none", [folder])
    images = readers.image_parquet([found, found])
    classes = {"cifar10": 10, "cifar100": 100}[family]
    assert images.test_x.shape == (10_000, 32, 32, 3) and images.classes == classes
    assert np.bincount(images.test_y).tolist() == [10_000 // classes] * classes
    published = {"cifar10": [0.4942, 0.4851, 0.4504], "cifar100": [0.5088, 0.4874, 0.4419]}[family]
    assert np.abs(images.test_x.mean((0, 1, 2)) / 255 - published).max() < 0.003
