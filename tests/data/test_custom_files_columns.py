"""Columns of odd tables: row numbers are no features, and names of classes and clients stay as they are in the file."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from odd_files import LABEL, PLAIN, csv, in_order, parquet, read, refused, written

RANDOM = np.random.default_rng(0)
IDS = PLAIN.assign(id=np.arange(30), index=RANDOM.permutation(30) + 7, X=range(1, 31))
GAPS = np.cumsum(RANDOM.integers(1, 1000, 30)) - 500
DISTINCT = RANDOM.choice(10**6, 30, replace=False)
OF_40 = RANDOM.permutation(40)[:30]
NAMELESS = r"\(column {} without a name\)"


def with_column(name: str, values: Any) -> pd.DataFrame:
    return PLAIN.drop(columns="b").assign(**{name: values})[[name, "a", "species"]]


def ends_with_a_separator() -> str:
    return csv(PLAIN).replace("\n", ",\n")


# ----------------------------------------------------------------------------------------------------- row numbers


@pytest.mark.parametrize(
    ("content", "options", "name"),
    [
        (csv(PLAIN, index=True), {}, NAMELESS.format(1)),
        (csv(PLAIN.sample(frac=1, random_state=0), index=True), {}, NAMELESS.format(1)),
        (csv(PLAIN, index=True, quoting=2), {}, NAMELESS.format(1)),
        (ends_with_a_separator(), {}, NAMELESS.format(4)),
        (csv(PLAIN.rename(columns={"a": " "})), {}, NAMELESS.format(1)),
        (pl.from_pandas(with_column("b", DISTINCT)).rename({"b": ""}), {}, NAMELESS.format(1)),
        (parquet(PLAIN.sample(frac=1, random_state=0)), {}, "__index_level_0__"),
        (parquet(PLAIN.set_index("b")), {}, "b"),
        (parquet(PLAIN.set_index(["a", "b"])), {}, "a"),
        *(
            (csv(with_column(name, [9, 8] * 15)), {}, name)
            for name in ("Unnamed: 0", "Unnamed: 0.1", "...1", "rownames", "row.names", "Row names")
        ),
        *(
            (csv(with_column(name, DISTINCT)), {}, name)
            for name in ("id", "ID", "index", "PassengerId", "customerID", "user_id", "row", "Sample No", "#")
        ),
        *(
            (csv(with_column("when", values)), {}, "when")
            for values in (GAPS, GAPS[::-1], GAPS * 10**12, GAPS.astype(float), range(1970, 2000))
        ),
        *(
            (csv(with_column("b", values)), {}, "b")
            for values in (RANDOM.permutation(30), RANDOM.permutation(30) + 1, OF_40, OF_40 * 1.0, -OF_40)
        ),
        (csv(IDS[["X", "a", "species"]]), {}, "X"),
        (parquet(IDS[["id", "a", "species"]]), {}, "id"),
        (parquet(with_column("b", OF_40 * 1.0)), {}, "b"),
        (csv(with_column("b", GAPS * 1.0), decimal=",", quoting=2), {"decimal": ","}, "b"),
        (csv(with_column("b", GAPS).replace(GAPS[3], "?")), {"missing": ["?"]}, "b"),
        (csv(PLAIN.assign(b=GAPS)[:9]), {}, "b"),
    ],
)  # fmt: skip
def test_row_numbers_are_no_feature(tmp_path, content, options, name):
    message = rf"column '{name}' .*no feature; set `data\.drop: \[.*, or list the columns to use in `data\.features`"
    refused("table", written(tmp_path, content), message, **LABEL, **options)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("width", DISTINCT), ("x", DISTINCT), ("refractive_index", DISTINCT), ("grid", DISTINCT),
        ("user_id", [*range(15)] * 2), ("age", sorted([*range(15)] * 2)), ("b", GAPS + 0.5),
        ("b", [*GAPS[1:], GAPS[0]]),
        ("b", [*range(15), *range(15)]), ("b", [*range(29), 28]),
    ],
)  # fmt: skip
def test_numbers_that_may_be_a_feature_are_one(tmp_path, name, values):
    for content in (csv(with_column(name, values)), parquet(with_column(name, values))):
        assert read("table", written(tmp_path, content), **LABEL).train_x.shape[1] == 2


def test_few_rows_may_rise_by_chance(tmp_path):
    assert read("table", written(tmp_path, csv(PLAIN.assign(b=GAPS)[:8])), **LABEL).train_x.shape[1] == 2


@pytest.mark.parametrize(
    ("content", "options", "columns"),
    [
        (csv(PLAIN, index=True), {"features": ["a", "b"]}, ["a", "b"]),
        (csv(PLAIN, index=True), {"drop": ["(column 1 without a name)"]}, ["a", "b"]),
        (ends_with_a_separator(), {"drop": ["(column 4 without a name)"]}, ["a", "b"]),
        (parquet(PLAIN.sample(frac=1, random_state=0)), {"drop": ["__index_level_0__"]}, ["a", "b"]),
        (csv(IDS), {"drop": ["X", "index", "id"]}, ["a", "b"]),
        (csv(IDS), {"features": ["id", "b"]}, ["id", "b"]),
    ],
)
def test_keys_say_which_columns_are_features(tmp_path, content, options, columns):
    x, _ = in_order(read("table", written(tmp_path, content), **LABEL, **options))
    of_file = IDS[columns].to_numpy(float)
    scaled, expected = ((v - v.min(0)) / np.ptp(v, 0) for v in (x.astype(float), of_file))
    assert np.allclose(np.sort(scaled, 0), np.sort(expected, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("content", "drop", "message"),
    [
        (csv(IDS), None, r"column 'id' .*; set `data\.drop: \[\"id\", \"index\", \"X\"\]` to leave it out"),
        (csv(PLAIN), ["c"], r"`data\.drop` names the column 'c', which the table does not have; name one of a, b"),
        (csv(PLAIN), ["a", "b"], r"no column is left for the features; add columns of features"),
    ],
)
def test_wrong_columns_are_named(tmp_path, content, drop, message):
    refused("table", written(tmp_path, content), message, **LABEL, drop=drop)


def test_row_numbers_of_a_split_table_are_seen_in_both_files(tmp_path):
    test = PLAIN.sample(frac=0.3, random_state=0)
    for name, part in (("train", PLAIN.drop(index=test.index).sample(frac=1, random_state=1)), ("test", test)):
        part.assign(b=part.index).to_csv(tmp_path / f"{name}.csv", index=False)
    refused("table", tmp_path, r"train\.csv: column 'b' numbers the rows", **LABEL)
    for name in ("train", "test"):
        path = tmp_path / f"{name}.csv"
        pd.read_csv(path).assign(b=DISTINCT[: 9 if name == "test" else 21]).to_csv(path, index=False)
    assert read("table", tmp_path, **LABEL).train_x.shape == (21, 2)


# ---------------------------------------------------------------------------------------- names of classes and clients


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["10", "2", "1"], ("1", "2", "10")),
        (["01", "02", "10"], ("01", "02", "10")),
        (["01234", "12340"], ("01234", "12340")),
        (["1.0", "2.50"], ("1.0", "2.50")),
        (["1e3", "1000"], ("1000", "1e3")),
        (["00e1", "0e10"], ("00e1", "0e10")),
        (["-1", "1"], ("-1", "1")),
        (["1", "ash"], ("1", "ash")),
        (["10000000000000000001", "10000000000000000002"], ("10000000000000000001", "10000000000000000002")),
    ],
)
@pytest.mark.parametrize("column", ["site", "species"])
def test_names_are_as_in_the_file(tmp_path, column, cells, names):
    frame = PLAIN.assign(**{column: (cells * 30)[:30]})
    options = {"client": "site"} if column == "site" else {}
    for content in (csv(frame), parquet(frame)):
        path = written(tmp_path, content)
        if column == "site":
            assert read("table", path, **LABEL, **options).client_names == names
        elif re.search(r"[.]|e\d", "".join(cells)):
            refused("table", path, r"the labels are of type float64; write them as integers", **LABEL)
        elif names[0] in ("1", "-1") and names[1] in ("1", "2"):
            refused("table", path, r"integer labels must be 0, 1, \u2026 without a gap", **LABEL)
        else:
            assert read("table", path, **LABEL).names == names


@pytest.mark.parametrize("words", [("01", "1"), ("1", " 1"), ("+1", "1"), ("0", "00"), ("1", "1.0"), ("1.50", "1.5")])
@pytest.mark.parametrize("column", ["site", "species"])
def test_two_texts_of_one_number_are_refused(tmp_path, column, words):
    frame = PLAIN.assign(site=["north", "south"] * 15, **{"species": "ash"}).assign(**{column: ["x", *words] * 10})
    message = r"has '.*' and '.*', which are the same number; write both in the same way, or rename one"
    for content in (csv(frame), parquet(frame)):
        refused("table", written(tmp_path, content), message, **LABEL, client="site")


def test_names_in_two_files_are_compared_as_texts(tmp_path):
    """Numbers in one file are the same clients as these texts in the other."""
    PLAIN.assign(site=["01", "02", "10"] * 10).to_csv(tmp_path / "train.csv", index=False)
    PLAIN[10:12].assign(species="elm", site=["10", "11"]).to_csv(tmp_path / "test.csv", index=False)
    assert read("table", tmp_path, client="site", **LABEL).client_names == ("01", "02", "10", "11")
    PLAIN.assign(site=["1.0", "2.0"] * 15).to_csv(tmp_path / "test.csv", index=False)
    refused("table", tmp_path, r"client has '01' and '1\.0', which are the same number", client="site", **LABEL)
