"""A search space: its axes, its configurations, and which values of one lie at an edge."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from floral.config.schema.tuning import Configuration, Range, Rates, Space, Tuning

RATES = tuple(Rates.model_fields)
STRIDE = 7
"""Combinations between those of neighbouring learning rates, so that none grows with the learning rate."""
EDGELESS = 2
"""An axis with so many values or fewer has no inside: nothing on it can be said to lie at an edge."""

Axes = Mapping[str, tuple[Any, ...]]
"""Name of a learning rate or hyper-parameter → its values, in order."""


def axes_of(space: Space, tuning: Tuning, task: Rates) -> Axes:
    """The axes of a space, learning rates first, for a task with these learning rates."""
    lr = ladder(tuning.lr, task.lr, tuning.budget)
    return {"lr": lr, "router_lr": ladder(tuning.router_lr, task.router_lr, space.router_lr), **space.values}


def ladder(span: Range, of_task: float, count: int) -> tuple[float, ...]:
    """`count` learning rates, evenly spaced on a log scale from lowest to highest; a single one is the task's own.

    rate_i = of_task · lowest · (highest / lowest)^(i / (count - 1)), with three significant digits.
    """
    if count == 1:
        return (of_task,)
    ratio = span.highest / span.lowest
    return tuple(float(f"{of_task * span.lowest * ratio ** (i / (count - 1)):.3g}") for i in range(count))


def configurations(found: Axes) -> list[Configuration]:
    """One for each learning rate, so that all methods try the same; the combinations of the other axes take turns.

    A full grid would leave a method with a hyper-parameter of its own a third of the learning rates, and it would lose
    to one without by the gaps between these alone.
    """
    first, *others = found
    combinations = list(itertools.product(*(found[name] for name in others)))
    points = [
        {first: value, **dict(zip(others, combinations[STRIDE * i % len(combinations)], strict=True))}
        for i, value in enumerate(found[first])
    ]
    return [
        Configuration(
            rates=Rates(**{name: point[name] for name in RATES}),
            params={name: value for name, value in point.items() if name not in RATES},
        )
        for point in points
    ]


def edges(found: Axes, rates: Rates, params: Mapping[str, Any]) -> list[str]:
    """The names of the values that are the first or last of their axis, where it is of numbers and has an inside."""
    chosen = {**rates.model_dump(), **params}
    return [
        name
        for name, values in found.items()
        if len(values) > EDGELESS
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and chosen[name] in (values[0], values[-1])
    ]
