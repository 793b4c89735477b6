"""Adaptors on every layer of a model with a kind for it; their mixture goes into the weights or beside the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.embedding import EmbeddingAdaptor
from floral.adaptors.factors import without_mean
from floral.adaptors.linear import LinearAdaptor
from floral.adaptors.norm import NormAdaptor, moved
from floral.core.spec import Noise, Params, Predict, Refused, View
from floral.core.streams import Stream
from floral.nn.layers import Conv2d, ConvTranspose2d, Embedding, Linear, Model, layer_params
from floral.nn.norms import NORMS

Adaptor = LinearAdaptor | ConvAdaptor | EmbeddingAdaptor | NormAdaptor


@dataclass(frozen=True, kw_only=True)
class Adaptors:
    """The adaptors of a model by layer; a mixture's parameters are named <layer>.<A|B|bias>, or of a norm
    <layer>.<weight|bias>, each with axis C."""

    model: Model
    by_layer: Mapping[str, Adaptor]
    application: str = "cheaper"
    """"merged" into the weights, "unmerged" beside the layer, or per layer whichever takes fewer multiply-adds."""

    def init(self, stream: Stream) -> Params:
        """One adaptor at the start, without axis C."""
        parts = {layer: adaptor.init(stream.of(layer)) for layer, adaptor in self.by_layer.items()}
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    def statistics(self) -> Params:
        """Running statistics of one adaptor at the start, <layer>.<mean|variance>: its own, if it has any."""
        parts = {name: a.statistics() for name, a in self.by_layer.items() if isinstance(a, NormAdaptor)}
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    def products(self, mixture: Params, route: Tensor) -> Params:
        """Σ_c route_c B_c A_c and Σ_c route_c b_c of every layer, as changes of the base: <layer>.<weight|bias>."""
        changes = {
            layer: adaptor.merged(layer_params(mixture, layer), route) for layer, adaptor in self.by_layer.items()
        }
        return {f"{layer}.{key}": value for layer, change in changes.items() for key, value in change.items()}

    def centred(self, base: Params, mixture: Params) -> tuple[Params, Params]:
        """The base plus the mean product of the C adaptors, and adaptors without it: `factors.without_mean`."""
        clusters = len(next(iter(mixture.values())))
        one = next(iter(mixture.values())).new_full((clusters,), 1 / clusters)
        mean = self.products(mixture, one)
        left = {
            layer: less_mean(layer_params(mixture, layer))
            if isinstance(adaptor, NormAdaptor)
            else without_mean(layer_params(mixture, layer))
            for layer, adaptor in self.by_layer.items()
        }
        return (
            {name: value + mean[name] if name in mean else value for name, value in base.items()},
            {f"{layer}.{key}": value for layer, params in left.items() for key, value in params.items()},
        )

    @property
    def size(self) -> int:
        """|a|, the parameters of one adaptor."""
        return sum(value.numel() for value in self.init(Stream(0, "size")).values())

    def __call__(
        self,
        base: Params,
        mixture: Params,
        route: Tensor,
        statistics: Params,
        x: Tensor,
        noise: Noise | None,
        mask: Tensor | None,
        running: Params | None = None,
    ) -> tuple[Tensor, Params]:
        """Logits of the model with Σ_c route_c·adaptor_c in every adapted layer, and its statistics after the pass.

        `route` is one for all layers, [C], or has a row for each of `by_layer`, [L, C]. `running` has the statistics
        [C, ...] of the adaptors' own, which evaluation reads.
        """
        order, merged = list(self.by_layer), dict[str, Params]()  # once, for a recurrence takes a layer many times

        def adapt(name: str, x: Tensor) -> tuple[Params | None, Tensor | None]:
            adaptor = self.by_layer.get(name)
            if adaptor is None:
                return None, None
            ours, weights = layer_params(mixture, name), route if route.dim() == 1 else route[order.index(name)]
            if isinstance(adaptor, NormAdaptor) and adaptor.own_statistics and noise is None:
                return adaptor.served(
                    ours, weights, layer_params(running or {}, name), layer_params(statistics, name)
                ), None
            if isinstance(adaptor, NormAdaptor) or self.merges(adaptor, x.shape, len(weights)):
                if name not in merged:
                    merged[name] = adaptor.merged(ours, weights)
                return merged[name], None
            return None, adaptor.unmerged(ours, weights, x)

        return self.model(base, statistics, x, noise, mask, adapt)

    def moved(self, running: Params, before: Params, after: Params) -> Params:
        """The adaptors' own statistics [C, ...] after a pass that moved the model's."""
        parts = {
            name: moved(layer_params(running, name), layer_params(before, name), layer_params(after, name))
            for name, adaptor in self.by_layer.items()
            if isinstance(adaptor, NormAdaptor) and adaptor.own_statistics
        }
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    def serve(self, *added: tuple[str, ...], base: tuple[str, ...] = ("base",)) -> Predict:
        """The prediction with whole adaptors added, W + Σ_i B_i A_i, each without axis C.

        `added` names for each adaptor, `base` for the base, the groups that its parameters lie in.
        """

        def predict(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
            ours = [gathered(view, groups) for groups in added]
            mixture = {name: torch.stack([one[name] for one in ours]) for name in ours[0]}
            route = x.new_ones(len(ours))
            running = view.get("statistics", {})
            logits, statistics = self(gathered(view, base), mixture, route, running, x, noise, mask)
            return logits, {"statistics": statistics} if statistics else {}

        return predict

    def without(self, *layers: str) -> Adaptors:
        """The same adaptors but those of some layers.

        Raises:
            Refused: no other layer has one.
        """
        left = {name: adaptor for name, adaptor in self.by_layer.items() if name not in layers}
        if not left:
            raise Refused(f"the model has no layer to adapt besides {', '.join(layers)}")
        return replace(self, by_layer=left)

    def with_norms(self, kind: str) -> Adaptors:
        """The same adaptors with one on each normalisation layer too, unless `kind` is "none".

        Those of a batch norm have running statistics of their own if "plain", and not if "reparameterised".

        Raises:
            Refused: the model has no normalisation layer.
        """
        if kind == "none":
            return self
        norms = {name: layer for name, layer in self.model.layers.items() if isinstance(layer, NORMS)}
        if not norms:
            raise Refused(f"the model has no normalisation layer that norm: {kind} could adapt; set norm: none")
        every = dict(self.by_layer) | {
            name: NormAdaptor.of(layer, own_statistics=kind == "plain") for name, layer in norms.items()
        }
        return replace(self, by_layer={name: every[name] for name in self.model.layers if name in every})

    def merges(self, adaptor: Adaptor, shape: torch.Size, clusters: int) -> bool:
        """Whether a layer's adaptors go into its weights for x of `shape`."""
        if isinstance(adaptor, NormAdaptor):
            return True
        if self.application == "cheaper":
            merged, beside = adaptor.multiply_adds(shape, clusters)
            return merged < beside
        return self.application == "merged"

    def forward_backward_passes(self, shape: tuple[int, ...], batch: int, clusters: int) -> float:
        """Multiply-adds of a pass of x [batch, *shape] with C adaptors over those of the base alone."""
        seen = self.model.inputs(shape, batch)
        added = sum(
            adaptor.multiply_adds(seen[name], clusters)[0 if self.merges(adaptor, seen[name], clusters) else 1]
            for name, adaptor in self.by_layer.items()
        )
        return 1 + added / self.model.multiply_adds(shape, batch)

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """Each adaptor's own preconditioner on the gradients of the mixture."""
        changed: Params = {}
        for layer, adaptor in self.by_layer.items():
            ours = adaptor.precondition(layer_params(gradients, layer), layer_params(mixture, layer))
            changed |= {f"{layer}.{key}": value for key, value in ours.items()}
        return changed


def less_mean(mixture: Params) -> Params:
    """C adaptors of a norm less their mean."""
    return {name: value - value.mean(0) for name, value in mixture.items()}


def gathered(view: View, groups: tuple[str, ...]) -> Params:
    """The parameters of several groups together."""
    return {name: value for group in groups for name, value in view[group].items()}


def factor(adaptor: Params, which: Literal["A", "B"]) -> Params:
    """The factors A of all layers, or their factors B with the biases, in both of which the output is linear."""
    return {name: value for name, value in adaptor.items() if name.endswith(".A") == (which == "A")}


def attach(
    model: Model,
    *,
    rank: float | str,
    bias: str | None,
    convolution: str = "balanced_2d",
    conv_rank: str = "elements",
    application: str = "cheaper",
) -> Adaptors:
    """An adaptor on each linear layer, each embedding that asks for one and, unless `convolution` is "none", on each
    convolution (arXiv 2410.03497). A tied layer has no weight to adapt; its embedding's adaptor changes lookups alone.

    `bias` None, "zero" or "uniform" is the start of the bias where the layer has one.

    Raises:
        Refused: the model has no layer that can be adapted.
    """
    by_layer: dict[str, Adaptor] = {}
    for name, layer in model.layers.items():
        match layer:
            case Linear() if layer.tied is None:
                by_layer[name] = LinearAdaptor.of(layer, rank, bias)
            case Embedding() if layer.adapted:
                by_layer[name] = EmbeddingAdaptor.of(layer, rank)
            case Conv2d() | ConvTranspose2d() if convolution != "none":
                by_layer[name] = ConvAdaptor.of(layer, rank, bias, convolution, conv_rank)
    if not by_layer:
        raise Refused("the model has no linear or convolution layer to adapt")
    return Adaptors(model=model, by_layer=by_layer, application=application)
