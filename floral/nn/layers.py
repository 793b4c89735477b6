"""The layers from which models are built.

A layer object holds the sizes of a layer, but not its parameters. The parameters are passed to it at each call, for ONE
client. An adaptor can change them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from floral.core.spec import Params, Refused
from floral.core.streams import Stream
from floral.nn import products
from floral.nn.norms import BatchNorm, GroupNorm, LayerNorm
from floral.nn.products import Window
from floral.nn.small_layers import Dropout, Free, Identity, Position


@dataclass(frozen=True)
class Linear:
    """A linear layer y = x Wᵀ + b with the weight W [outputs, inputs] and the bias b [outputs].

    Initial values are uniform between ±1/sqrt(inputs), which is PyTorch's default. If `tied` names an embedding layer,
    the linear layer has no weight of its own and uses that of the embedding.
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
        """Apply the layer to x [..., inputs], with the adaptor's `change` added to its parameters."""
        weight, bias, delta = weight_bias_delta(params, change)
        return products.linear(x, weight, bias, delta=delta)

    def multiply_adds(self, shape: torch.Size) -> int:
        """Return the number of multiply-adds in one forward pass, for an input of the given shape [..., inputs].

        A recurrent network applies the layer in each of its `steps` time steps. The number is the total over all time
        steps.
        """
        return self.steps * shape[:-1].numel() * self.inputs * self.outputs


@dataclass(frozen=True)
class Embedding:
    """An embedding: it replaces each token id i in x [...] by row i of the weight [vocabulary, features].

    Initial values are normal with mean 0 and standard deviation `deviation`. Token ids may be floating-point numbers.
    """

    vocabulary: int
    features: int
    deviation: float = 1.0
    adapted: bool = False
    """Whether an adaptor is attached; by default none is, as in the published code."""
    padding: int | None = None
    """The token id whose row gets no gradient. None: all rows get gradients."""

    def init(self, stream: Stream) -> Params:
        return {"weight": stream.normal("weight", (self.vocabulary, self.features), self.deviation)}

    def __call__(self, params: Params, x: Tensor, change: Params | None = None) -> Tensor:
        """Apply the layer to token ids x [...] → [..., features], with the adaptor's `change` added to its weight."""
        weight, _, delta = weight_bias_delta(params, change)
        return F.embedding(x.long(), weight if delta is None else weight + delta, self.padding)


@dataclass(frozen=True)
class Conv2d:
    """A convolution of x [B, inputs, H, W] with a weight [outputs, inputs / groups, *kernel].

    `start` sets the initial values. With "uniform", they are uniform between ±1/sqrt(inputs / groups · kernel area),
    which is PyTorch's default. With "normal_fan_out", the weight is normal with variance 2/(outputs · kernel area), and
    the bias is 0.
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
                f"{self.groups} groups do not divide {self.inputs} inputs and {self.outputs} outputs; "
                "set `groups` to a divisor of both numbers"
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
        """Apply the layer to x [B, inputs, H, W], with the adaptor's `change` added to its parameters."""
        weight, bias, delta = weight_bias_delta(params, change)
        return products.conv2d(x, weight, bias, window=self.window, delta=delta)

    def multiply_adds(self, shape: torch.Size) -> int:
        """Return the number of multiply-adds in one forward pass, for an input of the given shape [B, inputs, H, W]."""
        sides = zip(shape[-2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        positions = math.prod(
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, pad, dilation in sides
        )
        return shape[0] * positions * self.outputs * self.inputs // self.groups * math.prod(self.kernel)


@dataclass(frozen=True)
class ConvTranspose2d:
    """A transposed convolution of x [B, inputs, H, W] with a weight [inputs, outputs, *kernel], as in PyTorch.

    Initial values are uniform between ±1/sqrt(outputs · kernel area), which is PyTorch's default.
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
        """Apply the layer to x [B, inputs, H, W], with the adaptor's `change` added to its parameters."""
        weight, bias, delta = weight_bias_delta(params, change)
        return products.conv2d(x, weight, bias, window=self.window, delta=delta)

    def multiply_adds(self, shape: torch.Size) -> int:
        """Return the number of multiply-adds in one forward pass, for an input of the given shape [B, inputs, H, W]."""
        return shape.numel() * self.outputs * math.prod(self.kernel)


def uniform_start(stream: Stream, shape: tuple[int, ...], biases: int) -> Params:
    """Draw a weight of the given shape and, if `biases` > 0, as many biases, uniformly between ±1/sqrt(n).

    n is the product of the lengths of all axes of the weight except the first.
    """
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    params = {"weight": stream.uniform("weight", shape, -bound, bound)}
    return params | ({"bias": stream.uniform("bias", (biases,), -bound, bound)} if biases else {})


def weight_bias_delta(params: Params, change: Params | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return a layer's weight, its bias, and the adaptor's change of the weight.

    `change` holds what the adaptor adds to the weight and to the bias. The returned bias is already changed. The
    returned weight is not, because its change has a gradient of its own. A bias or change that does not exist is None.
    """
    weight, bias, change = params["weight"], params.get("bias"), change or {}
    if bias is not None and "bias" in change:
        bias = bias + change["bias"]
    return weight, bias, change.get("weight")


Layer = (
    Linear
    | Conv2d
    | ConvTranspose2d
    | Embedding
    | Position
    | BatchNorm
    | GroupNorm
    | LayerNorm
    | Dropout
    | Free
    | Identity
)
WEIGHT_LAYERS = Linear, Conv2d, ConvTranspose2d
"""Layers whose products are most of a model's cost."""


def image_size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the height, width and channels of image samples with the shape [H, W] or [H, W, channels].

    Raises:
        Refused: the shape has another number of axes, so the samples are not images.
    """
    if len(shape) not in (2, 3):
        raise Refused(
            f"samples of shape {list(shape)} are no images, but this model needs images [H, W] or [H, W, channels]; "
            "use another `model` for these data"
        )
    return (*shape, 1)[:3]  # type: ignore[return-value]


def scaled_units(count: int, width: float) -> int:
    """Return `count` hidden units multiplied by the factor `width`, rounded to an integer of at least 1."""
    return max(1, round(count * width))


def layer_params(params: Params, layer: str) -> Params:
    """Return the parameters of one layer, without the layer's name in their names: "fc1.weight" becomes "weight"."""
    prefix = f"{layer}."
    return {key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)}
