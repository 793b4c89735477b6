"""The contracts of a model: what methods and backends rely on."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from floral.adaptors.attach import attach
from floral.check import contracts
from floral.check.contracts import Broken
from floral.check.federation import CLASSES, make_data, simulate
from floral.check.methods import ROUNDING
from floral.check.outcomes import Check
from floral.config import catalogue, plugins
from floral.config.reading import ConfigError, parse, suggest
from floral.core.errors import first_line
from floral.core.spec import Refused
from floral.engine.simulate import Simulation
from floral.models.module import Unknown, function_of
from floral.nn.model import Model
from floral.nn.modules.probe import WrongOutputs
from floral.nn.modules.wrap import NotBuilt
from floral.nn.norms import NORMS
from floral.stages.check_model import example_arguments
from floral.toolkit.prepared import constants, head_of, without_adaptor

SHAPES = ((16,), (4, 4), (8, 8), (28, 28), (32, 32), (32, 32, 3))
"""Shapes of samples that are tried unless the user names one: features, then grey and colour images."""
TOKENS = (8,)
"""Shape of a text that is tried last."""
VARIANTS = ("fedavg", "floral_1")
"""Variants that train the model: one without adaptors, and one with adaptors in clusters."""


@dataclass
class Facts:
    """What the checks of a model have observed, for the summary after them."""

    model: Model | None = None
    """The model, if it can be built."""
    unusable: dict[str, str] = field(default_factory=dict)
    """Backend → why it cannot be used."""


def keys_of(
    name: str,
    arguments: Mapping[str, Any] = {},
    inputs: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Return the keys of a task's `model`, for the name of a file in models/ or for <file.py>:<function>.

    `arguments` and `inputs` are as in a task. Arguments of a file in models/ that have no default get small values.

    Raises:
        ConfigError: no model, file or function has this name, or `inputs` are named for a file in models/.
    """
    if ":" in name:
        try:
            function_of(name)
        except Unknown as error:
            raise ConfigError(str(error)) from None
        except NotBuilt:
            pass  # the import fails, which the checks report
        named = {"arguments": dict(arguments), "inputs": dict(inputs)}
        return {"kind": "module", "build": name, **{key: values for key, values in named.items() if values}}
    if name not in (names := plugins.names("models")):
        raise suggest("model", name, names, "models (for a torch.nn.Module, give FILE.py:FUNCTION)")
    if inputs:
        raise ConfigError(f"--inputs: the model {name} gets the samples as they are; remove this option")
    return {"kind": name, **example_arguments(name), **arguments}


