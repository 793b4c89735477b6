"""Means and differences over seeds: few seeds, enough seeds, clients within, and what a mark takes."""

import numpy as np
import pytest

from floral.core.intervals import expanded, interval, resampled, t_interval
from floral.report.paired import MAX_RESAMPLED_CLIENTS, Clients, Paired
from floral.report.style import Style
from floral.report.summarise import best_two

SEEDS = (0, 1, 2, 3, 4)


def seeds(*values):
    return dict(enumerate(values))


def clients(*values, weights=None):
    own = np.array(values, dtype=float)
    return Clients(values=own, weights=np.ones(len(own)) if weights is None else np.array(weights, dtype=float))


def style(name, group="method"):
    return Style(id=name, title=name, short=name, family="F", group=group, colour="#aa0000", dashed=False)


def test_few_seeds_have_students_interval():
    found = Paired(values={"a": seeds(1.0, 2.0, 4.0), "b": seeds(1.0, 1.0), "c": {7: 1.0}})
    assert found.mean("a") == t_interval([1.0, 2.0, 4.0])
    assert found.difference("a", "b") == t_interval([0.0, 1.0]) and found.difference("a", "c") is None
    assert not found.is_separated("a", "b")


def test_without_clients_enough_seeds_are_bootstrapped_alone():
    values = {"a": seeds(1.0, 2.0, 4.0, 7.0, 7.5), "b": seeds(0.0, 1.0, 2.0, 9.0, 1.0)}
    found = Paired(values=values)
    assert found.mean("a") == interval(list(values["a"].values()))
    ours, theirs = found.difference("a", "b"), interval([1.0, 1.0, 2.0, -2.0, 6.5])
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high))


def test_clients_widen_what_seeds_alone_would_say():
    """All seeds are alike, their clients are not: no spread over seeds, and an interval all the same."""
    values = {"a": dict.fromkeys(SEEDS, 0.5)}
    own = clients(0.0, 1.0, 0.2, 0.8)
    found = Paired(values=values, clients={("a", seed): own for seed in SEEDS}).mean("a")
    assert found.low < 0.5 < found.high and Paired(values=values).mean("a").half_width == 0
    drawn = resampled(np.repeat(own.values[None, :, None], 5, axis=0))[:, 0]
    assert found == expanded(drawn, 0.5, 5)


def test_a_difference_that_all_clients_share_has_no_width_though_clients_differ():
    rows = {seed: np.random.default_rng(seed).random(6) for seed in SEEDS}
    values = {name: {s: float(own.mean()) + plus for s, own in rows.items()} for name, plus in (("a", 0.1), ("b", 0))}
    both = {(name, s): clients(*(own + plus)) for s, own in rows.items() for name, plus in (("a", 0.1), ("b", 0.0))}
    found = Paired(values=values, clients=both).difference("a", "b")
    assert found.mean == pytest.approx(0.1) and found.half_width == pytest.approx(0, abs=1e-9)


def test_where_one_run_has_no_clients_or_others_all_are_resampled_by_seeds():
    values = {"a": seeds(1.0, 2.0, 3.0, 4.0, 5.0)}
    some = {("a", seed): clients(1.0, 2.0) for seed in SEEDS}
    by_seeds = Paired(values=values).mean("a")
    for odd in (clients(1.0), clients(1.0, np.nan), clients(1.0, 2.0, weights=[1, 0])):
        assert Paired(values=values, clients=some | {("a", 3): odd}).mean("a") == by_seeds
    assert Paired(values=values, clients={("a", 0): clients(1.0)}).mean("a") == by_seeds


def test_a_method_with_other_seeds_does_not_change_the_others():
    values = {"a": seeds(1.0, 2.0, 3.0, 4.0, 6.0), "b": seeds(0.5, 2.0, 3.0, 4.0, 5.0)}
    more = {**values, "c": {seed: 1.0 for seed in range(20)}}
    assert Paired(values=more).difference("a", "b") == Paired(values=values).difference("a", "b")


BEST = {"a": [9.0, 8.0, 9.5, 8.5, 9.2], "b": [5.0, 5.5, 5.2, 5.1, 4.9], "c": [2.0, 2.1, 2.2, 2.3, 1.9]}


def marked(values, **groups):
    names = {name: style(name, groups.get(name, "method")) for name in values}
    found = Paired(values={name: seeds(*own) for name, own in values.items()})
    return best_two(found, {name: {"all": len(own)} for name, own in values.items()}, names, True)


def test_a_mark_takes_five_seeds_that_tell_methods_apart():
    assert marked(BEST) == {"a": "best", "b": "second"}
    assert marked({name: own[:4] for name, own in BEST.items()}) == {}
    assert marked({"a": BEST["a"]}) == {}


def test_noise_has_no_best():
    noisy = {**BEST, "b": [10.0, 7.5, 9.4, 8.6, 9.6]}  # of a greater mean than a, and not apart from it
    assert marked(noisy) == {}
    assert marked({**BEST, "c": [5.5, 5.0, 5.1, 5.2, 4.8]}) == {"a": "best"}  # b and c are not apart


def test_oracles_and_controls_neither_have_a_mark_nor_stand_in_the_way():
    assert marked({**BEST, "o": [99.0] * 5}, o="oracle") == {"a": "best", "b": "second"}
    assert marked({**BEST, "o": BEST["a"]}, o="control") == {"a": "best", "b": "second"}


def test_equal_methods_share_a_mark():
    assert marked({**BEST, "b": BEST["a"]}) == {"a": "best", "b": "best", "c": "second"}


def test_more_clients_than_are_resampled_leave_the_seeds_alone():
    values = {"a": seeds(1.0, 2.0, 3.0, 4.0, 5.0)}
    for count, alone in ((MAX_RESAMPLED_CLIENTS, False), (MAX_RESAMPLED_CLIENTS + 1, True)):
        own = clients(*np.linspace(0, 100, count))
        found = Paired(values=values, clients={("a", seed): own for seed in SEEDS}).mean("a")
        assert (found == Paired(values=values).mean("a")) == alone
