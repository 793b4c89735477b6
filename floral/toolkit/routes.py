"""How a client selects or mixes several models or adaptors.

- `ModelChoice`: each client uses one of C models.
- `Router`: each client mixes C models or adaptors with its own weights π_k.
- `Gate`: each client mixes experts with different weights for every sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Group, Noise, Params, Problem, Refused, Routing, Scope, View
from floral.core.streams import Stream
from floral.nn.layers import Call, Layer, Linear, Model
from floral.toolkit.parts import predictor, repeated_start

# ---------------------------------------------------------------------------------------- one of C models


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """C models, of which each client trains, sends and serves one.

    The models are the CLUSTERED groups of `model_groups`. The PRIVATE group "choice" holds the index of the client's
    model. The gradients of the other models are 0.
    """

    model: Model
    clusters: int

    def group(self, clients: int) -> Group:
        """The group of the choices [K], initially all 0; the client's `assign` or the server changes them."""
        return Group(scope=Scope.PRIVATE, init=lambda: {"cluster": torch.zeros(clients)}, statistic=True)

    def predict(self, view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        """The outputs of the chosen model; only its statistics change."""
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
        """The chosen model's parameters of a group."""
        index = view["choice"]["cluster"].long().reshape(1)
        return {name: tensor.index_select(0, index)[0] for name, tensor in view[group].items()}

    def chosen_vector(self, view: View) -> Tensor:
        """The parameters of the chosen model as one vector [d], names sorted."""
        params = self.chosen_params(view)
        return torch.cat([params[name].flatten() for name in sorted(params)])

    @property
    def routing(self) -> Routing:
        """The server averages each model over the clients that chose it."""
        return Routing(log_route=self.log_route, serves_one_cluster=True, clusters=self.clusters)

    def log_route(self, view: View) -> Tensor:
        """log π_k [C]: 0 for the chosen model, -∞ for the others."""
        index = view["choice"]["cluster"]
        return torch.where(torch.arange(self.clusters, device=index.device) == index, 0.0, -math.inf)


def cluster_vectors(params: Params) -> Tensor:
    """The parameters of C models as C vectors [C, d], names sorted as in `ModelChoice.chosen_vector`."""
    return torch.cat([params[name].flatten(1) for name in sorted(params)], dim=1)


def params_of_vectors(vectors: Tensor, like: Params) -> Params:
    """The inverse of `cluster_vectors`: vectors [C, d] as parameters with the shapes of `like`."""
    sizes = [like[name][0].numel() for name in sorted(like)]
    parts = zip(sorted(like), vectors.split(sizes, dim=1), strict=True)
    return {name: part.reshape(len(vectors), *like[name].shape[1:]) for name, part in parts}


# ------------------------------------------------------------------------------------- a mixture per client

FIXED_ROUTE_GAP = 100.0
"""Difference of the logits of a fixed route; softmax then gives 1 and about 4e-44."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """The weights π_k = softmax((θ_k + noise·u)/temperature) by which client k mixes C clusters.

    u ~ U[0, 1)^C is drawn for each batch in training and is 0 in evaluation. θ_k are C logits per client. Kinds:

    - "learned": θ_k starts at 0 (uniform weights) and is trained by SGD.
    - "optimal": π_k selects the client's true cluster and never changes.
    - "random": π_k selects a random cluster and never changes.
    - "em", "exponential", "argmin": `route_from_losses` sets θ_k at the start of a client's round, from the loss of
      each
      cluster on all training samples of the client.

    `top` 2 is for learned routers. Training and the server's weights use the two largest π_kc, renormalised. Evaluation
    uses only the largest, as in the published code. Equal weights are kept together.

    `layers` > 0 gives each layer its own logits, θ_k [L, C], and its own noise. The server's weights and the report use
    the mean of the layers' routes, so that both factors of an adaptor have the same weight.

    Raises:
        Refused: `top` or `layers` for a router that is not learned; or `top` 1, whose single weight has no gradient.
    """

    kind: str
    problem: Problem
    temperature: float = 1.0
    noise_scale: float = 1.0
    top: int = 0
    layers: int = 0

    def __post_init__(self) -> None:
        if self.kind != "learned" and (self.top or self.layers):
            raise Refused(f"top and per_layer need router: learned, but the router is {self.kind}; remove them")
        if self.top == 1:
            raise Refused("top: 1 gives a single weight of 1, which has no gradient; set top to 0 or 2")

    @property
    def groups(self) -> dict[str, Group]:
        """The PRIVATE group "router" with logits [K, C] or [K, L, C]."""
        update = {"fixed": self.is_fixed, "statistic": self.uses_losses}
        return {"router": Group(scope=Scope.PRIVATE, init=self._start, lr=self.problem.router_lr, **update)}

    @property
    def is_fixed(self) -> bool:
        """Whether the routes never change."""
        return self.kind in ("optimal", "random")

    @property
    def uses_losses(self) -> bool:
        """Whether the routes are set from losses."""
        return self.kind in ("em", "exponential", "argmin")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the logits of one client."""
        return (self.layers, self.problem.clusters) if self.layers else (self.problem.clusters,)

    def _start(self) -> Params:
        if self.kind in ("random", "argmin"):
            return {"logits": fixed_logits(self._random_clusters, self.problem.clusters)}
        if self.is_fixed:
            return {"logits": fixed_logits(self.fixed_clusters, self.problem.clusters)}
        return {"logits": torch.zeros(self.problem.clients, *self.shape)}

    @property
    def fixed_clusters(self) -> Tensor:
        """The cluster [K] that each client's fixed route selects."""
        match self.kind:
            case "optimal":
                return self.problem.true_cluster
            case "random":
                return self._random_clusters.to(self.problem.device)
        raise ValueError(f"router {self.kind!r} has no fixed routes; use optimal or random")

    @property
    def _random_clusters(self) -> Tensor:
        """A random cluster for each client [K], on the CPU. "random" keeps it, "argmin" starts with it."""
        stream = Stream(self.problem.seed, "random route")
        return stream.integers("cluster", self.problem.clients, self.problem.clusters)

    @property
    def noise(self) -> dict[str, tuple[int | str, ...]]:
        """Shapes of the router's random inputs."""
        learned = self.kind == "learned" and self.noise_scale > 0
        return {"router": self.shape} if learned else {}

    @property
    def floats_sent(self) -> dict[str, tuple[int, int]]:
        """Floats (down, up) per client and round: a route that changes is sent up, because the server weighs with it.

        It has C numbers, or 1 where it is the index of a cluster.
        """
        up = {"optimal": 0, "random": 0, "argmin": 1}.get(self.kind, self.problem.clusters)
        return {"router": (0, up)}

    @property
    def weighed_clusters(self) -> int:
        """Number of clusters in which the server may give a client a positive weight."""
        has_all = self.top == 0 or self.problem.switches["aggregation_route"] == "plain"
        return self.problem.clusters if has_all else min(self.problem.clusters, self.top * max(1, self.layers))

    def full_route(self, view: View, noise: Noise | None) -> Tensor:
        """π_k [C] or [L, C] of all clusters, before `top` is applied."""
        logits = view["router"]["logits"]
        if noise is not None and "router" in noise:
            logits = torch.add(logits, noise["router"], alpha=self.noise_scale)
        return torch.softmax(logits if self.temperature == 1 else logits / self.temperature, dim=-1)

    def mixing_route(self, view: View, noise: Noise | None) -> Tensor:
        """π_k [C] or [L, C] for mixing in the forward pass."""
        route = self.full_route(view, noise)
        if not self.top:
            return route
        return keep_largest(route, 1 if noise is None else self.top)

    @property
    def routing(self) -> Routing:
        """The routing of the method: the server's weights and, with `top`, the different ones of evaluation."""
        served = self.served_log_route if self.top else None
        return Routing(log_route=self.log_route, served_log_route=served, clusters=self.problem.clusters)

    def log_route(self, view: View) -> Tensor:
        """log π_k [C] for the server's weights, without noise.

        With the switch aggregation_route="plain", as in the published code, also without temperature and `top`.
        """
        plain = self.problem.switches["aggregation_route"] == "plain"
        if self.top and not plain:
            return self._log_mean(keep_largest(self.full_route(view, None), self.top).log())
        return self._log_mean(torch.log_softmax(view["router"]["logits"] / (1.0 if plain else self.temperature), -1))

    def served_log_route(self, view: View) -> Tensor:
        """log π_k [C] for mixing in evaluation."""
        return self._log_mean(self.mixing_route(view, None).log())

    def _log_mean(self, log_route: Tensor) -> Tensor:
        """The logarithm [C] of the mean of all layers' routes."""
        return torch.logsumexp(log_route, 0) - math.log(self.layers) if self.layers else log_route

    def route_from_losses(self, view: View, losses: Tensor, mask: Tensor) -> View:
        """New logits of the group "router" from the losses [C, n] of each cluster on a client's samples, `mask` [n].

        With f_c = mean_i loss_ic:

        - "em": π_c ← mean_i q_i(c) with responsibilities q_i(c) ∝ π_c exp(-loss_ic) (arXiv 2108.10252).
        - "exponential": π_c ← π_c exp(-f_c/temperature), normalised: a step of entropic mirror descent on Σ_c π_c f_c.
          With one sample and temperature 1 it equals "em".
        - "argmin": the cluster with the smallest f_c (arXiv 2006.04088). The client keeps its cluster unless another
          one is better by 1e-5 of the present loss. All adaptors start as the same function, so the first choices are
          random.
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
    """The `count` largest weights of routes [..., C], renormalised; ties with the smallest of them are kept."""
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
    """A small PRIVATE network that mixes experts with different weights for every sample.

    The weights are the softmax of its outputs [B, experts]. The network: average images larger than 8×8 to 8×8 →
    flatten → linear, or with `hidden` units linear → ReLU → linear.

    All clients have the same start, with the last layer at zero: the weights of every sample are equal at first.
    """

    problem: Problem
    experts: int
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.problem.loss == "token_cross_entropy":
            raise Refused("its gate needs numeric inputs, but token ids are names; use a task without text")

    @property
    def model(self) -> Model:
        """The network; its last layer is named "mix"."""
        inputs = downsample(torch.zeros(1, *self.problem.shape, device="meta")).numel()
        layers: dict[str, Layer] = {"hidden": Linear(inputs, self.hidden)} if self.hidden else {}
        layers["mix"] = Linear(self.hidden or inputs, self.experts)

        def forward(call: Call, x: Tensor) -> Tensor:
            x = downsample(x).flatten(1)
            return call("mix", torch.relu(call("hidden", x)) if self.hidden else x)

        return Model(layers=layers, forward=forward)

    @property
    def groups(self) -> dict[str, Group]:
        """The PRIVATE group "gate", trained at the router's learning rate."""
        return {"gate": Group(scope=Scope.PRIVATE, init=self._start, lr=self.problem.router_lr)}

    def _start(self) -> Params:
        start = self.model.init(Stream(self.problem.seed, "gate"))
        even = {name: torch.zeros_like(value) if name.startswith("mix.") else value for name, value in start.items()}
        return repeated_start(even, self.problem.clients)

    def log_weights(self, view: View, x: Tensor) -> Tensor:
        """The logarithms of the weights [B, experts] for x [B, ...]."""
        return torch.log_softmax(self.model(view["gate"], {}, x, None, None)[0], -1)


def downsample(x: Tensor) -> Tensor:
    """Average images x [B, H, W] or [B, H, W, colours] to at most 8×8; other inputs do not change."""
    if x.dim() < 3:
        return x
    sides = min(x.shape[1], GATE_SIDE_PIXELS), min(x.shape[2], GATE_SIDE_PIXELS)
    if sides == x.shape[1:3]:
        return x
    return F.adaptive_avg_pool2d(x if x.dim() == 3 else x.movedim(-1, 1), sides)


def fixed_logits(cluster: Tensor, clusters: int) -> Tensor:
    """Logits [K, C] of routes that select one cluster each: 0 for this cluster, -100 for the others."""
    selected = F.one_hot(cluster.cpu(), clusters).float()
    return FIXED_ROUTE_GAP * (selected - 1)


def entropy(route: Tensor) -> Tensor:
    """The entropy H(π) = -Σ_c π_c log π_c of routes [..., C], in nats, with 0·log 0 = 0."""
    return torch.special.entr(route).sum(-1)
