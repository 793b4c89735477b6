"""Changed code of a method, model or adaptor is noticed: its version rises, or the golden runs prove equal numbers."""

from __future__ import annotations

import golden
import pytest


def test_the_code_of_every_method_and_model_is_listed_in_code_lock() -> None:
    if complaint := golden.complaint_about_code():
        pytest.fail(complaint, pytrace=False)


def test_a_new_file_is_not_called_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {**golden.code.equal_code(), "floral/methods/cfl.py": ["00000000"]}
    del listed["floral/methods/apfl.py"]
    monkeypatch.setattr(golden.code, "equal_code", lambda: listed)
    complaint = golden.complaint_about_code()
    assert complaint and "these files are new: floral/methods/apfl.py." in complaint and golden.RENEW in complaint
    assert "the code of these files changed: floral/methods/cfl.py." in complaint and golden.SAME_CODE in complaint


def test_code_lock_lists_no_file_that_is_gone() -> None:
    assert set(golden.code.equal_code()) == set(golden.code_files())
