"""Odd NumPy files: the layout of colours is certain or asked for, and a wrong header never reserves memory."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_files import in_order, read, refused

RANDOM = np.random.default_rng(0)
Y = np.arange(12) % 3
X = RANDOM.normal(size=(12, 4)).astype(np.float32)


def saved(path: Path, **arrays: Any) -> Path:
    np.savez(path / "a.npz", **arrays)
    return path / "a.npz"


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(shape: tuple[int, ...], kind: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------- the layout of colours


@pytest.mark.parametrize(
    "shape", [(80, 4, 8, 8), (12, 3, 8, 8), (12, 1, 8, 8), (12, 3, 8, 3), (12, 1, 1, 1), (12, 8, 8, 4), (12, 3, 5, 1)]
)
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_the_layout_is_asked_for_where_it_is_not_certain(tmp_path, shape, kind):
    x = RANDOM.integers(0, 256, shape).astype(kind)
    path = saved(tmp_path, x=x, y=np.arange(len(x)) % 2)
    refused(
        "arrays", path, r"the array x has shape \[.*not certain which axis .* set `data\.channels: first` for \[N, C"
    )
    for layout, expected in (("first", np.moveaxis(x, 1, 3)), ("last", x)):
        found, _ = in_order(read("arrays", path, channels=layout))
        expected = expected[..., 0] if expected.shape[3] == 1 else expected
        assert found.shape == expected.shape and found.dtype == kind
        assert {image.tobytes() for image in found} == {np.ascontiguousarray(image).tobytes() for image in expected}


@pytest.mark.parametrize("shape", [(12, 8, 8, 3), (12, 8, 8, 1), (12, 5, 9, 3)])
def test_a_certain_layout_needs_no_key(tmp_path, shape):
    x = RANDOM.normal(size=shape).astype(np.float32)
    found = read("arrays", saved(tmp_path, x=x, y=Y)).train_x
    assert found.shape[1:] == (shape[1:] if shape[3] == 3 else shape[1:3])


@pytest.mark.parametrize("shape", [(12, 4), (12, 8, 8), (12, 2, 4, 4, 3)])
def test_the_layout_of_what_has_no_four_axes_is_refused(tmp_path, shape):
    path = saved(tmp_path, x=np.zeros(shape, np.float32), y=Y)
    refused("arrays", path, r"`data\.channels` is for arrays with four axes, .*; remove the key", channels="first")


# ---------------------------------------------------------------------------------------- values, classes, clients


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"client": np.where(Y, Y, np.nan)}, r"the array client, row 0 .* has 'nan', which means that there is no"),
        ({"client": np.array(["nan", *"ab" * 5, "a"])}, r"the array client, row 0 .* has 'nan'"),
        ({"client": np.array(["", *"ab" * 5, "a"])}, r"the array client, row 0 .* has ''"),
        ({"client": np.array(["NaT", *["2024"] * 11], "M8[Y]")}, r"the array client is of type datetime64\[Y\]; write"),
        ({"client": np.array([1j] * 12)}, r"the array client is of type complex128; write classes and clients as int"),
        ({"y": np.array(["", *"ab" * 5, "a"])}, r"the array y, row 0 .* has ''.*; give such rows a value"),
        ({"y": np.array([b" ", *[b"a", b"b"] * 5, b"a"])}, r"the array y, row 0 .* has ' '"),
        ({"y": np.array([b"\xff", *[b"a", b"b"] * 5, b"a"])}, r"the array y has bytes that are not UTF-8"),
        ({"y": np.array(["a", "a ", *"ab" * 5])}, r"labels \(y\) has 'a' and 'a ', which look the same; write both in"),
        ({"y": Y.astype(float)}, r"the labels are of type float64"),
        ({"y": Y > 0}, r"the labels are of type bool"),
        ({"y": np.where(Y, 0.0, np.nan)}, r"the array y, row 0 .* has 'nan'"),
        ({"x": np.where(X[5, 2] == X, 1e39, X.astype(float))}, r"x, row 5 .* has a value that is too large for single"),
        ({"x": np.where(X[5, 2] == X, -np.inf, X)}, r"x, row 5 .* has NaN or infinity"),
        ({"x": np.full((12, 2), np.inf, np.float16)}, r"x, row 0 .* has NaN or infinity"),
        ({"x": X.astype(complex)}, r"the array x is of type complex64|the array x is of type complex128"),
        ({"x": np.zeros(12, [("a", "f4"), ("b", "f4")])}, r"the array x is of type \[\('a', '<f4'\)"),
    ],
)  # fmt: skip
def test_values_that_are_no_values_are_refused(tmp_path, arrays, message):
    refused("arrays", saved(tmp_path, **{"x": X, "y": Y, **arrays}), message)


def test_the_parts_must_have_the_same_kind_of_names(tmp_path):
    parts = {"train_x": X, "train_y": Y, "test_x": X, "test_y": Y.astype(str)}
    refused(
        "arrays", saved(tmp_path, **parts), r"labels \(y\) has type <U\d+, but int64 in the training samples; write"
    )
    parts |= {"test_y": Y, "train_client": Y, "test_client": Y.astype(str)}
    refused("arrays", saved(tmp_path, **parts), r"client has type <U\d+, but int64 in the training samples")


@pytest.mark.parametrize("y", [np.array([b"ash", b"elm", b"oak"])[Y], np.array(["ash", "elm", "oak"])[Y]])
def test_names_in_bytes_are_text(tmp_path, y):
    assert read("arrays", saved(tmp_path, x=X, y=y)).names == ("ash", "elm", "oak")


@pytest.mark.parametrize("x", [X.astype(">f4"), np.asfortranarray(X), X.astype(np.float64), X.astype(np.longdouble)])
def test_other_ways_to_store_the_same_numbers_are_read(tmp_path, x):
    found, _ = in_order(read("arrays", saved(tmp_path, x=x, y=Y.astype(">i2"))))
    assert {row.tobytes() for row in found} == {row.tobytes() for row in X}


# ------------------------------------------------------------------------------------------------- broken archives


def archive(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path / "a.npz", "w") as file:
        for name, content in members.items() if isinstance(members, dict) else members:
            file.writestr(name, content)
    return path / "a.npz"


def nested() -> bytes:
    """A header for which Python's parser runs out of its own memory."""
    text = b"-" * 9000 + b"1\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


