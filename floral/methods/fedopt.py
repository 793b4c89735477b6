"""FedOpt (arXiv 2003.00295): FedAvg with momentum or Adam on the server or on the clients."""

from dataclasses import replace

import torch

from floral.core.spec import Group, LocalStep, Method, Optimiser, Problem, Scope, ServerStep
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor, sgd_step

SERVERS = {
    "momentum": Optimiser(kind="momentum", lr=1.0, betas=(0.9, 0.0)),
    "adam": Optimiser(kind="adam", lr=1.0, betas=(0.9, 0.99), epsilon=1e-3),
}


def build(problem: Problem, *, server: str, server_lr: float, client: str, client_lr: float) -> Method:
    """FedOpt: FedAvg with momentum or Adam on the server or on the clients. All parameters are SHARED.

    - `server`: "task" is the task's own server optimiser. "momentum" (β = 0.9, FedAvgM, arXiv 1909.06335) and
      "adam" (FedAdam with β = (0.9, 0.99) and ε = 1e-3) have the learning rate `server_lr`.
    - `client`: "sgd", "momentum" (β = 0.9) or "adam" (with β and ε as on the server). The learning rate is `client_lr`
      times that of the task. A client's moments start at 0 in every round.

    Limiting case: with `server="task"` and `client="sgd"` this is FedAvg.
    """
    model = problem.build_model()
    groups = model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr * client_lr)
    if client != "sgd":
        orders = ("first", "second") if client == "adam" else ("first",)

        def zeros():
            start = model.init(Stream(problem.seed, "model"))
            moments = {f"{order}/{name}": torch.zeros_like(value) for order in orders for name, value in start.items()}
            return {**moments, "steps": torch.zeros(())}

        groups["moments"] = Group(scope=Scope.FROZEN, init=zeros, statistic=True)
    return Method(
        groups=groups,
        predict=predictor(model),
        local_step={"sgd": None, "momentum": momentum_step(0.9), "adam": adam_step((0.9, 0.99), 1e-3)}[client],
        server=ServerStep(optimiser=None if server == "task" else replace(SERVERS[server], lr=server_lr)),
        noise=model.noise,
    )


def momentum_step(beta: float) -> LocalStep:
    """Return the function that makes one step of SGD with momentum: v ← β v + g, then w ← w - lr·v.

    g is the gradient, v its moment, w the parameters and lr the learning rate.
    """

    def direction(name, gradient, moments, steps):
        del steps
        first = beta * moments[f"first/{name}"] + gradient
        return first, {f"first/{name}": first}

    return with_moments(direction)


def adam_step(betas: tuple[float, float], epsilon: float) -> LocalStep:
    """Return the function that makes one step of Adam with bias correction (arXiv 1412.6980)."""

    def direction(name, gradient, moments, steps):
        new, unbiased = {}, []
        for order, beta, power in zip(("first", "second"), betas, (gradient, gradient.square()), strict=True):
            key = f"{order}/{name}"
            new[key] = beta * moments[key] + (1 - beta) * power
            unbiased.append(new[key] / (1 - beta**steps))
        return unbiased[0] / (unbiased[1].sqrt() + epsilon), new

    return with_moments(direction)


def with_moments(direction) -> LocalStep:
    """Return the function that makes one step w ← w - lr·d, where `direction` computes d from the gradient.

    Like momentum or Adam, `direction` also uses moments: running values that are computed from earlier gradients.
    `direction(name, gradient, moments, steps)` returns d and the new moments of the parameter `name`. `steps` is the
    number of steps, including this one. A batch without samples does not change the moments.
    """
    sgd = sgd_step()

    def step(objective, trained, fixed, batch, noise, lr):
        unit = dict.fromkeys(lr, 1.0)  # a step of rate 1 gives the gradient
        moved, changed, loss = sgd(objective, trained, fixed, batch, noise, unit)
        moments, active = fixed["moments"], batch.mask.any()
        steps = moments["steps"] + 1
        updated, new_moments = {}, {"steps": steps}
        for name, value in trained["base"].items():
            step_direction, new = direction(name, value - moved["base"][name], moments, steps)
            updated[name] = value - lr["base"] * step_direction
            new_moments |= new
        new_moments = {name: torch.where(active, tensor, moments[name]) for name, tensor in new_moments.items()}
        return {"base": updated}, {**changed, "moments": new_moments}, loss

    return step
