"""`floral keys`: the keys of every file, as the documentation has them."""

from __future__ import annotations

import re

import pytest
from projects import ROOT

from floral.cli import keys, main


def test_each_table_of_the_documentation_is_a_name_and_each_key_has_a_meaning() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    documented = set(re.findall(r"table: keys (\w+)", pages))
    shown = {schema.__name__ for schema in keys.SCHEMAS.values()}
    assert documented - {"Equal", "Range"} <= shown, "two mappings of two keys each are left out"
    assert not [
        (name, key.name) for name, schema in keys.SCHEMAS.items() for key in keys.keys(schema, str) if not key.meaning
    ]


def test_the_keys_of_a_task(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main.main(["keys", "task"]) == 0
    shown = capsys.readouterr().out
    assert "\nrounds: integer, ≥ 1, required\n    Number of communication rounds.\n" in shown
    assert "\nclusters: integer, ≥ 1, default `1`\n" in shown and "mapping (floral keys partition)" in shown
    assert main.main(["keys", "taks"]) == main.MISTAKE and "did you mean 'task'?" in capsys.readouterr().err
    assert main.main(["keys"]) == 0 and "floral keys suite\n" in capsys.readouterr().out
