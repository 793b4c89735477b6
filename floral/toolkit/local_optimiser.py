"""AdamW as the optimiser of local training, for any method whose clients otherwise make steps of SGD."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from floral.core.spec import LEARNING_RATE, LOCAL_STATE, Batch, Method, Noise, Objective, Params, Refused, View
from floral.toolkit.gradients import gradient_and_loss


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (arXiv 1711.05101): steps along bias-corrected moments of the gradient, and weight decay beside them.

    With the gradient g, the moments are m ← β1 m + (1 - β1) g and v ← β2 v + (1 - β2) g². In step t, the parameters
    become w ← (1 - lr·decay) w - lr · m/(1 - β1ᵗ) / (√(v/(1 - β2ᵗ)) + ε). All is as in `torch.optim.AdamW`.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: Literal["constant", "round", "training"] = "constant"
    """The factor of the learning rates: always 1; or falling linearly from 1 towards 0 over the client's steps of a
    phase ("round"), or over the rounds of the run ("training")."""

    def start(self, params: Params) -> Params:
        """Return the state before the first step: moments of 0, named first/<name> and second/<name>, and no step."""
        moments = {f"{order}/{n}": torch.zeros_like(t) for order in ("first", "second") for n, t in params.items()}
        device = next(iter(params.values())).device
        return {**moments, "steps": torch.zeros((), dtype=torch.float64, device=device)}  # β2ᵗ is close to 1

    def step(self, params: Params, gradients: Params, state: Params, lr: Tensor) -> tuple[Params, Params]:
        """Return the parameters and the state after one step with the learning rate `lr`."""
        steps = state["steps"] + 1
        moved: Params = {}
        after: Params = {"steps": steps}
        unbiased = [1 - beta**steps for beta in self.betas]
        for name, value in params.items():
            first = self.betas[0] * state[f"first/{name}"] + (1 - self.betas[0]) * gradients[name]
            second = self.betas[1] * state[f"second/{name}"] + (1 - self.betas[1]) * gradients[name].square()
            direction = first / unbiased[0].to(value.dtype)
            scale = (second / unbiased[1].to(value.dtype)).sqrt() + self.epsilon
            moved[name] = value * (1 - lr * self.weight_decay) - lr * direction / scale
            after |= {f"first/{name}": first, f"second/{name}": second}
        return moved, after

    def factor(self, done: Tensor, steps: Tensor, round: int, rounds: int) -> Tensor:
        """Return the factor [m] of the learning rates of m clients; the arguments are those of `spec.Schedule`."""
        match self.schedule:
            case "round":
                return 1 - done / steps.clamp(min=1)
            case "training":
                return torch.full_like(done, 1 - (round - 1) / rounds)
        return torch.ones_like(done)


def with_local_optimiser(method: Method, optimiser: AdamW) -> Method:
    """Return the method with steps of this optimiser in place of steps of SGD.

    The state of the optimiser is the client's own: it starts anew in each round, and is neither sent nor stored. A
    batch without samples changes nothing. Preconditioners change the gradients before the moments see them.

    Raises:
        Refused: the method has a local step of its own, or needs the steps of SGD.
    """
    if method.local_step is not None:
        raise Refused(
            "the method makes local steps of its own, which another optimiser cannot replace; remove `local`, or use "
            "another method"
        )
    if method.needs_sgd:
        raise Refused(f"{method.needs_sgd}; remove `local`, or use another method")

    def key(group: str, name: str) -> str:
        return f"{group}/{name}"

    def start(view: View) -> Params:
        return {
            key(group, name): value
            for group in method.trained
            if view.get(group)
            for name, value in optimiser.start(view[group]).items()
        }

    def step(
        objective: Objective, trained: View, fixed: View, batch: Batch, noise: Noise, lr: Mapping[str, float]
    ) -> tuple[View, View, Tensor]:
        state, factor = fixed[LOCAL_STATE], noise[LEARNING_RATE]
        random = {name: drawn for name, drawn in noise.items() if name != LEARNING_RATE}
        rest = {group: params for group, params in fixed.items() if group != LOCAL_STATE}
        gradients, loss, changed = gradient_and_loss(objective)(trained, rest, batch, random)
        gradients = method.preconditioned(gradients, {**rest, **trained})
        active, moved = batch.mask.any(), dict(trained)
        after = dict(state)
        for group, params in trained.items():
            if not params:
                continue
            prefix = key(group, "")
            before = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            moved[group], new = optimiser.step(params, gradients[group], before, lr[group] * factor)
            after |= {key(group, name): torch.where(active, t, before[name]) for name, t in new.items()}
        return moved, {**changed, LOCAL_STATE: after}, loss

    return replace(method, local_step=step, local_state=start, schedule=optimiser.factor, precondition={})
