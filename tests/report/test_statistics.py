"""Numbers that can be checked by hand or in a table of Student's t."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from floral.core.intervals import Interval, mean_interval, t_interval
from floral.core.units import decile_count
from floral.report.paired import Paired
from floral.report.statistics import binomial_null, worst_mean


def test_t_interval_of_three_values():
    # m = 2, s = 1, t(2, 0.975) = 4.3027: half width 4.3027/√3 = 2.4842
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2 and interval.n == 3
    assert interval.half_width == pytest.approx(2.4841, abs=1e-4)
    assert not interval.is_decided


def test_a_mean_of_errors_is_geometric_and_never_overflows():
    found = mean_interval([1.0, 100.0], logarithmic=True)
    assert found.mean == pytest.approx(10) and found.low < 1 < 100 < found.high and found.neutral == 1
    assert mean_interval([0.0, 0.1, 0.2], logarithmic=True) == Interval(mean=0, low=None, high=None, n=3, neutral=1)
    assert t_interval([80.0, 300.0]).exponential().high == math.inf
    wide = Paired(values={"a": {0: 1e-300, 1: 1e300}, "b": {0: 1.0, 1: 1.0}, "c": {0: 0.0, 1: 1.0}}, logarithmic=True)
    assert wide.difference("a", "b").high == math.inf
    assert wide.difference("c", "b").n == 1 and wide.difference("c", "b").mean == 1, "an error of 0 has no ratio"


def test_t_interval_of_one_value_has_no_ends():
    interval = t_interval([0.9])
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.9, None, None, 1)
    assert interval.half_width is None and not interval.is_decided


def test_t_interval_of_equal_values_has_width_zero():
    interval = t_interval([0.5, 0.5])
    assert interval.low == interval.high == 0.5 and interval.is_decided


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_t_interval_refuses_what_has_no_mean(values):
    with pytest.raises(ValueError, match="finite"):
        t_interval(values)


@pytest.mark.parametrize(("clients", "count"), [(1, 1), (10, 1), (14, 1), (20, 2), (300, 30)])
def test_decile_is_a_tenth_of_the_clients(clients, count):
    assert decile_count(clients) == count


def test_worst_mean_between_minimum_and_mean():
    values = [0.9, 0.1, 0.5]
    assert worst_mean(values, 1) == pytest.approx(0.1)
    assert worst_mean(values, 2) == pytest.approx(0.3)
    assert worst_mean(values, 3) == pytest.approx(0.5)


def test_null_of_two_coins():
    # the lower of two fair coins is 1 only if both are: mean 1/4
    band = binomial_null([1, 1], 0.5, 1, draws=20_000)
    assert band.mean == pytest.approx(0.25, abs=0.01)
    assert (band.low, band.high) == (0, 1)


def test_null_is_that_of_all_outcomes_and_drawn_once_for_equal_numbers():
    samples, p, count = (3, 4, 3, 2), 0.6, 2
    outcomes = list(product(*(range(n + 1) for n in samples)))
    weights = [np.prod([binom.pmf(x, n, p) for x, n in zip(hits, samples, strict=True)]) for hits in outcomes]
    lowest = [worst_mean([x / n for x, n in zip(hits, samples, strict=True)], count) for hits in outcomes]
    band = binomial_null(samples, p, count)
    assert band.mean == pytest.approx(np.dot(weights, lowest), abs=0.005)
    assert binomial_null(list(samples), p, count) is band, "a figure and a table need it, and it is slow"


def test_null_of_all_clients_is_the_accuracy():
    assert binomial_null([50] * 8, 0.8, 8, draws=5000).mean == pytest.approx(0.8, abs=0.005)


def test_null_closes_on_the_accuracy_with_many_rows():
    band = binomial_null([10_000_000] * 4, 0.7, 1)
    assert band.low == pytest.approx(0.7, abs=1e-3) and band.high == pytest.approx(0.7, abs=1e-3)


def test_null_is_the_same_twice_and_other_with_another_seed():
    assert binomial_null([20] * 10, 0.6, 1) == binomial_null([20] * 10, 0.6, 1)
    assert binomial_null([20] * 10, 0.6, 1) != binomial_null([20] * 10, 0.6, 1, seed=1)
    assert binomial_null([20, 0, 20], 0.6, 1) == binomial_null([20, 20], 0.6, 1)


def test_the_ends_of_the_null_do_not_depend_on_the_draws_by_a_point():
    bands = [binomial_null([20] * 10, 0.6, 1, seed=seed) for seed in range(5)]
    assert max(band.low for band in bands) - min(band.low for band in bands) < 0.01
    assert max(band.mean for band in bands) - min(band.mean for band in bands) < 0.005


def test_null_at_certainty():
    assert np.isclose(binomial_null([5, 5], 1.0, 1).low, 1)
    with pytest.raises(ValueError, match="accuracy"):
        binomial_null([5], 1.1, 1)
    with pytest.raises(ValueError, match="count"):
        binomial_null([0, 0], 0.5, 1)
