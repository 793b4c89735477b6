"""Declared layers: models consist of them, adaptors attach to them, and the engine batches their products.

A layer knows the shapes of its parameters and how ONE client applies it to x [B, ...]. It holds no tensor.
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
    """Linear layer y = x Wᵀ + b with W [outputs, inputs].

    Start: U(±1/sqrt(inputs)), PyTorch's default.

    A `tied` layer has no weight: it uses the weight of the embedding with that name.
    """

    inputs: int
    outputs: int
    bias: bool = True
    steps: int = 1
    """How often one forward pass applies the layer; above 1 in a recurrent network."""
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
        """The layer applied to x [..., inputs], with `change` added to its parameters."""
        weight, bias, delta = weight_bias_delta(params, change)
        return products.linear(x, weight, bias, delta=delta)

    def multiply_adds(self, shape: torch.Size) -> int:
        """Multiply-adds of all steps for x of `shape` [..., inputs]."""
        return self.steps * shape[:-1].numel() * self.inputs * self.outputs


@dataclass(frozen=True)
class Embedding:
    """Embedding: row x of W [vocabulary, features] for each token id x [...].

    Start: N(0, deviation²).

    Ids may be stored as floating-point numbers, because all inputs of a model are stored so.
    """

    vocabulary: int
    features: int
    deviation: float = 1.0
    adapted: bool = False
    """Whether an adaptor is attached; by default none is, as in the published code."""

    def init(self, stream: Stream) -> Params:
        return {"weight": stream.normal("weight", (self.vocabulary, self.features), self.deviation)}

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer applied to x [...] → [..., features], with `change` added to its parameters."""
        weight, _, delta = weight_bias_delta(params, change)
        return F.embedding(x.long(), weight if delta is None else weight + delta)


@dataclass(frozen=True)
class Conv2d:
    """Convolution of x [B, inputs, H, W] with W [outputs, inputs / groups, *kernel].

    Start "uniform": U(±1/sqrt(fan_in)), PyTorch's default. Start "normal_fan_out": W ~ N(0, 2/(outputs·kernel)), b = 0.
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
    """Number of groups: each maps inputs / groups neighbouring channels to outputs / groups channels."""

    def __post_init__(self) -> None:
        if self.inputs % self.groups or self.outputs % self.groups:
            raise Refused(
                f"{self.groups} groups do not divide {self.inputs} inputs and {self.outputs} outputs; change groups"
            )

    @property
    def window(self) -> Window:
        return Window(self.stride, self.padding, self.dilation, self.groups)

    def init(self, stream: Stream) -> Params:
        shape = (self.outputs, self.inputs // self.groups, *self.kernel)
        if self.start == "normal_fan_out":
            deviation = math.sqrt(2 / (self.outputs * math.prod(self.kernel)))
            params = {"weight": stream.normal("weight", shape, deviation)}
            return params | ({"bias": torch.zeros(self.outputs)} if self.bias else {})
        return uniform_start(stream, shape, self.outputs if self.bias else 0)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer applied to x [B, inputs, H, W], with `change` added to its parameters."""
        weight, bias, delta = weight_bias_delta(params, change)
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
    """Transposed convolution of x [B, inputs, H, W] with W [inputs, outputs, *kernel].

    Each position of x adds its multiple of W to the result; positions are `stride` apart.

    Start: U(±1/sqrt(outputs·kernel)), PyTorch's default.
    """

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
        return uniform_start(stream, (self.inputs, self.outputs, *self.kernel), self.outputs if self.bias else 0)

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """The layer applied to x [B, inputs, H, W], with `change` added to its parameters."""
        weight, bias, delta = weight_bias_delta(params, change)
        return products.conv2d(x, weight, bias, window=self.window, delta=delta)

    def multiply_adds(self, shape: torch.Size) -> int:
        """Multiply-adds for x of `shape` [B, inputs, H, W]."""
        return shape.numel() * self.outputs * math.prod(self.kernel)


def uniform_start(stream: Stream, shape: tuple[int, ...], biases: int) -> Params:
    """Draw a weight and, if `biases` > 0, a bias from U(±1/sqrt(n)).

    n is the product of all axes of the weight except the first.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    params = {"weight": stream.uniform("weight", shape, -bound, bound)}
    return params | ({"bias": stream.uniform("bias", (biases,), -bound, bound)} if biases else {})


def weight_bias_delta(params: Params, change: Params | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Weight, changed bias, and the change of the weight.

    The weight's change is not added here, because its gradient must stay separate from the weight's gradient.
    """
    weight, bias, change = params["weight"], params.get("bias"), change or {}
    if bias is not None and "bias" in change:
        bias = bias + change["bias"]
    return weight, bias, change.get("weight")


@dataclass(frozen=True)
class Position:
    """Position embedding: x [B, T, features] + E[:T] with one trained vector for each of `length` positions.

    Start: N(0, 0.02²).
    """

    length: int
    features: int

    def init(self, stream: Stream) -> Params:
        return {"weight": stream.normal("weight", (self.length, self.features), 0.02)}

    def __call__(self, params: Params, x: Tensor) -> Tensor:
        return x + params["weight"][: x.shape[1]]


