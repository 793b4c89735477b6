"""What the clients of a simulation compute before round 1, for methods whose initial values depend on the clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from floral.core.spec import Phase, ServerStep, View
from floral.engine import local
from floral.engine.state import State, view

if TYPE_CHECKING:
    from floral.engine.simulate import Simulation


@dataclass(frozen=True)
class BeforeRounds:
    """All clients that have samples, before round 1 of a simulation (see `spec.AllClients`)."""

    simulation: Simulation
    state: State
    """The untrained state."""

    @property
    def pools(self) -> np.ndarray:
        """The indices [M] of the clients that have samples, or of the pools if the method trains pools of clients."""
        return np.flatnonzero(self.simulation.data.train.count)

    def samples(self) -> tuple[Tensor, Tensor]:
        """Return the inputs x and the labels y of all training samples of all clients."""
        rows = self.simulation.data.train
        index = np.concatenate([rows.index[u, :n] for u, n in enumerate(rows.count)])
        return rows.gather(torch.from_numpy(index).to(self.simulation.device))

    def assigned(self, start: View) -> View:
        """Return the PRIVATE values [M, ...] that the method's `assign` sets for the M clients (see `AllClients`)."""
        simulation, method = self.simulation, self.simulation.method
        values = {**self.state.values, **simulation.converted(start)}
        clients = local.Clients(method, (), simulation.settings.loss, True, simulation.clusters)
        size = max(1, local.MAX_ASSIGN_SAMPLES // int(simulation.data.train.count.max()))
        parts = []
        for at in range(0, len(self.pools), size):
            simulation.check_stop()
            pools = self.pools[at : at + size]
            ids = torch.from_numpy(pools).to(simulation.device)
            seen, axes = view(method, values, ids, ids)
            parts.append(clients.assigned(seen, axes, simulation.held(pools)))
        return {
            group: {name: torch.cat([part[group][name] for part in parts]) for name in params}
            for group, params in parts[0].items()
        }

    def mean_after(self, phase: Phase, vector: Callable[[View], Tensor]) -> Tensor:
        """Return the mean of a vector after one round of local training of all clients (see `AllClients`)."""
        plain = self.simulation
        method = replace(plain.method, phases=(phase,), prepare=None, server=ServerStep(client_vector=vector))
        alike = type(plain)(method, plain.data, plain.settings, plain.execution, check_stop=plain.check_stop)
        count = plain.data.train.count[self.pools]
        share = torch.from_numpy(count / count.sum()).to(plain.device)
        sent = alike.client_vectors(self.pools, share, alike.local_training(self.state, 0, self.pools, share))
        assert sent is not None
        return share.to(sent.vectors.dtype) @ sent.vectors
