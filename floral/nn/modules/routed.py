"""The forward pass of a PyTorch module whose known layers are declared layers.

The module's own code runs as it is. Only the forward functions of its known layers are replaced: they call the declared
layers, to which adaptors can be attached. All other parameters are put into the module for the time of the pass.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from floral.core.spec import Refused
from floral.nn.layers import Conv2d, Layer, Linear
from floral.nn.model import SEED, Call
from floral.nn.modules.inputs import Inputs
from floral.nn.modules.leaves import Declared
from floral.nn.products import Window

DROPOUTS = nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d
_GENERATOR = threading.Lock()
"""Held while a module draws random numbers, because all threads share PyTorch's generator."""


@dataclass(frozen=True)
class Parts:
    """What a module consists of."""

    leaves: Mapping[str, Declared]
    """Path of a known layer → its declared layers."""
    dropouts: Mapping[str, nn.Module]
    """Path → dropout layer."""
    free: Mapping[str, str]
    """Parameter or buffer outside of known layers → name of its layer `Free`."""


class Placeholder(torch.Tensor):
    """The parameter of a layer whose forward function is the module's own.

    A linear layer or convolution with it is computed by the declared layer. Nothing else can be computed with it.
    """

    @classmethod
    def of(cls, parameter: Tensor, layer: Layer, apply: Callable[[Tensor], Tensor]) -> Placeholder:
        placeholder = torch.empty(parameter.shape, device="meta").as_subclass(cls)
        placeholder.layer, placeholder.apply = layer, apply
        return placeholder

    layer: Layer
    apply: Callable[[Tensor], Tensor]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call_arguments = dict(zip(ARGUMENTS.get(func, ()), args, strict=False)) | (kwargs or {})
        weight, bias = call_arguments.get("weight"), call_arguments.get("bias")
        if isinstance(weight, Placeholder) and (bias is None or isinstance(bias, Placeholder)):
            layer = weight.layer
            has_bias = isinstance(layer, Linear | Conv2d) and layer.bias
            if (bias is not None) == has_bias and window_of(func, call_arguments) == window(layer):
                return weight.apply(call_arguments["input"])
        return super().__torch_function__(func, types, args, kwargs or {})


ARGUMENTS = {
    F.linear: ("input", "weight", "bias"),
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}
"""Function of PyTorch → names of its arguments."""


def window(layer: Layer) -> Window | None:
    return layer.window if isinstance(layer, Conv2d) else None


