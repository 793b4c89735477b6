"""Define the YAML keys of a suite (a list of runs) and of the fidelity switches.

A fidelity switch is a setting that chooses how runs behave where the published FLoRAL code differs from its paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from floral.config.schema.base import Frozen


class Switch(Frozen):
    """A fidelity switch: a setting for one point in which the published FLoRAL code differs from its paper.

    Its value says how runs behave at this point. config/fidelity.yaml lists all fidelity switches.
    """

    doc: str = Field(description="Explanation of the difference.")
    choices: tuple[Any, ...] = Field(description="Allowed values of the switch.")
    official: Any = Field(description="Value under `fidelity: official`, as in the published code.")
    corrected: Any = Field(description="Value under `fidelity: corrected`, as in the description of the method.")
    adaptor: str | None = Field(
        default=None,
        description="Adaptor kind (a file of floral/adaptors) that the switch changes. Other runs keep their names.",
    )
    report_only: bool = Field(
        default=False, description="Whether the switch changes only how the report summarises runs, and not the runs."
    )


class Fidelity(Frozen):
    """Whether runs follow the published FLoRAL code (`official`) or the method described in its paper (`corrected`).

    Code and paper differ in several points. `switches` says for each point how the runs behave.
    """

    name: Literal["official", "corrected"] = Field(description="Name of the fidelity, `official` or `corrected`.")
    switches: Mapping[str, Any] = Field(description="Name of each fidelity switch → its value.")

    def __getitem__(self, switch: str) -> Any:
        return self.switches[switch]


class Block(Frozen):
    """A part of a suite: one run for each combination of its tasks, variants and seeds.

    The keys `fidelity`, `switches`, `task` and `method` change settings of all these runs.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"] = Field(
        description="Names of tasks in config/tasks, or `all` for all tasks that train a model."
    )
    variants: tuple[str, ...] = Field(min_length=1, description="Names of variants in config/methods.")
    seeds: tuple[int, ...] = Field(
        min_length=1, description="Seeds, integers from 0. Each task and variant has one run per seed."
    )
    fidelity: Literal["official", "corrected"] = Field(
        default="corrected",
        description="Whether runs follow the published code (`official`) or the method as described (`corrected`).",
    )
    switches: Mapping[str, Any] = Field(
        default_factory=dict, description="Fidelity switches whose values differ from those of `fidelity`."
    )
    task: Mapping[str, Any] = Field(
        default_factory=dict, description="Keys of the tasks whose values differ from those in config/tasks."
    )
    method: Mapping[str, Any] = Field(
        default_factory=dict, description="Hyper-parameters whose values differ from those in config/methods."
    )
    tuned: bool = Field(
        default=False, description="Whether learning rates and hyper-parameters are taken from config/tuned."
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_are_natural(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"`seeds: {list(seeds)}` contains a negative number; use only 0, 1, …")
        return seeds


class Suite(Frozen):
    """A named list of runs. One report summarises all runs of a suite."""

    name: str = Field(description="Name of the suite, taken from the name of its file.")
    title: str = Field(description="Title of the report.")
    about: str = Field(default="", description="Introductory text of the report.")
    suites: tuple[str, ...] = Field(default=(), description="Names of other suites whose runs this suite includes.")
    runs: tuple[Block, ...] = Field(default=(), description="Blocks of runs: tasks × variants × seeds.")

    @model_validator(mode="after")
    def _has_runs(self) -> Suite:
        if not self.runs and not self.suites:
            raise ValueError(
                "this suite has no runs; add blocks of tasks, variants and seeds to `runs`, or name other suites in"
                " `suites`"
            )
        return self
