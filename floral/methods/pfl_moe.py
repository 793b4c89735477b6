"""PFL-MoE (arXiv 2012.15589): outputs of FedAvg's model and of its fine-tuned copy, mixed sample by sample."""

import torch

from floral.core.spec import Cost, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import (
    begin_round_from,
    forward_backward_passes,
    join_from,
    model_groups,
    personal_groups,
    personal_predictor,
    predictor,
    sample_losses,
)
from floral.toolkit.routes import Gate


def build(problem: Problem) -> Method:
    """w SHARED, trained as FedAvg does; w_k and the gate PRIVATE. Served is g_k(x)·w_k(x) + (1 - g_k(x))·w(x).

    A round of a client, each part for the task's epochs: it trains its copy of w, which it sends; it fine-tunes all of
    w_k from the received w on its own loss; it trains g_k with the received w and w_k held (running statistics, no
    dropout). w is FedAvg whatever the gate; a gate fixed to 0 serves FedAvg, one fixed to 1 the fine-tuned w_k.

    Chosen here, where accounts of the method leave it open: fine-tuning and gate belong to every round, so that each
    round's model is the method's (not once, after the last); all layers are fine-tuned; w_k starts anew at w; g_k is
    linear on the flattened inputs (images averaged to 8×8), starts at 1/2 and is trained at the router's rate, on the
    training rows; mixed are the models' outputs, which are logits in classification. A client that never takes part
    serves the mean of the start and w.

    Costs: thrice FedAvg's samples, the last third of them without gradients of the two models.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    gate, shared, own = Gate(problem=problem, experts=2), predictor(model), personal_predictor(model)
    groups = {
        **model_groups(model, Scope.SHARED, stream, problem.lr),
        **personal_groups(model, stream, problem.lr, problem.clients),
        **gate.groups,
    }
    start_of = {"personal": "base", "personal_statistics": "statistics"}

    def mixed(view, x):
        outputs = torch.stack([serve_one(view, x, None, None)[0] for serve_one in (shared, own)])
        return torch.einsum("bc,cbo->bo", gate.log_weights(view, x).exp(), outputs)

    def gate_loss(view, received, batch, noise):
        as_received = {group: received[group] for group in start_of.values() if group in received}
        return sample_losses(problem.loss, mixed({**view, **as_received}, batch.x), batch.y), {}

    return Method(
        groups=groups,
        predict=lambda view, x, noise, mask: (mixed(view, x), {}),
        assign=begin_round_from(**start_of),
        phases=(
            Phase(train=("base",), predict=shared),
            Phase(train=("personal",), predict=own),
            Phase(train=("gate",)),
        ),
        loss=gate_loss,
        noise=model.noise,
        join=join_from(**start_of),
        cost=Cost(passes_per_sample=(2 + 2 / 3 + forward_backward_passes(problem, gate.model)) / 3),
    )
