"""A model: its layers by name, and how one forward pass calls them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from floral.core.spec import Noise, Params, Refused
from floral.core.streams import Shapes, Stream
from floral.nn.layers import WEIGHT_LAYERS, Embedding, Layer, Linear, layer_params
from floral.nn.norms import BatchNorm
from floral.nn.small_layers import Dropout, Free, Identity, Position

Adapt = Callable[[str, Tensor], tuple[Params | None, Tensor | None]]
"""adapt(name, x) → (change of the layer's parameters, change of its output); each may be None."""

SEED = "module_seed"
"""Name of the random numbers from which a module's own random numbers are drawn."""


@dataclass(frozen=True)
class Call:
    """One forward pass of a model: call(name, x) applies the named layer to x."""

    layers: Mapping[str, Layer]
    params: Mapping[str, Params]
    """Layer → its parameters."""
    statistics: Params
    """Running statistics, which batch norm replaces by the new ones."""
    noise: Noise | None
    """The random numbers of the pass. None: the model is evaluated."""
    mask: Tensor | None
    adapt: Adapt

    def __call__(self, name: str, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return the output of a layer for the input x.

        With `positions` [N], a layer that treats the positions of x [B, T, ...] one by one is applied only to N of the
        B·T positions, for example to those without padding. Its output is 0 at all other positions.
        """
        layer, params = self.layers.get(name), self.params.get(name, {})
        match layer:
            case None:
                raise Refused(
                    f"the forward pass calls the layer {name} only sometimes; call the same layers in each pass"
                )
            case Identity():
                return x
            case Dropout():
                return x if self.noise is None else layer(x, self.noise[name])
            case Position() | Free():
                return layer(params, x)
            case BatchNorm():
                change, _ = self.adapt(name, x)
                if "mean" in params:  # a constant layer normalises by its constant statistics, also in training
                    return layer(params, params, x, None, change)[0]
                mask = None if self.noise is None else self.mask
                y, running = layer(params, layer_params(self.statistics, name), x, mask, change)
                self.statistics.update({f"{name}.{key}": value for key, value in running.items()})
                return y
            case _:
                change, added = self.adapt(name, x)
                if isinstance(layer, Linear) and layer.tied is not None:
                    params = {**params, "weight": self.params[layer.tied]["weight"]}
                if positions is None:
                    y = layer(params, x, change)
                else:
                    y = layer(params, x.flatten(0, 1).index_select(0, positions), change)
                    y = spread(y, positions, *x.shape[:2])
                return y if added is None else y + added


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model: its layers by name, and a function that computes the logits [B, outputs] of x [B, ...].

    The fields after `forward` have their defaults in the models of floral/models that are written in layers.
    """

    layers: Mapping[str, Layer]
    forward: Callable[[Call, Tensor], Tensor]
    start: Callable[[Stream], Params] | None = None
    """Draws the initial parameters. None: each layer draws its own."""
    values: Params = field(default_factory=dict)
    """Initial values from a file, of parameters and statistics. They replace those that are drawn."""
    constants: Params = field(default_factory=dict)
    """Parameters that never change. They exist once, belong to no group, and are not sent."""
    head: str | None = None
    """The layer that methods take as the head. None: the last layer that has weights."""
    adapted: Collection[str] | None = None
    """Layers that get adaptors. None: all for which there is a kind of adaptor, but embeddings only if they say so."""
    names: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Parameter or statistic → its name and shape in a file of weights, where they are not those of the model."""
    aliases: Mapping[str, Collection[str]] = field(default_factory=dict)
    """Name in a file of weights → further names of the same parameter, which a module has several times (tied)."""
    unread: Collection[str] = ()
    """Names in a file of weights that the model does not need, such as counters of batches."""
    draws: bool = False
    """Whether the forward pass draws random numbers of its own in training. They follow from the noise `SEED`."""
    sample_axes: Mapping[str, int | None] = field(default_factory=dict)
    """Layer → axis of its inputs on which the samples follow each other, with one or more rows each. None: on no axis.
    In the layers of a declared model, which are not named, it is the first axis."""
    mixes: bool = False
    """Whether the forward pass mixes samples outside of batch norm, so that it must not see padding in training."""
    sequential: str | None = None
    """Why the forward pass cannot be vectorised over clients. None: it can."""
    vocabulary: int | None = None
    """Number of token ids that the model has, if its samples are token ids from a tokenizer of its own. None: any."""
    remarks: Collection[str] = ()
    """What the log says about how the model was built."""

    def init(self, stream: Stream) -> Params:
        """Return the initial parameters, named <layer>.<parameter>, without those that never change.

        `stream` is the random generator from which they are drawn. Generators with the same seed give the same
        parameters.
        """
        return {name: value for name, value in self.start_values(stream).items() if name not in self.constants}

    def start_values(self, stream: Stream) -> Params:
        """Return the initial values of all parameters, also of those that never change."""
        drawn = {} if self.start is None else self.start(stream)
        values: Params = {}
        for name, layer in self.layers.items():
            sizes = layer.init(Shapes(0, "size"))
            if all(f"{name}.{key}" in self.values for key in sizes):  # Drawing millions of unused values takes seconds.
                values |= {f"{name}.{key}": self.values[f"{name}.{key}"] for key in sizes}
                continue
            layer_values = layer_params(drawn, name)
            if self.start is None or shapes_of(layer_values) != shapes_of(sizes):
                # Also a layer that a method put in the place of another one draws its own values.
                layer_values = layer.init(stream.of(name))
            values |= {f"{name}.{key}": value for key, value in layer_values.items()}
        return {name: self.values.get(name, value) for name, value in values.items()}

    def statistics(self) -> Params:
        """Return the initial running statistics of the batch-norm layers.

        They are empty for a model without batch norm.
        """
        norms = {name: layer for name, layer in self.layers.items() if isinstance(layer, BatchNorm)}
        drawn = {f"{name}.{key}": value for name, layer in norms.items() for key, value in layer.statistics().items()}
        values = {name: self.values.get(name, value) for name, value in drawn.items()}
        return {name: value for name, value in values.items() if name not in self.constants}

    @property
    def noise(self) -> dict[str, tuple[int | str, ...]]:
        """For each dropout layer, the shape of the random numbers that it needs. "batch" stands for the batch size."""
        dropouts = {name: layer for name, layer in self.layers.items() if isinstance(layer, Dropout)}
        shapes: dict[str, tuple[int | str, ...]] = {name: ("batch", *layer.shape) for name, layer in dropouts.items()}
        return {**shapes, SEED: ("batch",)} if self.draws else shapes

    @property
    def size(self) -> int:
        """The number of parameters of the model, without those that never change."""
        return sum(value.numel() for value in self.init(Shapes(0, "size")).values())

    def value(self, params: Params, name: str) -> Tensor:
        """Return a parameter of the model from `params`, or from the constants if it never changes."""
        return params[name] if name in params else self.constants[name]

    def frozen(self, names: Collection[str], stream: Stream) -> Model:
        """Return the model with the named parameters and running statistics constant. `stream` draws their values."""
        values = self.start_values(stream) | self.statistics()
        return replace(self, constants={**self.constants, **{name: values[name] for name in names}})

    def moved(self, device: torch.device, dtype: torch.dtype) -> Model:
        """Return the model with its constants on a device."""
        return replace(self, constants={name: value.to(device, dtype) for name, value in self.constants.items()})

    def by_sample(self, layer: str, x: Tensor, samples: int) -> Tensor:
        """Return an input of a layer as x [samples, ...]. If a sample has several rows, they are on the second axis."""
        axis = self.sample_axes.get(layer) or 0
        x = x.movedim(axis, 0) if axis else x
        return x if len(x) == samples else x.unflatten(0, (samples, -1))

    def weighted(self, layer: str, weights: Tensor, y: Tensor) -> Tensor:
        """Multiply an output y of a layer by the weights [B] of the samples."""
        axis = self.sample_axes.get(layer) or 0
        rows = y.shape[axis] // len(weights)
        weights = weights.repeat_interleave(rows) if rows > 1 else weights
        return weights.reshape(-1, *(1,) * (y.dim() - axis - 1)) * y

    def without(self, layer: str) -> Model:
        """Return the model with a layer that returns its input, and has no parameters."""
        return replace(self, layers={**self.layers, layer: Identity()})

    def inputs(self, shape: tuple[int, ...], batch: int) -> dict[str, torch.Size]:
        """Return the shape of each layer's input, if the input of the model is x [batch, *shape].

        The result has only the layers that an adaptor can change. The first axis is that of the batch.
        """
        # One sample is enough to record all shapes.
        return {name: torch.Size((batch, *sides[1:])) for name, sides in self.input_shapes(shape, 1).items()}

    def input_shapes(self, shape: tuple[int, ...], samples: int) -> dict[str, torch.Size]:
        """Return the shape of each layer's input in a forward pass of x [samples, *shape].

        The result has only the layers that an adaptor can change.
        """
        if (shape, samples) in self._input_shapes:
            return self._input_shapes[shape, samples]
        shapes: dict[str, torch.Size] = {}

        def record(name: str, x: Tensor) -> tuple[None, None]:
            shapes[name] = x.shape
            return None, None

        zeros = {name: torch.zeros(t.shape) for name, t in self.init(Shapes(0, "size")).items()}
        with torch.no_grad():
            self(zeros, self.statistics(), torch.zeros(samples, *shape), None, None, record)
        self._input_shapes[shape, samples] = shapes
        return shapes

    @cached_property
    def _input_shapes(self) -> dict[tuple[tuple[int, ...], int], dict[str, torch.Size]]:
        """Results of `input_shapes`, which takes a forward pass."""
        return {}

    def multiply_adds(self, shape: tuple[int, ...], batch: int) -> int:
        """Return the multiply-adds of linear layers and convolutions in one forward pass of x [batch, *shape]."""
        inputs = self.inputs(shape, batch)
        layers = {name: layer for name, layer in self.layers.items() if isinstance(layer, WEIGHT_LAYERS)}
        return sum(layer.multiply_adds(inputs[name]) for name, layer in layers.items() if name in inputs)

    def __call__(
        self,
        params: Params,
        statistics: Params,
        x: Tensor,
        noise: Noise | None,
        mask: Tensor | None,
        adapt: Adapt = lambda name, x: (None, None),
    ) -> tuple[Tensor, Params]:
        """Return the logits of x, and the running statistics of batch norm after the forward pass.

        `noise` holds the random numbers for dropout. If it is None, the model is evaluated: dropout is left out, and
        batch norm uses the running statistics. `mask` [B] is 1 for samples and 0 for padding. The function `adapt` is
        called for each layer. It may change the layer's parameters or add to its output.

        Raises:
            Refused: the model is called inside `torch.vmap`, but it cannot be vectorised.
        """
        if self.sequential is not None and in_vmap():
            raise Refused(self.sequential)
        if self.constants:
            params = {**{name: like(value, x) for name, value in self.constants.items()}, **params}
        present = None
        if self.mixes and noise is not None and mask is not None and mask.any() and not mask.all():
            present = mask.bool()
            x, mask = x[present], mask[present]
            noise = {name: drawn[present] for name, drawn in noise.items()}
        call = Call(self.layers, by_layer(params), dict(statistics), noise, mask, adapt)
        logits = self.forward(call, x)
        if present is not None:
            logits = logits.new_zeros(len(present), *logits.shape[1:]).index_put((present,), logits)
        return logits, call.statistics


def spread(y: Tensor, positions: Tensor, samples: int, length: int) -> Tensor:
    """Return the outputs y [N, ...] as [B, T, ...]: they lie at N of the B·T positions, and all others are 0."""
    everywhere = y.new_zeros(samples * length, *y.shape[1:])
    return everywhere.index_copy(0, positions, y).unflatten(0, (samples, length))


def by_layer(params: Params) -> dict[str, Params]:
    """Return the parameters of each layer: "fc1.weight" becomes the entry "weight" of "fc1"."""
    layers: dict[str, Params] = {}
    for name, value in params.items():
        layer, _, key = name.rpartition(".")
        layers.setdefault(layer, {})[key] = value
    return layers


def like(value: Tensor, x: Tensor) -> Tensor:
    """Return a constant on the device of x, and in its data type if x has floating-point numbers."""
    return value.to(device=x.device, dtype=x.dtype if x.is_floating_point() else value.dtype)


def shapes_of(params: Params) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in params.items()}


def matching(names: Collection[str], patterns: Collection[str]) -> list[str]:
    """Return the names that match one of the patterns. In a pattern, `*` stands for any text and `?` for a letter."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def in_vmap() -> bool:
    """Return whether the caller runs inside `torch.vmap`."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return any(level.key() == functorch.TransformType.Vmap for level in functorch.get_interpreter_stack() or ())


def gets_adaptor(model: Model, name: str) -> bool:
    """Return whether an adaptor is to be attached to a layer, if there is a kind of adaptor for it."""
    layer = model.layers[name]
    if model.adapted is not None:
        return name in model.adapted
    return layer.adapted if isinstance(layer, Embedding) else True
