"""Turn nested mappings into flat mappings with dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dotted_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings: {"a": {"b": 1}} becomes {"a.b": 1}. An empty mapping is kept as a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= dotted_keys(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat
