"""Assign experts to clients, on the server, by an integer program."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_clients(scores: Tensor, choices: int, least: int, most: int) -> Tensor:
    """Return which client holds which expert, 1 or 0 [K, E], for the scores [E, K] of E experts for K clients.

    Each expert chooses `choices` clients, and each client holds between `least` and `most` experts. The sum of the
    softmax of the scores over the clients is the largest possible. Where the bounds do not fit the numbers, they are
    widened as little as possible. Scores that are not finite count as 0.

    Source: arXiv 2411.19128, and `optimize.py` of zyc140345/FedAMoLE.
    """
    from scipy.optimize import LinearConstraint, milp  # 0.2 s to import, and only this method needs it
    from scipy.sparse import eye, kron

    experts, clients = scores.shape
    value = torch.softmax(scores.detach().cpu().double().nan_to_num(0.0, 0.0, 0.0), 1)
    average = experts * choices / clients
    of_experts, of_clients = kron(eye(experts), [[1] * clients]), kron([[1] * experts], eye(clients))
    solution = milp(
        -value.flatten().numpy(),
        integrality=1,
        bounds=(0, 1),
        constraints=[
            LinearConstraint(of_experts, choices, choices),
            LinearConstraint(of_clients, min(least, int(average)), max(most, -int(-average // 1))),
        ],
    )
    return torch.from_numpy(solution.x.round()).reshape(experts, clients).mT.to(scores)
