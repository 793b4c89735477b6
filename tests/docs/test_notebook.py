"""The notebook of the tutorial runs from its arrays to its figures, and its stored outputs are what it computes."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import nbformat
import pytest
from projects import ROOT, environment

NOTEBOOK = ROOT / "docs/tutorial.ipynb"
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/[a-z]+/[\w.-]+")
SECONDS = 300
"""Time limit of a cell."""


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def figures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_the_notebook_runs_to_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: Callable[[str], NoReturn]
) -> None:
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            missing(f"{package} is missing: pip install -c constraints.txt -e '.[test]'")
    from nbclient import NotebookClient

    for name in set(os.environ) - set(environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert figures(notebook) == figures(stored) == 2
    last, last_stored = (outputs(book)[-1]["data"]["text/plain"] for book in (notebook, stored))
    assert last == last_stored == str([0, 1] * 12), "the same patient, at 24 clinics"


def test_the_stored_notebook_names_no_folder_of_a_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    texts = [cell.source for cell in notebook.cells]
    for output in outputs(notebook):
        assert output.output_type != "error"
        texts += [output.get("text", "")]
        texts += [text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")]
    assert len(texts) > len(notebook.cells)
    assert ABSOLUTE_PATH.search("saved in /home/someone/study")
    assert not [match.group() for text in texts for match in ABSOLUTE_PATH.finditer(text)]
