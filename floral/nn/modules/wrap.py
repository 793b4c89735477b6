"""Make a model of any PyTorch module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from floral.core.errors import first_line
from floral.core.spec import Params, Refused
from floral.core.streams import Shapes, Stream
from floral.nn.layers import Embedding, Layer, Linear
from floral.nn.model import Call, Model, by_layer
from floral.nn.modules.inputs import Inputs
from floral.nn.modules.leaves import Declared, Unsupported, declared
from floral.nn.modules.probe import example, probed
from floral.nn.modules.routed import DROPOUTS, Forward, Parts, ReadsParameters, layer_name
from floral.nn.norms import BatchNorm
from floral.nn.small_layers import Dropout, Free

Make = Callable[[], nn.Module]
"""Makes the module, with initial values from PyTorch's generator."""


class NotBuilt(Refused):
    """Error: the function of the user gives no module, whatever the shape of the samples is."""


def wrap(make: Make, inputs: Inputs, outputs: int) -> Model:
    """Return the model of a module. `inputs` says how samples become the arguments of the module.

    Raises:
        Refused: the module cannot be used; the message has the reason and the remedy.
    """
    silence_slow_operations()
    module = built(make, 0).train()
    check(module)
    leaves = known_layers(module)
    ties = tied(module, leaves)
    with torch.random.fork_rng([]):
        while True:
            model = Drawn(make, declare(module, leaves, ties, inputs)).model
            params = {**model.constants, **model.init(Stream(0, "model"))}
            try:
                two, three = (traced(model, params, inputs, samples) for samples in (2, 3))
                served = traced(model, params, inputs, 2, training=False)
            except ReadsParameters as error:
                direct = [error.path]
            else:
                called = two.calls | served.calls
                direct = [p for p, leaf in leaves.items() if not any(layer_name(p, n) in called for n in leaf.layers)]
            if not direct:
                break
            removed = {ties.get(path, layer_name(path)) for path in direct}  # all layers that share a weight, or none
            leaves = {path: leaf for path, leaf in leaves.items() if ties.get(path, layer_name(path)) not in removed}
            ties = {path: name for path, name in ties.items() if path in leaves}
        layers = ordered(model, two, three, served)
        return probed(replace(model, layers=layers), module, inputs, outputs)


def silence_slow_operations() -> None:
    """Turn off PyTorch's warning about an operation that `torch.vmap` computes for one client after the other.

    The results are right, and `backend: auto` measures whether another backend is faster. So no user has to act.
    """
    functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    functorch._set_vmap_fallback_warning_enabled(False)


