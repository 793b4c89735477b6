"""Attach adaptors to the layers of a model, and run the model with a mixture of C adaptors.

A mixture is a weighted sum of adaptors. In each layer it is either merged into the layer's weight, or applied
separately to the layer's input and added to the layer's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from floral.adaptors.conv import ConvAdaptor
from floral.adaptors.embedding import EmbeddingAdaptor
from floral.adaptors.factors import scaled, stack, without_mean
from floral.adaptors.linear import LinearAdaptor
from floral.adaptors.norm import NormAdaptor, moved
from floral.core.spec import Adapted, Group, Noise, Params, Predict, Problem, Refused, Scope, View
from floral.core.streams import Stream
from floral.nn.layers import WEIGHT_LAYERS, Conv2d, ConvTranspose2d, Embedding, Linear, layer_params
from floral.nn.model import Model, gets_adaptor
from floral.nn.norms import NORMS
from floral.nn.small_layers import Dropout

Adaptor = LinearAdaptor | ConvAdaptor | EmbeddingAdaptor | NormAdaptor


@dataclass(frozen=True, kw_only=True)
class Adaptors:
    """The adaptors of a model, one for each adapted layer.

    The parameters are named <layer>.<A|B|bias>, or <layer>.<weight|bias> on a normalisation layer. In a mixture of C
    adaptors they have a leading axis C.
    """

    model: Model
    by_layer: Mapping[str, Adaptor]
    application: str = "cheaper"
    """How a mixture is applied: "merged" into the layer's weight, or "unmerged", as separate adaptors.

    "cheaper" chooses for each layer the way with fewer multiply-adds, see `merges`.
    """
    dropout: Mapping[str, Dropout] = field(default_factory=dict)
    """Adapted layer → dropout of the adaptors' input in this layer. The layer itself gets its input unchanged.

    All adaptors of a mixture have the same random numbers. With dropout, adaptors are applied separately in training.
    Embeddings have no dropout, because their inputs are token ids."""

    def init(self, stream: Stream) -> Params:
        """Return the initial parameters of one adaptor, without the axis C of a mixture."""
        parts = {layer: adaptor.init(stream.of(layer)) for layer, adaptor in self.by_layer.items()}
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    @property
    def noise(self) -> dict[str, tuple[int | str, ...]]:
        """The shapes of the random inputs of a training pass: those of the model, and of the adaptors' dropout."""
        of_adaptors = {noise_name(name): ("batch", *self.dropout[name].shape) for name in self._dropped}
        return {**self.model.noise, **of_adaptors}

    @property
    def _dropped(self) -> list[str]:
        """The adapted layers whose adaptors have dropout."""
        return [name for name in self.by_layer if name in self.dropout]

    def dropped(self, name: str, x: Tensor, noise: Noise | None) -> Tensor:
        """Return the input x of the adaptor of a layer after dropout; x itself in evaluation, or without dropout."""
        if noise is None or name not in self.dropout:
            return x
        uniform = noise[noise_name(name)]
        # A model may have cut off padding that all samples share.
        sides = self.model.by_sample(name, x, len(uniform)).shape
        return self.dropout[name](x, uniform[tuple(slice(0, side) for side in sides)])

    def statistics(self) -> Params:
        """Return the initial running statistics of one adaptor, named <layer>.<mean|variance>.

        The result is empty if no layer's adaptor has running statistics.
        """
        parts = {name: a.statistics() for name, a in self.by_layer.items() if isinstance(a, NormAdaptor)}
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    def products(self, mixture: Params, route: Tensor) -> Params:
        """Return how a mixture of C adaptors changes the parameters of the base model, as <layer>.<weight|bias>.

        `route` [C] holds the weights of the adaptors in the mixture. A weight matrix of the base changes by s Σ_c
        route_c B_c A_c, and a bias by s Σ_c route_c b_c, where B_c, A_c and b_c are the parameters of adaptor c, and s
        is the scale of the layer's adaptors.
        """
        changes = {
            layer: adaptor.merged(layer_params(mixture, layer), route) for layer, adaptor in self.by_layer.items()
        }
        return {f"{layer}.{key}": value for layer, change in changes.items() for key, value in change.items()}

    def added(self, base: Params, change: Params) -> Params:
        """Return the base with changes added to its parameters. A changed parameter that never trains is included."""
        return {**base, **{name: self.model.value(base, name) + value for name, value in change.items()}}

    def frozen_weights(self, *, biases: bool) -> dict[str, Group]:
        """Return the group "weights": frozen parameters of adapted layers, which only the server changes.

        Return {} if no adapted layer is frozen. If `biases` is set, the group has the biases of the layers too. A
        method predicts with the groups "base" and "weights", so that "weights" replaces the constants of the model.
        """
        keys = ("weight", "bias") if biases else ("weight",)
        names = [f"{layer}.{key}" for layer in self.by_layer for key in keys]
        start = {name: self.model.constants[name] for name in names if name in self.model.constants}
        return {"weights": Group(scope=Scope.SHARED, init=lambda: start)} if start else {}

    def require_trained_base(self) -> None:
        """Check that the server can add products of adaptors to the base.

        Raises:
            Refused: an adapted layer is frozen.
        """
        if frozen := [name for name in self.by_layer if f"{name}.weight" in self.model.constants]:
            raise Refused(
                f"the server of this method adds the adaptors to the base, but {frozen[0]} is frozen; set "
                "`base: trained` and remove `freeze`, or use another method"
            )

    def centred(self, base: Params, mixture: Params) -> tuple[Params, Params]:
        """Move the mean of the C adaptors' products B A from the adaptors into the base.

        Return the new base, and the adaptors after their mean is subtracted (see `factors.without_mean`).
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
        """The number of parameters of one adaptor."""
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
        """Return the logits of the model with its adaptors, and the model's running statistics after the pass.

        Every adapted layer uses the mixture Σ_c route_c·adaptor_c. `route` [C] holds the mixture weights, the same for
        all layers. It may also be [L, C], with one row for each of the L adapted layers. `running` [C, ...] holds the
        adaptors' own running statistics, which are read in evaluation only. If `noise` is None, the pass is an
        evaluation.
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
            if noise is not None and name in self.dropout and not isinstance(adaptor, NormAdaptor):
                return None, adaptor.unmerged(factors, weights, self.dropped(name, x, noise))
            if isinstance(adaptor, NormAdaptor) or self.merges(name, x.shape, len(weights)):
                if name not in merged:
                    merged[name] = adaptor.merged(factors, weights)
                return merged[name], None
            return None, adaptor.unmerged(factors, weights, x)

        return self.model(base, statistics, x, noise, mask, adapt)

    def moved(self, running: Params, before: Params, after: Params) -> Params:
        """Return the adaptors' own running statistics [C, ...] after a training pass.

        `running` holds the adaptors' statistics before the pass. `before` and `after` are the model's running
        statistics before and after the pass.
        """
        parts = {
            name: moved(layer_params(running, name), layer_params(before, name), layer_params(after, name))
            for name, adaptor in self.by_layer.items()
            if isinstance(adaptor, NormAdaptor) and adaptor.own_statistics
        }
        return {f"{layer}.{key}": value for layer, params in parts.items() for key, value in params.items()}

    def predictor(self, *added: tuple[str, ...], base: tuple[str, ...] = ("base",)) -> Predict:
        """Return a function that predicts with the sum of the base and several adaptors, each with weight 1.

        Each argument in `added` names the parameter groups of one adaptor. These have no axis C. `base` names the
        parameter groups of the base.
        """

        def predict(view: View, x: Tensor, noise: Noise | None, mask: Tensor | None) -> tuple[Tensor, View]:
            adaptors = [merge_groups(view, groups) for groups in added]
            mixture = {name: torch.stack([adaptor[name] for adaptor in adaptors]) for name in adaptors[0]}
            route = x.new_ones(len(adaptors))
            running = view.get("statistics", {})
            logits, statistics = self(merge_groups(view, base), mixture, route, running, x, noise, mask)
            return logits, {"statistics": statistics} if statistics else {}

        return predict

    def summed(self, *added: tuple[str, ...], base: tuple[str, ...] = ("base",)) -> Adapted:
        """Return a function that gives the base and the sum of several adaptors, as one adaptor.

        The arguments are those of `predictor`, which predicts with the same sum.
        """

        def adapted(view: View) -> tuple[Params, Mapping[str, Params]]:
            adaptors = [merge_groups(view, groups) for groups in added]
            mixture = {name: torch.stack([adaptor[name] for adaptor in adaptors]) for name in adaptors[0]}
            first = next(iter(mixture.values()))
            return merge_groups(view, base), self.one_adaptor(mixture, first.new_ones(len(adaptors)))

        return adapted

    def one_adaptor(self, mixture: Params, route: Tensor) -> dict[str, Params]:
        """Return a mixture of C adaptors of rank R as one adaptor of rank C·R per layer, with the scale 1.

        `route` holds the mixture weights, as in `__call__`. The result maps a layer to its factors A and B and its
        bias, as in `spec.Adapted`.
        """
        order = list(self.by_layer)
        layers: dict[str, Params] = {}
        for name, adaptor in self.by_layer.items():
            factors, weights = layer_params(mixture, name), route if route.dim() == 1 else route[order.index(name)]
            if isinstance(adaptor, NormAdaptor):
                layers[name] = adaptor.merged(factors, weights)
                continue
            weights = scaled(weights, adaptor.scale)
            down, up = stack(factors, weights)
            layers[name] = {"A": down, "B": up} | ({"bias": weights @ factors["bias"]} if "bias" in factors else {})
        return layers

    def without(self, *layers: str) -> Adaptors:
        """Return the adaptors of all layers except the named ones.

        Raises:
            Refused: no other layer has an adaptor.
        """
        remaining = {name: adaptor for name, adaptor in self.by_layer.items() if name not in layers}
        if not remaining:
            raise Refused(
                f"the model has no layer that can be adapted except {', '.join(layers)}; choose another model"
            )
        return replace(self, by_layer=remaining)

    def with_norms(self, kind: str) -> Adaptors:
        """Return the adaptors plus an adaptor for each normalisation layer, unless `kind` is "none".

        With "plain", the adaptor of a batch norm has running statistics of its own. With "reparameterised", it uses
        those of the layer.

        Raises:
            Refused: the model has no normalisation layer.
        """
        if kind == "none":
            return self
        norms = {
            name: layer
            for name, layer in self.model.layers.items()
            if isinstance(layer, NORMS) and gets_adaptor(self.model, name)
        }
        if not norms:
            raise Refused(f"the model has no normalisation layer that `norm: {kind}` could adapt; set `norm: none`")
        adapted = dict(self.by_layer) | {
            name: NormAdaptor.of(layer, own_statistics=kind == "plain") for name, layer in norms.items()
        }
        return replace(self, by_layer={name: adapted[name] for name in self.model.layers if name in adapted})

    def merges(self, name: str, shape: torch.Size, clusters: int) -> bool:
        """Return whether the C adaptors of a layer are merged into the layer's weight, and not applied separately.

        If `application` is "cheaper", the way with fewer multiply-adds is chosen. Their number depends on `shape`, the
        shape of the layer's input. If the layer is frozen, merging also needs the gradient of the layer's weight. This
        has as many multiply-adds as the layer, and so a third of them per pass, because a step with gradients has about
        three times the multiply-adds of a forward pass.
        """
        adaptor = self.by_layer[name]
        if isinstance(adaptor, NormAdaptor):
            return True
        if self.application == "cheaper":
            merged, beside = adaptor.multiply_adds(shape, clusters)
            layer = self.model.layers[name]
            if f"{name}.weight" in self.model.constants and isinstance(layer, WEIGHT_LAYERS):
                merged += layer.multiply_adds(shape) // 3
            return merged < beside
        return self.application == "merged"

    def forward_backward_passes(self, shape: tuple[int, ...], batch: int, clusters: int) -> float:
        """Return the cost of one forward-backward pass with C adaptors, relative to one pass of the base without
        adaptors.

        The cost is counted in multiply-adds, for an input x [batch, *shape].

        Raises:
            Refused: an adapted layer is not called in each forward pass.
        """
        inputs = self.model.inputs(shape, batch)
        if skipped := [name for name in self.by_layer if name not in inputs]:
            raise Refused(
                f"the forward pass calls the layer {skipped[0]} only sometimes; call the same layers in each pass, or "
                "leave this layer out of `adapt`"
            )

        def merges(name: str) -> bool:
            return name not in self.dropout and self.merges(name, inputs[name], clusters)

        added = sum(
            adaptor.multiply_adds(inputs[name], clusters)[0 if merges(name) else 1]
            for name, adaptor in self.by_layer.items()
        )
        return 1 + added / self.model.multiply_adds(shape, batch)

    def precondition(self, gradients: Params, mixture: Params) -> Params:
        """Precondition the gradients of the C adaptors, and return the results.

        Each layer's gradients are changed by the method `precondition` of its adaptor.
        """
        changed: Params = {}
        for layer, adaptor in self.by_layer.items():
            new = adaptor.precondition(layer_params(gradients, layer), layer_params(mixture, layer))
            changed |= {f"{layer}.{key}": value for key, value in new.items()}
        return changed


