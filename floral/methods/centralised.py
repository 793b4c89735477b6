"""Centralised training: train on the pooled data of many clients, as an upper bound for federated methods."""

from typing import Literal

from floral.core.spec import Method, Problem, Scope
from floral.core.streams import Stream
from floral.toolkit.parts import model_groups, predictor


def build(problem: Problem, *, pool: Literal["all", "cluster"], train: str) -> Method:
    """Centralised training: train one model on all samples (`pool="all"`), or one model per true cluster
    (`pool="cluster"`).

    The true clusters are those with which the task created its data. A model per true cluster is an upper bound for
    methods that look for clusters.

    In each round, a model trains on a part of its samples. For example, if a cohort has a tenth of all clients, the
    model trains on a tenth of its samples. So all models together train on as many samples as the clients of one cohort
    have.

    With `train="all"`, all parameters are trained, also on tasks with a frozen base.
    """
    model = problem.build_model(trained=train == "all")
    pools = 1 if pool == "all" else problem.clusters
    return Method(
        groups=model_groups(model, Scope.PRIVATE, Stream(problem.seed, "model"), problem.lr, holders=pools),
        predict=predictor(model),
        noise=model.noise,
        pool=pool,
    )
