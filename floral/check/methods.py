"""The contracts of a method: what the engine, the report and the other backends rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from floral.check import contracts
from floral.check.contracts import Broken
from floral.check.federation import make_data, simulate
from floral.check.outcomes import Check
from floral.config import catalogue, paths, plugins
from floral.config.reading import ConfigError, suggest
from floral.engine.simulate import Simulation
from floral.stages.build import check_signature

MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "mlp": ({"kind": "mlp", "hidden": 5}, (4, 4)),
    "mlp with batch norm": ({"kind": "mlp", "hidden": 5, "batch_norm": True}, (4, 4)),
    "cnn": ({"kind": "cnn", "channels": (2, 3), "hidden": 4}, (14, 14)),
}
"""Small models on which a method is tried, with the shape of their samples."""
ROUNDING = 1e-10
"""Largest difference, relative to the largest value, that counts as rounding in double precision."""


def variants_of(name: str) -> list[str]:
    """Return the variants to check: those of the method `name`, or the variant of this name.

    Raises:
        ConfigError: no method and no variant has this name.
    """
    if name in catalogue.names("methods"):
        return list(catalogue.method_file(name).variants)
    if name in (index := catalogue.variant_index()):
        return [name]
    if name in plugins.names("methods"):
        path = plugins.file("methods", name)
        raise ConfigError(
            f"{path}: this method has no description; write config/methods/{name}.yaml (docs/how-to/add-a-method.md)"
        )
    place = str(paths.CONFIG_FOLDER / "methods")
    raise suggest("method", name, [*catalogue.names("methods"), *index], place, catalogue.published_names())


def checks(variant: str) -> Iterator[Check]:
    """Yield the checks of a variant of a method, which train it on small models. They take some seconds."""
    fitting: dict[str, Callable[..., Simulation]] = {}
    described = catalogue.variant(variant)

    def signature() -> None:
        build = plugins.builder("methods", described.method)
        common = catalogue.common_parameters()
        check_signature(build, described.method, [key for key in described.params if key not in common])

    def builds() -> str | None:
        reasons = {}
        for name, (model, shape) in MODELS.items():
            make = _of_clusters(variant, model, shape)
            try:
                make()
                fitting[name] = make
            except ConfigError as refusal:
                reasons[name] = str(refusal).partition("cannot be used for task tiny: ")[2] or str(refusal)
        if not fitting:
            raise Broken("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        return "\n".join(f"refused for {name}: {reason}" for name, reason in reasons.items()) or None

    def declaration() -> None:
        simulation = first()()
        contracts.declaration_is_complete(simulation.method, simulation.data.clients)

    def first() -> Callable[..., Simulation]:
        return next(iter(fitting.values()))

    def backends() -> None:
        for name, make in fitting.items():
            for clusters, batch in ((2, 4), (3, 64)):
                try:
                    contracts.backends_agree(make, ROUNDING, clusters=clusters, batch=batch)
                except Broken as difference:
                    raise Broken(f"model {name}, {clusters} clusters, batch {batch}: {difference}") from None

    def global_only() -> str | None:
        try:
            contracts.global_only_is_true(first(), described.global_only)
        except Broken:
            if described.global_only:
                raise
            return (
                "in 5 rounds, all clients are served the same model; if this is so in all runs, set `global_only: true`"
            )
        return None

    def on_first(contract: Callable[..., None], **how: Any) -> Callable[[], None]:
        return lambda: contract(first(), **how)

    yield Check(
        "the parameters in the YAML file are the arguments of `build`", signature, needed=True,
        hint="a parameter was renamed in one of the two files",
    )  # fmt: skip
    yield Check("`build` makes a method, or refuses a model with a reason", builds, needed=True)
    yield Check("the declaration is complete: all groups that are named exist", declaration, needed=True)
    yield Check(
        "training changes what clients predict", on_first(contracts.training_changes_predictions),
        hint="no group has a rate above 0, `predict` does not use the trained groups, or no phase trains them",
    )  # fmt: skip
    yield Check(
        "a learning rate of 0 changes nothing", on_first(contracts.zero_rate_changes_nothing),
        hint="a group has a rate of its own in place of problem.lr, or the server changes values without updates",
    )  # fmt: skip
    yield Check("frozen groups keep their values", on_first(contracts.frozen_groups_never_change))
    yield Check(
        "values of absent clients stay as they are", on_first(contracts.absent_clients_keep_their_values),
        hint="the server writes PRIVATE values; or a group that belongs to one client is not PRIVATE",
    )  # fmt: skip
    yield Check("`global_only` says whether all clients get the same model", global_only)
    yield Check(
        "an interrupted run can continue: a round depends on its state alone",
        on_first(contracts.a_round_is_a_function_of_its_state),
        hint="a Python variable is changed in a round; or random numbers come from torch.rand in place of `noise`",
    )  # fmt: skip
    yield Check(
        "the order of clients is irrelevant",
        lambda: contracts.cohort_order_is_irrelevant(first(), backend="vmap", chunk=3),
        hint="a sum over clients depends on their positions",
    )  # fmt: skip
    yield Check(
        "it does not matter how many clients are computed at once", on_first(contracts.chunks_do_not_matter),
        hint="random numbers come from torch.rand in place of `noise`; or a client reads values of others",
    )  # fmt: skip
    yield Check(
        "the backends loop, vmap and batched give the same numbers", backends,
        hint="a function has an `if` on values of a tensor, changes a tensor in place, or uses .item()",
    )  # fmt: skip


def _of_clusters(variant: str, model: dict[str, Any], shape: tuple[int, ...]) -> Callable[..., Simulation]:
    """Return a function that simulates a variant; its argument `clusters` also changes the data."""

    def make(*, clusters: int = 2, **how: Any) -> Simulation:
        return simulate(variant, make_data(shape=shape, clusters=clusters), model=model, **how)

    return make