def noise_name(layer: str) -> str:
    """Return the name of the random inputs for the dropout of a layer's adaptors."""
    return f"{layer}.adaptor_dropout"


def subtract_mean(mixture: Params) -> Params:
    """Subtract the mean of the C adaptors of a normalisation layer from each of them, and return the results."""
    return {name: value - value.mean(0) for name, value in mixture.items()}


def merge_groups(view: View, groups: tuple[str, ...]) -> Params:
    """Return the parameters of several groups of parameters in one dictionary."""
    return {name: value for group in groups for name, value in view[group].items()}


def joined(first: Mapping[str, Params], second: Mapping[str, Params]) -> dict[str, Params]:
    """Return the sum of two adaptors as one adaptor, whose rank is the sum of the two ranks.

    The adaptors map a layer to its factors and its bias, as the result of `Adaptors.one_adaptor`.
    """
    axes = {"A": 0, "B": 1}
    return {
        layer: {
            key: torch.cat([value, second[layer][key]], axes[key]) if key in axes else value + second[layer][key]
            for key, value in params.items()
        }
        for layer, params in first.items()
    }


def factor(adaptor: Params, which: Literal["A", "B"]) -> Params:
    """Return one part of an adaptor: the factors A of all layers, or the factors B together with the biases."""
    return {name: value for name, value in adaptor.items() if name.endswith(".A") == (which == "A")}


