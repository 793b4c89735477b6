"""Find out by test passes what a wrapped module can do, and refuse one that gives wrong numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from floral.core.errors import first_line
from floral.core.spec import Noise, Params, Refused
from floral.core.streams import Stream
from floral.nn.layers import WEIGHT_LAYERS, Embedding, Linear
from floral.nn.model import Model
from floral.nn.modules.inputs import Inputs
from floral.nn.modules.routed import Placeholder, logits_of
from floral.nn.norms import NORMS, LayerNorm

TOLERANCE = 1e-4
"""Largest difference between two results in float32 that count as equal, relative to the largest entry."""
ADVICE = "only the backend `loop` can be used"


class WrongOutputs(Refused):
    """Error: the module has another number of outputs than the task needs.

    `module_outputs` is the number of the module. `is_fixed` tells whether it is the same for all tasks.
    """

    def __init__(self, message: str, module_outputs: int, is_fixed: bool = False) -> None:
        super().__init__(message)
        self.module_outputs, self.is_fixed = module_outputs, is_fixed


def probed(model: Model, module: nn.Module, inputs: Inputs, outputs: int) -> Model:
    """Return the model with what test passes show: whether it draws random numbers, mixes or moves samples, and
    vectorises.

    `module` is the original module.

    Raises:
        Refused: the model does not give the outputs of the module, or cannot be trained.
    """
    params, statistics, x = model.init(Stream(0, "model")), model.statistics(), example(inputs.shape, 3)
    with torch.no_grad():
        served, _ = model(params, statistics, x, None, None)
        check_shape(served, 3, outputs)
        check_shape(model(params, statistics, x[:1], None, None)[0], 1, outputs)
        original = logits_of(inputs.apply(original_values(module, model, params).eval(), x))
    if not close(served, original):
        raise Refused(
            "the model with the module's layers replaced gives other outputs than the module; do not read parameters "
            "of a layer outside of its forward pass"
        )
    draws = advances_generator(model, params, statistics, x)
    model = replace(model, draws=draws)
    without_gradient = check_training(model, params, statistics, x)
    model = replace(model, head=head_with_gradient(model, without_gradient))
    model = replace(model, mixes=mixes(model, params, statistics, x))
    model = replace(model, sample_axes=sample_axes(model, params, statistics, x))
    return replace(model, sequential=why_sequential(model, params, statistics, x))


def example(shape: tuple[int, ...], samples: int) -> Tensor:
    """Return random samples between 0 and 2. As token ids they are 0 and 1."""
    return Stream(0, "example").uniform("x", (samples, *shape), 0, 2)


def noise_of(model: Model, samples: int) -> Noise:
    """Return random numbers for a training pass."""
    shapes = {
        name: [samples if side == "batch" else int(side) for side in shape] for name, shape in model.noise.items()
    }
    return {name: Stream(0, "example").uniform(name, tuple(sides)) for name, sides in shapes.items()}


def original_values(module: nn.Module, model: Model, params: Params) -> nn.Module:
    """Give the module the values of the model, and return it."""
    values = {**model.constants, **model.statistics(), **params}
    state = {in_file: values[name].reshape(shape) for name, (in_file, shape) in model.names.items() if name in values}
    module.load_state_dict(state, strict=False)
    return module


def check_shape(logits: Tensor, samples: int, outputs: int) -> None:
    """Check the shape of logits [samples, outputs] or [samples, T, outputs].

    Raises:
        WrongOutputs: only the number of outputs is wrong, for one output vector per sample.
        Refused: the shape is wrong in another way.
    """
    if logits.shape[:1] == (samples,) and logits.shape[-1] == outputs and logits.dim() in (2, 3):
        return
    problem = (
        f"the module returns a tensor of shape {list(logits.shape)} for {samples} sample(s), but the task needs "
        f"[{samples}, {outputs}]"
    )
    if logits.dim() == 2 and logits.shape[0] == samples:
        raise WrongOutputs(problem, logits.shape[1])
    raise Refused(f"{problem}; change the last layer, or do not squeeze the outputs")


def advances_generator(model: Model, params: Params, statistics: Params, x: Tensor) -> bool:
    """Return whether a training pass draws random numbers from PyTorch's generator."""
    before = torch.get_rng_state()
    with torch.no_grad():
        model(params, statistics, x, noise_of(model, 3), torch.ones(3))
    return not torch.equal(before, torch.get_rng_state())


def check_training(model: Model, params: Params, statistics: Params, x: Tensor) -> set[str]:
    """Return the parameters that do not change the outputs.

    Raises:
        Refused: a training pass is not repeatable, has no gradient, or changes values of the module.
    """
    noise, tensors = noise_of(model, 3), model.forward.skeleton(x).module.named_buffers()  # type: ignore[attr-defined]
    buffers = {name: buffer for name, buffer in tensors if not isinstance(buffer, Placeholder)}
    held = {name: buffer.clone() for name, buffer in (*buffers.items(), *model.constants.items())}
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    with torch.no_grad():
        model(params, statistics, 2 - x, noise, torch.ones(3))  # other samples than in the passes before
    now = {**buffers, **model.constants}
    if changed := [name for name, before in held.items() if not torch.equal(before, now[name])]:
        raise Refused(
            f"the forward pass changes {changed[0].removesuffix('.value')}, which is a buffer outside of PyTorch's "
            "batch norm layers; keep the buffer constant in the forward pass, or leave out the layer that has it"
        )
    first, _ = model(leaves, statistics, x, noise, torch.ones(3))
    # The second pass records gradients too, because without them other kernels may round differently.
    second, _ = model(leaves, statistics, x, noise, torch.ones(3))
    if not torch.equal(first, second):
        raise Refused(
            "two training passes on the same samples differ; draw random numbers only with PyTorch's default "
            "generator, and keep no values between passes"
        )
    if not first.requires_grad:
        raise Refused("no parameter gets a gradient; do not use `no_grad` or `detach` on the way to the outputs")
    gradients = torch.autograd.grad(first.sum(), list(leaves.values()), allow_unused=True)
    return {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is None}


