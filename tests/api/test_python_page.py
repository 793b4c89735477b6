"""The examples of docs/how-to/python.md run, one after the other, in a folder without a study."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from projects import ROOT

import floral

PAGE = (ROOT / "docs/how-to/python.md").read_text(encoding="utf-8")


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLORAL_RESULTS", raising=False)
    values: dict = {}
    for block in PAGE.split("```python\n")[1:]:
        exec(block.split("```")[0].replace('"digits_rotate", "rounds": 20', '"digits_rotate", "rounds": 2'), values)
    scores = dict(values["both"].summary.select("variant", "test_accuracy").iter_rows())
    assert scores["floral_1"] > scores["fedavg"] + 0.3
    assert len(values["everything"]) == 3 and len(values["of_floral"]) == 2
    assert values["both"].routes()["variant"].unique().to_list() == ["floral_1"]
    assert values["both"].curves().filter(pl.col("split") == "test")["round"].max() == 20
    assert values["logits"].shape == (10, 4) and values["names"]
    assert all((tmp_path / "results" / folder).is_dir() for folder in ("arrays", "train", "partition"))
    assert isinstance(values["results"], floral.Results)
