"""Values of tuning: budget, search spaces and tuned values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from floral.config.schema.base import Frozen


class Rates(Frozen):
    """Learning rates of a run, which replace those of its task."""

    lr: float = Field(ge=0, description="Learning rate of local SGD for model parameters.")
    router_lr: float = Field(ge=0, description="Learning rate of local SGD for router logits.")


class Range(Frozen):
    """A range of learning rates, as multiples of the task's learning rate."""

    lowest: float = Field(gt=0, description="Lowest learning rate, as a multiple of the task's.")
    highest: float = Field(gt=0, description="Highest learning rate, as a multiple of the task's.")

    @model_validator(mode="after")
    def _has_a_width(self) -> Range:
        if self.highest <= self.lowest:
            raise ValueError(f"highest: {self.highest} is not above lowest: {self.lowest}; set a higher one")
        return self


class Tuning(Frozen):
    """config/tuning.yaml: the search budget and the search ranges, equal for all methods."""

    budget: int = Field(
        ge=1,
        description="Number of hyper-parameter configurations tried for each variant and task, one per learning rate.",
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="Seeds of the tuning runs; suites with `tuned: true` must not report on them."
    )
    more_seeds: Mapping[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(
        default_factory=dict, description="Task → further seeds of its tuning runs, for all methods."
    )
    share: float = Field(gt=0, le=1, description="Length of a tuning run, as a share of the task's rounds.")
    at_most: int = Field(ge=1, description="Maximum length of a tuning run, in rounds.")
    lr: Range = Field(description="Range of learning rates of model parameters.")
    router_lr: Range = Field(
        description="Range of learning rates of router logits, where a search space tries several."
    )

    def rounds(self, of_task: int) -> int:
        """Return the number of rounds of a tuning run, for a task with `of_task` rounds."""
        return min(self.at_most, max(1, round(self.share * of_task)))

    def of(self, task_name: str) -> Self:
        """Return the tuning values for a task, with `seeds` followed by the task's `more_seeds`."""
        return self.model_copy(update={"seeds": self.seeds + self.more_seeds.get(task_name, ()), "more_seeds": {}})

    @model_validator(mode="after")
    def _no_seed_counts_twice(self) -> Self:
        for task_name in self.more_seeds:
            if len(set(seeds := self.of(task_name).seeds)) < len(seeds):
                raise ValueError(f"more_seeds: {task_name}: {list(seeds)} contains a seed twice; name it once")
        return self


class Space(Frozen):
    """The search space of a variant beside the learning rate of model parameters.

    Every combination of its values is tried with the same number of learning rates.
    """

    router_lr: int = Field(
        default=1, ge=1, description="Number of learning rates tried for router logits; 1 keeps the task's."
    )
    values: Mapping[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="Hyper-parameter → the values to try, in increasing order."
    )


class SearchFile(Space):
    """A file of config/search: the search space of a method, and separate spaces of some variants."""

    variants: Mapping[str, Space] = Field(
        default_factory=dict, description="Variant → a search space that replaces the method's."
    )


class Configuration(Frozen):
    """A point of a search space."""

    rates: Rates = Field(description="Learning rates.")
    params: Mapping[str, Any] = Field(description="Hyper-parameter in the search space → its value.")


class Tuned(Frozen):
    """An entry of config/tuned/<task>.yaml: the chosen values of a variant and their origin."""

    rates: Rates = Field(description="Chosen learning rates.")
    params: Mapping[str, Any] = Field(description="Chosen hyper-parameters that the search space names.")
    search: str = Field(description="Digest of the search; the entry is stale if the search has another digest.")
    budget: int = Field(description="Number of hyper-parameter configurations that were tried.")
    seeds: tuple[int, ...] = Field(description="Seeds of the tuning runs.")
    rounds: int = Field(description="Length of the tuning runs, in rounds.")
    commit: str | None = Field(description="Git commit of the code that searched; null if unknown.")
    default: float | None = Field(
        description="Mean validation loss of the untuned values; null if a run diverged or was refused."
    )
    losses: tuple[float | None, ...] = Field(
        description="Mean validation loss of each hyper-parameter configuration, in the order of the search space."
    )
