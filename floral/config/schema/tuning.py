"""Define the YAML keys of hyper-parameter tuning: the values that a search tries, and the values that it chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from floral.config.schema.base import Frozen


class Rates(Frozen):
    """The learning rates of a run. Tuned learning rates replace those of the task."""

    lr: float = Field(ge=0, description="Learning rate of local SGD for model parameters.")
    router_lr: float = Field(ge=0, description="Learning rate of local SGD for router logits.")


class Range(Frozen):
    """The range of learning rates that a hyper-parameter search tries, as multiples of the task's learning rate."""

    lowest: float = Field(gt=0, description="Lowest learning rate, as a multiple of the task's learning rate.")
    highest: float = Field(gt=0, description="Highest learning rate, as a multiple of the task's learning rate.")

    @model_validator(mode="after")
    def _has_a_width(self) -> Range:
        if self.highest <= self.lowest:
            raise ValueError(f"`highest: {self.highest}` is not above `lowest: {self.lowest}`; set a larger `highest`")
        return self


class Tuning(Frozen):
    """The rule by which the stage tune chooses values: how many and which learning rates a search tries.

    The rule of a task is the same for all methods.
    """

    budget: int = Field(
        ge=1,
        description="Number of hyper-parameter configurations tried for each task and variant. Each has another `lr`.",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="Seeds of the tuning runs. Suites with `tuned: true` must not use these seeds."
    )
    share: float = Field(gt=0, le=1, description="Number of rounds of a tuning run, as a share of the task's rounds.")
    at_most: int = Field(ge=1, description="Maximum number of rounds of a tuning run.")
    lr: Range = Field(description="Range of learning rates of model parameters.")
    router_lr: Range = Field(
        description="Range of learning rates of router logits, for search spaces that try more than one."
    )

    def rounds(self, of_task: int) -> int:
        """Return the number of rounds of a tuning run. `of_task` is the number of rounds of a normal run."""
        return min(self.at_most, max(1, round(self.share * of_task)))

    @model_validator(mode="after")
    def _no_seed_counts_twice(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds: {list(self.seeds)}` contains a seed twice; list each seed only once")
        return self


class TuningFile(Tuning):
    """The content of config/tuning.yaml: the rule for all tasks, and what differs from it on single tasks."""

    tasks: Mapping[str, Mapping[str, Any]] = Field(
        default_factory=dict, description="Name of a task → keys of this file that have other values on this task."
    )

    def keys_of(self, task_name: str) -> dict[str, Any]:
        """Return the keys and values of the rule for one task."""
        return {**self.model_dump(exclude={"tasks"}), **self.tasks.get(task_name, {})}


class Space(Frozen):
    """The search space: the values to try for hyper-parameters and for the learning rate of router logits.

    The search combines all these values with each other. It also tries several learning rates of model parameters, each
    with one of the combinations. Every combination is used for the same number of learning rates.
    """

    router_lr: int = Field(
        default=1, ge=1, description="Number of learning rates tried for router logits; 1 keeps that of the task."
    )
    values: Mapping[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="Name of a hyper-parameter → the values to try, in increasing order."
    )


class SearchFile(Space):
    """A file of config/search: the search space of a method, and separate search spaces for some of its variants."""

    variants: Mapping[str, Space] = Field(
        default_factory=dict, description="Name of a variant → a search space that replaces that of the method."
    )


class Configuration(Frozen):
    """The learning rates and hyper-parameters that one trial of a search uses."""

    rates: Rates = Field(description="Learning rates of the trial.")
    params: Mapping[str, Any] = Field(description="Name of each hyper-parameter in the search space → its value.")


class Tuned(Frozen):
    """An entry of config/tuned/<task>.yaml: the values that a search chose for a variant, and where they come from."""

    rates: Rates = Field(description="Chosen learning rates.")
    params: Mapping[str, Any] = Field(description="Chosen values of the hyper-parameters in the search space.")
    search: str = Field(
        description="Hash of the search. If the search now has another hash, these values must not be used."
    )
    budget: int = Field(description="Number of hyper-parameter configurations that were tried.")
    seeds: tuple[int, ...] = Field(description="Seeds of the tuning runs.")
    rounds: int = Field(description="Number of rounds of the tuning runs.")
    commit: str | None = Field(description="Git commit of the code that made the search; null if unknown.")
    default: float | None = Field(
        description="Mean validation loss with the untuned values; null if a run diverged or could not be built."
    )
    losses: tuple[float | None, ...] = Field(
        description="Mean validation loss of each hyper-parameter configuration, in the order of the search space."
    )