def attach(
    model: Model,
    *,
    rank: float | str,
    bias: str | None,
    convolution: str = "balanced_2d",
    conv_rank: str = "elements",
    conv_preconditioner: str = "matrix",
    application: str = "cheaper",
    alpha: float | str = "rank",
    start: str = "floral",
) -> Adaptors:
    """Attach an adaptor to each linear layer, embedding and convolution of a model (arXiv 2410.03497).

    Embeddings get an adaptor only if their attribute `adapted` is True. If the model has a field `adapted`, it decides
    for all layers instead. Convolutions get none if `convolution` is "none". A linear layer that is tied to an
    embedding uses the embedding's weight. It gets no adaptor, because it has no weight of its own, and the embedding's
    adaptor does not change it.

    If a layer has a bias, `bias` says with which bias its adaptor starts: None (no bias), "zero" or "uniform".

    `alpha` divided by the rank is the scale of the adaptors (see `factors.scale_of`). `start` says how the factors A
    start (see `factors.start_a`).

    Raises:
        Refused: the model has no layer that can be adapted.
    """
    by_layer: dict[str, Adaptor] = {}
    for name, layer in model.layers.items():
        if not gets_adaptor(model, name):
            continue
        match layer:
            case Linear() if layer.tied is None:
                by_layer[name] = LinearAdaptor.of(layer, rank, bias, alpha, start)
            case Embedding():
                by_layer[name] = EmbeddingAdaptor.of(layer, rank, alpha, start)
            case Conv2d() | ConvTranspose2d() if convolution != "none":
                by_layer[name] = ConvAdaptor.of(
                    layer, rank, bias, convolution, conv_rank, conv_preconditioner, alpha, start
                )
    if not by_layer and model.adapted is not None:
        adaptable = "linear layer or embedding" if convolution == "none" else "linear layer, embedding or convolution"
        raise Refused(
            f"`adapt` of the model names no {adaptable}; norm layers cannot have a low-rank adaptor; add the name of "
            f"another layer to `adapt`, or remove `adapt`"
        )
    if not by_layer:
        raise Refused("the model has no linear or convolution layer to adapt; choose another model")
    return Adaptors(model=model, by_layer=by_layer, application=application)


