"""Random tables, image folders and NumPy files with oddities: each is read rightly, or refused by name.

What is read is compared with an independent reader (pandas, Pillow, NumPy).
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fuzzing import bounded
from hypothesis import given
from hypothesis import strategies as st
from odd_files import in_order, read
from PIL import Image, ImageOps

from floral.data.readers import Labelled
from floral.data.sources import DataError

Made = tuple[bytes, dict[str, Any]]
"""A file, and the keys of `data` beside it."""
NAMES_OF_ROW_NUMBERS = re.compile(r"|Unnamed: \d+(\.\d+)?|\.\.\.\d+|rownames")
"""Names of columns that pandas or R have written. pandas reads a name without characters as the first."""


def outcome(kind: str, path: Path, **options: Any) -> Labelled | None:
    """What is read, or None if the data are refused by a message that names the file and can be printed."""
    try:
        return read(kind, path, **options)
    except DataError as error:
        text = str(error)
        assert str(path) in text and text.encode() and "schema" not in text, text
        return None


def empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


# ----------------------------------------------------------------------------------------------------------- tables

NUMBERS = st.one_of(st.integers(-99, 99).map(str), st.integers(-(10**9), 10**9).map(lambda v: f"{v / 1000:.3f}"))
ODD_NUMBERS = st.sampled_from(
    ["", "NA", "?", "nan", "1e39", "-inf", "1,5", "1.5", " 2", "2 ", "0x1", "1e-320", "x", "-999"]
)
WORDS = st.sampled_from(["ash", "elm", "oak", "fr\u00eane"])
ODD_WORDS = st.sampled_from(["", " ", "NaN", "?", "ash ", "fre\u0302ne", "1", "a,b", 'say "hi"', "None", "two\nlines"])
NAMES = st.lists(st.sampled_from(["a", "b", "x y", "\u00e9", "a ", "c"]), min_size=1, max_size=3, unique=True)
ODD_NAMES = st.sampled_from(["a", "id", "", "Unnamed: 0", "Unnamed: 0.1", "...1", "rownames", "kind"])


def rarely(draw: st.DrawFn, tenths: int = 1) -> bool:
    return draw(st.integers(0, 9)) >= 10 - tenths


@st.composite
def tables(draw: st.DrawFn) -> Made:
    names = draw(NAMES)
    if rarely(draw, 2):
        names[0] = draw(ODD_NAMES)
    rows = 0 if rarely(draw) else draw(st.integers(4, 16))
    odd_cells = draw(st.sets(st.integers(0, rows * (len(names) + 1)), max_size=2)) if rarely(draw, 4) else set()
    at = iter(range(10**6))

    def cell(plain: st.SearchStrategy[str], odd: st.SearchStrategy[str]) -> str:
        return draw(odd if next(at) in odd_cells else plain)

    decimal = draw(st.sampled_from([".", ".", ","]))
    columns = [[cell(NUMBERS, ODD_NUMBERS).replace(".", decimal) for _ in range(rows)] for _ in names]
    if rarely(draw, 2):
        step, first = draw(st.integers(1, 9)), draw(st.integers(-9, 999))
        counted = [str(first + step * row) for row in range(rows)]
        columns[0] = draw(st.sampled_from([counted, counted[::-1], sorted(counted, key=lambda text: text[::-1])]))
    separator = draw(st.sampled_from([",", ",", ";", "\t", "|"]))
    frame = pd.DataFrame(dict(enumerate([*columns, [cell(WORDS, ODD_WORDS) for _ in range(rows)]])), dtype=str)
    frame.columns = [*names, "kind"]
    ends = draw(st.sampled_from(["\n", "\r\n"]))
    text = frame.to_csv(
        sep=separator, index=rarely(draw), quoting=draw(st.sampled_from([0, 0, 1])), lineterminator=ends
    )
    if rarely(draw):
        text = draw(st.sampled_from(["# made today\n", "\n", "sep=;\n"])) + text
    if rarely(draw):
        text += draw(st.sampled_from(["\n\n", separator * len(names) + "\n", "1\n", separator * 9 + "\n", '"']))
    encoding = draw(st.sampled_from(["utf-8-sig", "utf-16", "latin-1"])) if rarely(draw, 2) else "utf-8"
    content = text.encode(encoding, errors="ignore")
    options: dict[str, Any] = {}
    if separator != "," and not rarely(draw):
        options["separator"] = separator
    if decimal != "." and not rarely(draw):
        options["decimal"] = decimal
    if draw(st.booleans()):
        options["missing"] = draw(st.lists(st.sampled_from(["", "NA", "?", "nan", "-999"]), max_size=3))
    if names[-1] != "kind" and rarely(draw, 2):
        options["features"] = [names[-1]]
    return content, options


def as_pandas_reads(path: Path, options: dict[str, Any]) -> tuple[pd.DataFrame, pd.Series]:
    """Features as numbers and classes as text, without the rows that have a missing word in a used column."""
    frame = pd.read_csv(path, sep=options.get("separator", ","), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    frame = frame[(frame != "").any(axis=1)]
    names = options.get("features", [name for name in frame.columns if name != "kind"])
    words = options.get("missing", [])
    stripped = frame[[*names, "kind"]].apply(lambda column: column.str.strip())
    frame = frame[~stripped.isin([*words, *[f"{word}.000" for word in words if word.startswith("-")]]).any(axis=1)]
    numbers = frame[names].apply(lambda column: column.str.strip().str.replace(options.get("decimal", "."), "."))
    return numbers.astype(float), frame["kind"]


def table_is_right(folder: Path, made: Made) -> bool:
    content, options = made
    path = empty(folder / "table") / "odd.csv"
    path.write_bytes(content)
    found = outcome("table", path, label="kind", **options)
    if found is None:
        return False
    features, kinds = as_pandas_reads(path, options)
    if "features" not in options:
        for name, column in features.items():
            assert not NAMES_OF_ROW_NUMBERS.fullmatch(str(name)), "row numbers are a feature"
            steps = np.diff(column)
            assert len(steps) < 10 or (column % 1).any() or not ((steps > 0).all() or (steps < 0).all()), name
    x, y = in_order(found)
    assert x.shape == features.shape and np.isfinite(x).all()
    named = kinds.astype(int).tolist() if found.names is None else [found.names.index(kind) for kind in kinds]
    assert np.bincount(y).tolist() == np.bincount(named).tolist()
    for column, of_file in zip(x.T.astype(float), features.to_numpy().T, strict=True):
        if min(np.ptp(column), np.ptp(of_file)) > 1e-3 and max(np.ptp(column), np.ptp(of_file)) < 1e9:
            scaled, wanted = ((v - v.min()) / np.ptp(v) for v in (column, of_file))
            for c in set(named):
                assert np.allclose(np.sort(scaled[y == c]), np.sort(wanted[np.array(named) == c]), atol=1e-4)
    return True


# ----------------------------------------------------------------------------------------------------------- images

PIXELS = st.binary(min_size=4 * 5 * 4, max_size=4 * 5 * 4)
FORMATS = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), "TIFF": ("L", "RGB", "RGBA", "CMYK", "F"),
           "WEBP": ("RGB", "RGBA"), "BMP": ("1", "L", "RGB"), "GIF": ("L", "P"), "PPM": ("L", "RGB")}  # fmt: skip


@st.composite
def images(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[kind]))
    raw = np.frombuffer(draw(PIXELS), np.uint8).reshape(4, 5, 4)
    plain = Image.fromarray(raw).convert("RGB")
    match mode:
        case "RGBA":
            image = Image.fromarray(raw)
        case "I;16":
            image = Image.fromarray(raw[..., 0].astype(np.uint16) * 257)
        case "P":
            image = plain.quantize(8)
        case _:
            image = plain.convert(mode)
    how: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    if kind in ("PNG", "TIFF", "WEBP") and draw(st.booleans()):
        how["exif"] = Image.Exif()
        how["exif"][0x0112] = draw(st.sampled_from([1, 2, 3, 4, 6, 9, 0]))
    if kind == "PNG" and mode in ("L", "P") and draw(st.booleans()):
        how["transparency"] = 3
    if kind in ("GIF", "TIFF") and rarely(draw):
        how |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    content = buffer.getvalue()
    if rarely(draw):
        at = draw(st.integers(0, len(content) - 1))
        content = draw(st.sampled_from([content[:at], content[:at] + b"\xff" + content[at + 1 :]]))
    return content


def as_pillow_shows(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        rgba = np.asarray(ImageOps.exif_transpose(image).convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


FOLDERS = st.tuples(st.lists(images(), min_size=2, max_size=4), st.booleans(), st.integers(0, 9))


def images_are_right(folder: Path, made: tuple[list[bytes], bool, int]) -> bool:
    contents, split, beside = made
    root, parts = empty(folder / "images"), ("train", "test") if split else ("",)
    paths = [
        root / part / name / f"{row}.img" for part in parts for name in "ab" for row in range(len(contents))
    ]  # fmt: skip
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[int(path.stem)])
    if beside == 9:
        (root / "notes.txt").write_text("mine")
    found = outcome("folder", root)
    if found is None:
        return False
    x, y = in_order(found)
    assert len(x) == len(paths) and np.bincount(y).tolist() == [len(paths) // 2] * 2
    every = x if x.ndim == 4 else np.repeat(x[..., None], 3, 3)
    shown = [as_pillow_shows(path) for path in paths]
    for number in (0, 1):
        of_file = [image for image, path in zip(shown, paths, strict=True) if path.parent.name == "ab"[number]]
        for image in every[y == number]:
            distance = [np.abs(image - other).max() for other in of_file]
            assert min(distance) <= 1, "no file shows these pixels"
            of_file.pop(int(np.argmin(distance)))
    return True


# ----------------------------------------------------------------------------------------------------------- arrays

KINDS = st.sampled_from(["<f4", "<f8", ">f4", "<f2", "|u1"])
ODD_KINDS = st.sampled_from(["<i8", "|b1", "<c8", "<U3", "|S3", "<M8[D]"])
SHAPES = st.sampled_from([(8, 3), (8, 4, 4), (8, 4, 4, 3), (8, 4, 4, 1), (8, 4, 4, 4, 3)])
ODD_SHAPES = st.sampled_from([(8,), (8, 3, 4, 4), (8, 4, 4, 8), (8, 1, 4, 4), (0, 3), (6, 3)])
NAME_KINDS = st.sampled_from(["<i8", "|u1", "<U3", "|S3"])
ODD_NAME_KINDS = st.sampled_from(["<f8", "|b1", "<M8[D]", "<c8"])


@st.composite
def arrays(draw: st.DrawFn) -> Made:
    def array(kind: str, shape: tuple[int, ...]) -> np.ndarray:
        return (np.arange(np.prod(shape)) % draw(st.integers(1, 4))).reshape(shape).astype(kind)

    split, clients = draw(st.booleans()), draw(st.booleans())
    kind, shape, names = draw(KINDS), draw(SHAPES), draw(NAME_KINDS)
    held: dict[str, np.ndarray] = {}
    for prefix in ("train_", "test_") if split else ("",):
        x = array(draw(ODD_KINDS) if rarely(draw) else kind, draw(ODD_SHAPES) if rarely(draw) else shape)
        if x.dtype.kind == "f" and x.size and rarely(draw):
            x.flat[0] = draw(st.sampled_from([np.nan, np.inf, -1e39]))
        held[f"{prefix}x"], held[f"{prefix}y"] = x, array(draw(ODD_NAME_KINDS) if rarely(draw) else names, (8,))
        if clients and not rarely(draw):
            held[f"{prefix}client"] = array(draw(ODD_NAME_KINDS) if rarely(draw) else "<i8", (8,))
    buffer = io.BytesIO()
    draw(st.sampled_from([np.savez, np.savez_compressed]))(buffer, **held)
    content = bytearray(buffer.getvalue())
    if rarely(draw, 2):
        for _ in range(draw(st.integers(1, 5))):
            content[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    if rarely(draw):
        del content[draw(st.integers(0, len(content))) :]
    channels = draw(st.sampled_from(["first", "last"])) if len(shape) == 4 or rarely(draw) else None
    return bytes(content), {} if channels is None or draw(st.booleans()) else {"channels": channels}


def archive_is_right(folder: Path, made: Made) -> bool:
    content, options = made
    path = empty(folder / "arrays") / "odd.npz"
    path.write_bytes(content)
    found = outcome("arrays", path, **options)
    if found is None:
        return False
    with np.load(path) as file:
        held = {name: file[name] for name in file.files}
    x, y = in_order(found)
    sides = ("train_", "test_") if "train_x" in held else ("",)
    of_file = np.concatenate([held[f"{side}x"] for side in sides])
    if options.get("channels") == "first":
        of_file = of_file.transpose(0, 2, 3, 1)
    of_file = of_file.astype(x.dtype).reshape(len(of_file), -1)
    assert sorted(row.tobytes() for row in x.reshape(len(x), -1)) == sorted(row.tobytes() for row in of_file)
    labels = np.concatenate([held[f"{side}y"] for side in sides])
    assert np.bincount(y).tolist() == np.unique(labels, return_counts=True)[1].tolist()
    return True


# ----------------------------------------------------------------------------------------------------------- the tests


@pytest.mark.filterwarnings("ignore")  # Pillow, NumPy and zipfile warn of some damage, and read the rest.
@pytest.mark.parametrize(
    ("files", "examples", "is_right"),
    [(tables(), 150, table_is_right), (FOLDERS, 120, images_are_right), (arrays(), 200, archive_is_right)],
    ids=["tables", "images", "archives"],
)
def test_random_files_are_read_as_another_reader_reads_them_or_refused(
    tmp_path: Path, files: st.SearchStrategy[Any], examples: int, is_right: Callable[[Path, Any], bool]
) -> None:
    outcomes: list[bool] = []

    @bounded(examples)
    @given(made=files)
    def each(made: Any) -> None:
        outcomes.append(is_right(tmp_path, made))

    each()
    assert outcomes.count(True) > len(outcomes) / 5, "most files are refused, so the test says little"