@dataclass(frozen=True)
class Dropout:
    """Dropout: in training, set entries of x [B, *shape] to 0 with probability `rate`.

    The other entries are divided by 1 - rate.
    """

    shape: tuple[int, ...]
    rate: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise Refused(f"dropout: {self.rate:g} must be at least 0 and below 1")

    def __call__(self, x: Tensor, uniform: Tensor) -> Tensor:
        return torch.where(uniform < self.rate, torch.zeros((), dtype=x.dtype, device=x.device), x / (1 - self.rate))


Layer = Linear | Conv2d | ConvTranspose2d | Embedding | Position | BatchNorm | GroupNorm | LayerNorm | Dropout
WEIGHT_LAYERS = Linear, Conv2d, ConvTranspose2d
"""Layers whose products are most of a model's cost."""
Call = Callable[[str, Tensor], Tensor]
"""call(name, x) applies the named layer to x."""

Adapt = Callable[[str, Tensor], tuple[Params | None, Tensor | None]]
"""adapt(name, x) → (change of the layer's parameters, change of its output); each may be None."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model: declared layers, and a forward function from x [B, ...] to logits [B, outputs]."""

    layers: Mapping[str, Layer]
    forward: Callable[[Call, Tensor], Tensor]

    def init(self, stream: Stream) -> Params:
        """Initial parameters, named <layer>.<parameter>; equal streams give equal parameters."""
        return {
            f"{name}.{key}": value
            for name, layer in self.layers.items()
            if not isinstance(layer, Dropout)
            for key, value in layer.init(stream.of(name)).items()
        }

    def statistics(self) -> Params:
        """Initial running statistics; empty without batch norm."""
        norms = {name: layer for name, layer in self.layers.items() if isinstance(layer, BatchNorm)}
        return {f"{name}.{key}": value for name, layer in norms.items() for key, value in layer.statistics().items()}

    @property
    def noise(self) -> dict[str, tuple[int | str, ...]]:
        """Shapes of the random inputs of the dropout layers; "batch" stands for B."""
        dropouts = {name: layer for name, layer in self.layers.items() if isinstance(layer, Dropout)}
        return {name: ("batch", *layer.shape) for name, layer in dropouts.items()}

    @property
    def size(self) -> int:
        """|w|, the number of parameters."""
        return sum(value.numel() for value in self.init(Shapes(0, "size")).values())

    def inputs(self, shape: tuple[int, ...], batch: int) -> dict[str, torch.Size]:
        """The input shape of each layer with parameters, for x [batch, *shape]."""
        shapes: dict[str, torch.Size] = {}

        def record(name: str, x: Tensor) -> tuple[None, None]:
            shapes[name] = torch.Size((batch, *x.shape[1:]))
            return None, None

        zeros = {name: torch.zeros(t.shape) for name, t in self.init(Shapes(0, "size")).items()}
        with torch.no_grad():
            self(
                zeros, self.statistics(), torch.zeros(1, *shape), None, None, record
            )  # One sample is enough to record all shapes.
        return shapes

    def multiply_adds(self, shape: tuple[int, ...], batch: int) -> int:
        """Multiply-adds of the weights in one forward pass of x [batch, *shape]."""
        inputs = self.inputs(shape, batch)
        layers = {name: layer for name, layer in self.layers.items() if isinstance(layer, WEIGHT_LAYERS)}
        return sum(layer.multiply_adds(inputs[name]) for name, layer in layers.items())

    def __call__(
        self,
        params: Params,
        statistics: Params,
        x: Tensor,
        noise: Noise | None,
        mask: Tensor | None,
        adapt: Adapt = lambda name, x: (None, None),
    ) -> tuple[Tensor, Params]:
        """Logits, and the running statistics after the pass.

        `noise` None means evaluation. `mask` [B] marks the samples that are no padding. `adapt` changes a layer's
        parameters or adds to its output.
        """
        changed = dict(statistics)

        def call(name: str, x: Tensor) -> Tensor:
            layer = self.layers[name]
            match layer:
                case Dropout():
                    return x if noise is None else layer(x, noise[name])
                case Position():
                    return layer(layer_params(params, name), x)
                case BatchNorm():
                    change, _ = adapt(name, x)
                    running = {key: changed[f"{name}.{key}"] for key in ("mean", "variance")}
                    y, running = layer(layer_params(params, name), running, x, None if noise is None else mask, change)
                    changed.update({f"{name}.{key}": value for key, value in running.items()})
                    return y
                case _:
                    change, added = adapt(name, x)
                    of_layer = layer_params(params, name)
                    if isinstance(layer, Linear) and layer.tied is not None:
                        of_layer["weight"] = params[f"{layer.tied}.weight"]
                    y = layer(of_layer, x, change)
                    return y if added is None else y + added

        return self.forward(call, x), changed


def image_size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of samples [H, W] or [H, W, channels].

    Raises:
        Refused: samples of another shape are no images.
    """
    if len(shape) not in (2, 3):
        raise Refused(f"samples of shape {list(shape)} are no images; this model needs [H, W] or [H, W, channels]")
    return (*shape, 1)[:3]  # type: ignore[return-value]


def scaled_units(count: int, width: float) -> int:
    """`count` hidden units multiplied by `width` and rounded; at least 1."""
    return max(1, round(count * width))


def layer_params(params: Params, layer: str) -> Params:
    """The parameters of one layer, named without the layer's name: "fc1.weight" becomes "weight"."""
    prefix = f"{layer}."
    return {key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)}
