"""The hash that names folders."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def hash8(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
