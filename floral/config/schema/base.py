"""The base class of all values that are read from YAML."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable values that refuse unknown keys, NaN and infinity. The description of a field documents its key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def is_none(value: object) -> bool:
    """Return whether a value is None. Keys with None are not dumped, so that runs without them keep their hash."""
    return value is None
