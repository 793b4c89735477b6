"""Compute the short hash that is part of the names of result folders."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def hash8(value: Any) -> str:
    """Return the first 8 hex digits of the SHA-256 of a value.

    The SHA-256 is computed from the value in the JSON format with sorted keys.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
