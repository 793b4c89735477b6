"""Intervals and sets of best methods cover what they promise, for experiments as the suites make them.

Clients are fixed by design (client k has cluster k mod C). Per seed, the partition and the start of the model are
random. Clients share the global test set, so their values of a seed depend on each other.
"""

from __future__ import annotations

import numpy as np
import pytest

from floral.report.comparison import best_methods, compare
from floral.report.paired import Paired

CLIENTS, CLUSTERS, EXPERIMENTS = 20, 4, 2000


def experiment(random: np.random.Generator, seeds: int, effects: dict[str, float]) -> Paired:
    """Means over clients of one experiment.

    A seed moves all methods (its partition), each method (its start) and each cluster of a method. Clusters differ by
    20 points, and lose to each other what they win, so that clients vary far more than the mean over clients.
    """
    cluster = np.arange(CLIENTS) % CLUSTERS
    partition = random.normal(size=seeds)
    values = {}
    for method, effect in effects.items():
        trade = random.normal(scale=5.0, size=(seeds, CLUSTERS))
        trade -= trade.mean(axis=1, keepdims=True)
        of_clients = 70 + effect + 20.0 * cluster + (partition + random.normal(size=seeds))[:, None] + trade[:, cluster]
        values[method] = dict(enumerate(of_clients.mean(axis=1).tolist()))
    return Paired(values=values)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_paired_interval_covers_the_true_difference_in_95_of_100_cases(seeds: int) -> None:
    random, covered, widths = np.random.default_rng(seeds), 0, []
    for _ in range(EXPERIMENTS):
        paired = experiment(random, seeds, {"a": 1.5, "b": 0.0})
        difference = paired.difference("a", "b")
        covered += difference.low <= 1.5 <= difference.high
        widths.append(difference.half_width)
    print(f"{seeds} seeds: {100 * covered / EXPERIMENTS:.1f} % covered, mean half width {np.mean(widths):.2f} points")
    assert 0.93 <= covered / EXPERIMENTS <= 0.97


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_errors_over_powers_of_ten_have_covering_ratios(seeds: int) -> None:
    random, covered = np.random.default_rng(100 + seeds), 0
    for _ in range(EXPERIMENTS):
        shared = random.normal(scale=1.5, size=seeds)
        errors = {
            name: dict(enumerate(np.exp(shared + random.normal(size=seeds) + effect).tolist()))
            for name, effect in (("a", np.log(0.3)), ("b", 0.0))
        }
        ratio = Paired(values=errors, logarithmic=True).difference("a", "b")
        covered += ratio.low <= 0.3 <= ratio.high
    assert 0.93 <= covered / EXPERIMENTS <= 0.97


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("effects", [(0.0,) * 10, (0.0, 0.0, -3.0, -6.0, -9.0), (0.0, *(-30.0,) * 20)], ids=str)
def test_the_best_method_is_in_the_set_in_95_of_100_cases(seeds: int, effects: tuple[float, ...]) -> None:
    random, kept = np.random.default_rng(200 + seeds), 0
    for _ in range(400):
        paired = experiment(random, seeds, {f"m{index}": effect for index, effect in enumerate(effects)})
        kept += "m0" in best_methods(paired, paired.values, higher_is_better=True)
    assert kept / 400 >= 0.93


def test_a_method_that_is_far_behind_leaves_the_set_and_a_noisy_one_shows_what_it_hides() -> None:
    values = {
        "good": {0: 90.0, 1: 90.2, 2: 90.1}, "near": {0: 89.9, 1: 90.1, 2: 90.1}, "far": {0: 70.0, 1: 70.3, 2: 70.1},
        "noisy": {0: 95.0, 1: 60.0, 2: 80.0},
    }  # fmt: skip
    members = best_methods(Paired(values=values), values, higher_is_better=True)
    assert list(members) == ["good", "near", "noisy"]
    assert members["near"].may_be_worse < 1 and members["noisy"].may_be_worse > 30
    assert members["noisy"].detectable > 30 > 1 > members["near"].detectable


def test_two_seeds_name_no_set() -> None:
    assert best_methods(Paired(values={"a": {0: 1.0, 1: 2.0}, "b": {0: 0.0, 1: 0.5}}), ["a", "b"], True) == {}


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_verdict_interval_and_p_say_the_same(seeds: int, logarithmic: bool) -> None:
    random = np.random.default_rng(seeds)
    verdicts = set()
    for _ in range(200):
        values = {name: dict(enumerate(np.exp(random.normal(size=seeds)).tolist())) for name in ("floral_1", "other")}
        (item,) = compare(Paired(values=values, logarithmic=logarithmic), "floral_1", not logarithmic).values()
        ends = item.difference.low, item.difference.high
        decided = not ends[0] <= item.difference.neutral <= ends[1]
        assert (item.verdict != "open") == decided == (item.p < 0.05), "one comparison needs no correction"
        assert item.sign_flip >= 2 / 2**seeds
        verdicts.add(item.verdict)
    assert verdicts == {"better", "worse", "open"}


def test_one_model_for_all_clients_gives_the_interval_of_its_seeds() -> None:
    """FedAvg on shifted labels: clients of a cluster differ by 60 points, its five seeds by 0.3."""
    seeds = {0: 23.7, 1: 23.9, 2: 24.0, 3: 23.8, 4: 23.9}
    assert Paired(values={"fedavg": seeds}).mean("fedavg").half_width == pytest.approx(0.14, abs=0.01)
