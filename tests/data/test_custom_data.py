"""Data of one's own: declared in a task, read from a folder of images, a table or arrays, refused with a remedy."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from pictures import encoded, made
from PIL import Image
from printed import read_page
from projects import Project

from floral.config import catalogue, data_sets
from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import CustomData, DataFile
from floral.core.spec import Refused
from floral.data import custom, federation
from floral.data.sources import DataError, RawFile
from floral.io.files import visible
from floral.models import resnet18, vit
from floral.stages.fetch import fetch
from floral.stages.partition import partition


def read(kind, path, **options):
    file = RawFile(file=DataFile(path=str(path)), location=Path(path), sha256="", verified=True)
    return custom.READERS[kind]([file], **CustomData(kind=kind, path=str(path), **options).options)


def pictures(root, classes=("cat", "dog"), each=5, shape=(6, 6, 3), seed=0):
    images, _ = made(seed, len(classes) * each, shape)
    for row, image in enumerate(images):
        path = root / classes[row // each] / f"{row:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    return images


# ------------------------------------------------------------------------------------------- what is read


def test_a_folder_of_images_by_class_is_split_and_its_classes_named(tmp_path):
    images = pictures(tmp_path, ("dog", "cat"))
    (tmp_path / ".DS_Store").write_text("what a system leaves behind")
    found = read("folder", tmp_path)
    assert (found.names, found.classes, found.scale) == (("cat", "dog"), 2, 255)
    assert (len(found.train_x), len(found.test_x)) == (8, 2)
    labels = {image.tobytes(): row < 5 for row, image in enumerate(images)}
    for x, y in ((found.train_x, found.train_y), (found.test_x, found.test_y)):
        assert x.dtype == np.uint8
        assert [labels.pop(image.tobytes()) for image in x] == (y == 1).tolist()
    assert not labels
    assert np.array_equal(read("folder", tmp_path).test_x, found.test_x), "the split is fixed"


def test_a_folder_with_train_and_test_keeps_this_split(tmp_path):
    train, test = pictures(tmp_path / "train"), pictures(tmp_path / "test", ("dog",), each=3, seed=1)
    found = read("folder", tmp_path)
    assert np.array_equal(found.train_x, train) and np.array_equal(found.test_x, test)
    assert found.train_y.tolist() == [0] * 5 + [1] * 5 and found.test_y.tolist() == [1] * 3


def test_grey_images_stay_grey_and_among_coloured_ones_become_coloured(tmp_path):
    pictures(tmp_path, shape=(4, 4))
    assert read("folder", tmp_path).train_x.shape[1:] == (4, 4)
    (tmp_path / "cat" / "999.png").write_bytes(encoded(np.zeros((4, 4, 4), np.uint8)))
    assert read("folder", tmp_path).train_x.shape[1:] == (4, 4, 3)


TABLE = pl.DataFrame({
    "length": [value / 2 for value in range(20)], "width": [3] * 20, "kind": ["b", "a"] * 10,
    "site": [f"site {row // 5}" for row in range(20)],
})  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_has_features_labels_and_clients(tmp_path, suffix):
    path = tmp_path / f"flowers.{suffix}"
    getattr(TABLE, f"write_{suffix}")(path)
    found = read("table", path, label="kind", client="site", test_share=0.4)
    assert (found.names, found.scale, found.natural_clients) == (("a", "b"), 1, 4)
    assert np.bincount(found.train_client).tolist() == [3] * 4 and np.bincount(found.test_client).tolist() == [2] * 4
    assert found.train_x.dtype == np.float32 and found.train_x.shape == (12, 2)
    assert found.train_x.mean(0) == pytest.approx([0, 0], abs=1e-6)
    assert found.train_x.std(0) == pytest.approx([1, 0], abs=1e-6), "a constant column is 0"
    alone = read("table", path, label="kind", features=["length"], test_share=0.4)
    assert alone.train_x.shape == (12, 1) and alone.train_client is None


def test_a_table_in_two_files_keeps_this_split(tmp_path):
    TABLE.drop("site")[:15].write_csv(tmp_path / "train.csv")
    shuffled = TABLE.drop("site")[15:].select("kind", "width", "length")
    shuffled.write_csv(tmp_path / "test.csv")
    found = read("table", tmp_path, label="kind")
    assert (len(found.train_x), len(found.test_x)) == (15, 5)
    length = found.train_x[:, 0].astype(float)
    assert found.test_x.shape == (5, 2), "columns are matched by name"
    assert np.allclose(np.diff(length), np.diff(length)[0]) and found.test_x[0, 0] > length.max()


def test_a_folder_of_a_table_holds_two_files(tmp_path):
    for name in ("train.csv", "train.parquet", "test.csv"):
        (tmp_path / name).touch()
        with pytest.raises(DataError, match=r"both, and nothing else|one file train\.\* and one file test\.\*"):
            read("table", tmp_path, label="kind")


@pytest.mark.parametrize("as_folder", [True, False])
def test_arrays_in_one_file_or_a_folder(tmp_path, as_folder):
    random = np.random.default_rng(0)
    arrays = {"x": random.integers(0, 256, (30, 4, 4)).astype(np.uint8), "y": np.arange(30) % 3}
    arrays["client"] = np.repeat(["ada", "bob", "eve"], 10)
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    if as_folder:
        path = tmp_path / "mine"
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    found = read("arrays", path)
    assert (found.classes, found.scale, found.natural_clients, found.names) == (3, 255, 3, None)
    assert np.bincount(found.test_client).tolist() == [2, 2, 2]
    assert found.train_x.dtype == np.uint8 and len(found.train_x) == 24


def test_arrays_keep_their_split_and_numbers_are_taken_as_they_are(tmp_path):
    x = np.linspace(-3, 3, 12).reshape(6, 2)
    words = np.array(["no", "yes", "no", "yes"])
    np.savez(tmp_path / "a.npz", train_x=x[:4], train_y=words, test_x=x[4:], test_y=words[:2])
    found = read("arrays", tmp_path / "a.npz")
    assert np.array_equal(found.train_x, x[:4].astype(np.float32)) and found.scale == 1
    assert (found.train_y.tolist(), found.test_y.tolist(), found.names) == ([0, 1, 0, 1], [0, 1], ("no", "yes"))


# -------------------------------------------------------------------------------------------- what is refused


def spoilt(root, change):
    """A folder of images that is right but for one thing."""
    pictures(root)
    cat = root / "cat"
    match change:
        case "other size":
            (cat / "999.png").write_bytes(encoded(np.zeros((7, 6, 3), np.uint8)))
        case "deep":
            Image.fromarray(np.zeros((6, 6), np.uint16)).save(cat / "999.png")
        case "text" | "empty file":
            (cat / "999.png").write_bytes(b"" if change == "empty file" else b"not an image")
        case "cut":
            (cat / "000.png").write_bytes((cat / "000.png").read_bytes()[:-30])
        case "empty class":
            (root / "emu").mkdir()
        case "loose file":
            (root / "labels.csv").write_text("a,b")
        case "nested":
            (cat / "kittens").mkdir()
            shutil.move(cat / "000.png", cat / "kittens" / "000.png")
        case "no test":
            shutil.move(cat, root / "train")
        case "empty test" | "unknown class":
            shutil.move(root / "dog", root / "other")
            for side in ("train", "test"):
                shutil.copytree(cat, root / side / ("cat" if side == "train" or change == "empty test" else "emu"))
            if change == "empty test":
                shutil.rmtree(root / "test" / "cat")
            for name in ("cat", "other"):
                shutil.rmtree(root / name)
        case "one image each":
            for name in ("cat", "dog"):
                shutil.rmtree(root / name)
            pictures(root, ("cat",), each=1)
        case "file":
            shutil.rmtree(root)
            root.write_text("x")
    return root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "other size",
            r"999\.png: this image has 6×7 pixels, but .*000\.png has 6×6; resize all images to one size",
        ),
        ("text", r"999\.png: the image cannot be decoded .*remedy: replace or remove it"),
        ("empty file", r"999\.png: the image cannot be decoded"),
        ("deep", r"999\.png: this image has the mode I;16; save it in grey or RGB, with at most 8 bits per channel"),
        ("cut", r"000\.png: the image cannot be decoded .*remedy"),
        ("empty class", r"emu: a class folder must contain at least one image, and images only; add images"),
        ("loose file", r"labels\.csv: this file is next to the class folders; move it into one of them, or remove it"),
        ("nested", r"cat: a class folder must contain at least one image, and images only"),
        ("no test", r"mine: a folder with an entry train or test must contain both.* remedy: remove 'dog'"),
        ("empty test", r"test: this folder has no class folders; add images as <class>/<image>"),
        ("unknown class", r"test: class 'emu' has test samples, but no training samples; add training samples of it"),
        ("one image each", r"mine: no class has two samples, so there are no test samples; add samples"),
        (
            "file",
            r"mine: this is a file, but a folder is expected; set `data.path` to the folder that contains one",
        ),
    ],
)
def test_a_folder_of_images_that_cannot_be_read_is_explained(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        read("folder", spoilt(tmp_path / "mine", change))


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"label": "sort"}, r"a\.csv: `data\.label` names the column 'sort', .*; name one of length, width"),
        ({}, {"client": "place"}, r"`data\.client` names the column 'place', which"),
        ({}, {"features": ["depth"]}, r"`data\.features` names the column 'depth', which"),
        ({}, {}, r"'site' has type String, but features must be numbers; list the numeric columns"),
        ({"length": [*[0.5] * 19, None]}, {"client": "site"}, r"column 'length', row 19 .*: None is not a finite"),
        ({"length": [*[0.5] * 19, np.nan]}, {"client": "site"}, r"column 'length', row 19 .*: 'NaN' is not a finite"),
        ({"kind": [*"ab" * 9, "a", None]}, {"client": "site"}, r"column 'kind', row 19 .* has no value; give such"),
        ({"site": [None, *"ab" * 9, "a"]}, {"client": "site"}, r"column 'site', row 0 .* has no value"),
        ({"kind": [0.5] * 20}, {"client": "site"}, r"the labels are of type float64; write them as integers"),
        ({"kind": [1, 2] * 10}, {"client": "site"}, r"these run from 1 to 2 with no 0; number the classes again"),
        ({"kind": [0, 2] * 10}, {"client": "site"}, r"these run from 0 to 2 with no 1"),
        ({"kind": [0, -1] * 10}, {"client": "site"}, r"these run from -1 to 0 with -1"),
        ({"site": [f"{row}" for row in range(20)]}, {"client": "site"}, r"no client has two samples"),
        ({name: [] for name in TABLE.columns}, {"client": "site"}, r"a\.csv: .*(no samples|features must be numbers)"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_explained(tmp_path, change, options, message):
    columns = TABLE.to_dict(as_series=False) | change
    pl.DataFrame(columns, strict=False).write_csv(tmp_path / "a.csv")
    with pytest.raises(DataError, match=message):
        read("table", tmp_path / "a.csv", **{"label": "kind", **options})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.parquet",
            b"PAR1 and no more",
            r"a\.parquet: this is not a parquet file in UTF-8, or it is truncated .*remedy: write it",
        ),
        ("a.parquet", b"", r"a\.parquet: this is not a parquet file"),
        ("a.parquet", b"length,kind\n1,a\n2,b\n3,a\n", r"a\.parquet: this is not a parquet file"),
        ("a.csv", b"length,kind\n1,\xff\xfe\n", r"a\.csv: this is not a csv file in UTF-8"),
        ("a.csv.gz", b"\x1f\x8b cut", r"truncated or damaged"),
        ("a.xlsx", b"", r"a\.xlsx: the file name must end in \.parquet, \.csv"),
    ],
)
def test_a_file_that_is_no_table_is_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read("table", tmp_path / name, label="kind")


X, Y = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"found the arrays x, expected x, y; save x and y"),
        ({"train_x": X, "train_y": Y}, r"expected train_x, train_y, test_x, test_y"),
        ({"x": X, "y": Y[:5]}, r"labels \(y\) has shape \[5\], but there are 6 samples; give one value per"),
        ({"x": X, "y": Y, "client": Y[:1]}, r"client has shape \[1\], but there are 6 samples"),
        ({"x": X, "y": np.eye(6)}, r"labels \(y\) has shape \[6, 6\], but there are 6 samples"),
        ({"x": X, "y": Y / 2}, r"the labels are of type float64"),
        ({"x": X[:0], "y": Y[:0]}, r"there are no samples here"),
        ({"x": np.zeros(6), "y": Y}, r"x has shape \[6\]; give it the shape \[N, features\]"),
        ({"x": np.zeros((6, 3, 8, 8)), "y": Y}, r"not certain which axis .*; set `data\.channels: first` for"),
        ({"x": np.full((6, 2), [[0, np.nan]]), "y": Y}, r"x, row 0 .* has NaN or infinity; give such rows finite"),
        ({"x": np.array([["a"]] * 6), "y": Y}, r"x is of type <U1; save images as uint8, and other"),
        ({"x": X.astype(int), "y": Y}, r"x is of type int64; save images as uint8"),
        ({"x": np.array([[{}]] * 6), "y": Y}, r"not in NumPy's format, is truncated, or contains Python objects"),
        ({"train_x": X, "train_y": Y, "test_x": X[:, :3], "test_y": Y}, r"test samples have shape \[3, 4\].*the same"),
        ({"train_x": X, "train_y": Y, "test_x": X[:0], "test_y": Y[:0]}, r"there are no samples here"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_read_are_explained(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=rf"(?s)a\.npz: .*{message}"):
        read("arrays", tmp_path / "a.npz")


def test_a_damaged_archive_is_explained(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    np.save(tmp_path / "x.npy", X)
    for name, message in (
        ("a.npz", "not in NumPy's format, is truncated"),
        ("x.npy", "a single array; set `data.path` to an .npz file"),
    ):
        with pytest.raises(DataError, match=message):
            read("arrays", tmp_path / name)


# ---------------------------------------------------------------------------------------- from task to run


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "foldr", "path": "x"}, r"data: expected a name in config/data.lock, or a mapping .*folder, table or"),
        ({"kind": "table", "path": "x", "labl": "y"}, r"data: unknown key 'labl'; did you mean 'label'"),
        ({"kind": "table", "path": "x"}, r"`data\.label` is missing; set it to the name of the table's column"),
        ({"kind": "table", "path": "x", "label": "y", "features": ["a", "a"]}, r"data: column 'a' is named twice"),
        ({"kind": "table", "path": "x", "label": "y", "features": ["a", "y"]}, r"data: column 'y' is named twice"),
        ({"kind": "table", "path": "x", "label": "y", "client": "y"}, r"data: column 'y' is named twice"),
        ({"kind": "arrays", "path": "x", "client": "y"}, r"`data\.client` is for `kind: table` only; remove"),
        ({"kind": "folder", "path": "x", "test_share": 1}, r"data\.test_share: .*less than 1"),
    ],
)  # fmt: skip
def test_a_mistaken_declaration_names_its_key(data, message):
    with pytest.raises(ConfigError, match=rf"config/tasks/digits_rotate\.yaml: .*{message}"):
        catalogue.task("digits_rotate", {"data": data})


def run_of(path):
    data = {"kind": "folder", "path": str(path)}
    task = catalogue.task("digits_rotate", {"data": data, "clients": 2, "clusters": 1, "partition": {"min_rows": 1}})
    return Run(task=task, variant=catalogue.variant("fedavg"), seed=0, fidelity=catalogue.fidelity("corrected"))


@pytest.fixture
def fresh(monkeypatch):
    """What a new process knows: no content is remembered."""
    return lambda: data_sets._content.cache_clear()


def test_content_and_options_decide_the_hash_and_the_place_does_not(tmp_path, fresh):
    pictures(tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "moved")
    first = run_of(tmp_path / "mine")
    assert run_of(tmp_path / "moved").hash8 == first.hash8
    assert run_of(tmp_path / "moved").partition.folder == first.partition.folder
    assert str(first.partition.data).startswith("own-")
    before = first.hash8
    (tmp_path / "mine" / "cat" / "000.png").rename(tmp_path / "mine" / "dog" / "000.png")
    fresh()
    assert run_of(tmp_path / "mine").hash8 != before
    whole = data_sets.stored_data(CustomData(kind="folder", path=str(tmp_path / "mine")))
    assert data_sets.stored_data(CustomData(kind="folder", path=str(tmp_path / "mine"), test_share=0.3)) != whole


def test_a_task_of_ones_own_is_fetched_and_partitioned(tmp_path, fresh):
    pictures(tmp_path / "mine")
    run, results = run_of(tmp_path / "mine"), tmp_path / "results"
    folder = fetch(run.task.data, results)
    manifest = json.loads((folder / "card.json").read_text())
    assert (folder.name, manifest["class_names"]) == (run.partition.data, ["cat", "dog"])
    assert manifest["title"] == "Custom data, folder mine" and all(file["verified"] for file in manifest["files"])
    written = (folder / "train_x.npy").stat().st_mtime_ns
    assert (fetch(run.task.data, results) / "train_x.npy").stat().st_mtime_ns == written
    partition(run.partition, results)
    clients = federation.load(run, results)
    assert clients.shape == (6, 6, 3) and clients.classes == 2 and clients.clients == 2
    (tmp_path / "mine" / "cat" / "000.png").unlink()
    with pytest.raises(DataError, match="these data have changed since this command started; run the command again"):
        (folder / "card.json").unlink()
        fetch(run.task.data, results)


SUITE = """
title: Mine
runs:
  - {tasks: [flowers], variants: [fedavg], seeds: [0]}
