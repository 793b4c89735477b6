"""No run is renamed: the folder names of every suite's runs, partitions and searches are the committed ones.

A suite whose tuned values are not committed has no runs yet. The names of its searches count then.
"""

from __future__ import annotations

import golden
import pytest


@pytest.mark.parametrize("suite", golden.SUITES)
def test_the_names_of_a_suite_are_the_committed_ones(suite: str) -> None:
    if complaint := golden.complaint_about_digest(suite):
        pytest.fail(complaint, pytrace=False)


def test_every_committed_digest_is_of_a_suite() -> None:
    gone = sorted(golden.committed_digests().keys() - set(golden.SUITES))
    assert not gone, f"no such suites any more: {', '.join(gone)}. Renew the file: {golden.RENEW}"


def test_a_changed_digest_tells_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "committed_digests", lambda: {"quickstart": "0123456789abcdef"})
    complaint = golden.complaint_about_digest("quickstart")
    assert complaint and "suite quickstart: the names of its runs changed (digest 0123456789abcdef -> " in complaint
    assert golden.RENEW in complaint and "CHANGELOG.md" in complaint
    complaint = golden.complaint_about_digest("paper")
    assert complaint and "suite paper: it is new" in complaint and golden.RENEW in complaint
