"""Define the base class of all values that are read from YAML."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base class of values from YAML. They cannot be changed, and unknown keys, NaN and infinity are refused.

    The `description` of each field explains its YAML key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def is_none(value: object) -> bool:
    """Return whether a value is None. Fields with None are left out of the hash of a run.

    So a new optional key does not change the hashes of runs that do not use it.
    """
    return value is None