def built(make: Make, seed: int) -> nn.Module:
    """Return the module, with initial values that depend on the seed only.

    Raises:
        NotBuilt: the function returns something else.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        module = make()
    if not isinstance(module, nn.Module):
        raise NotBuilt(f"`build` returns {type(module).__name__}; return a torch.nn.Module")
    return module


def check(module: nn.Module) -> None:
    """Raise Refused if the module has parameters that cannot be trained here."""
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        raise Refused(
            "the module has lazy layers; give each layer its number of inputs, or apply the module in `build`"
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise Refused("no parameter of the module can be trained; set `requires_grad` of some parameters")
    if odd := [n for n, p in module.named_parameters() if not p.is_floating_point()]:
        raise Refused(f"the parameter {odd[0]} has no floating-point numbers; make it a buffer")
    usual = torch.get_default_dtype()
    if odd := [f"{n} has the data type {p.dtype}" for n, p in module.named_parameters() if p.dtype != usual]:
        raise Refused(
            f"the parameter {odd[0]}; a run chooses the precision of all parameters, so return `module.float()` from "
            "`build`"
        )
    for path, child in module.named_modules():
        computed = [n for n, t in vars(child).items() if isinstance(t, Tensor)] if child._forward_pre_hooks else []
        if computed:
            raise Refused(
                f"the layer {layer_name(path)} keeps {computed[0]}, which a hook computes from parameters, as "
                "`nn.utils.weight_norm` does; use the function of the same name in `nn.utils.parametrizations`"
            )


def known_layers(module: nn.Module) -> dict[str, Declared]:
    """Return the known layers of a module by their paths, in the module's order.

    Raises:
        Refused: a layer has an option that is not supported.
    """
    leaves: dict[str, Declared] = {}
    inside = ()
    for path, child in module.named_modules():
        if inside and path.startswith(inside):
            continue
        try:
            leaf = declared(child)
        except Unsupported as error:
            raise Refused(f"the layer {layer_name(path)} cannot be used: {error}") from None
        if leaf is not None:
            leaves[path] = leaf
            inside = (*inside, f"{path}.") if path else ("",)
    return leaves


def tied(module: nn.Module, leaves: dict[str, Declared]) -> dict[str, str]:
    """Return the linear layers that use another layer's weight: path of the layer → name of the other layer.

    Layers that share parameters in another way are removed from `leaves`: PyTorch computes them.
    """
    ties: dict[str, str] = {}
    owners: dict[int, list[tuple[str, str]]] = {}
    for path, child in module.named_modules():
        for name, parameter in child._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((path, name))
    for (first, *_), *rest in (shared for shared in owners.values() if len(shared) > 1):
        users = [first, *(path for path, _ in rest)]
        layers = [leaves[path].layers.get("") if path in leaves else None for path in users]
        simple = isinstance(layers[0], Embedding | Linear) and all(isinstance(layer, Linear) for layer in layers[1:])
        if simple and all(name == "weight" for _, name in rest):
            ties |= {path: layer_name(first) for path in users[1:]}
        else:
            for path in users:
                leaves.pop(path, None)
    return {path: name for path, name in ties.items() if path in leaves and name in map(layer_name, leaves)}


def declare(module: nn.Module, leaves: dict[str, Declared], ties: dict[str, str], inputs: Inputs) -> Model:
    """Return the model of a module with these known layers. Its dropout layers have no shape yet."""
    layers: dict[str, Layer] = {}
    names: dict[str, tuple[str, tuple[int, ...]]] = {}
    state = module.state_dict()
    for path, leaf in leaves.items():
        for part, layer in leaf.layers.items():
            of_other = ties.get(path) if part == "" else None
            layers[layer_name(path, part)] = replace(layer, tied=of_other) if of_other else layer  # type: ignore[call-arg]
        for parameter, (part, key) in leaf.names.items():
            if not (path in ties and parameter == "weight"):
                in_file = f"{path}.{parameter}" if path else parameter
                names[f"{layer_name(path, part)}.{key}"] = in_file, tuple(state[in_file].shape)
    covered = {name for name, _ in names.values()}
    covered |= {f"{path}.weight" for path in ties}
    buffers = {name: t for name, t in module.named_buffers() if t.is_floating_point() and name in state}
    rest = [name for name in (*dict(module.named_parameters()), *buffers) if name not in covered]
    for name in rest:
        layers[name] = Free(tuple(state[name].shape))
        names[f"{name}.value"] = name, tuple(state[name].shape)
    dropouts: dict[str, nn.Module] = {}
    for path, child in module.named_modules():
        if child.training and type(child) in DROPOUTS and 0 < child.p < 1:  # type: ignore[operator]
            dropouts[path] = child
            layers[layer_name(path)] = Dropout((), float(child.p))  # type: ignore[arg-type]
    fixed = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    fixed |= buffers.keys() - covered
    in_files = {in_file for in_file, _ in names.values()}
    aliases = {
        in_file: shared.keys() - {in_file}
        for shared in same_values(module)
        if len(shared) > 1
        for in_file in shared.keys() & in_files
    }
    model = Model(
        layers=layers,
        forward=Forward(module, Parts(leaves, dropouts, {name: name for name in rest}), inputs),
        names=names,
        aliases=aliases,
        unread=frozenset(state.keys() - in_files).difference(*aliases.values()),
    )
    values = values_of(model, module)
    constant_names = {name for name, (in_file, _) in names.items() if in_file in fixed}
    norms = [name for name, layer in layers.items() if isinstance(layer, BatchNorm)]
    constant_norms = [name for name in norms if f"{name}.weight" in constant_names]
    constant_names |= {f"{name}.{key}" for name in constant_norms for key in ("mean", "variance")}
    constants = {name: values[name].clone() for name in constant_names}
    return replace(model, constants=constants)


def same_values(module: nn.Module) -> list[dict[str, Tensor]]:
    """Return the parameters and buffers of a module, each with all its names: a tied parameter has several."""
    shared: dict[int, dict[str, Tensor]] = {}
    named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        shared.setdefault(id(tensor), {})[name] = tensor
    return list(shared.values())


def values_of(model: Model, module: nn.Module) -> Params:
    """Return the values of a module by their names in the model. They share the memory of the module."""
    state = module.state_dict()
    statistics = replace(model, constants={}).statistics()  # with those that never change
    shapes = {name: value.shape for name, value in (empty(model) | statistics).items()}
    return {name: state[in_file].detach().reshape(shapes[name]) for name, (in_file, _) in model.names.items()}


def empty(model: Model) -> Params:
    """Return all parameters of the model, also those that never change, without values."""
    return {
        f"{name}.{key}": value
        for name, layer in model.layers.items()
        for key, value in layer.init(Shapes(0, "")).items()
    }


@dataclass(frozen=True)
class Drawn:
    """The initial values of a module, drawn anew for each seed."""

    make: Make
    declared: Model

    @property
    def model(self) -> Model:
        values = values_of(self.declared, built(self.make, 0))
        running = {name: values[name].clone() for name in self.declared.statistics()}
        return replace(self.declared, start=self, values=running)

    def __call__(self, stream: Stream) -> Params:
        """Return the parameters that `build` gives the module, if PyTorch's generator has a seed from the stream."""
        params = {name: value for name, value in empty(self.declared).items() if name in self.declared.names}
        if isinstance(stream, Shapes):
            return params
        high, low = stream.integers("module", 2, 1 << 24).tolist()
        values = values_of(self.declared, built(self.make, high << 24 | low))
        return {name: values[name].clone() for name in params}  # `build` may keep the module


