"""Values of tuning: budget, search spaces and tuned values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from floral.config.schema.base import Frozen


class Rates(Frozen):
    """Learning rates of a run's own, instead of its task's."""

    lr: float = Field(ge=0)
    router_lr: float = Field(ge=0)


class Range(Frozen):
    """From the lowest to the highest learning rate, as multiples of the task's."""

    lowest: float = Field(gt=0)
    highest: float = Field(gt=0)

    @model_validator(mode="after")
    def _has_a_width(self) -> Range:
        if self.highest <= self.lowest:
            raise ValueError(f"highest: {self.highest} must be above lowest: {self.lowest}")
        return self


class Tuning(Frozen):
    """config/tuning.yaml: what every method is tuned with, so that none is favoured."""

    budget: int = Field(ge=1, description="configurations of every variant on every task, one for each learning rate")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="of each configuration; a suite with `tuned` may not report them"
    )
    more_seeds: Mapping[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(
        default_factory=dict, description="task → seeds beside `seeds`, for all its methods"
    )
    share: float = Field(gt=0, le=1, description="of the task's rounds …")
    at_most: int = Field(ge=1, description="… but no more rounds than this")
    lr: Range
    router_lr: Range

    def rounds(self, of_task: int) -> int:
        return min(self.at_most, max(1, round(self.share * of_task)))

    def of(self, task_name: str) -> Self:
        """The same with the seeds of a task."""
        return self.model_copy(update={"seeds": self.seeds + self.more_seeds.get(task_name, ()), "more_seeds": {}})

    @model_validator(mode="after")
    def _no_seed_counts_twice(self) -> Self:
        for task_name in self.more_seeds:
            if len(set(seeds := self.of(task_name).seeds)) < len(seeds):
                raise ValueError(f"more_seeds: {task_name}: {list(seeds)} holds a seed twice")
        return self


class Space(Frozen):
    """What is tried of a variant beside the learning rates: each combination with equally many of these."""

    router_lr: int = Field(default=1, ge=1, description="number of the router's; 1: the task's")
    values: Mapping[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="hyper-parameter → its values, in order"
    )


class SearchFile(Space):
    """One file of config/search: the space of a method, and of the variants that have one of their own."""

    variants: Mapping[str, Space] = Field(default_factory=dict)


class Configuration(Frozen):
    """One point of a search space; `params` are those that the space names."""

    rates: Rates
    params: Mapping[str, Any]


class Tuned(Frozen):
    """One entry of config/tuned/<task>.yaml: the chosen values of a variant and where they come from."""

    rates: Rates
    params: Mapping[str, Any]
    search: str = Field(description="digest of all that decided the search; another one makes the entry stale")
    budget: int
    seeds: tuple[int, ...]
    rounds: int
    commit: str | None = Field(description="of the code that searched")
    default: float | None = Field(description="validation loss of the untuned values; null: diverged or refused")
    losses: tuple[float | None, ...] = Field(description="validation loss of every configuration, in the grid's order")
