"""Attach adaptors to the layers of a model, and apply a mixture of C adaptors in its forward pass.

A mixture is merged into a layer's weights or applied beside the layer.
"""

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
    """The adaptors of a model, by layer.

    The parameters of a mixture have axis C and are named <layer>.<A|B|bias>, or <layer>.<weight|bias> on a norm layer.
    """

    model: Model
    by_layer: Mapping[str, Adaptor]
    application: str = "cheaper"
    """Where a mixture is applied: "merged" into the weights, or "unmerged" beside the layer.

    "cheaper" chooses per layer the one with fewer multiply-adds.
    """

    def init(self, stream: Stream) -> Params:
        """The initial parameters of one adaptor, without axis C."""
        parts = {layer: adaptor.init(stream.of(layer)) for layer, adaptor in self.by_layer.items()}
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    def statistics(self) -> Params:
        """The initial running statistics of one adaptor, <layer>.<mean|variance>; empty if it has none."""
        parts = {name: a.statistics() for name, a in self.by_layer.items() if isinstance(a, NormAdaptor)}
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    def products(self, mixture: Params, route: Tensor) -> Params:
        """The mixture as a change of the base, <layer>.<weight|bias>: Σ_c route_c B_c A_c and Σ_c route_c b_c."""
        changes = {
            layer: adaptor.merged(layer_params(mixture, layer), route) for layer, adaptor in self.by_layer.items()
        }
        return {f"{layer}.{key}": value for layer, change in changes.items() for key, value in change.items()}

    def centred(self, base: Params, mixture: Params) -> tuple[Params, Params]:
        """Move the mean product of the C adaptors into the base.

        Returns the new base and the adaptors without their mean (see `factors.without_mean`).
        """
        clusters = len(next(iter(mixture.values())))
        even_route = next(iter(mixture.values())).new_full((clusters,), 1 / clusters)
        mean = self.products(mixture, even_route)
        centred = {
            layer: subtract_mean(layer_params(mixture, layer))
            if isinstance(adaptor, NormAdaptor)
            else without_mean(layer_params(mixture, layer))
            for layer, adaptor in self.by_layer.items()
        }
        return (
            {name: value + mean[name] if name in mean else value for name, value in base.items()},
            {f"{layer}.{key}": value for layer, params in centred.items() for key, value in params.items()},
        )

    @property
    def size(self) -> int:
        """|a|, the number of parameters of one adaptor."""
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
        """Logits of the model with Σ_c route_c·adaptor_c in every adapted layer, and the model's statistics after the
        pass.

        `route` is [C] for all layers, or [L, C] with one row for each layer of `by_layer`. `running` holds the
        adaptors' own running statistics [C, ...], which evaluation reads.
        """
        order, merged = (
            list(self.by_layer),
            dict[str, Params](),
        )  # A recurrence applies a layer many times, so its weights are merged once.

        def adapt(name: str, x: Tensor) -> tuple[Params | None, Tensor | None]:
            adaptor = self.by_layer.get(name)
            if adaptor is None:
                return None, None
            factors, weights = layer_params(mixture, name), route if route.dim() == 1 else route[order.index(name)]
            if isinstance(adaptor, NormAdaptor) and adaptor.own_statistics and noise is None:
                return adaptor.merged_in_evaluation(
                    factors, weights, layer_params(running or {}, name), layer_params(statistics, name)
                ), None
            if isinstance(adaptor, NormAdaptor) or self.merges(adaptor, x.shape, len(weights)):
                if name not in merged:
                    merged[name] = adaptor.merged(factors, weights)
                return merged[name], None
            return None, adaptor.unmerged(factors, weights, x)

        return self.model(base, statistics, x, noise, mask, adapt)

    def moved(self, running: Params, before: Params, after: Params) -> Params:
        """The adaptors' own statistics [C, ...] after a pass that changed the model's from `before` to `after`."""
        parts = {
            name: moved(layer_params(running, name), layer_params(before, name), layer_params(after, name))
            for name, adaptor in self.by_layer.items()
            if isinstance(adaptor, NormAdaptor) and adaptor.own_statistics
        }
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    def predictor(self, *added: tuple[str, ...], base: tuple[str, ...] = ("base",)) -> Predict:
        """The prediction of W + Σ_i B_i A_i, with every adaptor i at weight 1.

        `added` names the groups that hold each adaptor's parameters (without axis C), `base` those of the base.
        """

        def predict(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
            adaptors = [merge_groups(view, groups) for groups in added]
            mixture = {name: torch.stack([adaptor[name] for adaptor in adaptors]) for name in adaptors[0]}
            route = x.new_ones(len(adaptors))
            running = view.get("statistics", {})
            logits, statistics = self(merge_groups(view, base), mixture, route, running, x, noise, mask)
            return logits, {"statistics": statistics} if statistics else {}

        return predict

    def without(self, *layers: str) -> Adaptors:
        """Return the adaptors without those of the named layers.

        Raises:
            Refused: no other layer has an adaptor.
        """
        remaining = {name: adaptor for name, adaptor in self.by_layer.items() if name not in layers}
        if not remaining:
            raise Refused(f"the model has no layer to adapt besides {', '.join(layers)}")
        return replace(self, by_layer=remaining)

    def with_norms(self, kind: str) -> Adaptors:
        """Return the adaptors plus one on each normalisation layer, unless `kind` is "none".

        On batch norm, "plain" adaptors have their own running statistics and "reparameterised" ones do not.

        Raises:
            Refused: the model has no normalisation layer.
        """
        if kind == "none":
            return self
        norms = {name: layer for name, layer in self.model.layers.items() if isinstance(layer, NORMS)}
        if not norms:
            raise Refused(f"the model has no normalisation layer that norm: {kind} could adapt; set norm: none")
        adapted = dict(self.by_layer) | {
            name: NormAdaptor.of(layer, own_statistics=kind == "plain") for name, layer in norms.items()
        }
        return replace(self, by_layer={name: adapted[name] for name in self.model.layers if name in adapted})

    def merges(self, adaptor: Adaptor, shape: torch.Size, clusters: int) -> bool:
        """Whether a layer's adaptors are merged into its weights for x of `shape`."""
        if isinstance(adaptor, NormAdaptor):
            return True
        if self.application == "cheaper":
            merged, beside = adaptor.multiply_adds(shape, clusters)
            return merged < beside
        return self.application == "merged"

    def forward_backward_passes(self, shape: tuple[int, ...], batch: int, clusters: int) -> float:
        """The cost of one pass with C adaptors, in forward-backward passes of the base alone.

        Counted in multiply-adds for x [batch, *shape].
        """
        inputs = self.model.inputs(shape, batch)
        added = sum(
            adaptor.multiply_adds(inputs[name], clusters)[0 if self.merges(adaptor, inputs[name], clusters) else 1]
            for name, adaptor in self.by_layer.items()
        )
        return 1 + added / self.model.multiply_adds(shape, batch)

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """Apply each adaptor's preconditioner to the gradients of the mixture."""
        changed: Params = {}
        for layer, adaptor in self.by_layer.items():
            new = adaptor.precondition(layer_params(gradients, layer), layer_params(mixture, layer))
            changed |= {f"{layer}.{key}": value for key, value in new.items()}
        return changed


def subtract_mean(mixture: Params) -> Params:
    """C adaptors of a norm layer minus their mean."""
    return {name: value - value.mean(0) for name, value in mixture.items()}


def merge_groups(view: View, groups: tuple[str, ...]) -> Params:
    """The parameters of several groups in one dictionary."""
    return {name: value for group in groups for name, value in view[group].items()}


def factor(adaptor: Params, which: Literal["A", "B"]) -> Params:
    """The factors A of all layers, or the factors B with the biases.

    The output is linear in each of the two.
    """
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
    """Attach an adaptor to each layer that can have one (arXiv 2410.03497).

    These are linear layers, embeddings with `adapted`, and convolutions unless `convolution` is "none". A tied layer
    has no weight to adapt; the adaptor of its embedding changes lookups only.

    `bias` is the start of the adaptor's bias where the layer has a bias: None (no bias), "zero" or "uniform".

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
        raise Refused("the model has no linear or convolution layer to adapt; choose another model")
    return Adaptors(model=model, by_layer=by_layer, application=application)