def adaptors_of(
    problem: Problem,
    *,
    rank: float | str,
    bias: bool = True,
    convolution: str = "balanced_2d",
    application: str = "cheaper",
    alpha: float | str = "rank",
    dropout: float = 0.0,
    start: str = "floral",
) -> Adaptors:
    """Return the task's model with a low-rank adaptor on every layer that can have one.

    `dropout` is the probability with which a training pass sets an entry of an adaptor's input to 0. The other entries
    are divided by 1 - dropout.

    Raises:
        Refused: the model has no layer that can be adapted, or the adaptors cannot have dropout.
    """
    # `problem.switches` decide where the adaptors follow the published code, and where its errors are corrected.
    adaptors = attach(
        problem.build_model(),
        rank=rank,
        bias=problem.switches["bias_init"] if bias else None,
        convolution=convolution,
        conv_rank=problem.switches["conv_rank"],
        conv_preconditioner=problem.switches["conv_preconditioner"],
        application=application,
        alpha=alpha,
        start=start,
    )
    return adaptors if dropout == 0 else with_dropout(adaptors, dropout, problem.shape)


def with_dropout(adaptors: Adaptors, rate: float, shape: tuple[int, ...]) -> Adaptors:
    """Return the adaptors with dropout of their inputs, for samples of this shape.

    Raises:
        Refused: adaptors are merged into the weights, the model mixes the samples of a batch, or the input of an
            adapted layer has no axis of samples.
    """
    if adaptors.application == "merged":
        raise Refused(
            f"`dropout: {rate}` needs adaptors that are applied separately, but `application` is merged; set "
            "`application: cheaper`"
        )
    if adaptors.model.mixes:
        raise Refused(
            f"`dropout: {rate}` cannot be used with a module that mixes the samples of a batch; set `dropout: 0`"
        )
    samples = next(count for count in range(2, len(shape) + 3) if count not in shape)
    inputs = adaptors.model.input_shapes(shape, samples)
    dropout: dict[str, Dropout] = {}
    for name, adaptor in adaptors.by_layer.items():
        if not isinstance(adaptor, LinearAdaptor | ConvAdaptor):
            continue
        axis = adaptors.model.sample_axes.get(name)
        if axis is None and inputs[name][0] != samples:
            raise Refused(
                f"`dropout: {rate}` needs samples on one axis, but the input of the layer {name} has the shape "
                f"{list(inputs[name])} for {samples} samples; leave this layer out of `adapt`, or set `dropout: 0`"
            )
        by_sample = adaptors.model.by_sample(name, torch.empty(inputs[name], device="meta"), samples)
        dropout[name] = Dropout(tuple(by_sample.shape[1:]), rate, axis or 0)
    return replace(adaptors, dropout=dropout)
