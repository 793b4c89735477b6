"""A variant on a problem: its module's `build`, and then what every method can be asked for."""

from __future__ import annotations

import importlib

from floral.config import catalogue
from floral.config.schema.method import Variant
from floral.core.spec import Method, Problem
from floral.toolkit.parts import with_private_statistics


def method_of(variant: Variant, problem: Problem) -> Method:
    """The variant's method.

    Raises:
        Refused: it cannot do the problem.
    """
    own = {name: value for name, value in variant.params.items() if name not in catalogue.common_parameters()}
    method = importlib.import_module(f"floral.methods.{variant.method}").build(problem, **own)
    private = variant.params["statistics"] == "private"
    return with_private_statistics(method, problem.clients) if private else method
