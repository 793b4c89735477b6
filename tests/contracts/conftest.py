"""A fixture for tests of limiting cases."""

from __future__ import annotations

import pytest

from floral.config.schema.method import Parameter


@pytest.fixture
def unbounded(monkeypatch):
    """The bounds of config/methods keep a user from the limits; here they are wanted."""
    monkeypatch.setattr(Parameter, "accept", lambda self, value: value)
