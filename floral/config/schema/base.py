"""The base class of all values that are read from YAML."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def is_none(value: object) -> bool:
    """Of a key that is left out where it is none: what does not have it keeps its hash."""
    return value is None
