"""FedALT (arXiv 2503.11880): mix the client's own adaptor with the mean adaptor of all other clients."""

import torch

from floral.adaptors.attach import Adaptors
from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.linear import LinearAdaptor
from floral.adaptors.per_sample import gate_input, gate_inputs, gated_adaptors
from floral.core.spec import Cost, Group, Method, Phase, Problem, Scope, ServerStep
from floral.core.streams import Stream
from floral.nn.layers import layer_params
from floral.toolkit.parts import fedavg_phase, model_groups, phases_with_warmup, repeated_start


def build(
    problem: Problem,
    *,
    rank: float | str,
    bias: bool,
    convolution: str,
    base: str,
    warmup: float,
    alpha: float | str = "rank",
    dropout: float = 0.0,
    start: str = "floral",
) -> Method:
    """FedALT: for each sample, a private gate mixes the client's own adaptor with the mean of the other clients'
    adaptors.

    Every layer of client k computes W x + α_1(x)·(B_k A_k x + b_k) + α_2(x)·(B_R A_R x + b_R). W is the base. The
    client's own adaptor is (B_k, A_k, b_k), and the mean adaptor of the other clients is R = (B_R, A_R, b_R). The
    weights are (α_1(x), α_2(x)) = softmax(G_k x). The own adaptor and G_k are PRIVATE.

    The server computes the mean of all K adaptors as the clients last sent them, with each factor averaged separately.
    Only the adaptors of the round's clients change. So the server updates the mean with a sum over these clients. At
    the start of its round, a client removes its own adaptor from the mean: R = (K·mean - own) / (K - 1). R does not
    change until the client's next round. A client that has not taken part yet has no R. The own adaptor is sent, but
    never overwritten.

    Limiting case: with base="joint" and the own adaptors frozen at zero this is FedAvg.

    The options `base` and `warmup` are as in `fedit`.
    """
    adaptors = gated_adaptors(
        problem, rank=rank, bias=bias, convolution=convolution, alpha=alpha, dropout=dropout, start=start
    )
    stream, clients = Stream(problem.seed, "adaptors"), problem.clients
    first = adaptors.init(stream)
    full_weight = torch.ones(1, dtype=problem.dtype, device=problem.device)

    def predict(view, x, noise, mask):
        def adapt(name, x):
            part = adaptors.by_layer.get(name)
            if not isinstance(part, LinearAdaptor | ConvAdaptor):
                return None, None
            z = adaptors.dropped(name, x, noise)
            outputs = [
                part.unmerged({key: t[None] for key, t in layer_params(view[group], name).items()}, full_weight, z)
                for group in ("own", "rest")
            ]
            mix = torch.softmax(gate_input(part, x) @ view["mixer"][name].mT, -1)
            missing = (None,) * (outputs[0].dim() - mix.dim() + 1)
            shares = [share[(..., *missing)] for share in mix.unbind(-1)]
            return None, shares[0] * outputs[0] + shares[1] * outputs[1]

        logits, statistics = adaptors.model(view["base"], view.get("statistics", {}), x, noise, mask, adapt)
        return logits, {"statistics": statistics} if statistics else {}

    def assign(view, held):
        adaptor, mean = view["own"], view["mean"]
        return {"rest": {name: (clients * mean[name] - t) / max(1, clients - 1) for name, t in adaptor.items()}}

    def mean_of_all(served):
        return {"mean": {name: t.mean(0) for name, t in served.before["own"].items()}}

    mixers = {name: torch.zeros(2, first[f"{name}.A"].shape[1]) for name in adaptors.by_layer}
    zero = {name: torch.zeros_like(t) for name, t in first.items()}
    size, model_multiply_adds = adaptors.size, adaptors.model.multiply_adds(problem.shape, problem.batch)
    return Method(
        groups={
            **model_groups(adaptors.model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "own": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(first, clients), lr=problem.lr),
            "mixer": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(mixers, clients), lr=problem.lr),
            "mean": Group(scope=Scope.SHARED, init=lambda: first),
            "rest": Group(scope=Scope.PRIVATE, init=lambda: repeated_start(zero, clients), statistic=True),
        },
        predict=predict,
        assign=assign,
        phases=phases_with_warmup(
            Phase(train=("base", "own", "mixer"), floats_sent={"own": (0, size), "mean": (size, 0)}),
            warmup_phase=fedavg_phase(adaptors.model),
            base=base,
            warmup=warmup,
        ),
        server=ServerStep(update=mean_of_all),
        noise=adaptors.noise,
        cost=Cost(passes_per_sample=1 + adaptor_multiply_adds(problem, adaptors) / model_multiply_adds),
    )


def adaptor_multiply_adds(problem: Problem, adaptors: Adaptors) -> int:
    """Return the number of multiply-adds that two adaptors and their gate take for one batch, summed over all layers.

    Each adaptor is computed separately, because the gate's weights differ between samples: no single matrix W + B A
    serves a whole batch.
    """
    inputs = adaptors.model.inputs(problem.shape, problem.batch)
    return sum(
        part.multiply_adds(inputs[name], 2)[1] + 2 * gate_inputs(part, inputs[name])
        for name, part in adaptors.by_layer.items()
    )
