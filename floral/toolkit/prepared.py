"""Prepare a task's model: initial values from a file, frozen parameters, the head, and the adapted layers."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from floral.config import paths
from floral.config.schema.task import Model as Keys
from floral.core.spec import Params, Refused
from floral.core.streams import Shapes, Stream
from floral.io.tensor_files import defect
from floral.nn.layers import WEIGHT_LAYERS, Embedding, Linear
from floral.nn.model import Model, gets_adaptor, matching
from floral.nn.norms import NORMS
from floral.nn.small_layers import Free

ADAPTABLE = (*WEIGHT_LAYERS, Embedding, *NORMS)
"""Layers for which there are adaptors."""
MAX_NAMED = 5
"""Number of names that a message lists."""


def prepared(model: Model, keys: Keys, base: str, *, shape: tuple[int, ...], width: float, stream: Stream) -> Model:
    """Return the model as the keys of a task prepare it. `stream` draws the values of frozen parameters.

    `shape` is that of one sample.

    Raises:
        Refused: a file or a name does not fit the model, or no parameter that is trained changes the outputs.
    """
    if keys.weights is not None:
        if width != 1.0:
            raise Refused(
                "the method needs a wider or narrower model, which the file `weights` does not fit; remove `weights`, "
                "or use another method"
            )
        model = with_weights(model, paths.in_study(keys.weights), keys.ignore)
    elif keys.ignore:
        raise Refused("`ignore` is for the names in a file of weights; set `weights`, or remove `ignore`")
    if keys.head is not None:
        linear = [name for name, layer in model.layers.items() if isinstance(layer, Linear)]
        if keys.head not in linear:
            raise Refused(f"`head: {keys.head}` is no linear layer of the model{near(keys.head, linear)}")
        model = replace(model, head=keys.head)
    if keys.adapt is not None:
        adaptable = [
            name
            for name, layer in model.layers.items()
            if isinstance(layer, ADAPTABLE) and getattr(layer, "tied", None) is None
        ]
        check_patterns("adapt", keys.adapt, adaptable)
        model = replace(model, adapted=frozenset(matching(adaptable, keys.adapt)))
    if keys.freeze:
        model = freeze(model, keys.freeze, stream)
        if not has_gradient(model, shape):
            trained = listed([*model.init(Shapes(0, "size"))], verb=False)
            raise Refused(f"`freeze` leaves only {trained} trained, without effect on the outputs; change `freeze`")
    if base == "frozen":
        model = with_frozen_base(model, stream)
        if not has_gradient(model, shape):
            raise Refused(
                f"`base: frozen` trains the head, but {head_of(model)} has no effect on the outputs; name the layer "
                "that makes the outputs as `head`"
            )
    return model


def has_gradient(model: Model, shape: tuple[int, ...]) -> bool:
    """Return whether a trained parameter changes the outputs for samples of a shape. It is true if none is trained."""
    params = {name: torch.zeros(t.shape, requires_grad=True) for name, t in model.init(Shapes(0, "size")).items()}
    with torch.enable_grad():
        logits, _ = model(params, model.statistics(), torch.zeros(2, *shape), None, None)
    return not params or logits.requires_grad


def summary(model: Model) -> list[str]:
    """Return sentences on what of the model is trained, adapted and vectorised, for the log."""
    lines = [*model.remarks, f"{model.size:,} parameters are trained, {constants(model):,} are frozen"]
    if head := head_of(model):
        lines.append(f"the head is {head}")
    if without := without_adaptor(model):
        lines.append(f"no adaptor is attached to {', '.join(without)}")
    if model.sequential is not None:
        lines.append(model.sequential)
    return [f"model: {line}" for line in lines]


def constants(model: Model) -> int:
    """Return the number of frozen parameters and statistics."""
    return sum(value.numel() for value in model.constants.values())


def head_of(model: Model) -> str | None:
    """Return the layer that methods take as the head, or None if no layer has weights."""
    weighted = [name for name, layer in model.layers.items() if isinstance(layer, WEIGHT_LAYERS)]
    return model.head or next(reversed(weighted), None)


def without_adaptor(model: Model) -> list[str]:
    """Return the layers and parameters to which no adaptor is attached."""
    return [
        name
        for name, layer in model.layers.items()
        if isinstance(layer, Free) or (isinstance(layer, ADAPTABLE) and not gets_adaptor(model, name))
    ]


def freeze(model: Model, patterns: Collection[str], stream: Stream) -> Model:
    """Return the model with constant parameters and statistics: those whose name, or whose layer, matches a pattern."""
    names = [*model.init(Shapes(0, "size")), *model.statistics()]
    layers = {name: name.rpartition(".")[0] for name in names}
    check_patterns("freeze", patterns, [*names, *dict.fromkeys(layers.values())])
    frozen_names = matching(names, patterns)
    return model.frozen([name for name in names if name in frozen_names or matching([layers[name]], patterns)], stream)


def with_frozen_base(model: Model, stream: Stream) -> Model:
    """Return the model with all parameters and statistics constant, except those of the head.

    Raises:
        Refused: the model has no separate head.
    """
    head = head_of(model)
    if head is None or getattr(model.layers[head], "tied", None) is not None:
        raise Refused(
            "`base: frozen` trains the head, but the model has no last layer with weights of its own; name a linear "
            "layer as `head`, or set `base: trained`"
        )
    names = [*model.init(Shapes(0, "size")), *model.statistics()]
    return model.frozen([name for name in names if name.rpartition(".")[0] != head], stream)


def with_weights(model: Model, path: Path, ignore: Collection[str]) -> Model:
    """Return the model with the initial values of a safetensors file.

    The file and the model must have the same names and shapes, except names that match a pattern of `ignore`. Of the
    names of a tied parameter, one is enough.

    Raises:
        Refused: the file cannot be read, its names or shapes differ from those of the model, or it has several values
            of a tied parameter.
    """
    shapes = {name: tuple(t.shape) for name, t in model.start_values(Shapes(0, "size")).items()}
    shapes |= {name: tuple(t.shape) for name, t in (model.statistics() | model.constants).items()}
    places = {name: model.names.get(name, (name, shape)) for name, shape in shapes.items()}
    needed = {in_file: shape for in_file, shape in places.values()}
    aliases = {name: sorted(model.aliases.get(name, ())) for name in needed}
    held = read(path)
    check_patterns("ignore", ignore, [*needed, *held, *chain.from_iterable(aliases.values())])
    held = {name: value for name, value in held.items() if not matching([name], ignore)}
    for name in model.aliases:
        held = with_one_name(path, held, name, aliases[name])
    read_from = [name for name in needed if name in held or not matching([name, *aliases[name]], ignore)]
    if missing := [name for name in read_from if name not in held]:
        extra = held.keys() - needed.keys()
        raise Refused(f"{path}: `weights`: {listed(missing)} missing{near(missing[0], extra)}; or name it in `ignore`")
    if extra := [name for name in held if name not in needed and not matching([name], model.unread)]:
        raise Refused(
            f"{path}: `weights`: the model has no {listed(extra, verb=False)}{near(extra[0], needed)}; or name it in "
            "`ignore`"
        )
    for name in read_from:
        if tuple(held[name].shape) != needed[name]:
            raise Refused(
                f"{path}: `weights`: {name} has the shape {list(held[name].shape)}, but the model needs "
                f"{list(needed[name])}; change the model, or name it in `ignore`"
            )
    values = {
        name: held[in_file].to(torch.float32).reshape(shapes[name])
        for name, (in_file, _) in places.items()
        if in_file in read_from
    }
    constants = {name: values.get(name, value) for name, value in model.constants.items()}
    return replace(model, values={**model.values, **values}, constants=constants)


def with_one_name(path: Path, held: Params, name: str, aliases: Collection[str]) -> Params:
    """Return the tensors of a file in which a tied parameter has only the first of its names.

    Raises:
        Refused: the file has different values under these names.
    """
    first, *rest = [shared for shared in (name, *aliases) if shared in held] or [name]
    for second in rest:
        if not torch.equal(held[first], held[second]):
            raise Refused(
                f"{path}: `weights`: {first} and {second} are the same parameter in the model, but the file has "
                "different values; name one of them in `ignore`"
            )
    if first in held:
        value = held[first]
        held = {key: tensor for key, tensor in held.items() if key not in aliases} | {name: value}
    return held


def read(path: Path) -> Params:
    """Return the tensors of a safetensors file.

    Raises:
        Refused: the file does not exist, or has another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except FileNotFoundError:
        raise Refused(f"`weights: {path}`: there is no such file; correct the path") from None
    except (SafetensorError, OSError) as error:
        raise Refused(f"`weights: {path}` cannot be read as safetensors: {defect(path, error)}") from None


def check_patterns(key: str, patterns: Iterable[str], names: Collection[str]) -> None:
    """Raise Refused if a pattern matches none of the names."""
    for pattern in patterns:
        if not matching(names, [pattern]):
            raise Refused(f"`{key}: {pattern}` matches no name{near(pattern, names)}")


def listed(names: list[str], verb: bool = True) -> str:
    """Return the first names in one line, with "is" or "are" at the end."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more + ((" is" if len(names) == 1 else " are") if verb else "")


def near(name: str, names: Collection[str]) -> str:
    """Return the part of a message that says which of the names are close to a wrong name, or else the first names."""
    distinct = sorted(set(names))
    if close := difflib.get_close_matches(name, distinct, n=3, cutoff=0.5):
        return f"; the closest names are {', '.join(close)}"
    return f"; the names are {listed(distinct, verb=False)}" if distinct else ""
