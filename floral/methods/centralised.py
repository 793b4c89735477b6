"""Centralised training: train on pooled data, as an upper bound for federated methods."""

from typing import Literal

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor


def build(problem: Problem, *, pool: Literal["all", "cluster"]) -> Method:
    """Centralised training: one model on all samples (`pool="all"`), or one per true cluster (`pool="cluster"`).

    One model per true cluster is an upper bound for any clustering.

    In each round a pool trains on a share of its samples equal to the participation: as many samples as the clients of
    a cohort have together.
    """
    model = problem.build_model()
    pools = 1 if pool == "all" else problem.clusters
    return Method(
        groups=model_groups(model, Scope.PRIVATE, Stream(problem.seed, "model"), problem.lr, holders=pools),
        predict=predictor(model),
        noise=model.noise,
        pool=pool,
    )