FORMAT = r"a\.npz: this file is not in NumPy's format, is truncated, or contains Python objects \(.*"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.npy": header((10**12, 4)) + bytes(64), "y.npy": npy(Y)}, r"announces an array of shape \[1000000000000, "),
        ({"x.npy": npy(X), "y.npy": header((10**12,), "<i8")}, r"8,000,000,000,000 bytes, but there are 0"),
        ({"x.npy": header((2**40, 2**40)), "y.npy": npy(Y)}, r"announces"),
        ({"x.npy": header((-1, 4)) + bytes(64), "y.npy": npy(Y)}, r"announces"),
        ({"x.npy": npy(X)[:-4], "y.npy": npy(Y)}, r"192 bytes, but there are 188"),
        ({"x.npy": npy(X) + b"more", "y.npy": npy(Y)}, r"192 bytes, but there are 196"),
        ({"x.npy": b"hello", "y.npy": npy(Y)}, r"magic string"),
        ({"x.npy": b"", "y.npy": npy(Y)}, r""),
        ({"x.npy": npy(X).replace(b"'<f4'", b"'<q9'"), "y.npy": npy(Y)}, r"descr"),
        ({"x.npy": nested(), "y.npy": npy(Y)}, r"header"),
        ({"x.npy": npy(X).replace(b"{", b"("), "y.npy": npy(Y)}, r"header"),
        ({"x.npy": npy(X).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"), "y.npy": npy(Y)}, r""),
        ([("x.npy", npy(X)), ("x.npy", npy(X[:6])), ("y.npy", npy(Y))], r"the archive has the array x twice"),
        ({"x.npy": npy(X), "y.npy": npy(Y), "readme.txt": b"mine"}, r"magic string"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_broken_archive_is_refused_before_memory_is_reserved(tmp_path, members, message):
    refused("arrays", archive(tmp_path, members), FORMAT + message)


def test_a_header_of_a_single_file_is_checked_too(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "x.npy").write_bytes(header((10**12, 4)) + bytes(64))
    np.save(folder / "y.npy", Y)
    refused("arrays", folder, r"announces an array of shape \[1000000000000, 4\].*but there are 64")
    refused("arrays", folder / "x.npy", r"announces an array of shape")


def test_a_password_is_said(tmp_path):
    path = saved(tmp_path, x=X, y=Y)
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of an encrypted member
        start = content.find(signature)
        while start >= 0:
            content[start + at] |= 1
            start = content.find(signature, start + 4)
    path.write_bytes(content)
    refused("arrays", path, FORMAT + "password")
