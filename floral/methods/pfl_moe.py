"""PFL-MoE (arXiv 2012.15589): mix the outputs of FedAvg's model and of its fine-tuned copy, per sample."""

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
    """PFL-MoE: mix the outputs of FedAvg's model and of its fine-tuned copy with weights per sample.

    w is SHARED and trained by FedAvg. The fine-tuned w_k and the gate are PRIVATE. Served is g_k(x)·w_k(x) + (1 -
    g_k(x))·w(x).

    A round of a client has three phases, each of the task's epochs. It trains its copy of w, which it sends. It
    fine-tunes all of w_k, from the received w, on its own loss. It trains g_k with the received w and w_k fixed
    (running statistics, no dropout).

    Limiting cases: w is FedAvg for any gate. A gate fixed to 0 serves FedAvg, one fixed to 1 the fine-tuned w_k.

    Choices, where descriptions of the method leave them open: fine-tuning and gate training belong to every round, not
    only after the last one, so that each round gives the method's model; all layers are fine-tuned; w_k restarts at w;
    g_k is linear on the flattened inputs (images averaged to 8×8), starts at 1/2 and trains at the router's learning
    rate on the training samples; the mixed outputs are logits in classification. A client that never takes part serves
    the mean of the start and w.

    Costs: three times FedAvg's samples, the last third of them without gradients of the two models.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    gate, shared, private = Gate(problem=problem, experts=2), predictor(model), personal_predictor(model)
    groups = {
        **model_groups(model, Scope.SHARED, stream, problem.lr),
        **personal_groups(model, stream, problem.lr, problem.clients),
        **gate.groups,
    }
    start_of = {"personal": "base", "personal_statistics": "statistics"}

    def mixed(view, x):
        outputs = torch.stack([predict(view, x, None, None)[0] for predict in (shared, private)])
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
            Phase(train=("personal",), predict=private),
            Phase(train=("gate",)),
        ),
        loss=gate_loss,
        noise=model.noise,
        join=join_from(**start_of),
        cost=Cost(passes_per_sample=(2 + 2 / 3 + forward_backward_passes(problem, gate.model)) / 3),
    )