class Tracer:
    """A forward pass that records which layers are called, and leaves out dropout."""

    def __init__(self, call: Call) -> None:
        self.call, self.noise = call, call.noise
        self.calls: Counter[str] = Counter()
        self.dropped: dict[str, tuple[int, ...]] = {}
        """Dropout layer → shape of its input."""

    def __call__(self, name: str, x: Tensor) -> Tensor:
        self.calls[name] += 1
        if isinstance(self.call.layers.get(name.partition("@")[0]), Dropout):
            self.dropped[name] = tuple(x.shape)
            return x
        return self.call(name, x)


def traced(model: Model, params: Params, inputs: Inputs, samples: int, training: bool = True) -> Tracer:
    """Return the record of a training pass, or of a pass in evaluation.

    Raises:
        ReadsParameters: the pass fails because of a layer that PyTorch must compute.
        Refused: the pass fails.
    """
    x = example(inputs.shape, samples)
    mask = torch.ones(samples)
    noise = {} if training else None
    tracer = Tracer(Call(model.layers, by_layer(params), model.statistics(), noise, mask, lambda name, x: (None, None)))
    try:
        with torch.no_grad():
            model.forward(tracer, x)  # type: ignore[arg-type]
    except Refused:
        raise
    except Exception as error:  # the code of the user may fail in any way
        seen = [samples, *inputs.of_module]
        raise Refused(f"the module fails for inputs of shape {seen}: {first_line(error)}; change the module") from error
    return tracer


def ordered(model: Model, two: Tracer, three: Tracer, served: Tracer) -> dict[str, Layer]:
    """Return the layers in the order in which they are called.

    `two` and `three` are training passes of 2 and of 3 samples, and `served` is a pass in evaluation.
    """
    layers: dict[str, Layer] = {}
    for name, count in {**served.calls, **two.calls}.items():
        layer = model.layers[name.partition("@")[0]]
        if isinstance(layer, Linear):
            layer = replace(layer, steps=count)
        elif isinstance(layer, Dropout):
            if name not in two.dropped:
                continue  # applied in evaluation only, where dropout does nothing
            layer = shaped(name, layer, two.dropped[name], three.dropped.get(name, ()))
        layers[name] = layer
    unused = {
        name: layer for name, layer in model.layers.items() if name not in layers and not isinstance(layer, Dropout)
    }
    return layers | unused


def shaped(name: str, layer: Dropout, two: tuple[int, ...], three: tuple[int, ...]) -> Dropout:
    """Return a dropout layer whose inputs have these shapes in passes of 2 and of 3 samples.

    Raises:
        Refused: no axis of the input has the samples.
    """
    changed = [axis for axis, sides in enumerate(zip(two, three, strict=False)) if sides[0] != sides[1]]
    if len(two) != len(three) or len(changed) != 1 or two[changed[0]] * 3 != three[changed[0]] * 2:
        raise Refused(f"the input of the dropout layer {name} has no axis of samples; apply it to a batch of samples")
    (axis,) = changed
    rows = two[axis] // 2
    rest = (*two[:axis], *two[axis + 1 :])
    if rows > 1 and axis > 0:
        raise Refused(f"the dropout layer {name} has several rows of each sample on axis {axis}; put samples first")
    return replace(layer, shape=(rows, *rest) if rows > 1 else rest, axis=axis)
