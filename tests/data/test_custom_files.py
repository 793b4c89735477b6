"""Odd tables: what a reader sees is what the file says, or the file is refused with row, column and remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from odd_files import LABEL, PLAIN, csv, in_order, parquet, read, refused, written
from pictures import encoded, made

from floral.config import catalogue
from floral.config.reading import ConfigError


def changed(column: str, row: int, value: str) -> str:
    """The plain table as CSV, with another text in one cell."""
    cells = PLAIN.astype(str)
    cells.loc[row, column] = value
    return csv(cells)


def raw(species: str) -> str:
    """The plain table as CSV, with another text as the first class."""
    return csv(PLAIN).replace(",ash\n", f",{species}\n", 1)


def lines(*rows: str) -> str:
    """A table of 20 rows, which repeats the given ones."""
    head, *body = rows
    return "\n".join([head, *(body[at % len(body)] for at in range(20))]) + "\n"


SEMICOLON = csv(PLAIN, sep=";", decimal=",")
NUMBERS_AGAIN = PLAIN.assign(species=np.repeat([0, 1, 2], 10))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        # Separator, decimal comma, lines that are no rows.
        (SEMICOLON, {}, r'line 2 has \d cells .* the first line, \'a;b;species\', has 1; set `data\.separator: ";"`'),
        ("\ufeff" + SEMICOLON.replace("\n", "\r\n"), {}, r'set `data\.separator: ";"`'),
        (csv(PLAIN, sep=";"), {}, r'names the column \'species\', .* have; set `data\.separator: ";"`'),
        (csv(PLAIN, sep="\t"), {}, r'set `data\.separator: "\\t"`'),
        (csv(PLAIN, sep="|"), {}, r'set `data\.separator: "|"`'),
        (csv(PLAIN), {"separator": ";"}, r'set `data\.separator: ","`'),
        (SEMICOLON, {"separator": ";"}, r"column 'a', row 0 .*: '-?\d+,\d+' is not .*; set `data\.decimal: \",\"`"),
        (csv(PLAIN, decimal=",", quoting=2), {}, r"column 'a', row 0 .*: '-?\d+,\d+' .* set `data\.decimal: \",\"`"),
        (changed("a", 7, "5,1"), {}, r"column 'a', row 7 .*: '5,1' is not .*; set `data\.decimal: \",\"`"),
        (csv(PLAIN, sep=";"), {"separator": ";", "decimal": ","}, r"column 'a', row 0 .*'-?\d+\.\d+' has a point, but"),
        (csv(PLAIN.assign(b="img0.png"), sep=";", decimal=","), {"separator": ";", "decimal": ","},
         r"column 'b' has type String, but features must be numbers"),
        ("# exported today\n" + csv(PLAIN), {}, r"the first line, '# exported today', has 1; remove the lines before"),
        ("sep=;\n" + csv(PLAIN, sep=";"), {"separator": ";"}, r"the first line, 'sep=;', has 2; remove the lines"),
        ("a,b,species\n" * 1, {}, r"names of columns, but no rows, so there are no samples here; add rows"),
        ("a,b,species\r\n\r\n,,\r\n", {}, r"no rows, so there are no samples here; add rows"),
        ("", {}, r"this file is empty; write a line with the names of the columns"),
        (" \n\n", {}, r"this file is empty"),
        ("\n".join(csv(PLAIN).splitlines()[1:]), {}, r"names the column 'species', which .*; name one of .*, ash"),
        ("\n\r\n" + csv(PLAIN) + '1,2,"a\nsh",4\n', {}, r"line 34 has 4 cells .*has 3; give each line one cell per"),
        (raw('"a\nsh"') + "1,2,ash,4\n", {}, r"line 33 has 4 cells"),
        ("\n" + csv(PLAIN)[:-1] + ',"\n\n\n', {}, r"line 32: .*; correct the quotation marks"),
        ("# a,b,c\n" + csv(PLAIN), {}, r"names the column 'species', which .*; remove the lines before the names of"),
        (csv(PLAIN) + "1,2,ash,4\n", {}, r"line 32 has 4 cells .*has 3; give each line one cell per column"),
        (csv(PLAIN) + "1,2\n", {}, r"column 'species', row 30 .* has no value; give such rows a value"),
        (csv(PLAIN, sep="\\"), {}, r"names the column 'species', which the table does not have; name one of a"),
        (lines("a,a,species", "1,2,x", "3,1,y"), {}, r"the header has the column 'a' twice; give each column its own"),
        (csv(PLAIN).encode("utf-16"), {}, r"not a csv file in UTF-8, but in UTF-16; save it in UTF-8"),
        (("\n\n" + changed("species", 4, "frêne")).encode("latin-1"), {}, r"UTF-8: line 8 has the byte 0xea"),
        (changed("species", 4, "frêne").encode("latin-1"), {}, r"UTF-8: line 6 has the byte 0xea; save it in UTF-8"),
        (raw('"as"h'), {}, r"not a csv file in UTF-8: line 2: .*; correct the quotation marks there"),
        (raw('a"sh').replace("elm", '"elm"'), {}, r"not a csv file in UTF-8: a quotation mark is in the wrong place"),
        (csv(PLAIN)[:-1] + ',"\n', {}, r"not a csv file in UTF-8: line 31: .*; correct the quotation marks"),
        # A cell that is no number.
        *(
            (changed("b", 7, word), {}, rf"'b', row 7 .*: '{word}' is not a finite number; .*`data\.missing: ")
            for word in ("NA", r"n/a", "unknown", "0x1F", "5%", "nan")
        ),
        *(
            (changed("b", 7, word), {}, rf"'b', row 7 .*: '{re.escape(word)}' is infinite; correct it, remove the row, "
             rf"or set `data\.missing: \[\"{re.escape(word)}\"\]` to leave such rows out")
            for word in ("inf", "-inf", "+Inf", "Infinity", "-INFINITY")
        ),
        *(
            (csv(PLAIN.assign(a=[1, 2] * 15, b=word), sep=";"), {"separator": ";", "decimal": decimal},
             rf"'b', row 0 .*: .* has the thousands separator .{sign}.; write numbers without it{also}$")
            for word, decimal, sign, also in (
                ("1,234.5", ".", ",", ""), ("1,234,567", ".", ",", ""), ("1.234,5", ",", r"\.", ""),
                ("1.234,5", ".", r"\.", r", and set `data\.decimal: \",\"`"), ("-1 000", ".", " ", ""),
                ("1,234.5", ",", ",", r", and set `data\.decimal: \"\.\"`"), ("1'000'000.25", ".", "'", ""),
                ("1_000", ".", "_", ""), ("1.234.567", ".", r"\.", r", and set `data\.decimal: \",\"`"),
            )
        ),
        (csv(PLAIN.assign(b="1,234"), sep=";"), {"separator": ";"},
         r"'1,234' is not .*set `data\.decimal: \",\"` if .* decimal comma; if it separates thousands, write numbers"),
        (changed("b", 7, "1e400"), {}, r"'b', row 7 .*: '1e400' is too large for single precision; correct it, or"),
        (changed("b", 7, "?"), {}, r"'b', row 7 .*: '\?' is not .*set `data\.missing: \[\"\?\"\]` to leave them out"),
        (changed("b", 7, ""), {}, r"'b', row 7 .*: None is not .*set `data\.missing: \[\"\"\]` to leave them out"),
        (changed("b", 7, "NA"), {"missing": ["?"]}, r"'b', row 7 .*: 'NA' is not a finite number"),
        (csv(PLAIN.replace({"elm": "NA"})), {"missing": ["?"]}, r"'NA' means that there is no value"),
        (changed("b", 7, "1e39"), {}, r"column 'b', row 7 .*: .* is too large for single precision; correct it"),
        (changed("b", 7, "-9" + 60 * "0"), {}, r"column 'b', row 7 .* is too large for single precision"),
        (parquet(PLAIN.replace({"b": {PLAIN.b[7]: 1e39}})), {}, r"column 'b', row 7 .*: 1e\+39 is too large for"),
        (parquet(PLAIN.replace({"b": {PLAIN.b[7]: np.inf}})), {}, r"'b', row 7 .*: inf is infinite; .*\[\"inf\"\]`"),
        (parquet(PLAIN.replace({"b": {PLAIN.b[7]: -np.inf}})), {}, r"'b', row 7 .*: -inf is infinite; .*\[\"-inf\"\]`"),
        (lines("a,b,species", "1e-300,1,x", "2e-300,1,y"), {}, r"'a', row \d+ .* too far from, or too close to, the"),
        (csv(PLAIN.assign(a="red")), {}, r"'a' has type String, .*list the numeric .*\(row 0 has 'red'\)"),
        (parquet(PLAIN.assign(a="red")), {}, r"column 'a' has type String, but features must be numbers"),
        (parquet(PLAIN.assign(a=[[1, 2]] * 30)), {}, r"'a' has type List\(Int64\), but features must be numbers"),
        # Classes and clients without a name.
        *(
            (raw(cell), {}, rf"column 'species', row 0 .*{said}")
            for cell, said in {
                "": "has no value; give such rows a value", " ": "' ' means", "NaN": "'NaN' means",
                '""': r"'' means .*set `data\.missing: \[\"\"\]` to leave such rows out",
                "NA": r"'NA' means .* no value; set `data\.missing: \[\"NA\"\]` .*`data\.missing: \[\]` if 'NA'",
                "?": r"'\?' means", "None": "'None' means", "null": "'null' means",
            }.items()
        ),
        (csv(PLAIN.assign(site=["NaN", *"ab" * 14, "a"])), {"client": "site"}, r"column 'site', row 0 .*'NaN' means"),
        (csv(PLAIN.assign(site=[np.nan, *range(29)])), {"client": "site"}, r"column 'site', row 0 .* has no value"),
        (parquet(PLAIN.assign(site=["nan", *"ab" * 14, "a"])), {"client": "site"}, r"'site', row 0 .*'nan' means"),
        (
            pl.from_pandas(PLAIN).with_columns(site=pl.Series([float("nan"), *([1.0, 2.0] * 14), 1.0])),
            {"client": "site"}, r"column 'site', row 0 .*nan means .* no value; set `data\.missing: \[\"nan\"\]",
        ),
        (parquet(PLAIN.assign(site=[None, *"ab" * 14, "a"])), {"client": "site"}, r"column 'site', row 0 .* no value"),
        (raw("ash "), {}, r"has 'ash' and 'ash ', which look the same; write both in"),
        (
            csv(PLAIN.replace({"oak": "fr\u00eane"})) + "1,2,fre\u0302ne\n", {},
            r"has 'fre\\u0302ne' and 'fr\\xeane', which look",
        ),
        (
            parquet(PLAIN.assign(site=["a", "a\t", *"ab" * 14])), {"client": "site"},
            r"client has 'a' and 'a\\t', which look the same",
        ),
        (csv(NUMBERS_AGAIN.assign(species=NUMBERS_AGAIN.species + 0.5)), {}, r"the labels are of type float64"),
        (csv(NUMBERS_AGAIN.astype({"species": float})), {}, r"the labels are of type float64"),
        (parquet(PLAIN.assign(species=[[1]] * 30)), {}, r"'species' has type List\(Int64\), but classes and clients"),
        (pl.from_pandas(PLAIN).with_columns(species=pl.lit(b"a")), {}, r"'species' has type Binary, but classes and"),
        # Keys that do not fit the file.
        (parquet(PLAIN), {"separator": ";"}, r"`data\.separator` is for CSV files, but this is a parquet file; remove"),
        (parquet(PLAIN), {"decimal": ","}, r"`data\.decimal` is for CSV files"),
        (csv(PLAIN), {"missing": list(map(str, PLAIN.a))}, r"each row has a missing value; correct `data\.missing"),
    ],
)  # fmt: skip
def test_a_table_that_would_be_misread_is_refused(tmp_path, content, options, message):
    refused("table", written(tmp_path, content), message, **LABEL, **options)


CLEAN = PLAIN.drop(index=0)
UNNAMED = PLAIN.rename(columns={"a": ""})
SIGNED = PLAIN.assign(species=np.repeat(["+", "-", "="], 10))
COUNTED = PLAIN.assign(species=np.repeat([0, 1, 2], 10))
WITHOUT_FIRST = PLAIN.assign(a=PLAIN.a.where(PLAIN.index > 0))


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (parquet(PLAIN), {}, PLAIN),
        (csv(UNNAMED), {"features": ["b"]}, PLAIN[["b", "species"]]),
        *((changed("b", 0, word), {"missing": [word]}, CLEAN) for word in ("inf", "-inf", "Infinity")),
        (parquet(PLAIN.replace({"b": {PLAIN.b[0]: -np.inf}})), {"missing": ["-inf"]}, CLEAN),
        ("\ufeff" + SEMICOLON.replace("\n", "\r\n"), {"separator": ";", "decimal": ","}, PLAIN),
        (csv(PLAIN, decimal=",", quoting=2), {"decimal": ","}, PLAIN),
        (csv(PLAIN, sep="\t"), {"separator": "\t"}, PLAIN),
        (csv(PLAIN, sep="|", quoting=1), {"separator": "|"}, PLAIN),
        ("\n\n" + csv(PLAIN).replace("\n", "\n\n") + ",,\n", {}, PLAIN),
        (csv(PLAIN).rstrip("\n"), {}, PLAIN),
        (csv(PLAIN).replace("\n", "\r"), {}, PLAIN),
        (lines("a,b,species", "1, 4 ,x", " 3,2,y"), {}, pd.DataFrame({"a": [1, 3] * 10, "b": [4, 2] * 10,
                                                                     "species": ["x", "y"] * 10})),
        (changed("a", 0, "NA"), {"missing": ["NA"]}, CLEAN),
        (changed("b", 0, "?"), {"missing": ["NA", "?"]}, CLEAN),
        (changed("b", 0, " ? "), {"missing": ["?"]}, CLEAN),
        (changed("b", 0, ""), {"missing": [""]}, CLEAN),
        (changed("b", 0, "-999.0"), {"missing": [-999]}, CLEAN),
        (csv(PLAIN.replace({"a": {PLAIN.a[0]: -999.0}}), sep=";", decimal=","),
         {"separator": ";", "decimal": ",", "missing": [-999]}, CLEAN),
        (raw(""), {"missing": ["", "NA"]}, CLEAN),
        (raw('""'), {"missing": [""]}, CLEAN),
        (csv(PLAIN.assign(c=["?"] * 30)), {"missing": ["?"], "features": ["a", "b"]}, PLAIN),
        (parquet(WITHOUT_FIRST), {"missing": [""]}, CLEAN),
        (pl.from_pandas(WITHOUT_FIRST, nan_to_null=False), {"missing": ["NaN"]}, CLEAN),
        (parquet(PLAIN.replace({"a": {PLAIN.a[0]: -999.0}})), {"missing": [-999]}, CLEAN),
        (csv(PLAIN.replace({"ash": "None"})), {"missing": []}, PLAIN.replace({"ash": "None"})),
        (csv(PLAIN.replace({"elm": "NA"})), {"missing": []}, PLAIN.replace({"elm": "NA"})),
        (csv(SIGNED), {}, SIGNED),
        (csv(COUNTED), {}, COUNTED),
        (csv(PLAIN.assign(a=PLAIN.a > 0)), {}, PLAIN.assign(a=PLAIN.a > 0)),
        (csv(PLAIN.assign(a=PLAIN.a * 1e30)), {}, PLAIN),
        (csv(PLAIN.assign(b=[f"+{n}." for n in range(3, 33)])), {"features": ["a", "b"]}, PLAIN.assign(b=range(3, 33))),
        (parquet(PLAIN.astype({"species": "category"})), {}, PLAIN),
    ],
)  # fmt: skip
def test_a_table_is_read_as_pandas_reads_it(tmp_path, content, options, expected):
    found = read("table", written(tmp_path, content), **LABEL, **options)
    x, y = in_order(found)
    names, number = np.unique(expected["species"].to_numpy(), return_inverse=True)
    assert found.names == (None if names.dtype.kind == "i" else tuple(names))
    features = expected.drop(columns="species").to_numpy(float)
    assert x.shape == features.shape and len(y) == len(number)
    for column, of_file in zip(x.T, features.T, strict=True):
        scaled, wanted = ((v - v.min()) / (v.max() - v.min()) for v in (column.astype(float), of_file))
        for c in range(len(names)):
            assert np.allclose(np.sort(scaled[y == c]), np.sort(wanted[number == c]), atol=1e-5)


def test_a_missing_word_is_no_other_name_of_a_client(tmp_path):
    """As a number, 01 would be the missing 1."""
    content = csv(PLAIN.assign(site=[f"{at % 3:02d}" for at in range(30)]))
    found = read("table", written(tmp_path, content), **LABEL, client="site", missing=["1"])
    assert found.client_names == ("00", "01", "02")


@pytest.mark.parametrize(
    ("kind", "file", "message"),
    [
        ("folder", "odd.parquet", r"odd\.parquet: `kind: folder` does not read files of type \.parquet; set .*table`"),
        ("folder", "odd.csv.gz", r"does not read files of type \.csv; set `data\.kind: table`"),
        ("folder", "odd.npz", r"does not read files of type \.npz; set `data\.kind: arrays`"),
        ("folder", "odd/train.parquet", r"train\.parquet: .* set `data\.kind: table`"),
        ("folder", "odd/a/data.npy", r"data\.npy: .* set `data\.kind: arrays`"),
        ("arrays", "odd.parquet", r"odd\.parquet: .* set `data\.kind: table`"),
        ("arrays", "odd/a.CSV", r"a\.CSV: .* set `data\.kind: table`"),
        ("arrays", "odd/a/1.JPG", r"1\.JPG: .* set `data\.kind: folder`"),
        ("table", "odd.npz", r"odd\.npz: .* set `data\.kind: arrays`"),
        ("table", "odd/a/1.png", r"1\.png: .* set `data\.kind: folder`"),
    ],
)
def test_files_of_another_kind_name_it(tmp_path, kind, file, message):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    refused(kind, tmp_path / Path(file).parts[0], message, **(LABEL if kind == "table" else {}))


def test_words_in_one_file_and_numbers_in_the_other_are_refused(tmp_path):
    PLAIN.to_csv(tmp_path / "test.csv", index=False)
    COUNTED.to_csv(tmp_path / "train.csv", index=False)
    refused(
        "table",
        tmp_path,
        r"labels \(y\) has type <U3, but int64 in the training samples of .*train\.csv; write both",
        **LABEL,
    )


# ------------------------------------------------------------------------------------------- images in parquet files


def hub(column: str = "image", change: Any = None, **more: Any) -> pl.DataFrame:
    images, _ = made(0, 12, (6, 6, 3))
    cells: list[Any] = [{"bytes": encoded(image), "path": f"{row}.png"} for row, image in enumerate(images)]
    if change is not None:
        cells[5] = change
    kind = pl.Struct({"bytes": pl.Binary, "path": pl.String})
    return pl.DataFrame({column: pl.Series(cells, dtype=kind), "label": [0, 1, 2] * 4, **more})


@pytest.mark.parametrize("column", ["image", "img", "picture"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_parquet_file_of_a_public_hub_is_read(tmp_path, column, plain):
    table = hub(column, writer=["ada", "bob"] * 6)
    if plain:
        table = table.with_columns(pl.col(column).struct.field("bytes").alias(column))
    found = read("table", written(tmp_path, table), label="label", client="writer")
    x, y = in_order(found)
    images = {image.tobytes(): row % 3 for row, image in enumerate(made(0, 12, (6, 6, 3))[0])}
    assert x.dtype == np.uint8 and found.scale == 255 and found.natural_clients == 2
    assert [images.pop(image.tobytes()) for image in x] == y.tolist() and not images


def test_a_split_of_a_public_hub_is_kept(tmp_path):
    hub()[:9].write_parquet(tmp_path / "train.parquet")
    hub()[9:].write_parquet(tmp_path / "test.parquet")
    found = read("table", tmp_path, label="label")
    assert np.array_equal(found.test_x, made(0, 12, (6, 6, 3))[0][9:]) and found.test_y.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (hub(coarse=[1.5] * 12), r"column 'image' has images, but coarse would .*set `data\.features: \[\"image\"\]`"),
        (hub(change={"bytes": None, "path": "5.png"}), r"column 'image', row 5 .*: the image has no bytes; store"),
        (hub(change={"bytes": b"no", "path": ""}), r"column 'image', row 5 .*: the image cannot be decoded"),
        (hub(change={"bytes": encoded(np.zeros((6, 7), np.uint8))}), r"'image', row 5 .*: this image has 7×6 pixels"),
        (hub().with_columns(image=pl.lit(b"")), r"column 'image', row 0 .*: the image cannot be decoded"),
        (hub().select(label="image", other="label"), r"'label' has type Struct.*but classes and clients must be"),
    ],
)
def test_images_in_a_table_that_cannot_be_shown_are_refused(tmp_path, table, message):
    refused("table", written(tmp_path, table), message, label="label")


def test_images_beside_other_columns_are_read_when_they_are_named(tmp_path):
    path = written(tmp_path, hub(coarse=[1.5] * 12))
    assert read("table", path, label="label", features=["image"]).train_x.shape[1:] == (6, 6, 3)


# --------------------------------------------------------------------------------------------------------- the keys


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "table", "label": "y", "separator": ";;"}, r"data\.separator: "),
        ({"kind": "table", "label": "y", "separator": "a"}, r"data\.separator: "),
        ({"kind": "table", "label": "y", "separator": "."}, r"data\.separator: "),
        ({"kind": "table", "label": "y", "decimal": ";"}, r"data\.decimal: "),
        ({"kind": "table", "label": "y", "missing": "NA"}, r"data\.missing: "),
        ({"kind": "table", "label": "y", "missing": [None]}, r"data\.missing\.0: "),
        (
            {"kind": "table", "label": "y", "features": ["a"], "drop": ["b"]},
            r"`data\.drop` and `data\.features` exclude",
        ),
        ({"kind": "table", "label": "y", "drop": ["y"]}, r"column 'y' is named twice in .*`drop`; name it once"),
        ({"kind": "table", "label": "y", "drop": []}, r"data\.drop: "),
        ({"kind": "arrays", "drop": ["y"]}, r"`data\.drop` is for `kind: table` only"),
        ({"kind": "folder", "separator": ";"}, r"`data\.separator` is for `kind: table` only; remove the key"),
        ({"kind": "arrays", "missing": ["NA"]}, r"`data\.missing` is for `kind: table` only"),
        (
            {"kind": "table", "label": "y", "channels": "last"},
            r"`data\.channels` is for `kind: arrays` and `kind: pflib` only",
        ),
        ({"kind": "arrays", "channels": "middle"}, r"data\.channels: "),
    ],
)
def test_a_key_that_does_not_fit_is_named(data, message):
    with pytest.raises(ConfigError, match=rf"config/tasks/digits_rotate\.yaml: .*{message}"):
        catalogue.task("digits_rotate", {"data": {"path": "x", **data}})
