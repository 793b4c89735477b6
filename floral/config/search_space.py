"""List the combinations of learning rates and hyper-parameters that a search tries.

Also find chosen values that are the first or last of the values tried. A better value may then lie outside the range of
the values tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from floral.config.schema.tuning import Configuration, Range, Rates, Space, Tuning

RATES = tuple(Rates.model_fields)
STRIDE = 7
"""Distance in the list of combinations between those of two neighbouring learning rates.

It prevents that a hyper-parameter grows with the learning rate.
"""
MAX_VALUES_WITHOUT_INTERIOR = 2
"""An axis with at most this many values has only edges. Its values are therefore not reported as edges."""

Axes = Mapping[str, tuple[Any, ...]]
"""Name of a learning rate or hyper-parameter → its values, in order."""


def axes_of(space: Space, tuning: Tuning, task: Rates) -> Axes:
    """Return a mapping from each learning rate and hyper-parameter to the values that a search tries for it.

    The learning rates are the first keys of the mapping. The search tries multiples of the learning rates `task`, which
    are those that the task sets.
    """
    lr = ladder(tuning.lr, task.lr, tuning.budget)
    return {"lr": lr, "router_lr": ladder(tuning.router_lr, task.router_lr, space.router_lr), **space.values}


def ladder(span: Range, of_task: float, count: int) -> tuple[float, ...]:
    """Return `count` learning rates, evenly spaced on a log scale. If `count` is 1, return the task's learning rate.

    `of_task` is the task's learning rate. The smallest result is of_task · span.lowest, and the largest is
    of_task · span.highest. All results are rounded to three significant digits.
    """
    if count == 1:
        return (of_task,)
    ratio = span.highest / span.lowest
    return tuple(float(f"{of_task * span.lowest * ratio ** (i / (count - 1)):.3g}") for i in range(count))


def configurations(axes: Axes) -> list[Configuration]:
    """Return one combination of hyper-parameters for each learning rate of model parameters in `axes`.

    So all methods try the same learning rates of model parameters. All values of the other hyper-parameters are
    combined with each other, and every combination is used equally often, or at most once more than another if the
    number of combinations does not divide that of learning rates. A full grid of the same size would try fewer learning
    rates for a method with more hyper-parameters, which would put this method at a disadvantage.
    """
    lr, *remaining = axes
    combinations = list(itertools.product(*(axes[name] for name in remaining)))
    points = [
        {lr: value, **dict(zip(remaining, combinations[STRIDE * i % len(combinations)], strict=True))}
        for i, value in enumerate(axes[lr])
    ]
    return [
        Configuration(
            rates=Rates(**{name: point[name] for name in RATES}),
            params={name: value for name, value in point.items() if name not in RATES},
        )
        for point in points
    ]


def edges(axes: Axes, rates: Rates, params: Mapping[str, Any]) -> list[str]:
    """Return the names of the learning rates and hyper-parameters whose chosen value is the first or last one tried.

    A name is checked only if a search tries at least three values for it, and all of them are numbers. `rates` and
    `params` are the chosen values.
    """
    point = {**rates.model_dump(), **params}
    return [
        name
        for name, values in axes.items()
        if len(values) > MAX_VALUES_WITHOUT_INTERIOR
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and point[name] in (values[0], values[-1])
    ]
