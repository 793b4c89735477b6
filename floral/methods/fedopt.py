"""FedOpt (arXiv 2003.00295): FedAvg with another optimiser at the server, or at the clients."""

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
    """All SHARED. The server's step is the task's own, or with momentum 0.9 (FedAvgM, arXiv 1909.06335) or Adam with
    β = (0.9, 0.99) and ε = 1e-3 (FedAdam) and the rate `server_lr`. A client's steps are SGD, SGD with momentum 0.9 or
    the same Adam with `client_lr` times the task's rate; its moments begin at 0 in every round.

    The paper gives the server ε = 1e-3; the clients have it too, for with 1e-8 a gradient that is 0 but for rounding
    (a bias below batch norm) makes whole steps. The paper's rates are tuned; here momentum has a tenth of the rate by
    default, which makes steps of SGD's size in the long run. The task's server and clients with SGD are FedAvg.
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
    """v ← β v + g, w ← w - lr·v."""

    def direction(name, gradient, moments, steps):
        del steps
        first = beta * moments[f"first/{name}"] + gradient
        return first, {f"first/{name}": first}

    return with_moments(direction)


def adam_step(betas: tuple[float, float], epsilon: float) -> LocalStep:
    """Adam (arXiv 1412.6980)."""

    def direction(name, gradient, moments, steps):
        kept, unbiased = {}, []
        for order, beta, power in zip(("first", "second"), betas, (gradient, gradient.square()), strict=True):
            key = f"{order}/{name}"
            kept[key] = beta * moments[key] + (1 - beta) * power
            unbiased.append(kept[key] / (1 - beta**steps))
        return unbiased[0] / (unbiased[1].sqrt() + epsilon), kept

    return with_moments(direction)


def with_moments(direction) -> LocalStep:
    """A step along `direction(name, gradient, moments, steps)` of the group "base", which also gives the new moments;
    a batch without samples changes none."""
    plain = sgd_step()

    def step(objective, trained, fixed, batch, noise, lr):
        unit = dict.fromkeys(lr, 1.0)
        moved, changed, loss = plain(objective, trained, fixed, batch, noise, unit)
        moments, active = fixed["moments"], batch.mask.any()
        steps = moments["steps"] + 1
        updated, kept = {}, {"steps": steps}
        for name, value in trained["base"].items():
            along, new = direction(name, value - moved["base"][name], moments, steps)
            updated[name] = value - lr["base"] * along
            kept |= new
        kept = {name: torch.where(active, tensor, moments[name]) for name, tensor in kept.items()}
        return {"base": updated}, {**changed, "moments": kept}, loss

    return step
