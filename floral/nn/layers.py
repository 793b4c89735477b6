"""Declared layers: what a model is made of, what an adaptor attaches to, what a backend may batch by hand.

A layer knows the shapes of its parameters and how ONE client applies it to x [B, ...]; it holds no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Noise, Params, Refused
from floral.core.streams import Shapes, Stream
from floral.nn import products
from floral.nn.norms import BatchNorm, GroupNorm, LayerNorm
from floral.nn.products import Window


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b, W [outputs, inputs]; start U(±1/sqrt(inputs)), PyTorch's default.

    A layer that is `tied` has no weight of its own, but that of the embedding named.
    """

    inputs: int
    outputs: int
    bias: bool = True
    steps: int = 1
    """How often a pass of the model takes it, one step after another: a recurrence."""
    tied: str | None = None

    def init(self, stream: Stream) -> Params:
        bound = 1 / math.sqrt(self.inputs)
        params: Params = {}
        if self.tied is None:
            params["weight"] = stream.uniform("weight", (self.outputs, self.inputs), -bound, bound)
        if self.bias:
            params["bias"] = stream.uniform("bias", (self.outputs,), -bound, bound)
        return params

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer on x [..., inputs], its parameters changed by `change`."""
        weight, bias, delta = changed_by(params, change)
        return products.linear(x, weight, bias, delta=delta)

    def multiply_adds(self, shape: torch.Size) -> int:
        """Multiply-adds of all steps for x of `shape` [..., inputs]."""
        return self.steps * shape[:-1].numel() * self.inputs * self.outputs


@dataclass(frozen=True)
class Embedding:
    """Row x of W [vocabulary, features] for each token id x [...]; start N(0, deviation²).

    Ids may come as floating-point numbers, as all inputs do.
    """

    vocabulary: int
    features: int
    deviation: float = 1.0
    adapted: bool = False
    """Whether an adaptor is attached to it; the published code leaves embeddings as they are unless a task says so."""

    def init(self, stream: Stream) -> Params:
        return {"weight": stream.normal("weight", (self.vocabulary, self.features), self.deviation)}

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer on x [...] → [..., features], its parameters changed by `change`."""
        weight, _, delta = changed_by(params, change)
        return F.embedding(x.long(), weight if delta is None else weight + delta)


