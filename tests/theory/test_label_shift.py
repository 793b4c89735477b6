"""Over the same images under every cluster's label map, a model that cannot see the cluster is right once at most."""

from __future__ import annotations

import numpy as np
import pytest
from federations import CPU, train, view_of

from floral.config import catalogue
from floral.config.run import Run
from floral.stages.assemble import assemble
from floral.stages.fetch import fetch
from floral.stages.partition import partition

BLIND = ("fedavg", "fedadam", "scaffold", "fedit", "fedpara", "centralised")
"""One method of each family that serves one model. The contract of `global_only` covers all."""


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    fetch("digits", folder)
    return folder


def digits(variant, clusters, results, fidelity="corrected"):
    """The digits task with 6 clients, as the train stage assembles it."""
    change = {"clients": 6, "clusters": clusters, "rounds": 12, "participation": 1.0, "lr": 0.5}
    run = Run(
        task=catalogue.task("digits_label_shift", change),
        variant=catalogue.variant(variant),
        seed=0,
        fidelity=catalogue.fidelity(fidelity),
    )
    if not (results / run.partition.folder).exists():
        partition(run.partition, results)
    simulation, _, _ = assemble(run, results, CPU)
    return simulation


def accuracy(simulation, state):
    """Over all clients, each on all test images under its own label map; clusters are of equal size."""
    scores, _ = simulation.global_test(state)
    return scores.mean(scores.accuracy), scores


@pytest.mark.parametrize(("variant", "clusters"), [("fedavg", 2), *((variant, 3) for variant in BLIND)])
def test_a_cluster_blind_model_is_right_at_most_once_in_c(variant, clusters, results):
    """Exactly: of an image's C labels it can name one, before training and after each of four rounds."""
    simulation = digits(variant, clusters, results)
    state = simulation.start()
    for round in range(min(4, simulation.settings.rounds) + 1):
        if round:
            simulation.train(state, round)
        value, scores = accuracy(simulation, state)
        assert value <= 1 / clusters + 1e-12
        images = scores.rows[0]
        assert sum(scores.correct[:clusters]) <= images
    # and no image is right under two maps
    hits = np.zeros(int(images), int)
    for c in range(clusters):
        x, y = simulation.data.global_test(c)
        outputs, _ = simulation.method.predict(
            view_of(simulation, state, 0), simulation.data.test.decode(x), None, None
        )
        hits += (outputs.argmax(1) == y).numpy()
    assert hits.max() == 1


@pytest.mark.parametrize("variant", ["centralised_cluster", "ensemble_optimal", "floral_1_optimal"])
def test_a_model_that_knows_the_cluster_exceeds_the_bound_by_20_points(variant, results):
    simulation = digits(variant, 3, results)
    value, _ = accuracy(simulation, train(simulation, 12))
    assert value > 1 / 3 + 0.2
