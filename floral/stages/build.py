"""Build a variant's method for a problem."""

from __future__ import annotations

import importlib

from floral.config import catalogue
from floral.config.schema.method import Variant
from floral.core.spec import Method, Problem
from floral.toolkit.parts import with_private_statistics


def method_of(variant: Variant, problem: Problem) -> Method:
    """Build the variant's method, with the parameters that all methods share.

    Raises:
        Refused: the method cannot do the problem.
    """
    method_params = {name: value for name, value in variant.params.items() if name not in catalogue.common_parameters()}
    method = importlib.import_module(f"floral.methods.{variant.method}").build(problem, **method_params)
    private = variant.params["statistics"] == "private"
    return with_private_statistics(method, problem.clients) if private else method
