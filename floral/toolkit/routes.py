"""Three ways in which a client selects or mixes several models or adaptors.

- `ModelChoice`: each client uses one of C models.
- `Router`: each client mixes C models or adaptors with its own weights π_k.
- `Gate`: each client mixes experts with weights that it computes for every sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Group, Noise, Params, Problem, Refused, Routing, Scope, View
from floral.core.streams import Stream
from floral.nn.layers import Layer, Linear
from floral.nn.model import Call, Model
from floral.toolkit.parts import predictor, repeated_start

# ---------------------------------------------------------------------------------------- one of C models


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """C models, from which each client uses a single one.

    The client trains this model, sends it, and predicts with it. All other models have gradient 0 on this client.

    The models are CLUSTERED (see `model_groups`). The index of the client's model is PRIVATE (the group "choice").
    """

    model: Model
    clusters: int

    def group(self, clients: int) -> Group:
        """Return the initial choices: for each of the K clients, the index of its model [K]. At first, all are 0.

        Later, the client (in the method's function `assign`) or the server changes the index.
        """
        return Group(scope=Scope.PRIVATE, init=lambda: {"cluster": torch.zeros(clients)}, statistic=True)

    def predict(self, view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        """Return the outputs of the chosen model, and the running statistics of all models. Only the statistics of the
        chosen model change.
        """
        index = view["choice"]["cluster"].long().reshape(1)
        model_view = {group: self.chosen_params(view, group) for group in ("base", "statistics") if group in view}
        outputs, changed = predictor(self.model)(model_view, x, noise, mask)
        is_chosen = torch.arange(self.clusters, device=x.device) == index
        statistics = {
            group: {
                name: torch.where(is_chosen.reshape(-1, *(1,) * new.dim()), new, view[group][name])
                for name, new in params.items()
            }
            for group, params in changed.items()
        }
        return outputs, statistics

    def chosen_params(self, view: View, group: str = "base") -> Params:
        """Return the parameters of the chosen model, or its running statistics if `group` is "statistics"."""
        index = view["choice"]["cluster"].long().reshape(1)
        return {name: tensor.index_select(0, index)[0] for name, tensor in view[group].items()}

    def chosen_vector(self, view: View) -> Tensor:
        """Return the parameters of the chosen model as one vector [d], in the order of their sorted names."""
        params = self.chosen_params(view)
        return torch.cat([params[name].flatten() for name in sorted(params)])

    @property
    def routing(self) -> Routing:
        """Return the rule for the server's averages: each model is averaged over the clients that chose it."""
        return Routing(log_route=self.log_route, serves_one_cluster=True, clusters=self.clusters)

    def log_route(self, view: View) -> Tensor:
        """Return log π_k [C], the logarithms of client k's weights: 0 for the chosen model, -∞ for all others."""
        index = view["choice"]["cluster"]
        return torch.where(torch.arange(self.clusters, device=index.device) == index, 0.0, -math.inf)


def cluster_vectors(params: Params) -> Tensor:
    """Return the parameters of C models as vectors [C, d], in the order of their sorted names.

    `ModelChoice.chosen_vector` has the same order.
    """
    return torch.cat([params[name].flatten(1) for name in sorted(params)], dim=1)


def params_of_vectors(vectors: Tensor, like: Params) -> Params:
    """Convert vectors [C, d] back to the parameters of C models, with the names and shapes of `like`.

    This is the inverse of `cluster_vectors`.
    """
    sizes = [like[name][0].numel() for name in sorted(like)]
    parts = zip(sorted(like), vectors.split(sizes, dim=1), strict=True)
    return {name: part.reshape(len(vectors), *like[name].shape[1:]) for name, part in parts}


# ------------------------------------------------------------------------------------- a mixture per client

FIXED_ROUTE_GAP = 100.0
"""Difference of the logits of a fixed route; softmax then gives 1 and about 4e-44."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """The weights π_k with which client k mixes the models or adaptors of C clusters.

    The weights are π_k = softmax((θ_k + noise_scale·u)/temperature). θ_k are C logits of the client. u ~ U[0, 1)^C is
    drawn for each batch in training, and is 0 in evaluation. The kind of the router is one of these:

    - "learned": θ_k starts at 0 (equal weights) and is trained by SGD.
    - "optimal": π_k selects the client's true cluster and never changes.
    - "random": π_k selects a random cluster and never changes.
    - "em", "exponential", "argmin": `route_from_losses` sets θ_k at the start of a client's round, from the loss of
      each cluster on all training samples of the client.

    A learned router can have `top` = 2. Training and the server then use only the two largest weights of π_k, which are
    rescaled to the sum 1. Evaluation uses only the largest weight, as the published code does. If more weights are
    equal to the smallest of the used weights, they are used too.

    `layers` > 0 gives each of L layers its own logits, θ_k [L, C], and its own noise. The server's weights and the
    report use the mean of the weights over the layers. So both factors of an adaptor are averaged with the same weight.

    Raises:
        Refused: `top` or `layers` is set but the router is not learned, or `top` is 1 (a single weight has no
            gradient).
    """

    kind: str
    problem: Problem
    temperature: float = 1.0
    noise_scale: float = 1.0
    top: int = 0
    layers: int = 0

    def __post_init__(self) -> None:
        if self.kind != "learned" and (self.top or self.layers):
            raise Refused(
                f"`top` and `per_layer` need `router: learned`, but the router is {self.kind}; remove both keys"
            )
        if self.top == 1:
            raise Refused("`top: 1` leaves a single weight, which is always 1 and has no gradient; set `top` to 0 or 2")

    @property
    def groups(self) -> dict[str, Group]:
        """Return the initial logits of all clients, which are PRIVATE: [K, C], or [K, L, C] for L layers.

        The name of their parameter group is "router".
        """
        update = {"fixed": self.is_fixed, "statistic": self.uses_losses}
        return {"router": Group(scope=Scope.PRIVATE, init=self._start, lr=self.problem.router_lr, **update)}

    @property
    def is_fixed(self) -> bool:
        """Whether the weights of all clients stay the same in all rounds."""
        return self.kind in ("optimal", "random")

    @property
    def uses_losses(self) -> bool:
        """Whether the weights are computed from losses at the start of a client's round."""
        return self.kind in ("em", "exponential", "argmin")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits of one client: [C], or [L, C] for L layers."""
        return (self.layers, self.problem.clusters) if self.layers else (self.problem.clusters,)

    def _start(self) -> Params:
        if self.kind in ("random", "argmin"):
            return {"logits": fixed_logits(self._random_clusters, self.problem.clusters)}
        if self.is_fixed:
            return {"logits": fixed_logits(self.fixed_clusters, self.problem.clusters)}
        return {"logits": torch.zeros(self.problem.clients, *self.shape)}

    @property
    def fixed_clusters(self) -> Tensor:
        """The cluster of each client [K] if the router is fixed ("optimal" or "random")."""
        match self.kind:
            case "optimal":
                return self.problem.true_cluster
            case "random":
                return self._random_clusters.to(self.problem.device)
        raise ValueError(
            f"the router {self.kind!r} selects no fixed cluster for a client; use the router 'optimal' or 'random'"
        )

    @property
    def _random_clusters(self) -> Tensor:
        """A random cluster for each client [K], on the CPU.

        The router "random" keeps it. The router "argmin" only starts with it.
        """
        stream = Stream(self.problem.seed, "random route")
        return stream.integers("cluster", self.problem.clients, self.problem.clusters)

    @property
    def noise(self) -> dict[str, tuple[int | str, ...]]:
        """The shape of the random numbers u that a learned router with noise adds to its logits in training.

        The name of this random input is "router". For all other routers the result is empty.
        """
        learned = self.kind == "learned" and self.noise_scale > 0
        return {"router": self.shape} if learned else {}

    @property
    def floats_sent(self) -> dict[str, tuple[int, int]]:
        """The numbers of floats that the router adds to a client's traffic per round, as (down, up).

        If a client's weights can change, the client sends them, because the server needs them for its averages. These
        are C numbers. With "argmin", the client sends 1 number, the index of its cluster. A fixed router sends nothing.
        """
        up = {"optimal": 0, "random": 0, "argmin": 1}.get(self.kind, self.problem.clusters)
        return {"router": (0, up)}

    @property
    def weighed_clusters(self) -> int:
        """The largest number of clusters to which one client can contribute with a positive weight.

        The server averages each cluster over the clients with a positive weight for it.
        """
        has_all = self.top == 0 or self.problem.switches["aggregation_route"] == "plain"
        return self.problem.clusters if has_all else min(self.problem.clusters, self.top * max(1, self.layers))

    def full_route(self, view: View, noise: Noise | None) -> Tensor:
        """Return the weights π_k [C] or [L, C] of all clusters, before `top` selects the largest weights."""
        logits = view["router"]["logits"]
        if noise is not None and "router" in noise:
            logits = torch.add(logits, noise["router"], alpha=self.noise_scale)
        return torch.softmax(logits if self.temperature == 1 else logits / self.temperature, dim=-1)

    def mixing_route(self, view: View, noise: Noise | None) -> Tensor:
        """Return the weights π_k [C] or [L, C] with which the client mixes, after the selection by `top`."""
        route = self.full_route(view, noise)
        if not self.top:
            return route
        return keep_largest(route, 1 if noise is None else self.top)

    @property
    def routing(self) -> Routing:
        """Return the functions that compute a client's weights of the clusters, as logarithms.

        One function computes the weights for the server's averages. With `top`, a client mixes fewer clusters in
        evaluation than in training. Then a second function computes the weights for evaluation.
        """
        served = self.served_log_route if self.top else None
        return Routing(log_route=self.log_route, served_log_route=served, clusters=self.problem.clusters)

    def log_route(self, view: View) -> Tensor:
        """Return log π_k [C], the logarithms of client k's weights in the server's averages. They contain no noise.

        The setting aggregation_route="plain" imitates the published code, which ignores `temperature` and `top` when it
        computes these weights.
        """
        plain = self.problem.switches["aggregation_route"] == "plain"
        if self.top and not plain:
            return self._log_mean(keep_largest(self.full_route(view, None), self.top).log())
        return self._log_mean(torch.log_softmax(view["router"]["logits"] / (1.0 if plain else self.temperature), -1))

    def served_log_route(self, view: View) -> Tensor:
        """Return log π_k [C], the logarithms of the weights with which client k mixes the clusters in evaluation."""
        return self._log_mean(self.mixing_route(view, None).log())

    def _log_mean(self, log_route: Tensor) -> Tensor:
        """Average the weights over all layers, and return the logarithms of these means [C].

        `log_route` holds the logarithms of the weights, [L, C] for L layers. Without weights per layer it is [C], and
        is returned unchanged.
        """
        return torch.logsumexp(log_route, 0) - math.log(self.layers) if self.layers else log_route

    def route_from_losses(self, view: View, losses: Tensor, mask: Tensor) -> View:
        """Compute a client's new logits from the loss of each cluster on each sample of the client.

        `losses` [C, n] are the losses of n samples, and `mask` [n] marks the samples that count. Let f_c be the mean of
        the losses loss_ic over the samples i. The new weights π_c depend on the kind of the router:

        - "em": π_c ← mean_i q_i(c), with the responsibilities q_i(c) ∝ π_c exp(-loss_ic) (arXiv 2108.10252).
        - "exponential": π_c ← π_c exp(-f_c/temperature), rescaled to the sum 1. This is a step of entropic mirror
          descent on Σ_c π_c f_c. With one sample and temperature 1 it equals "em".
        - "argmin": the cluster with the smallest f_c gets weight 1 (arXiv 2006.04088). The client keeps its cluster
          unless another cluster has a loss smaller by more than 1e-5 of the present loss. All adaptors compute the same
          function at first, so the first choices are random.

        The result is the group "router" with the logits of these weights.
        """
        logits, mean = view["router"]["logits"], (losses * mask).sum(-1) / mask.sum().clamp(min=1)
        if self.kind == "em":
            prior = torch.log_softmax(logits / self.temperature, -1)
            log_q = torch.where(mask, torch.log_softmax(prior[:, None] - losses, 0), -math.inf)
            return {"router": {"logits": torch.log_softmax(torch.logsumexp(log_q, -1), 0)}}
        if self.kind == "exponential":
            return {"router": {"logits": torch.log_softmax(logits - mean, -1)}}
        best = torch.arange(len(mean), device=mean.device) == mean.argmin()
        present = (mean * torch.softmax(logits, -1)).sum()
        better = mean.amin() < present - 1e-5 * present.abs()
        return {"router": {"logits": torch.where(better, FIXED_ROUTE_GAP * (best.to(logits.dtype) - 1), logits)}}


def keep_largest(route: Tensor, count: int) -> Tensor:
    """Keep the `count` largest of the weights `route` [..., C], set all others to 0, and rescale them to the sum 1.

    If several weights are equal to the `count`-th largest weight, all of them are kept.
    """
    if count >= route.shape[-1]:
        return route
    threshold = route.detach().sort(-1).values[..., -count, None]
    weights = torch.where(route.detach() >= threshold, route, 0.0)
    return weights / weights.sum(-1, keepdim=True)


# ------------------------------------------------------------------------------------- a mixture per sample

GATE_SIDE_PIXELS = 8
"""Height and width to which a gate averages larger images."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A small PRIVATE network that gives the weights of several experts for every sample.

    The weights are the softmax of the network's outputs [B, experts]. The network averages images larger than 8×8 to
    8×8 and flattens the input. Then comes a linear layer or, with `hidden` units, linear → ReLU → linear.

    All clients have the same start. The last layer starts at zero, so all experts have equal weights at first.
    """

    problem: Problem
    experts: int
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.problem.loss == "token_cross_entropy":
            raise Refused(
                "the gate of this method computes with the values of the inputs, but the numbers of text tokens are"
                " only names; use a task without text"
            )

    @property
    def model(self) -> Model:
        """The network of the gate. The name of its last layer is "mix"."""
        inputs = downsample(torch.zeros(1, *self.problem.shape, device="meta")).numel()
        layers: dict[str, Layer] = {"hidden": Linear(inputs, self.hidden)} if self.hidden else {}
        layers["mix"] = Linear(self.hidden or inputs, self.experts)

        def forward(call: Call, x: Tensor) -> Tensor:
            x = downsample(x).flatten(1)
            return call("mix", torch.relu(call("hidden", x)) if self.hidden else x)

        return Model(layers=layers, forward=forward)

    @property
    def groups(self) -> dict[str, Group]:
        """Return the initial parameters of all clients' gates. They are PRIVATE, and equal for all clients.

        Their parameter group is "gate". It trains at the router's learning rate.
        """
        return {"gate": Group(scope=Scope.PRIVATE, init=self._start, lr=self.problem.router_lr)}

    def _start(self) -> Params:
        start = self.model.init(Stream(self.problem.seed, "gate"))
        even = {name: torch.zeros_like(value) if name.startswith("mix.") else value for name, value in start.items()}
        return repeated_start(even, self.problem.clients)

    def log_weights(self, view: View, x: Tensor) -> Tensor:
        """Return the logarithms of the experts' weights [B, experts] for the inputs x [B, ...]."""
        return torch.log_softmax(self.model(view["gate"], {}, x, None, None)[0], -1)


def downsample(x: Tensor) -> Tensor:
    """Average images x [B, H, W] or [B, H, W, colours] to at most 8×8 pixels. Other inputs are returned unchanged."""
    if x.dim() < 3:
        return x
    sides = min(x.shape[1], GATE_SIDE_PIXELS), min(x.shape[2], GATE_SIDE_PIXELS)
    if sides == x.shape[1:3]:
        return x
    return F.adaptive_avg_pool2d(x if x.dim() == 3 else x.movedim(-1, 1), sides)


def fixed_logits(cluster: Tensor, clusters: int) -> Tensor:
    """Return logits [K, C] with which each client selects one cluster: 0 for this cluster, -100 for all others."""
    selected = F.one_hot(cluster.cpu(), clusters).float()
    return FIXED_ROUTE_GAP * (selected - 1)


def entropy(route: Tensor) -> Tensor:
    """Return the entropy H(π) = -Σ_c π_c log π_c of weights π [..., C], in nats. 0·log 0 counts as 0."""
    return torch.special.entr(route).sum(-1)
