"""Values of a suite: blocks of tasks, variants and seeds, and fidelity switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from floral.config.schema.base import Frozen


class Switch(Frozen):
    """One row of config/fidelity.yaml: what the published code does and what we do."""

    doc: str
    choices: tuple[Any, ...]
    official: Any
    corrected: Any
    report_only: bool = Field(default=False, description="changes how runs are summed up, not what they compute")


class Fidelity(Frozen):
    name: Literal["official", "corrected"]
    switches: Mapping[str, Any]

    def __getitem__(self, switch: str) -> Any:
        return self.switches[switch]


class Block(Frozen):
    """tasks × variants × seeds; `task` and `method` change values of all of them."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"]
    """Names of config/tasks, or all of them that are benchmarks: a new task is in on arrival."""
    variants: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    fidelity: Literal["official", "corrected"] = "corrected"
    switches: Mapping[str, Any] = Field(default_factory=dict)
    task: Mapping[str, Any] = Field(default_factory=dict)
    method: Mapping[str, Any] = Field(default_factory=dict)
    tuned: bool = Field(default=False, description="learning rates and hyper-parameters from config/tuned")

    @field_validator("seeds")
    @classmethod
    def _seeds_are_natural(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds: {list(seeds)} must not be negative")
        return seeds


class Suite(Frozen):
    name: str
    title: str
    about: str = ""
    suites: tuple[str, ...] = Field(default=(), description="other suites, all runs of which are in this one")
    runs: tuple[Block, ...] = ()

    @model_validator(mode="after")
    def _has_runs(self) -> Suite:
        if not self.runs and not self.suites:
            raise ValueError("runs: a suite has blocks of tasks, variants and seeds, or names suites that have them")
        return self