def head_with_gradient(model: Model, without_gradient: Collection[str]) -> str | None:
    """Return the head, if the last layer with weights does not change the outputs, as an auxiliary one may; else None.

    It is then the last linear layer that changes the outputs.
    """
    weighted = [name for name, layer in model.layers.items() if isinstance(layer, WEIGHT_LAYERS)]
    if not weighted or f"{weighted[-1]}.weight" not in without_gradient:
        return None
    used = [name for name in weighted if f"{name}.weight" not in without_gradient]
    return next((name for name in reversed(used) if isinstance(model.layers[name], Linear)), None)


def mixes(model: Model, params: Params, statistics: Params, x: Tensor) -> bool:
    """Return whether the outputs of a sample depend on other samples outside of batch norm."""
    noise, mask = noise_of(model, 3), torch.tensor([1.0, 1.0, 0.0])
    changed = torch.cat([x[:2], 2 - x[2:]])
    with torch.no_grad():
        first, second = (model(params, statistics, samples, noise, mask)[0][:2] for samples in (x, changed))
    return not close(first, second)


def sample_axes(model: Model, params: Params, statistics: Params, x: Tensor) -> dict[str, int | None]:
    """Return the field `sample_axes` of a model.

    The inputs of a layer for several samples are compared with its inputs for each of the samples, so an axis is not
    taken if the samples have another order there, or depend on each other.
    """
    together, *separate = (inputs_of_layers(model, params, statistics, part) for part in (x, *x.split(1)))
    axes: dict[str, int | None] = {}
    for name, layer in model.layers.items():
        if not isinstance(layer, (*WEIGHT_LAYERS, Embedding, *NORMS)):
            continue
        calls = [inputs.get(name, []) for inputs in (together, *separate)]
        possible = []
        if calls[0] and len({len(inputs) for inputs in calls}) == 1:
            # Convolutions and other norms mix or move the entries of all axes except the first.
            possible = range(calls[0][0].dim() if isinstance(layer, Linear | Embedding | LayerNorm) else 1)
        fitting = (axis for axis in possible if all(follow(*inputs, axis=axis) for inputs in zip(*calls, strict=True)))
        axes[name] = next(fitting, None)
    return axes


def inputs_of_layers(model: Model, params: Params, statistics: Params, x: Tensor) -> dict[str, list[Tensor]]:
    """Return the inputs of each layer in an evaluation of samples x, one for each time that the layer is called."""
    inputs: dict[str, list[Tensor]] = {}

    def record(name: str, x: Tensor) -> tuple[None, None]:
        inputs.setdefault(name, []).append(x.clone())  # the module may change x later
        return None, None

    with torch.no_grad():
        model(params, statistics, x, None, None, record)
    return inputs


def follow(together: Tensor, *separate: Tensor, axis: int) -> bool:
    """Return whether the tensors of separate samples, one after the other on an axis, are the tensor of all samples."""
    sides = [(*t.shape[:axis], *t.shape[axis + 1 :]) for t in (together, *separate)]
    return axis < together.dim() and len(set(sides)) == 1 and close(torch.cat(separate, axis), together)


def why_sequential(model: Model, params: Params, statistics: Params, x: Tensor) -> str | None:
    """Return why the forward and backward pass cannot be vectorised over clients, or None if they can."""
    if model.draws:
        return (
            "the module draws random numbers by itself, e.g. by `F.dropout`, so only the backend `loop` can be used; "
            "replace them by nn.Dropout layers to use all backends, and set `dropout` of nn.MultiheadAttention to 0"
        )
    if model.mixes:
        return f"the module mixes the samples of a batch, which padding must not reach; {ADVICE}"
    noise, mask = noise_of(model, 3), torch.ones(3)
    clients = {name: torch.stack([value, 1.1 * value]) for name, value in params.items()}
    leaves = {name: value.requires_grad_() for name, value in clients.items()}
    inputs = torch.stack([x, x.flip(0)])

    def client(params: Params, x: Tensor) -> Tensor:
        return model(params, statistics, x, noise, mask)[0]

    def evaluated(params: Params, x: Tensor) -> Tensor:
        return model(params, statistics, x, None, None)[0]

    try:
        together = [torch.vmap(run)(leaves, inputs) for run in (client, evaluated)]
        torch.autograd.grad(together[0].sum(), list(leaves.values()), allow_unused=True)
    except Exception as error:  # the code of the user may fail in any way
        reads = "data-dependent control flow" in str(error) or ".item()" in str(error)
        reason = "it reads the values of a tensor, e.g. in an `if`" if reads else first_line(error)
        return f"the module fails in `torch.vmap`: {reason}; {ADVICE}"
    separate = [stacked(run, leaves, inputs) for run in (client, evaluated)]
    if not all(close(first, second) for first, second in zip(together, separate, strict=True)):
        return f"the module gives other outputs in `torch.vmap`; {ADVICE}"
    return None


def stacked(run: Callable[[Params, Tensor], Tensor], params: Params, x: Tensor) -> Tensor:
    return torch.stack([run({name: value[k] for name, value in params.items()}, x[k]) for k in range(len(x))])


def close(first: Tensor, second: Tensor) -> bool:
    """Return whether two results are equal up to rounding."""
    if first.shape != second.shape:
        return False
    limit = TOLERANCE * max(1.0, float(second.detach().abs().max()))
    return bool(((first - second).abs() <= limit).all())
