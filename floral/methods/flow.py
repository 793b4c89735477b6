"""Flow (arXiv 2211.15281): for each sample, a policy chooses between global and local parameters in every layer."""

import torch
import torch.nn.functional as F

from floral.core.spec import Cost, Group, Method, Phase, Problem, Refused, Scope
from floral.core.streams import Stream
from floral.nn.layers import WEIGHT_LAYERS, layer_params
from floral.nn.norms import GroupNorm, LayerNorm
from floral.toolkit.parts import (
    forward_backward_passes,
    model_groups,
    predictor,
    repeated_start,
    require_separate_samples,
    sample_losses,
)
from floral.toolkit.routes import Gate


def build(problem: Problem, *, gamma: float, local_part: str, policy_hidden: int) -> Method:
    """Flow: for each sample and layer, a shared policy chooses between the global model w and its local copy w_k.

    A round of client k has two phases on disjoint parts of its training samples. In the first, a copy w_k of the
    received w is trained on `local_part`: "held_out" is every fourth sample, and "others" are the rest. In the second,
    w and the policy ψ are trained on the other part, while w_k is fixed. Layer l then computes q_l·w_k,l(x) + (1 -
    q_l)·w_l(x). q(x) are the outputs of ψ for the sample, between 0 and 1. The term -`gamma`·mean_l log(1 - q_l) is
    added to the loss, and rewards the use of w. The server averages w and ψ as in FedAvg. In evaluation, a layer uses
    w_k if q_l > 1/2, otherwise w.

    Clients are stateless in the paper: to predict, they train w_k again from the latest w. Here a client keeps the
    difference d_k = w_k - w of its last round, and w_k is the latest w plus d_k. d_k is PRIVATE, and 0 at the start of
    each round. w and ψ are SHARED.

    The layers with a choice are linear layers, convolutions, and group and layer norms with parameters of their own.
    Their outputs are linear in the parameters, so the mixture is computed as w_l(x) + q_l·(w_k,l - w_l)(x). All other
    parameters are those of w, such as batch norms, embeddings, and what a PyTorch module has outside of known layers.

    Limiting case: if the policy always chooses w, this is FedAvg on the samples of the second phase.

    Costs: one pass in the first phase and two in the second, in the mean 1.5 per sample, and the policy.

    Raises:
        Refused: the task is text, or a layer with a choice does not have the samples of a batch in their order.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    start, shared = model.init(stream), predictor(model)
    layers = [
        name
        for name, layer in model.layers.items()
        if isinstance(layer, (*WEIGHT_LAYERS, GroupNorm, LayerNorm))
        and all(f"{name}.{key}" in start for key in ("weight", *layer.init(stream)))
    ]
    if not layers:
        raise Refused("no layer of the model has parameters to choose; remove `freeze`, or use another model")
    require_separate_samples(model, layers, "name this layer in `freeze`")
    zeros = {name: torch.zeros_like(value) for name, value in start.items() if name.rpartition(".")[0] in layers}
    policy = Gate(problem=problem, experts=len(layers), hidden=policy_hidden).model

    def policy_start():
        drawn = policy.init(Stream(problem.seed, "policy"))
        return {name: torch.zeros_like(value) if name.startswith("mix.") else value for name, value in drawn.items()}

    def choices(view, x):
        return policy(view["policy"], {}, x, None, None)[0]

    def mixed(view, share, difference, x, noise, mask):
        """Return the outputs of w plus `share` [B, L] times `difference`, the parameters of w_k minus those of w."""

        def adapt(name, x):
            if name not in layers:
                return None, None
            added = model.layers[name](layer_params(difference, name), x)
            return None, model.weighted(name, share[:, layers.index(name)], added)

        logits, statistics = model(view["base"], view.get("statistics", {}), x, noise, mask, adapt)
        return logits, {"statistics": statistics} if statistics else {}

    def local(view, x, noise, mask):
        tuned = {name: view["base"][name] + change for name, change in view["difference"].items()}
        outputs, _ = shared({**view, "base": {**view["base"], **tuned}}, x, noise, mask)
        return outputs, {}

    def loss(view, received, batch, noise):
        logits = choices(view, batch.x)
        difference = {n: received["base"][n] + d - view["base"][n] for n, d in view["difference"].items()}
        outputs, statistics = mixed(view, torch.sigmoid(logits), difference, batch.x, noise, batch.mask)
        return sample_losses(problem.loss, outputs, batch.y) + gamma * F.softplus(logits).mean(-1), statistics

    def predict(view, x, noise, mask):
        return mixed(view, torch.sigmoid(choices(view, x)).round(), view["difference"], x, noise, mask)

    def assign(view, held):
        return {"difference": {name: torch.zeros_like(value) for name, value in view["difference"].items()}}

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            "difference": Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(zeros, problem.clients), lr=problem.lr
            ),
            "policy": Group(scope=Scope.SHARED, init=policy_start, lr=problem.router_lr),
        },
        predict=predict,
        assign=assign,
        loss=loss,
        phases=(
            Phase(train=("difference",), predict=local, samples="held_out" if local_part == "held_out" else "others"),
            Phase(train=("base", "policy"), samples="others" if local_part == "held_out" else "held_out"),
        ),
        noise=model.noise,
        cost=Cost(passes_per_sample=1.5 + forward_backward_passes(problem, policy) / 2),
    )
