"""Tests and ranks: laws that are known, and cases small enough to count."""

import math

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from floral.report.statistics import (
    Ranks,
    attainable,
    holm,
    indistinguishable,
    least_p,
    ranks,
    seeds_to_decide,
    sign_flip,
    signed_rank,
)


def generator(seed=0):
    return np.random.Generator(np.random.Philox(seed))


# ---------------------------------------------------------------------------------------- p-values


def test_the_least_p_is_that_of_differences_of_one_sign():
    for n in (5, 6, 10):
        assert sign_flip([1.0 + i for i in range(n)]) == least_p(n) == 2 / 2**n
    assert not attainable(5) and attainable(6) and not attainable(6, 2) and attainable(10, 25)


def test_sign_flips_by_hand():
    # |±1 ±2 ±3| >= 4 for (1, 2, 3), (-1, 2, 3) and their opposites
    assert sign_flip([-1.0, 2.0, 3.0]) == 4 / 8
    assert sign_flip([0.0, 0.0]) == 1


def test_under_the_null_p_is_below_its_level_as_often_as_it_says():
    random = generator(2)
    p = np.array([sign_flip(random.normal(size=7)) for _ in range(600)])
    assert np.mean(p <= 0.25) == pytest.approx(0.25, abs=0.05)
    many = [sign_flip(random.normal(size=16)) for _ in range(40)]
    assert 0.25 < np.mean(many) < 0.75 and min(many) > 0


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "b": 0.06, "c": 0.06}
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0} and holm({}) == {}


def test_holm_holds_the_familywise_error():
    random = generator(3)
    wrong = [min(holm({str(i): p for i, p in enumerate(random.random(5))}).values()) <= 0.05 for _ in range(2000)]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(("effect", "needed"), [(0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_to_decide_are_those_of_the_tables_of_the_paired_t_test(effect, needed):
    """80 % power at two-sided 5 %: 34, 15 and 10 pairs for 0.5, 0.8 and 1 standard deviations (Cohen 1988)."""
    assert seeds_to_decide([effect - math.sqrt(0.5), effect + math.sqrt(0.5)]) == needed
    assert seeds_to_decide([-effect - math.sqrt(0.5), -effect + math.sqrt(0.5)]) == needed


@pytest.mark.parametrize(("effect", "needed"), [(3.742, 3), (4.57, 3)])
def test_seeds_to_decide_where_scipy_has_no_value_for_the_far_side(effect, needed):
    """By numerical integration: 3 pairs have the power 0.877 at the first of these, 2 less than 0.8 at both."""
    assert seeds_to_decide([effect - math.sqrt(0.5), effect + math.sqrt(0.5)]) == needed


def test_seeds_to_decide_knows_when_to_be_silent():
    assert seeds_to_decide([1.0]) is None and seeds_to_decide([-1.0, 1.0]) is None
    assert seeds_to_decide([-10.0, 10.001]) is None and seeds_to_decide([1.0, 1.0]) == 2


# ------------------------------------------------------------------------------------------- ranks


def test_ranks_by_hand():
    # a is best on all six tasks, of which the last is a loss; b and c tie on the first
    results = {"a": [9, 9, 9, 9, 9, 1], "b": [5, 5, 5, 5, 5, 5], "c": [5, 1, 1, 1, 1, 9]}
    found = ranks(results, [True] * 5 + [False])
    assert found.mean == pytest.approx({"a": 1, "b": 2.5 / 6 + 10 / 6, "c": 2.5 / 6 + 15 / 6})
    # q(0.05, 3, ∞)/√2 = 2.343 (Demšar 2006, table 5)
    assert found.critical == pytest.approx(2.343 * math.sqrt(3 * 4 / 36), abs=2e-3) and found.tasks == 6


def test_friedman_is_scipys():
    wide = generator().normal(size=(4, 9))
    found = ranks({str(row): list(values) for row, values in enumerate(wide)}, [False] * 9)
    assert found.p == pytest.approx(friedmanchisquare(*wide).pvalue)
    ties = {"a": [1, 1, 2, 2, 1, 1], "b": [1, 2, 1, 2, 2, 2], "c": [3, 3, 3, 2, 3, 3]}
    assert ranks(ties, [False] * 6).p == pytest.approx(friedmanchisquare(*ties.values()).pvalue)
    assert ranks({name: [1.0] * 6 for name in "abc"}, [True] * 6).p == 1


def test_too_few_tasks_or_too_many_methods_are_not_ranked():
    for methods, tasks in ((3, 5), (16, 6), (2, 6)):
        with pytest.raises(ValueError, match="ranks"):
            ranks({str(m): [float(m)] * tasks for m in range(methods)}, [True] * tasks)


def test_methods_within_the_critical_difference_are_indistinguishable():
    found = Ranks(mean={"d": 4.0, "a": 1.0, "b": 2.0, "c": 2.9}, p=0.01, critical=1.5, tasks=6)
    assert indistinguishable(found) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert indistinguishable(Ranks(mean=found.mean, p=0.01, critical=0.1, tasks=6)) == []
    assert indistinguishable(Ranks(mean=found.mean, p=0.01, critical=9, tasks=6)) == [("a", "b", "c", "d")]


def test_signed_rank_of_six_tasks_of_one_sign():
    assert signed_rank([1, 2, 3, 4, 5, 6]) == 2 / 64 and signed_rank([0.0] * 6) == 1