def window_of(func: Any, call_arguments: Mapping[str, Any]) -> Window | None:
    """Return the window of a call of `F.conv2d`, or None for `F.linear`."""
    if func is not F.conv2d:
        return None

    def pair(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else tuple(value)

    stride, padding, dilation = (
        pair(call_arguments.get("stride", 1)),
        pair(call_arguments.get("padding", 0)),
        pair(call_arguments.get("dilation", 1)),
    )
    return Window(stride, padding, dilation, call_arguments.get("groups", 1))


class Noted(dict[str, Any]):
    """The parameters of a known layer, which notes that the module reads them outside of the layer's forward pass."""

    def __init__(self, values: Mapping[str, Any], note: Callable[[], None]) -> None:
        super().__init__(values)
        self.note = note

    def __getitem__(self, name: str) -> Any:
        self.note()
        return super().__getitem__(name)


@dataclass
class Skeleton:
    """A copy of a module without values of parameters, for one thread, one device and one data type."""

    module: nn.Module
    call: Call | None = None
    passes: Counter[str] = field(default_factory=Counter)
    """How often each dropout layer has been applied in the present pass."""
    last_read: str | None = None
    """Path of the known layer whose parameters were read last. They have no values here."""

    @classmethod
    def of(cls, module: nn.Module, parts: Parts, device: torch.device, dtype: torch.dtype) -> Skeleton:
        skeleton = cls(copy.deepcopy(module))
        for holder in skeleton.module.modules():
            for name, buffer in holder._buffers.items():
                if buffer is not None:
                    holder._buffers[name] = buffer.to(device, dtype if buffer.is_floating_point() else buffer.dtype)
        for path, leaf in parts.leaves.items():
            layer_module = skeleton.module.get_submodule(path)
            if leaf.forward is None:
                apply, layer = partial(skeleton._part, path, ""), leaf.layers[""]
                for name, parameter in layer_module._parameters.items():
                    if parameter is not None:
                        layer_module._parameters[name] = Placeholder.of(parameter, layer, apply)  # type: ignore[assignment]
            else:
                layer_module.forward = partial(leaf.forward, partial(skeleton._part, path))
            for inner in layer_module.modules():
                inner._parameters = Noted(inner._parameters, partial(setattr, skeleton, "last_read", path))
        for path in parts.dropouts:
            skeleton.module.get_submodule(path).forward = partial(skeleton._dropout, path)
        return skeleton

    def _part(self, path: str, part: str, x: Tensor) -> Tensor:
        assert self.call is not None
        return self.call(layer_name(path, part), x)

    def _dropout(self, path: str, input: Tensor) -> Tensor:
        assert self.call is not None
        self.passes[path] += 1
        name = layer_name(path) if self.passes[path] == 1 else f"{layer_name(path)}@{self.passes[path]}"
        return self.call(name, input)

    def __call__(self, call: Call, free: Mapping[str, Tensor], inputs: Inputs, x: Tensor) -> Any:
        """Return what the module returns for samples x. `free` has the values of the free parameters."""
        if self.module.training != (call.noise is not None):
            self.module.train(call.noise is not None)
        self.call = call
        self.passes.clear()
        try:
            if not free:
                return inputs.apply(self.module, x)
            return torch.func.functional_call(self.module, dict(free), *inputs(x))
        finally:
            self.call = None


def without_parameters(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters have shapes, but no values."""
    shells = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, shells)


class Forward:
    """The forward pass of a module, as the field `forward` of a `Model`."""

    def __init__(self, module: nn.Module, parts: Parts, inputs: Inputs) -> None:
        self.module, self.parts, self.inputs = without_parameters(module), parts, inputs
        self._of_thread = threading.local()

    def __call__(self, call: Call, x: Tensor) -> Tensor:
        """Return the logits of samples x.

        Raises:
            Refused: the module returns no logits.
        """
        free = {name: call(layer, x) for name, layer in self.parts.free.items()}
        with self._generator(call, x):
            return logits_of(self.skeleton(x)(call, free, self.inputs, x))

    def skeleton(self, x: Tensor) -> Skeleton:
        """Return the calling thread's copy of the module for the device and the data type of x."""
        skeletons: dict[Any, Skeleton] = self._of_thread.__dict__
        key = f"{x.device} {x.dtype}"
        if key not in skeletons:
            skeletons[key] = Skeleton.of(self.module, self.parts, x.device, x.dtype)
        return skeletons[key]

    def _generator(self, call: Call, x: Tensor) -> AbstractContextManager[None]:
        if call.noise is None or SEED not in call.noise:
            return nullcontext()
        return seeded(call.noise[SEED][0], x.device)


class seeded(AbstractContextManager[None]):
    """Draw PyTorch's random numbers inside the `with` block from a seed, a number in [0, 1)."""

    def __init__(self, uniform: Tensor, device: torch.device) -> None:
        self.seed = int(float(uniform) * 2**48)
        self.fork = torch.random.fork_rng([device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        _GENERATOR.acquire()
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)
        _GENERATOR.release()


def layer_name(path: str, part: str = "") -> str:
    """Return the name of a part of the module at a path; the module itself has the name "module"."""
    return ".".join(filter(None, (path, part))) or "module"


def logits_of(output: Any) -> Tensor:
    """Return the logits in the output of a module: the output itself, its `.logits`, or its entry "logits".

    Raises:
        Refused: there are no logits.
    """
    if isinstance(output, Mapping):
        output = output.get("logits", output)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    raise Refused(
        f"the module returns {type(output).__name__}, not logits; return a tensor [B, outputs], or an object with "
        "`.logits`"
    )
