"""Values of a suite: blocks of tasks, variants and seeds, and fidelity switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from floral.config.schema.base import Frozen


class Switch(Frozen):
    """An entry of config/fidelity.yaml: a difference between the published code and the published method."""

    doc: str = Field(description="Explanation of the difference.")
    choices: tuple[Any, ...] = Field(description="Allowed values of the switch.")
    official: Any = Field(description="Value under fidelity official, as in the published code.")
    corrected: Any = Field(description="Value under fidelity corrected, as in the method's description.")
    report_only: bool = Field(
        default=False, description="Whether the switch changes only how the report summarises runs, not the runs."
    )


class Fidelity(Frozen):
    """A fidelity with the value of every switch."""

    name: Literal["official", "corrected"] = Field(description="Name of the fidelity.")
    switches: Mapping[str, Any] = Field(description="Switch → its value.")

    def __getitem__(self, switch: str) -> Any:
        return self.switches[switch]


class Block(Frozen):
    """The runs of all combinations of tasks, variants and seeds, with common changes."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"] = Field(
        description="Names of tasks in config/tasks, or `all` for every task that trains something."
    )
    variants: tuple[str, ...] = Field(min_length=1, description="Names of variants in config/methods.")
    seeds: tuple[int, ...] = Field(min_length=1, description="Seeds, integers from 0; each seed is one run.")
    fidelity: Literal["official", "corrected"] = Field(
        default="corrected",
        description="Whether runs follow the published code (official) or the method as described (corrected).",
    )
    switches: Mapping[str, Any] = Field(
        default_factory=dict, description="Single fidelity switches with values that differ from the fidelity's."
    )
    task: Mapping[str, Any] = Field(
        default_factory=dict, description="Keys of the task with values that differ from those in config/tasks."
    )
    method: Mapping[str, Any] = Field(
        default_factory=dict, description="Hyper-parameters with values that differ from those in config/methods."
    )
    tuned: bool = Field(
        default=False, description="Whether learning rates and hyper-parameters are taken from config/tuned."
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_are_natural(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds: {list(seeds)} contains a negative number; use 0, 1, …")
        return seeds


class Suite(Frozen):
    """A named set of runs, for which one report is written."""

    name: str = Field(description="Name of the suite, taken from the name of its file.")
    title: str = Field(description="Title of the report.")
    about: str = Field(default="", description="Introduction of the report.")
    suites: tuple[str, ...] = Field(default=(), description="Names of other suites whose runs this suite includes.")
    runs: tuple[Block, ...] = Field(default=(), description="Blocks of runs: tasks × variants × seeds.")

    @model_validator(mode="after")
    def _has_runs(self) -> Suite:
        if not self.runs and not self.suites:
            raise ValueError(
                "runs: this suite has no runs; add blocks of tasks, variants and seeds, or name other suites in suites"
            )
        return self
