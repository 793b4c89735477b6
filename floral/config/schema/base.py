"""Define the base class of all values that are read from YAML."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base class of the classes whose objects hold values from YAML. The fields of an object cannot be changed.

    Unknown keys, NaN and infinity are errors. The `description` of each field explains its YAML key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def is_empty(value: object) -> bool:
    """Return whether a value is an empty tuple, with which a field is left out of the hash of a run."""
    return value == ()


def is_none(value: object) -> bool:
    """Return whether a value is None.

    A field with `exclude_if=is_none` is left out of the hash of a run if its value is None. So a new optional key does
    not change the hashes of runs that do not use it.
    """
    return value is None
