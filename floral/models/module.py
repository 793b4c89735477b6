"""Any `torch.nn.Module`, which a function of the user builds. The module itself is not changed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

from floral.config import own_code, paths
from floral.config.reading import closest
from floral.core.errors import in_user_code
from floral.core.spec import Refused
from floral.nn.layers import Conv2d, ConvTranspose2d, Embedding, Linear
from floral.nn.model import Model
from floral.nn.modules.inputs import Inputs
from floral.nn.modules.probe import WrongOutputs
from floral.nn.modules.wrap import NotBuilt, wrap
from floral.nn.norms import BatchNorm, GroupNorm, LayerNorm

VERSION = 2
"""Increase it when the same run gives other numbers."""


class Unknown(NotBuilt):
    """Error: the file or the function that `build` names does not exist."""


LAYERS = Linear, Conv2d, ConvTranspose2d, Embedding, BatchNorm, GroupNorm, LayerNorm
"""Layers that a module may have. Their adaptors belong to the code of its runs."""


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    build: str,
    arguments: dict = {},  # noqa: B006
    inputs: dict = {},  # noqa: B006
    width: float = 1.0,
) -> Model:
    """Build the model of a module that the function `build` returns.

    `build` is <file.py>:<function> or <package.module>:<function>. It gets `arguments`, and, if it has arguments of
    these names, `shape` (of one input, channels first), `outputs` and `width`. The module maps a batch to logits. A
    batch of images has the shape [B, channels, H, W]. `inputs` makes keyword arguments of the batch: it maps their
    names to `x`, `ids` (whole numbers) or `ids != 0` (1 where an id is not 0).

    Raises:
        Refused: the function is missing or fails, or the module cannot be used.
    """
    function = function_of(build)
    accepted = inspect.signature(function).parameters
    _check_width(build, accepted, arguments, width)
    samples = Inputs(shape, inputs)
    offered = {"shape": samples.of_module, "outputs": outputs, "width": width}
    values = {name: value for name, value in offered.items() if name in accepted} | arguments
    try:
        inspect.signature(function).bind(**values)
    except TypeError as error:
        raise NotBuilt(f"{build} does not take these arguments: {error}; correct `arguments`") from None

    def make() -> Any:
        try:
            return function(**values)
        except (Exception, SystemExit) as error:  # the code of the user may fail in any way
            raise NotBuilt(f"{build} fails: {in_user_code(error)}; correct this code") from error

    try:
        model = wrap(make, samples, outputs)
    except WrongOutputs as error:
        remedy = _remedy(build, accepted, arguments, outputs, error.module_outputs)
        raise WrongOutputs(f"{error}; {remedy}", error.module_outputs, "outputs" not in accepted) from None
    if "width" in accepted and "width" not in arguments and accepted["width"].default is inspect.Parameter.empty:
        model = replace(model, remarks=(f"{build} is called with `width={width}`, which multiplies hidden sizes",))
    return model


def _remedy(
    build: str, accepted: Collection[str], arguments: Collection[str], outputs: int, module_outputs: int
) -> str:
    """Return why a module has `module_outputs` and not `outputs` outputs, and the remedy.

    `accepted` are the arguments of the function `build`, of which the task gives `arguments`.
    """
    name = build.rpartition(":")[2]
    if "outputs" in arguments:
        return f"`arguments` gives `{name}` its `outputs`; remove it there"
    if "outputs" in accepted:
        return f"`{name}` gets `outputs={outputs}`; make the last layer of this size"
    return (
        f"`{name}` has no argument `outputs`, so it makes {module_outputs} outputs for any task; rename its argument "
        "for the number of classes to `outputs`, or set it in `arguments`"
    )


def _check_width(
    build: str, accepted: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any], width: float
) -> None:
    """Check that the argument `width` of the function, if methods need it, multiplies the sizes of hidden layers.

    Raises:
        Refused: the method needs another width than 1, which the function cannot give; or the default of the argument
            is not 1, so that it has another meaning.
    """
    if width != 1.0 and "width" not in accepted:
        raise Refused(
            f"the method needs a wider or narrower model, but {build} has no argument `width`; give it one that "
            "multiplies the sizes of the hidden layers"
        )
    if "width" not in accepted:
        return
    if width != 1.0 and "width" in arguments:
        raise Refused(
            f"the method needs a wider or narrower model, but `arguments` sets the `width` of {build}; remove it from "
            "`arguments`, or use another method"
        )
    default = accepted["width"].default
    if "width" not in arguments and default not in (inspect.Parameter.empty, 1.0):
        raise NotBuilt(
            f"{build} has the default `width={default}`, but `width` is the factor of the hidden sizes, which is 1.0 "
            f"unless a method needs another; write `width=1.0` if it is this factor; otherwise rename the argument, or "
            f"write `arguments: {{width: {default}}}`"
        )


def function_of(name: str) -> Callable[..., Any]:
    """Return the function <file.py>:<function> or <package.module>:<function>. `function` may be <class>.<method>.

    Raises:
        Unknown: the file or the function does not exist.
        NotBuilt: the import fails.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise Unknown(f"`build: {name}` names no function; write <file.py>:<function> or <package.module>:<function>")
    path = paths.in_study(place)
    if place.endswith(".py") and not path.is_file():
        similar = closest(path.name, [file.name for file in path.parent.glob("*.py")])
        remedy = f"did you mean {Path(place).with_name(similar)}?" if similar else "correct the path"
        raise Unknown(f"`build: {name}`: there is no file {path}; {remedy}")
    try:
        module = own_code.from_file(path) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # the code of the user may fail in any way
        raise NotBuilt(f"`build: {name}`: the import fails: {in_user_code(error)}; correct it") from error
    built_by = reduce(lambda holder, part: getattr(holder, part, None), function.split("."), module)
    if not callable(built_by):
        similar = closest(function, [key for key, value in vars(module).items() if callable(value)])
        remedy = f"did you mean {similar}?" if similar else "correct the name"
        raise Unknown(f"`build: {name}`: {place} has no function {function}; {remedy}")
    return built_by
