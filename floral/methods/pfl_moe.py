"""PFL-MoE (arXiv 2012.15589): mix the outputs of FedAvg's model and of its fine-tuned copy for each sample."""

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
    """PFL-MoE: mix the outputs of FedAvg's model w and of its fine-tuned copy w_k, with weights for each sample.

    Client k predicts g_k(x)·w_k(x) + (1 - g_k(x))·w(x). w is SHARED and trained by FedAvg. w_k and the gate g_k are
    PRIVATE.

    A client's round has three phases, each for the task's epochs. First the client trains its copy of w and sends it.
    Then w_k starts at the received w, and all its layers are fine-tuned on the client's loss. Last, the gate g_k
    trains, while the received w and w_k are fixed and in evaluation mode (with running statistics and without dropout).

    Limiting cases: w is trained as in FedAvg for any gate. With a gate fixed to 0, clients predict with FedAvg's model.
    With a gate fixed to 1, they predict with w_k.

    Choices, where descriptions of the method leave them open: fine-tuning and training of the gate belong to every
    round, not only to the end, so each round gives the method's model. All layers are fine-tuned. w_k restarts at w.
    g_k is linear on the flattened inputs (images averaged to 8×8), starts at 1/2, and trains on the training samples at
    the router's learning rate. In classification, the mixed outputs are logits. A client that never takes part predicts
    with the mean of the outputs of the initial model and of w.

    Costs: a client processes three times as many samples as in FedAvg. The last third needs no gradients of the two
    models.
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
