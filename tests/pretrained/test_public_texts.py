"""SST-2, AG News and Dolly: read from small tables of the public schema, which a server on this machine has."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from floral.config import catalogue, data_sets
from floral.config.run import Run
from floral.config.schema.data import DataFile
from floral.data import federation
from floral.data.labelled_texts import labelled_texts
from floral.data.sources import DataError, RawFile
from floral.data.text import instructions
from floral.stages.fetch import fetch
from floral.stages.partition import partition

TEXTS = ["a good film", "a bad day", "good good book", "bad", "a day"]
OPTIONS: Any = {"text": "sentence", "names": ["negative", "positive"], "tokens": 7}


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


def of_classes(text: str, count: int, classes: int, **more: Any) -> bytes:
    """A table with `count` rows of every class in turn."""
    texts = [TEXTS[row % len(TEXTS)] for row in range(count * classes)]
    return parquet(**{text: texts, "label": list(range(classes)) * count}, **more)


def served(name: str, tables: list[bytes], mirror: Any, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the entry of a data set name these tables on the mirror, and a small tokenizer."""
    entry, files = data_sets.data_lock()[name], []
    for file in entry.files:
        small = tokenizer / Path(file.path).name
        mirror.serve[f"/{file.path}"] = small.read_bytes() if small.exists() else tables.pop(0)
        assert small.exists() == (file.sha256 is not None) and all(url.startswith("https://") for url in file.urls)
        files.append(file.model_copy(update={"urls": (f"{mirror.url}/{file.path}",), "sha256": None}))
    lock = data_sets.data_lock() | {name: entry.model_copy(update={"files": tuple(files)})}
    monkeypatch.setattr(data_sets, "data_lock", lambda: lock)
    monkeypatch.delenv("FLORAL_DATA", raising=False)


@pytest.mark.parametrize(
    ("name", "text", "task", "classes"), [("glue_sst2", "sentence", "sst2", 2), ("ag_news", "text", "ag_news", 4)]
)
def test_a_public_data_set_of_texts_is_downloaded_and_divided(
    name: str, text: str, task: str, classes: int, mirror: Any, tokenizer: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    index = {"idx": pl.Series(range(10 * classes), dtype=pl.Int32)} if name == "glue_sst2" else {}
    tables = [of_classes(text, 50, classes), of_classes(text, 10, classes, **index)]
    served(name, tables, mirror, tokenizer, monkeypatch)
    manifest = json.loads((fetch(name, tmp_path) / "card.json").read_text())
    assert manifest["rows"] == {"train": 50 * classes, "test": 10 * classes} and manifest["shape"] == [5]
    assert (manifest["classes"], len(manifest["class_names"])) == (classes, classes)
    assert not any(file["verified"] for file in manifest["files"])
    recorded = json.loads((tmp_path / "data" / name / "raw" / "recorded.json").read_text())
    assert recorded == {file["path"]: file["sha256"] for file in manifest["files"]}
    assert np.load(tmp_path / "data" / name / "train_x.npy")[:2].tolist() == [[2, 4, 5, 7, 3], [2, 4, 6, 9, 3]]
    small = catalogue.task(task, {"clients": 4, "partition": {"min_rows": 2}})
    run = Run(task=small, variant=catalogue.variant("fedit"), seed=0, fidelity=catalogue.fidelity("corrected"))
    partition(run.partition, tmp_path, small)
    data = federation.load(run, tmp_path)
    assert data.classes == classes and data.clients == 4 and min(data.counts["test"]) >= 1


def test_dolly_is_text_of_eight_categories(
    mirror: Any, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = range(24)
    table = parquet(
        instruction=[f"Why is {row} a number?" for row in rows], context=["", "Numbers count.", None] * 8,
        response=["It counts what there is." * 4 for _ in rows], category=[f"category {row % 8}" for row in rows],
    )  # fmt: skip
    served("dolly", [table], mirror, tokenizer, monkeypatch)
    manifest = json.loads((fetch("dolly", tmp_path) / "card.json").read_text())
    assert (manifest["natural_clients"], manifest["shape"]) == (8, [80])
    task = catalogue.task("shakespeare_tiny", {"data": "dolly", "clients": 8, "partition": {"min_rows": 1}})
    run = Run(task=task, variant=catalogue.variant("fedavg"), seed=0, fidelity=catalogue.fidelity("corrected"))
    partition(run.partition, tmp_path, task)
    data = federation.load(run, tmp_path)
    assert data.client_names == tuple(f"category {row}" for row in range(8)) and data.clients == 8
    names = sorted({*"Why is a number?Numbers count.It counts what there is.0123456789\n"})
    first = "".join(names[code] for code in np.load(tmp_path / "data" / "dolly" / "train_x.npy")[0])
    assert first == ("Why is 0 a number?\n" + "It counts what there is." * 4)[:80]


def raw(path: Path, content: bytes | None = None) -> RawFile:
    if content is not None:
        path.write_bytes(content)
    return RawFile(file=DataFile(path=path.name), location=path, sha256="", verified=True)


def not_utf8() -> bytes:
    binary = pa.array([b"good", b"caf\xe9"], pa.binary())
    buffer = io.BytesIO()
    texts = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    pq.write_table(pa.table({"sentence": texts, "label": [0, 1]}), buffer)
    return buffer.getvalue()


WRONG: dict[str, tuple[bytes, str]] = {
    "label": (
        parquet(sentence=TEXTS, label=[0, 1, 1, 2, 0]),
        r"row 3 .*: the label 2 is no class from 0 to 1; correct",
    ),
    "no label": (parquet(sentence=TEXTS[:2], label=[1, -1]), r"row 1 .*: the label -1 is no class from 0 to 1"),
    "null": (parquet(sentence=TEXTS[:2], label=[1, None]), "1 rows have no value in column label; give them a value"),
    "words": (parquet(sentence=TEXTS[:2], label=["x", "y"]), "the column label has type String; save the classes 0"),
    "no rows": (parquet(sentence=pl.Series([], dtype=pl.String), label=pl.Series([], dtype=pl.Int64)), "has no rows"),
    "column": (parquet(text=TEXTS[:2], label=[0, 1]), r"expected the columns sentence \(String\), label, found"),
    "empty": (parquet(sentence=["good", " "], label=[0, 1]), r"row 1 .*: the text is empty; write one, or remove"),
    "long": (
        parquet(sentence=["good " * 10_000], label=[0]),
        r"row 0 .*: the text has 10,002 tokens, but .* takes 10;",
    ),
    "not UTF-8": (not_utf8(), r"not a parquet file, .*invalid UTF-8\); remedy: replace it"),
    "truncated": (parquet(sentence=TEXTS[:2], label=[0, 1])[:-9], "not a parquet file, or it is truncated"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_table_of_texts_is_named_with_its_row(
    content: bytes, message: str, tokenizer: Path, tmp_path: Path
) -> None:
    files = [raw(tmp_path / "train.parquet", of_classes("sentence", 2, 2)), raw(tmp_path / "test.parquet", content)]
    files += [raw(tokenizer / "tokenizer.json"), raw(tokenizer / "config.json")]
    with pytest.raises(DataError, match=rf"(?s)^{tmp_path}/test\.parquet: .*{message}"):
        labelled_texts(files, **OPTIONS)


def test_an_instruction_without_a_category_is_named(tmp_path: Path) -> None:
    table = parquet(instruction=["a", "b"], context=["", ""], response=["c", "d"], category=["x", " "])
    with pytest.raises(DataError, match=r"dolly\.parquet: row 1 \(counted from 0\): the category is empty; write one"):
        instructions([raw(tmp_path / "dolly.parquet", table)])
