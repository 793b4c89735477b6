"""FedAMoLE (arXiv 2411.19128): in each layer, low-rank experts choose their clients, and tokens choose among them."""

import torch
from torch import Tensor

from floral.adaptors.aggregation import flatten
from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.linear import LinearAdaptor
from floral.adaptors.per_sample import each_output, gate_input, gate_inputs, gated_adaptors, mixed_outputs
from floral.core.spec import Cost, Group, Method, Phase, Problem, Routing, Scope, ServerStep, ServerView, View
from floral.core.streams import Stream
from floral.nn.layers import layer_params
from floral.toolkit.assignment import choose_clients
from floral.toolkit.parts import (
    distinct_starts,
    fedavg_phase,
    model_groups,
    phases_with_warmup,
    require_separate_samples,
    sample_losses,
)
from floral.toolkit.routes import keep_largest


def build(
    problem: Problem,
    *,
    rank: float | str,
    bias: bool,
    convolution: str,
    base: str,
    warmup: float,
    experts: int,
    held: float,
    most: int,
    top: int,
    balance: float,
) -> Method:
    """FedAMoLE: every layer has a shared adaptor and E experts. A client holds the experts that have chosen it.

    A layer of client k computes W x + (B_s A_s x + b_s) + Σ_j ω_j(x)·(B_j A_j x + b_j), where j runs over the experts
    that client k holds in this layer. x is the layer's input for a sample, or for each token of a text. The weights ω
    are the `top` largest of softmax_j((A_j x)·(P x)/√r), rescaled to the sum 1. P [r, inputs] is the token projection,
    and r the rank. The loss has the term balance·Σ_layers M·Σ_j f_j·P_j over the M experts of the layer. f_j is the
    share of expert j in all choices of the batch, and P_j the mean of its softmax.

    W, the shared adaptor, all experts and P are SHARED. The server averages expert j over its clients in the round,
    with weights p(k). Then the experts choose their clients anew (`choose_clients`): each expert chooses
    round(held·K/E) clients, so that a client holds `held` experts of a layer on average, between `top` and `most`. The
    score of client k for expert j is softmax_k(e_j·t_k/√r). t_k is the mean of P x over the training samples of client
    k after its round, and e_j the mean of A_j x over the clients of the expert. For clients that have not taken part
    yet, and before round 1, e_j·t_k/√r is uniform in [0, 1).

    In a convolution, x is the mean of the input over all positions, and A_j is summed over the positions of its kernel
    for the weights. Clients predict with the experts of their last round. A client that joins after training holds all
    experts. Embeddings have no adaptor.

    Limiting case: with E = 1, without biases, this is FedIT with an adaptor of twice the rank.

    The options `base` and `warmup` are as in `fedit`.

    The server sees t_k and the client's means of A_j x, which are statistics of its samples.

    Costs: of the experts, a client holds and sends `held` in each layer, and computes `top`.

    Raises:
        Refused: an adapted layer does not have the samples of a batch in their order.
    """
    adaptors = gated_adaptors(problem, rank=rank, bias=bias, convolution=convolution)
    stream, clients = Stream(problem.seed, "adaptors"), problem.clients
    model, layers = adaptors.model, adaptors.by_layer
    require_separate_samples(model, layers, "leave this layer out of `adapt`")
    start, choices = adaptors.init(stream), min(clients, max(1, round(held * clients / experts)))
    ranks, inputs = ({name: start[f"{name}.A"].shape[axis] for name in layers} for axis in (0, 1))

    def forward(view, x, noise, mask, record=lambda name, *values: None):
        """Return logits and statistics. `record` gets of each layer its gate input, and its softmax before and after
        the choice of the largest."""

        def adapt(name, x):
            part = layers.get(name)
            if not isinstance(part, LinearAdaptor | ConvAdaptor):
                return None, None
            factors, read = layer_params(view["experts"], name), gate_input(part, x)
            keys = read @ down(factors["A"]).flatten(0, 1).mT
            products = keys.unflatten(-1, (experts, -1)) * (read @ view["projection"][name].mT).unsqueeze(-2)
            scores = products.sum(-1) / ranks[name] ** 0.5
            shares = torch.softmax(torch.where(view["assigned"][name] > 0, scores, -torch.inf), -1)
            weights = keep_largest(shares, top)
            record(name, read, shares, weights)
            shared = {key: t[None] for key, t in layer_params(view["shared"], name).items()}
            outputs = [part.unmerged(shared, x.new_ones(1), x), *each_output(part, factors, x)]
            return None, mixed_outputs(outputs, torch.cat([torch.ones_like(weights[..., :1]), weights], -1))

        logits, statistics = model(view["base"], view.get("statistics", {}), x, noise, mask, adapt)
        return logits, {"statistics": statistics} if statistics else {}

    def loss(view, received, batch, noise):
        terms = []

        def record(name, read, shares, weights):
            number = (view["assigned"][name] > 0).sum()
            is_used = (weights > 0).to(weights.dtype)
            used, share = (mean(model.by_sample(name, t, len(batch.mask)), batch.mask) for t in (is_used, shares))
            terms.append(number * (used * share).sum() / top)

        logits, changed = forward(view, batch.x, noise, batch.mask, record)
        return sample_losses(problem.loss, logits, batch.y) + balance * torch.stack(terms).sum(), changed

    def after_training(view, received, samples):
        means = {}

        def record(name, read, shares, weights):
            read = model.by_sample(name, read, len(samples.mask))
            means.setdefault(name, []).append(mean(read, samples.mask))

        forward(view, samples.x, None, None, record)
        trained = torch.stack([(t != received["shared"][n]).any() for n, t in view["shared"].items()]).any()
        sent = {}
        for name, values in means.items():
            read = torch.stack(values).mean(0)
            sent[f"{name}.token"] = view["projection"][name] @ read
            sent[f"{name}.experts"] = (down(view["experts"][f"{name}.A"]) @ read) * view["assigned"][name][:, None]
        return {"sent": {n: torch.where(trained, t, view["sent"][n]) for n, t in sent.items()}}

    def update(served: ServerView) -> View:
        if "experts" not in served.means:  # the warm-up
            return {}
        assert served.client_vectors is not None
        before, at = served.before, served.client_vectors.clients
        new, clients_of = {}, {}
        for name in layers:
            assigned = before["assigned"][name]
            share = served.client_vectors.share.to(assigned.dtype) @ assigned[at]
            for key, old in layer_params(before["experts"], name).items():
                change = served.after["experts"][f"{name}.{key}"] - old
                weight = share.reshape(-1, *(1,) * (old.dim() - 1))
                new[f"{name}.{key}"] = old + torch.where(weight > 0, change / weight.clamp(min=1e-12), 0.0)
            tokens, keys = before["sent"][f"{name}.token"], before["sent"][f"{name}.experts"]
            seen = tokens.abs().sum(1) > 0
            holders = assigned * seen[:, None]
            means = keys.sum(0) / holders.sum(0).clamp(min=1)[:, None]
            scores = means @ tokens.mT / ranks[name] ** 0.5
            scores = torch.where((holders.sum(0) > 0)[:, None] & seen, scores, random_scores(name).to(scores))
            clients_of[name] = choose_clients(scores, choices, top, most)
        return {"experts": new, "next": clients_of}

    def random_scores(layer: str) -> Tensor:
        return stream.of(layer).uniform("scores", (experts, clients))

    def first_clients():
        return {name: choose_clients(random_scores(name), choices, top, most) for name in layers}

    def first_sent():
        tokens = {f"{n}.token": torch.zeros(clients, r) for n, r in ranks.items()}
        return tokens | {f"{n}.experts": torch.zeros(clients, experts, r) for n, r in ranks.items()}

    def projections():
        bounds = {name: count**-0.5 for name, count in inputs.items()}
        return {n: stream.of(n).uniform("P", (ranks[n], inputs[n]), -b, b) for n, b in bounds.items()}

    def shared_group(init) -> Group:
        return Group(scope=Scope.SHARED, init=init, lr=problem.lr)

    def private_group(init) -> Group:
        return Group(scope=Scope.PRIVATE, init=init, statistic=True)

    def expert_starts():
        return distinct_starts(adaptors.init, stream.of("experts"), experts)

    def holds_all(view: View) -> View:
        return {n: {layer: torch.ones_like(t) for layer, t in view[n].items()} for n in ("assigned", "next")}

    def log_route(view: View) -> Tensor:
        """log π_k [E] for the report: the share of expert j in all that client k holds, over all layers."""
        counts = torch.stack([view["next"][name] for name in layers]).sum(0)
        return (counts / counts.sum()).log()

    per_client = choices * experts / clients  # experts that a client holds in a layer, on average
    size, sent = round(per_client * adaptors.size), round(sum(ranks.values()) * (1 + per_client))
    shapes = model.inputs(problem.shape, problem.batch)
    read = {name: gate_inputs(part, shapes[name]) for name, part in layers.items()}
    added = sum(
        part.multiply_adds(shapes[name], 1 + top)[1] + read[name] * ranks[name] * (1 + per_client)
        for name, part in layers.items()
    )
    return Method(
        groups={
            **model_groups(model, Scope.SHARED, Stream(problem.seed, "model"), problem.lr),
            "shared": shared_group(lambda: start),
            "experts": shared_group(expert_starts),
            "projection": shared_group(projections),
            "assigned": private_group(first_clients),
            "next": private_group(first_clients),
            "sent": private_group(first_sent),
        },
        predict=forward,
        loss=loss,
        assign=lambda view, held: {"assigned": view["next"]},
        after_training=after_training,
        phases=phases_with_warmup(
            Phase(
                train=("base", "shared", "experts", "projection"),
                floats_sent={"experts": (size, size), "sent": (0, sent)},
            ),
            warmup_phase=fedavg_phase(model),
            base=base,
            warmup=warmup,
        ),
        routing=Routing(served_log_route=log_route, clusters=experts),
        server=ServerStep(client_vector=lambda view: flatten(view["sent"]), update=update),
        noise=model.noise,
        join=holds_all,
        cost=Cost(
            passes_per_sample=1 + added / model.multiply_adds(problem.shape, problem.batch),
            assign_passes_per_sample=1 / 3,
            floats_served={"experts": size},
        ),
    )


def down(factors: Tensor) -> Tensor:
    """Return the factors A [E, r, inputs] of E experts. Those of a convolution are summed over the kernel."""
    return factors.flatten(3).sum(-1) if factors.dim() > 3 else factors


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean [d] of values [B, ..., d] over samples and tokens. `mask` [B] is 0 for padding."""
    of_samples = values.flatten(1, -2).mean(1) if values.dim() > 2 else values
    weight = mask.to(of_samples.dtype)
    return (weight[:, None] * of_samples).sum(0) / weight.sum().clamp(min=1)
