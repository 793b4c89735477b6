"""PFL-MoE (arXiv 2012.15589, PFL-MFE): mix the outputs of FedAvg's model and of its fine-tuned copy per sample."""

import torch

from floral.core.spec import Group, Method, Phase, Problem, Scope
from floral.core.streams import Stream
from floral.nn.layers import Linear
from floral.toolkit.parts import model_groups, predictor, repeated_start, sample_losses
from floral.toolkit.routes import Gate


def build(problem: Problem, *, after: float) -> Method:
    """PFL-MoE: mix the outputs of FedAvg's model w and of its fine-tuned copy w_k, with weights for each sample.

    Client k predicts g_k(x)·w_k(x) + (1 - g_k(x))·w(x). In classification, the mixed outputs are logits. w is SHARED.
    w_k and the gate g_k are PRIVATE.

    The rounds have three parts. First FedAvg trains w, for the share `after` of all rounds. Then w is fixed. In the
    first half of the remaining rounds, clients fine-tune w_k, which starts at w. Only the linear layers (fully
    connected layers) of w_k change, so w_k is w plus a difference d_k of these layers. In the second half, clients
    train the gates, while w and w_k are fixed and in evaluation mode (with running statistics and without dropout).

    A quarter of a client's training samples is held out from fine-tuning. The gate trains on this quarter alone,
    because w_k is too good on the samples that it has seen.

    Limiting case: with after = 1 this is FedAvg.

    Costs: a sample counts as one pass in all rounds.
    """
    model, stream = problem.build_model(), Stream(problem.seed, "model")
    gate, shared = Gate(problem=problem, experts=2), predictor(model)
    linear_layers = {name for name, layer in model.layers.items() if isinstance(layer, Linear) and layer.tied is None}

    def zeros():
        start = model.init(stream)
        return {n: torch.zeros_like(t) for n, t in start.items() if n.rsplit(".", 1)[0] in linear_layers}

    def personal(view, x, noise, mask):
        tuned = {name: view["base"][name] + change for name, change in view["difference"].items()}
        outputs, _ = shared({**view, "base": {**view["base"], **tuned}}, x, noise, mask)
        return outputs, {}

    def mixed(view, x):
        outputs = torch.stack([predict(view, x, None, None)[0] for predict in (shared, personal)])
        return torch.einsum("bc,cbo->bo", gate.log_weights(view, x).exp(), outputs)

    def gate_loss(view, received, batch, noise):
        return sample_losses(problem.loss, mixed(view, batch.x), batch.y), {}

    def last_rounds(rounds: int) -> tuple[int, int]:
        """Return the last round of FedAvg and the last round of fine-tuning."""
        of_fedavg = int(after * rounds)
        return of_fedavg, of_fedavg + (rounds - of_fedavg + 1) // 2

    def averages(round: int, rounds: int) -> bool:
        return round <= last_rounds(rounds)[0]

    def fine_tunes(round: int, rounds: int) -> bool:
        first, last = last_rounds(rounds)
        return first < round <= last or round > rounds  # clients that join do all at once

    def trains_gate(round: int, rounds: int) -> bool:
        return round > last_rounds(rounds)[1]

    return Method(
        groups={
            **model_groups(model, Scope.SHARED, stream, problem.lr),
            "difference": Group(
                scope=Scope.PRIVATE, init=lambda: repeated_start(zeros(), problem.clients), lr=problem.lr
            ),
            **gate.groups,
        },
        predict=lambda view, x, noise, mask: (mixed(view, x), {}),
        phases=(
            Phase(train=("base",), predict=shared, when=averages),
            Phase(train=("difference",), predict=personal, when=fine_tunes, samples="others"),
            Phase(train=("gate",), when=trains_gate, samples="held_out"),
        ),
        loss=gate_loss,
        noise=model.noise,
    )
