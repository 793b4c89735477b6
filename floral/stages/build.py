"""Build the method of a variant: the method that the variant names, with its parameters."""

from __future__ import annotations

import importlib

from floral.config import catalogue
from floral.config.schema.method import Variant
from floral.core.spec import Method, Problem
from floral.toolkit.parts import with_private_statistics


def method_of(variant: Variant, problem: Problem) -> Method:
    """Build the method of a variant for a problem, that is, for a task and its data.

    If the variant has `statistics: private`, each client keeps its own running means and variances of batch norm.

    Raises:
        Refused: the method cannot be used for this problem.
    """
    method_params = {name: value for name, value in variant.params.items() if name not in catalogue.common_parameters()}
    method = importlib.import_module(f"floral.methods.{variant.method}").build(problem, **method_params)
    private = variant.params["statistics"] == "private"
    return with_private_statistics(method, problem.clients) if private else method