"""
FLOWERS = """
title: Flowers by site
data: {kind: table, path: flowers.csv, label: kind, client: site}
partition: {kind: natural, min_rows: 5}
clients: 6
clusters: 2
participation: 1.0
rounds: 3
batch: 8
lr: 0.1
router_lr: 0.1
model: {kind: mlp, hidden: 8}
"""


def test_a_table_goes_all_the_way_to_the_report(tmp_path):
    project = Project.made(tmp_path, tiny=SUITE)
    (tmp_path / "config" / "tasks" / "flowers.yaml").write_text(FLOWERS)
    random = np.random.default_rng(0)
    length, site = random.normal(size=200), np.arange(200) % 8
    kind = np.where(length + 0.1 * random.normal(size=200) > 0, "iris", "rose")
    pl.DataFrame({"length": length, "width": random.normal(size=200), "kind": kind, "site": site}).write_csv(
        tmp_path / "flowers.csv"
    )
    fetched = project.call("floral", "fetch", "flowers")
    assert fetched.returncode == 0, fetched.stdout
    done = project.call("snakemake", "--profile", "local", "--until", "report", "--config", "suite=tiny")
    assert done.returncode == 0, done.stdout
    run = yaml.safe_load(project.path("results/train/flowers/fedavg/*/run.yaml").read_text())
    assert run["data"]["own"] and run["data"]["name"].startswith("own-") and run["data"]["exact"]
    summary = json.loads(project.path("results/train/flowers/fedavg/*/summary.json").read_text())
    assert summary["status"] == "done" and summary["test_accuracy"] > 0.5
    page = read_page(tmp_path / "reports" / "tiny" / "index.html")
    assert f"custom data (table flowers.csv), {run['data']['name']}" in page


# ------------------------------------------------------------------------------------------- what was once read wrongly


def test_what_lies_behind_a_link_is_part_of_the_content(tmp_path):
    pictures(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "real" / name)
    before = visible(tmp_path / "linked")
    assert len(before) == len(visible(tmp_path / "real")) == 10


def test_a_constant_column_stays_zero_whatever_its_floating_point_spread(tmp_path):
    rows = [f"{0.3},{number % 7},{'ab'[number % 2]}" for number in range(50)]
    (tmp_path / "table.csv").write_text("constant,varying,label\n" + "\n".join(rows))
    found = read("table", tmp_path / "table.csv", label="label")
    assert not found.train_x[:, 0].any() and not found.test_x[:, 0].any()
    assert abs(found.train_x[:, 1].std() - 1) < 1e-5


def test_a_damaged_compressed_archive_is_said(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(40, 5)), y=np.arange(40) % 2)
    whole = path.read_bytes()
    for at in range(60, 400, 20):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            read("arrays", path)  # a flipped byte of what nobody reads harms nothing
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(("at", "bit"), [(147, 1), (149, 1), (50, 1), (700, 8), (880, 255)])
def test_a_damaged_parquet_file_is_said_whatever_polars_does(tmp_path, at, bit):
    """Of these, some make polars raise an error, some panic, and some abort the process."""
    path = tmp_path / "table.parquet"
    pl.DataFrame({"kind": ["iris", "rose"] * 4, "length": [float(row) for row in range(8)]}).write_parquet(path)
    whole = bytearray(path.read_bytes())
    whole[at] ^= bit
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"table\.parquet: this is not a parquet file .*remedy: write it again"):
        read("table", path, label="kind")


def test_a_class_always_has_training_rows_and_test_rows_where_it_has_two(tmp_path):
    x, y = np.arange(80, dtype=np.float32).reshape(40, 2), np.array([0] * 19 + [1] * 18 + [2] * 2 + [3])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    found = read("arrays", tmp_path / "a.npz")
    assert set(found.train_y.tolist()) == {0, 1, 2, 3} and np.bincount(found.test_y).tolist() == [4, 4, 1]
    client = np.arange(40) % 10  # ten clients, one test row each: some of classes with one row
    for rare in range(40):
        np.savez(tmp_path / "b.npz", x=x, y=(np.arange(40) == rare).astype(int), client=client)
        found = read("arrays", tmp_path / "b.npz")
        assert set(found.train_y.tolist()) == {0, 1} and len(found.train_y) in (30, 31)


@pytest.mark.parametrize("kind", ["cnn", "vgg8", "resnet18", "vit"])
def test_rows_that_are_no_images_are_refused_by_image_models(kind):
    build = importlib.import_module(f"floral.models.{kind}").build
    for shape in ((5,), (32, 32, 3, 3)):
        with pytest.raises(Refused, match="are no images"):
            build(shape, 3)


def test_sizes_that_do_not_fit_are_refused_and_not_changed():
    with pytest.raises(Refused, match="66` cannot be split evenly among 4 heads"):
        vit.build((8, 8), 3, features=66, heads=4)
    with pytest.raises(Refused, match="15` cannot be split into 2 groups"):
        resnet18.build((8, 8), 3, channels=(15, 30, 60, 120), groups=2)
    with pytest.raises(Refused, match="`dropout` is 1"):
        vit.build((8, 8), 3, dropout=1.0)
