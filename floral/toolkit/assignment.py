"""Assign experts to clients, on the server, by an integer program."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


def choose_clients(scores: Tensor, choices: int, least: int, most: int) -> Tensor:
    """Return which client holds which expert, 1 or 0 [K, E], for the scores [E, K] of E experts for K clients.

    Each expert chooses `choices` clients, and each client holds between `least` and `most` experts. The sum of the
    softmax of the scores over the clients is the largest possible. Where the bounds do not fit the numbers, they are
    widened as little as possible. Scores that are not finite count as 0.

    Every expert-client pair counts once for its expert and once for its client. The matrix of such bounds is totally
    unimodular, so the linear program has a solution of whole numbers, and needs no search for one.

    Source: arXiv 2411.19128, and `optimize.py` of zyc140345/FedAMoLE.
    """
    from scipy.optimize import LinearConstraint, milp  # 0.2 s to import, and only this method needs it

    experts, clients = scores.shape
    value = torch.softmax(scores.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0), 1)
    average = experts * choices / clients
    fewest: Any = [choices] * experts + [min(least, int(average))] * clients
    largest: Any = [choices] * experts + [max(most, -int(-average // 1))] * clients
    solution = milp(
        -value.flatten().numpy(),
        bounds=(0, 1),
        constraints=LinearConstraint(_counts(experts, clients), fewest, largest),
    )
    return torch.from_numpy(solution.x.round()).reshape(experts, clients).mT.to(scores)


@cache
def _counts(experts: int, clients: int) -> Any:
    """Return the matrix [E + K, E·K] that counts the pairs of each expert, and then those of each client."""
    from scipy.sparse import csc_array, eye, kron, vstack

    return csc_array(vstack([kron(eye(experts), [[1] * clients]), kron([[1] * experts], eye(clients))]))