@dataclass(frozen=True)
class Conv2d:
    """Cross-correlation of x [B, inputs, H, W] with W [outputs, inputs / groups, *kernel].

    Start: U(±1/sqrt(fan_in)), PyTorch's default, or for normal_fan_out W ~ N(0, 2/(outputs·kernel)) and b = 0.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    bias: bool = True
    start: Literal["uniform", "normal_fan_out"] = "uniform"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    """Neighbouring channels, inputs / groups of them, give outputs / groups channels, and these alone."""

    def __post_init__(self) -> None:
        if self.inputs % self.groups or self.outputs % self.groups:
            raise Refused(f"{self.groups} groups do not divide {self.inputs} inputs and {self.outputs} outputs")

    @property
    def window(self) -> Window:
        return Window(self.stride, self.padding, self.dilation, self.groups)

    def init(self, stream: Stream) -> Params:
        shape = (self.outputs, self.inputs // self.groups, *self.kernel)
        if self.start == "normal_fan_out":
            deviation = math.sqrt(2 / (self.outputs * math.prod(self.kernel)))
            params = {"weight": stream.normal("weight", shape, deviation)}
            return params | ({"bias": torch.zeros(self.outputs)} if self.bias else {})
        return uniform(stream, shape, self.outputs if self.bias else 0)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer on x [B, inputs, H, W], its parameters changed by `change`."""
        weight, bias, delta = changed_by(params, change)
        return products.conv2d(x, weight, bias, window=self.window, delta=delta)

    def multiply_adds(self, shape: torch.Size) -> int:
        """Multiply-adds for x of `shape` [B, inputs, H, W]."""
        sides = zip(shape[-2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        positions = math.prod(
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, pad, dilation in sides
        )
        return shape[0] * positions * self.outputs * self.inputs // self.groups * math.prod(self.kernel)


@dataclass(frozen=True)
class ConvTranspose2d:
    """Transposed convolution of x [B, inputs, H, W] with W [inputs, outputs, *kernel]: each place of x adds W to the
    result, at steps of `stride`. Start U(±1/sqrt(outputs·kernel)), PyTorch's default."""

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    bias: bool = True
    dilation: tuple[int, int] = (1, 1)
    groups: ClassVar[int] = 1

    @property
    def window(self) -> Window:
        return Window(self.stride, self.padding, self.dilation, 1, True, self.output_padding)

    def init(self, stream: Stream) -> Params:
        return uniform(stream, (self.inputs, self.outputs, *self.kernel), self.outputs if self.bias else 0)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer on x [B, inputs, H, W], its parameters changed by `change`."""
        weight, bias, delta = changed_by(params, change)
        return products.conv2d(x, weight, bias, window=self.window, delta=delta)

    def multiply_adds(self, shape: torch.Size) -> int:
        """Multiply-adds for x of `shape` [B, inputs, H, W]."""
        return shape.numel() * self.outputs * math.prod(self.kernel)


def uniform(stream: Stream, shape: tuple[int, ...], biases: int) -> Params:
    """Weight and, of `biases` > 0, bias U(±1/sqrt(all axes of the weight but the first))."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    params = {"weight": stream.uniform("weight", shape, -bound, bound)}
    return params | ({"bias": stream.uniform("bias", (biases,), -bound, bound)} if biases else {})


def changed_by(params: Params, change: Params | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Weight, bias and the change of the weight; it is not added here, for its gradient is not the weight's."""
    weight, bias, change = params["weight"], params.get("bias"), change or {}
    if bias is not None and "bias" in change:
        bias = bias + change["bias"]
    return weight, bias, change.get("weight")


@dataclass(frozen=True)
class Position:
    """x [B, T, features] + E[:T], a trained vector for each of up to `length` places; start N(0, 0.02²)."""

    length: int
    features: int

    def init(self, stream: Stream) -> Params:
        return {"weight": stream.normal("weight", (self.length, self.features), 0.02)}

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return x + params["weight"][: x.shape[1]]


@dataclass(frozen=True)
class Dropout:
    """Zeroes entries of x [B, *shape] with probability `rate` in training and divides the rest by 1 - rate."""

    shape: tuple[int, ...]
    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise Refused(f"dropout: {self.rate:g} must be at least 0 and below 1")

    def __call__(self, x: Tensor, uniform: Tensor) -> Tensor:
        return torch.where(uniform < self.rate, torch.zeros((), dtype=x.dtype, device=x.device), x / (1 - self.rate))


Layer = Linear | Conv2d | ConvTranspose2d | Embedding | Position | BatchNorm | GroupNorm | LayerNorm | Dropout
WEIGHTY = Linear, Conv2d, ConvTranspose2d
"""Layers whose products are most of the work."""
Call = Callable[[str, Tensor], Tensor]
"""call(name, x): the named layer applied to x."""

Adapt = Callable[[str, Tensor], tuple[Params | None, Tensor | None]]
"""adapt(name, x) → what changes the layer's parameters and what is added to its output, if anything."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Declared layers and how x [B, ...] flows through them to logits [B, outputs]."""

    layers: Mapping[str, Layer]
    forward: Callable[[Call, Tensor], Tensor]

    def init(self, stream: Stream) -> Params:
        """Parameters at the start, named <layer>.<parameter>; equal streams give equal parameters."""
        return {
            f"{name}.{key}": value
            for name, layer in self.layers.items()
            if not isinstance(layer, Dropout)
            for key, value in layer.init(stream.of(name)).items()
        }

    def statistics(self) -> Params:
        """Running statistics at the start; empty without batch norm."""
        norms = {name: layer for name, layer in self.layers.items() if isinstance(layer, BatchNorm)}
        return {f"{name}.{key}": value for name, layer in norms.items() for key, value in layer.statistics().items()}

    @property
    def noise(self) -> dict[str, tuple[int | str, ...]]:
        dropouts = {name: layer for name, layer in self.layers.items() if isinstance(layer, Dropout)}
        return {name: ("batch", *layer.shape) for name, layer in dropouts.items()}

    @property
    def size(self) -> int:
        """|w|, the number of parameters."""
        return sum(value.numel() for value in self.init(Shapes(0, "size")).values())

    def inputs(self, shape: tuple[int, ...], batch: int) -> dict[str, torch.Size]:
        """Shape of what each layer with weights gets, for x [batch, *shape]."""
        seen: dict[str, torch.Size] = {}

        def note(name: str, x: Tensor) -> tuple[None, None]:
            seen[name] = torch.Size((batch, *x.shape[1:]))
            return None, None

        nothing = {name: torch.zeros(t.shape) for name, t in self.init(Shapes(0, "size")).items()}
        with torch.no_grad():
            self(nothing, self.statistics(), torch.zeros(1, *shape), None, None, note)  # one row shows all the shapes
        return seen

    def multiply_adds(self, shape: tuple[int, ...], batch: int) -> int:
        """Multiply-adds of the weights in one forward pass of x [batch, *shape]."""
        seen = self.inputs(shape, batch)
        layers = {name: layer for name, layer in self.layers.items() if isinstance(layer, WEIGHTY)}
        return sum(layer.multiply_adds(seen[name]) for name, layer in layers.items())

    def __call__(
        self,
        params: Params,
        statistics: Params,
        x: Tensor,
        noise: Noise | None,
        mask: Tensor | None,
        adapt: Adapt = lambda name, x: (None, None),
    ) -> tuple[Tensor, Params]:
        """Logits and the statistics after the pass; `adapt` changes a layer's parameters or adds to its output."""
        changed = dict(statistics)

        def call(name: str, x: Tensor) -> Tensor:
            layer = self.layers[name]
            match layer:
                case Dropout():
                    return x if noise is None else layer(x, noise[name])
                case Position():
                    return layer(own(params, name), x)
                case BatchNorm():
                    change, _ = adapt(name, x)
                    running = {key: changed[f"{name}.{key}"] for key in ("mean", "variance")}
                    y, running = layer(own(params, name), running, x, None if noise is None else mask, change)
                    changed.update({f"{name}.{key}": value for key, value in running.items()})
                    return y
                case _:
                    change, added = adapt(name, x)
                    ours = own(params, name)
                    if isinstance(layer, Linear) and layer.tied is not None:
                        ours["weight"] = params[f"{layer.tied}.weight"]
                    y = layer(ours, x, change)
                    return y if added is None else y + added

        return self.forward(call, x), changed


def image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of rows [H, W] or [H, W, channels].

    Raises:
        Refused: rows of another shape are no images.
    """
    if len(shape) not in (2, 3):
        raise Refused(f"rows of shape {list(shape)} are no images [H, W] or [H, W, channels]")
    return (*shape, 1)[:3]  # type: ignore[return-value]


def units(count: int, width: float) -> int:
    """The units of a hidden layer of `count`, widened; at least one."""
    return max(1, round(count * width))


def own(params: Params, layer: str) -> Params:
    """The parameters of one layer, without its name in front."""
    prefix = f"{layer}."
    return {key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)}
