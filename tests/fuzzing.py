"""The number of random inputs that a fuzz test tries. CONTRIBUTING.md describes the variable FLORAL_FUZZ."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

COUNT = int(os.environ.get("FLORAL_FUZZ", "0"))


def bounded(examples: int) -> settings:
    """Settings for this number of inputs, always the same; or for FLORAL_FUZZ inputs, which are new in each call."""
    return settings(
        max_examples=COUNT or examples, derandomize=not COUNT, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )  # fmt: skip
