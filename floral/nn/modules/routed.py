"""The forward pass of a PyTorch module whose known layers are declared layers.

The module's own code runs as it is. Only the forward functions of its known layers are replaced: they call the declared
layers, to which adaptors can be attached. All other parameters are put into the module for the time of the pass.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from floral.core.spec import Refused
from floral.nn.layers import Conv2d, Layer, Linear
from floral.nn.model import SEED, Call
from floral.nn.modules.inputs import Inputs
from floral.nn.modules.leaves import Declared
from floral.nn.norms import BatchNorm
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


class ReadsParameters(Refused):
    """Error: a module reads the values of a known layer's parameters outside of the layer's forward pass.

    `path` is that of the layer.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            f"the module reads the parameters of {layer_name(path)} outside of this layer's forward pass, but not in "
            "each pass; read them in each pass or in none"
        )
        self.path = path


class Placeholder(torch.Tensor):
    """The parameter of a known layer, which has a shape, a device and a data type, but no values.

    If the forward function of the layer is the module's own, the function of PyTorch that it calls with the parameter
    is computed by the declared layer. Nothing else can be computed with the parameter.
    """

    path: str
    """Path of the layer."""
    layer: Layer | None
    """The declared layer, if the forward function is the module's own."""
    skeleton: Skeleton
    _is_param = True  # for `isinstance(…, nn.Parameter)`

    @classmethod
    def of(cls, parameter: Tensor, path: str, layer: Layer | None, skeleton: Skeleton, like: Tensor) -> Placeholder:
        """Return the placeholder of a parameter, with the device and the data type of `like`."""
        placeholder = like.new_zeros(()).expand(parameter.shape).as_subclass(cls)
        placeholder.path, placeholder.layer, placeholder.skeleton = path, layer, skeleton
        return placeholder

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in WITHOUT_VALUES or (func in LIKE_THE_SECOND and not isinstance(args[0], Placeholder)):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        call_arguments = dict(zip(ARGUMENTS.get(func, ()), args, strict=False)) | kwargs
        tensors = pytree.tree_leaves((args, kwargs))
        first = next(tensor for tensor in tensors if isinstance(tensor, Placeholder))
        if first.layer is not None and first.computes(func, call_arguments):
            return first.skeleton._part(first.path, "", call_arguments["input"])
        raise ReadsParameters(first.path)

    def computes(self, func: Any, call_arguments: Mapping[str, Any]) -> bool:
        """Return whether the declared layer computes this call of a function of PyTorch."""
        of_layer = {name for name, value in call_arguments.items() if isinstance(value, Placeholder)}
        match self.layer:
            case Linear(bias=bias):
                options = func is F.linear
            case Conv2d(bias=bias):
                options = func is F.conv2d and window_of(call_arguments) == self.layer.window
            case BatchNorm(epsilon=epsilon, momentum=momentum, affine=bias):
                options = func is F.batch_norm and all(
                    call_arguments.get(name) == value
                    for name, value in (("eps", epsilon), ("momentum", momentum), ("training", self.skeleton.training))
                )
                return options and of_layer == {"running_mean", "running_var", *(("weight", "bias") if bias else ())}
            case _:
                return False
        return options and of_layer == {"weight", *(("bias",) if bias else ())}


WITHOUT_VALUES = {
    *(
        getattr(torch.Tensor, name).__get__
        for name in ("device", "dtype", "is_cpu", "is_cuda", "is_leaf", "is_meta", "is_mps", "is_nested",
                     "is_quantized", "is_sparse", "is_xpu", "layout", "ndim", "requires_grad", "shape")
    ),
    *(
        getattr(torch.Tensor, name)
        for name in ("__len__", "dim", "element_size", "get_device", "is_complex", "is_floating_point", "ndimension",
                     "nelement", "new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "numel", "size")
    ),
    torch.empty_like, torch.full_like, torch.is_complex, torch.is_floating_point, torch.numel, torch.ones_like,
    torch.rand_like, torch.randn_like, torch.zeros_like,
}  # fmt: skip
"""Functions of PyTorch that read no values of their arguments."""
LIKE_THE_SECOND = {torch.Tensor.to, torch.Tensor.type_as}
"""Functions of PyTorch that give their first argument the device and the data type of the second one."""
ARGUMENTS = {
    F.linear: ("input", "weight", "bias"),
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}
"""Function of PyTorch → names of its arguments."""


def window_of(call_arguments: Mapping[str, Any]) -> Window:
    """Return the window of a call of `F.conv2d`."""

    def pair(value: Any) -> tuple[int, int]:
        return (value, value) if isinstance(value, int) else tuple(value)

    stride, padding, dilation = (
        pair(call_arguments.get("stride", 1)),
        pair(call_arguments.get("padding", 0)),
        pair(call_arguments.get("dilation", 1)),
    )
    return Window(stride, padding, dilation, call_arguments.get("groups", 1))


@dataclass
class Skeleton:
    """A copy of a module without values of parameters, for one thread, one device and one data type."""

    module: nn.Module
    call: Call | None = None
    passes: Counter[str] = field(default_factory=Counter)
    """How often each dropout layer has been applied in the present pass."""

    @classmethod
    def of(cls, module: nn.Module, parts: Parts, x: Tensor) -> Skeleton:
        """Return a copy of a module for the device and the data type of samples x."""
        skeleton = cls(copy.deepcopy(module))
        like = x.new_zeros((), dtype=None if x.is_floating_point() else torch.get_default_dtype())
        for holder in skeleton.module.modules():
            for name, buffer in holder._buffers.items():
                if buffer is not None:
                    dtype = x.dtype if buffer.is_floating_point() else buffer.dtype
                    holder._buffers[name] = buffer.to(x.device, dtype)
        for path, leaf in parts.leaves.items():
            layer_module = skeleton.module.get_submodule(path)
            layer = leaf.layers[""] if leaf.forward is None else None
            if leaf.forward is not None:
                layer_module.forward = partial(leaf.forward, OfPath(skeleton, path))
            for inner in layer_module.modules():
                holders: list[dict[str, Any]] = [inner._parameters]
                if isinstance(layer, BatchNorm):
                    inner._buffers["num_batches_tracked"] = None
                    holders.append(inner._buffers)
                for holder in holders:
                    for name, tensor in holder.items():
                        if tensor is not None:
                            holder[name] = Placeholder.of(tensor, path, layer, skeleton, like)
        for path in parts.dropouts:
            skeleton.module.get_submodule(path).forward = partial(skeleton._dropout, path)
        return skeleton

    @property
    def training(self) -> bool:
        """Whether the present pass is one of training."""
        return self.call is not None and self.call.noise is not None

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
        self.call = call
        if self.module.training != self.training:
            self.module.train(self.training)
        self.passes.clear()
        try:
            if not free:
                return inputs.apply(self.module, x)
            return torch.func.functional_call(self.module, dict(free), *inputs(x))
        finally:
            self.call = None


@dataclass(frozen=True)
class OfPath:
    """Apply the parts of the known layer at a path, in the present pass of a skeleton."""

    skeleton: Skeleton
    path: str

    @property
    def training(self) -> bool:
        return self.skeleton.training

    def __call__(self, part: str, x: Tensor) -> Tensor:
        return self.skeleton._part(self.path, part, x)


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
            skeletons[key] = Skeleton.of(self.module, self.parts, x)
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