def checks(
    model: dict[str, Any], shape: tuple[int, ...] | None, outputs: int | None, facts: Facts | None = None
) -> Iterator[Check]:
    """Yield the checks of a model, which train it on small data of this shape and number of outputs.

    `model` has the keys of a task's `model`. Without `shape`, common shapes are tried until the model accepts one. If
    `facts` is given, the checks write there what they show.
    """
    facts = facts or Facts()
    classes = outputs or CLASSES
    fitting: dict[str, Any] = {}

    def make(variant: str, **how: Any) -> Simulation:
        return simulate(variant, model=model, **fitting, **how)

    def on(variant: str, contract: Callable[..., None], **how: Any) -> Callable[[], None]:
        return lambda: contract(partial(make, variant), **how)

    def signature() -> None:
        build = plugins.builder("models", model["kind"])
        parameters = inspect.signature(build).parameters
        if list(parameters)[:2] != ["shape", "outputs"]:
            raise Broken(f"the first arguments of `build` are {', '.join(list(parameters)[:2])}, not shape and outputs")
        if "width" not in parameters or parameters["width"].default != 1.0:
            raise Broken("`build` has no argument `width: float = 1.0`, by which methods widen the model")
        options = {key: value for key, value in model.items() if key != "kind"}
        parse(catalogue.model_options(model["kind"]), options, "model")

    def fits() -> str:
        reasons: list[str] = []
        wrong_outputs: dict[str, WrongOutputs] = {}
        tried = [(candidate, False) for candidate in ([shape] if shape else SHAPES)]
        tried += [(candidate, True) for candidate in ([shape] if shape else [TOKENS]) if len(candidate) == 1]
        for candidate, text in tried:
            data = make_data(shape=candidate, outputs=classes, text=text)
            if "inputs" in model:  # token ids are not divided by a scale
                data = replace(data, scale=1)
            try:
                simulation = simulate("fedavg", data, model=model, text=text)
                contracts.outputs_have_the_right_shape(lambda: simulation, classes, candidate if text else ())  # noqa: B023
            except Exception as error:  # a model of the user may fail in any way for a shape that it is not for
                reason = _reason(error)
                if isinstance(error.__context__, NotBuilt):
                    option = "; here they are --arguments '{name: value}'" if "`arguments`" in reason else ""
                    raise Broken(reason + option) from None
                if isinstance(error.__context__, WrongOutputs):
                    wrong_outputs[reason] = error.__context__
                reasons.append(f"{'text ' if text else ''}{list(candidate)}: {reason}")
                continue
            fitting.update(data=data, text=text)
            options = {key: value for key, value in model.items() if key != "kind"}
            facts.model = plugins.builder("models", model["kind"])(candidate, classes, **options)
            return f"{'text' if text else 'samples'} of shape {list(candidate)}, {classes} outputs"
        if wrong_outputs:  # the module accepts a shape of samples, so its message says more than those on other shapes
            reason, refusal = next(iter(wrong_outputs.items()))
            raise Broken(reason + f"; or check it with --outputs {refusal.module_outputs}" * refusal.is_fixed)
        remedy = "give the shape of a sample: --shape H W or --shape H W 3, not channels first"
        raise Broken("\n".join([*reasons, f"{remedy}; and the number of classes if it is not {classes}: --outputs 10"]))

    def backends(variant: str) -> str | None:
        for backend in contracts.VECTORISED:
            try:
                contracts.backends_agree(partial(make, variant), ROUNDING, [backend])
            except Refused as reason:
                facts.unusable[backend] = str(reason)
        return None if facts.unusable.keys() < set(contracts.VECTORISED) else "only the backend loop can be used"

    def adapted() -> None:
        try:
            make("floral_1")
        except ConfigError as refusal:
            raise Broken(_reason(refusal)) from None

    if model["kind"] != "module":
        yield Check("`build` has the arguments that methods and tasks use", signature, needed=True)
    yield Check("the model is built, and its outputs have the right shape", fits, needed=True)
    yield Check(
        "initial values follow from the seed", on("fedavg", contracts.initial_values_follow_from_the_seed),
        hint="values are drawn in `build` without a seed, or are constants",
    )  # fmt: skip
    yield Check(
        "training changes what it predicts", on("fedavg", contracts.training_changes_predictions),
        hint="the outputs do not depend on the parameters, for example after .detach()",
    )  # fmt: skip
    yield Check("a learning rate of 0 changes nothing", on("fedavg", contracts.zero_rate_changes_nothing))
    yield Check(
        "the outputs for a sample do not depend on the rest of the batch",
        on("fedavg", contracts.samples_are_independent),
        hint="a mean is taken over the batch, or an axis is flattened with the batch",
    )  # fmt: skip
    yield Check(
        "an interrupted run can continue: a round depends on its state alone",
        lambda: contracts.a_round_is_a_function_of_its_state(partial(make, "fedavg"), backend="loop", chunk=1),
        hint="the forward pass changes a Python variable, or draws random numbers of its own",
    )  # fmt: skip
    for variant in VARIANTS:
        title = "without adaptors" if variant == "fedavg" else "with adaptors"
        if variant != "fedavg":
            yield Check("adaptors can be attached", adapted, needed=True)
        yield Check(
            f"the backends that can be used give the same numbers, {title}", partial(backends, variant),
            hint="the forward pass has an `if` on values, changes a tensor in place, or depends on the batch size",
        )  # fmt: skip


def summary(facts: Facts) -> dict[str, str]:
    """Return what the checks have observed, as the title of a row → its text. It is empty without a model."""
    model = facts.model
    if model is None:
        return {}
    without = without_adaptor(model)
    norms = [name for name, layer in model.layers.items() if isinstance(layer, NORMS) and name not in without]
    rows = {"parameters": f"{model.size:,} trained, {constants(model):,} frozen"}
    if model.remarks:
        rows["note"] = "; ".join(model.remarks)
    rows["head"] = head_of(model) or "none: no layer has weights"
    rank = catalogue.variant("floral_1").params["rank"]
    try:
        adaptors = attach(model, rank=rank, bias="zero")
    except Refused as reason:
        rows["adaptors"] = f"none: {reason}"
    else:
        share = adaptors.size / model.size
        rows["adaptors"] = ", ".join(adaptors.by_layer)
        rows["FLoRAL 1 %"] = f"an adaptor has {adaptors.size:,} parameters, {100 * share:.2g} % of the model" + (
            ", because its rank is at least 1 in each layer" if share > 2 * rank else ""
        )
    if norms:
        rows["norm layers"] = (
            f"{', '.join(norms)}; they get adaptors in methods with `norm: plain` or `reparameterised`"
        )
    rows["no adaptor"] = ", ".join(without) or "none"
    usable = [backend for backend in ("loop", *contracts.VECTORISED) if backend not in facts.unusable]
    rows["backends"] = ", ".join(usable)
    for reason in dict.fromkeys(facts.unusable.values()):
        backends = " and ".join(backend for backend, why in facts.unusable.items() if why == reason)
        rows["backends"] += f"; not {backends}: {reason}"
    return rows


def _reason(error: Exception) -> str:
    """Return the first line of an error, without the names of the variant and the task of the check."""
    return first_line(error).rpartition("cannot be used for task tiny: ")[2]
