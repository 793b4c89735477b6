"""Build the method of a variant: the method that the variant names, with its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from floral.config import catalogue, layers, plugins
from floral.config.reading import ConfigError
from floral.config.schema.method import Variant
from floral.core.spec import Method, Problem
from floral.toolkit.parts import with_private_statistics


def method_of(variant: Variant, problem: Problem) -> Method:
    """Build the method of a variant for a problem, that is, for a task and its data.

    If the variant has `statistics: private`, each client keeps its own running means and variances of batch norm. On a
    task with `base: frozen`, a method without a trained base has no warm-up: there is no base to train, and the head
    trains together with the adaptors.

    Raises:
        Refused: the method cannot be used for this problem.
        ConfigError: the method's function `build` does not take the parameters of the method's YAML file.
    """
    method_params = {name: value for name, value in variant.params.items() if name not in catalogue.common_parameters()}
    build = plugins.builder("methods", variant.method)
    check_signature(build, variant.method, method_params)
    if problem.frozen_base and method_params.get("base") == "warmup_freeze":
        method_params["base"] = "joint"
    method = build(problem, **method_params)
    private = variant.params["statistics"] == "private"
    return with_private_statistics(method, problem.clients) if private else method


def check_signature(build: Callable[..., Any], method: str, names: Iterable[str]) -> None:
    """Check that the function `build` of a method takes the parameters of the method's YAML file.

    Raises:
        ConfigError: an argument of `build` is missing in the YAML file, or the other way round.
    """
    try:
        inspect.signature(build).bind(None, **dict.fromkeys(names))
    except TypeError as error:
        raise ConfigError(
            f"{layers.file(f'methods/{method}.yaml')}: `parameters` and the arguments of `build` in "
            f"{plugins.file('methods', method)} differ: {error}; give both the same names"
        ) from None
