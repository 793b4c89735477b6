"""The notebook of the tutorial runs from its arrays to its figures, and its stored outputs are what it computes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import nbformat
import pytest
from projects import ROOT, environment

NOTEBOOK = ROOT / "docs/tutorial.ipynb"
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
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert not [folder for folder in ("/home/", "/root/", "/tmp/", "/work/") if folder in text]
    assert not [output for output in outputs(nbformat.reads(text, as_version=4)) if output.output_type == "error"]
