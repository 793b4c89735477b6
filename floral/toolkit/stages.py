"""Stages of training: tell the server in which round a stage ends, and remember until then what clients have sent.

The function `ServerStep.update` knows the number of a round, but not the number of all rounds. The phases know both. In
the last round of a stage, the clients send a flag, which is the SHARED group "stage".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from floral.core.spec import Group, Noise, Phase, Predict, Scope, ServerView, View

UNSENT_FLAG = {"stage": (0, 0)}
"""Floats of the flag in all rounds but the last of a stage, for `Cost.floats_sent`."""


def stage_group() -> dict[str, Group]:
    """Return the group of the flag, which is 0 except in the last round of a stage."""
    return {"stage": Group(scope=Scope.SHARED, init=lambda: {"ends": torch.zeros(1)}, statistic=True)}


def phases_of_stage(phase: Phase, predict: Predict, last: Callable[[int], int]) -> tuple[Phase, Phase]:
    """Return the phase for the rounds before the last round of a stage, and for this last round.

    `predict` is the prediction in training. `last` computes the last round of the stage from the number of all rounds.
    """

    def before_last(round: int, rounds: int) -> bool:
        return round < last(rounds) and (phase.when is None or phase.when(round, rounds))

    floats_sent = {**phase.floats_sent, "stage": (0, 1)}
    return (
        replace(phase, predict=predict, when=before_last),
        replace(
            phase,
            predict=with_flag(predict),
            when=lambda round, rounds: round == last(rounds),
            floats_sent=floats_sent,
        ),
    )


def with_flag(predict: Predict) -> Predict:
    """Return a prediction that also sets the flag."""

    def flagged(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        outputs, changed = predict(view, x, noise, mask)
        return outputs, {**changed, "stage": {"ends": torch.ones_like(view["stage"]["ends"])}}

    return flagged


def stage_ends(served: ServerView) -> bool:
    """Return whether a stage ends with this round."""
    return bool(served.means["stage"]["ends"].any())


def flag_removed(served: ServerView) -> View:
    """Return the flag with the value 0, as a part of what `ServerStep.update` returns."""
    return {"stage": {"ends": torch.zeros_like(served.means["stage"]["ends"])}}


def memory_group(name: str, clients: int, size: int) -> dict[str, Group]:
    """Return the group in which the server remembers the last vector [size] of each client. Only the server has it.

    `name` says what the vectors are.
    """
    start = {name: torch.zeros(clients, size), "present": torch.zeros(clients)}
    return {"memory": Group(scope=Scope.FROZEN, init=lambda: start, statistic=True)}


def remember(served: ServerView, name: str, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Remember the vectors [M, size] of the clients of the round, in place.

    Return the last vectors [K, size] of all clients, and `present` [K]: 1 for the clients that have taken part so far,
    else 0.
    """
    assert served.client_vectors is not None
    memory, at = served.before["memory"], served.client_vectors.clients
    memory[name][at] = vectors
    memory["present"][at] = 1
    return memory[name], memory["present"]
