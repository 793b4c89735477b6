"""Pooled training: what one data holder with all rows, or with all rows of one true cluster, would reach."""

from typing import Literal

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor


def build(problem: Problem, *, pool: Literal["all", "cluster"]) -> Method:
    """`pool="all"`: one model on all rows. `pool="cluster"`: one per true cluster, the ceiling of any clustering.

    A pool sees the participation share of its rows per round, as many as the clients of a cohort see together.
    """
    model = problem.build_model()
    pools = 1 if pool == "all" else problem.clusters
    return Method(
        groups=model_groups(model, Scope.PRIVATE, Stream(problem.seed, "model"), problem.lr, holders=pools),
        predict=predictor(model),
        noise=model.noise,
        pool=pool,
    )
