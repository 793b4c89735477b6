"""Which of several models or adaptors a client uses: a choice of one, a router of its own, a gate for every sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Group, Noise, Params, Problem, Refused, Routing, Scope, View
from floral.core.streams import Stream
from floral.nn.layers import Call, Layer, Linear, Model
from floral.toolkit.parts import same, serve

# ------------------------------------------------------------------------------- one whole model out of several


@dataclass(frozen=True, kw_only=True)
class Choice:
    """C whole models, the groups of `whole`, of which client k trains, sends and serves the one that its PRIVATE
    "choice" names; the route of its update is certain. Its gradients of the other models are 0."""

    model: Model
    clusters: int

    def group(self, clients: int) -> Group:
        """The choices [K], all 0 at first; whoever chooses sets them: the client's `assign`, or the server."""
        return Group(scope=Scope.PRIVATE, init=lambda: {"cluster": torch.zeros(clients)}, statistic=True)

    def predict(self, view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
        """The chosen model's outputs; only its statistics change."""
        chosen = view["choice"]["cluster"].long().reshape(1)
        own = {group: self.chosen(view, group) for group in ("base", "statistics") if group in view}
        outputs, changed = serve(self.model)(own, x, noise, mask)
        taken = torch.arange(self.clusters, device=x.device) == chosen
        statistics = {
            group: {
                name: torch.where(taken.reshape(-1, *(1,) * new.dim()), new, view[group][name])
                for name, new in params.items()
            }
            for group, params in changed.items()
        }
        return outputs, statistics

    def chosen(self, view: View, group: str = "base") -> Params:
        """The chosen slice of a group."""
        at = view["choice"]["cluster"].long().reshape(1)
        return {name: tensor.index_select(0, at)[0] for name, tensor in view[group].items()}

    def vector(self, view: View) -> Tensor:
        """The parameters of the chosen model as one vector [d], names sorted."""
        own = self.chosen(view)
        return torch.cat([own[name].flatten() for name in sorted(own)])

    @property
    def routing(self) -> Routing:
        """The server averages each model over the clients that chose it."""
        return Routing(log_route=self.log_route, serves_one_cluster=True, clusters=self.clusters)

    def log_route(self, view: View) -> Tensor:
        """0 for the chosen model, -∞ for the others [C]."""
        chosen = view["choice"]["cluster"]
        return torch.where(torch.arange(self.clusters, device=chosen.device) == chosen, 0.0, -math.inf)


def vectors(params: Params) -> Tensor:
    """Every slice of tensors [C, ...] as a row [C, d], names sorted as in `Choice.vector`."""
    return torch.cat([params[name].flatten(1) for name in sorted(params)], dim=1)


def of_vectors(rows: Tensor, like: Params) -> Params:
    """The inverse of `vectors`: rows [C, d] in the shapes of `like`."""
    sizes = [like[name][0].numel() for name in sorted(like)]
    parts = zip(sorted(like), rows.split(sizes, dim=1), strict=True)
    return {name: part.reshape(len(rows), *like[name].shape[1:]) for name, part in parts}


# --------------------------------------------------------------------------------- how a mixture is routed

CERTAIN = 100.0
"""Gap of the logits of a fixed route: softmax gives 1 and about 4e-44."""


@dataclass(frozen=True, kw_only=True)
class Router:
    """C logits θ_k per client that mix clusters: π_k = softmax((θ_k + noise·u)/temperature).

    u ~ U[0, 1)^C once per batch in training, 0 in evaluation. Kinds:

    - "learned" starts uniform and trains by SGD.
    - "optimal" names the client's true cluster and "random" one drawn at the start, both fixed.
    - "em", "exponential" and "argmin" are set at the start of a client's round by `assigned`, from the losses of each
      cluster alone on all its rows.

    `top` 2 is for learned routers: training and the server's weights keep the two largest π_kc, renormalised, and
    evaluation the largest alone (as the published code); equal ones are kept together. With `layers` above 0 each layer
    has its own logits, θ_k [L, C], and its own noise; what the server weighs with and the report shows is then the mean
    of their routes, one π_k per client, so that the factors of one adaptor keep one weight.

    Raises:
        Refused: `top` or `layers` for a router that is not learned, or `top` 1, whose one weight has no gradient.
    """

    kind: str
    problem: Problem
    temperature: float = 1.0
    noise_scale: float = 1.0
    top: int = 0
    layers: int = 0

    def __post_init__(self) -> None:
        if self.kind != "learned" and (self.top or self.layers):
            raise Refused(f"top and per_layer are for router: learned, not {self.kind}")
        if self.top == 1:
            raise Refused("top: 1 leaves one weight of 1, from which no router learns; it is 0 or 2")

    @property
    def groups(self) -> dict[str, Group]:
        """The PRIVATE group "router" [K, C], or [K, L, C]."""
        how = {"fixed": self.given, "statistic": self.found}
        return {"router": Group(scope=Scope.PRIVATE, init=self._start, lr=self.problem.router_lr, **how)}

    @property
    def given(self) -> bool:
        """Whether the routes are fixed at the start."""
        return self.kind in ("optimal", "random")

    @property
    def found(self) -> bool:
        """Whether the routes come from losses."""
        return self.kind in ("em", "exponential", "argmin")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the logits of one client."""
        return (self.layers, self.problem.clusters) if self.layers else (self.problem.clusters,)

    def _start(self) -> Params:
        if self.kind in ("random", "argmin"):
            return {"logits": fixed_logits(self._drawn, self.problem.clusters)}
        if self.given:
            return {"logits": fixed_logits(self.fixed, self.problem.clusters)}
        return {"logits": torch.zeros(self.problem.clients, *self.shape)}

    @property
    def fixed(self) -> Tensor:
        """The cluster [K] that a fixed route names."""
        match self.kind:
            case "optimal":
                return self.problem.true_cluster
            case "random":
                return self._drawn.to(self.problem.device)
        raise ValueError(f"router {self.kind!r} is not fixed")

    @property
    def _drawn(self) -> Tensor:
        """A random cluster for each client [K], on the CPU: "random" keeps it, "argmin" begins with it."""
        stream = Stream(self.problem.seed, "random route")
        return stream.integers("cluster", self.problem.clients, self.problem.clusters)

    @property
    def noise(self) -> dict[str, tuple[int | str, ...]]:
        learned = self.kind == "learned" and self.noise_scale > 0
        return {"router": self.shape} if learned else {}

    @property
    def floats_sent(self) -> dict[str, tuple[int, int]]:
        """A route that changes is sent up, for the server weighs with it: C numbers, or the name of one cluster."""
        up = {"optimal": 0, "random": 0, "argmin": 1}.get(self.kind, self.problem.clusters)
        return {"router": (0, up)}

    @property
    def weighs(self) -> int:
        """How many clusters may have a weight in the mean of the routes by which the server weighs."""
        every = self.top == 0 or self.problem.switches["aggregation_route"] == "plain"
        return self.problem.clusters if every else min(self.problem.clusters, self.top * max(1, self.layers))

    def soft(self, view: View, noise: Noise | None) -> Tensor:
        """π_k [C] or [L, C] before any but the largest are left out."""
        logits = view["router"]["logits"]
        if noise is not None and "router" in noise:
            logits = torch.add(logits, noise["router"], alpha=self.noise_scale)
        return torch.softmax(logits if self.temperature == 1 else logits / self.temperature, dim=-1)

    def forward(self, view: View, noise: Noise | None) -> Tensor:
        """π_k [C] or [L, C] as the forward pass mixes."""
        route = self.soft(view, noise)
        if not self.top:
            return route
        return largest(route, 1 if noise is None else self.top)

    @property
    def routing(self) -> Routing:
        """The weights for the server, and other ones for evaluation where `top` makes them differ."""
        served = self.served_log_route if self.top else None
        return Routing(log_route=self.log_route, served_log_route=served, clusters=self.problem.clusters)

    def log_route(self, view: View) -> Tensor:
        """log π_k [C] as the server weighs with it: no noise; under the official switch no temperature and no `top`."""
        plain = self.problem.switches["aggregation_route"] == "plain"
        if self.top and not plain:
            return self._log_mean(largest(self.soft(view, None), self.top).log())
        return self._log_mean(torch.log_softmax(view["router"]["logits"] / (1.0 if plain else self.temperature), -1))

    def served_log_route(self, view: View) -> Tensor:
        """log π_k [C] as evaluation mixes."""
        return self._log_mean(self.forward(view, None).log())

    def _log_mean(self, log_route: Tensor) -> Tensor:
        """One route [C] from those of all layers."""
        return torch.logsumexp(log_route, 0) - math.log(self.layers) if self.layers else log_route

    def assigned(self, view: View, losses: Tensor, mask: Tensor) -> View:
        """The group "router" after a look at the losses [C, n] of each cluster alone on a client's rows, `mask` [n].

        - "em": π_c ← mean_i q_i(c), q_i(c) ∝ π_c exp(-loss_ic), the responsibilities of arXiv 2108.10252.
        - "exponential": π_c ∝ π_c exp(-f_c/temperature), f_c = mean_i loss_ic: a step of entropic mirror descent on
          Σ_c π_c f_c. With one row and temperature 1 it is "em".
        - "argmin": the cluster of least f_c (arXiv 2006.04088), but the present one where none is better by 1e-5 of its
          loss: adaptors start as the same function, so the first choices are those drawn at the start.
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
        return {"router": {"logits": torch.where(better, CERTAIN * (best.to(logits.dtype) - 1), logits)}}


def largest(route: Tensor, count: int) -> Tensor:
    """The `count` largest weights of routes [..., C], renormalised, with those that equal the least of them."""
    if count >= route.shape[-1]:
        return route
    least = route.detach().sort(-1).values[..., -count, None]
    kept = torch.where(route.detach() >= least, route, 0.0)
    return kept / kept.sum(-1, keepdim=True)


GATE_SIDE = 8
"""Pixels a side to which a gate averages larger images."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A small network of each client's own that mixes experts sample by sample: softmax over its outputs [B, experts].

    x → images larger than 8×8 averaged to 8×8 → flatten → linear, or with `hidden` units linear → ReLU → linear. All
    clients start alike, the last layer at zero: every sample begins with an even mixture.
    """

    problem: Problem
    experts: int
    hidden: int = 0

    def __post_init__(self) -> None:
        if self.problem.loss == "token_cross_entropy":
            raise Refused("its gate weighs inputs by their values, and the numbers of tokens are names")

    @property
    def model(self) -> Model:
        """The network, its last layer named "mix"."""
        inputs = shrunk(torch.zeros(1, *self.problem.shape, device="meta")).numel()
        layers: dict[str, Layer] = {"hidden": Linear(inputs, self.hidden)} if self.hidden else {}
        layers["mix"] = Linear(self.hidden or inputs, self.experts)

        def forward(call: Call, x: Tensor) -> Tensor:
            x = shrunk(x).flatten(1)
            return call("mix", torch.relu(call("hidden", x)) if self.hidden else x)

        return Model(layers=layers, forward=forward)

    @property
    def groups(self) -> dict[str, Group]:
        """The PRIVATE group "gate", trained at the router's rate."""
        return {"gate": Group(scope=Scope.PRIVATE, init=self._start, lr=self.problem.router_lr)}

    def _start(self) -> Params:
        start = self.model.init(Stream(self.problem.seed, "gate"))
        even = {name: torch.zeros_like(value) if name.startswith("mix.") else value for name, value in start.items()}
        return same(even, self.problem.clients)

    def log_weights(self, view: View, x: Tensor) -> Tensor:
        """The logarithms of the mixtures [B, experts] of x [B, ...]."""
        return torch.log_softmax(self.model(view["gate"], {}, x, None, None)[0], -1)


def shrunk(x: Tensor) -> Tensor:
    """Images x [B, H, W] or [B, H, W, colours] averaged to at most 8×8; anything else as it is."""
    if x.dim() < 3:
        return x
    sides = min(x.shape[1], GATE_SIDE), min(x.shape[2], GATE_SIDE)
    if sides == x.shape[1:3]:
        return x
    return F.adaptive_avg_pool2d(x if x.dim() == 3 else x.movedim(-1, 1), sides)


def fixed_logits(cluster: Tensor, clusters: int) -> Tensor:
    """Router logits [K, C] that name one cluster each: 0 there, -100 elsewhere."""
    hit = torch.nn.functional.one_hot(cluster.cpu(), clusters).float()
    return CERTAIN * (hit - 1)


def entropy(route: Tensor) -> Tensor:
    """H(π) = -Σ_c π_c log π_c in nats of a route [..., C]; 0·log 0 = 0."""
    return torch.special.entr(route).sum(-1)
