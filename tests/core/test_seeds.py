import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from floral.core import seeds


def test_known_values_are_frozen():
    assert seeds.bits(0, "x", 1) == 1274078692830760701
    assert seeds.bits(2**63, "x", np.array([-1])).tolist() == [569697233683355743]
    np.testing.assert_allclose(seeds.uniform(3, "a", np.arange(3)), [0.0565717, 0.13023661, 0.08851831], atol=1e-8)
    np.testing.assert_allclose(seeds.normal(1, "q", np.arange(3)), [-0.38641846, -0.12502019, 1.91603511], atol=1e-8)
    assert seeds.permutation(0, "p", size=5).tolist() == [4, 3, 0, 1, 2]


@pytest.mark.parametrize("draw", [seeds.bits, seeds.uniform, seeds.normal])
def test_a_draw_does_not_depend_on_the_shape_or_order_asked_for(draw):
    clients, steps = np.arange(5), np.arange(7)
    whole = draw(9, "batches", 3, clients[:, None], steps)
    assert whole.shape == (5, 7)
    assert np.array_equal(whole[[4, 1]], draw(9, "batches", 3, np.array([4, 1])[:, None], steps))
    assert whole[2, 6] == draw(9, "batches", 3, 2, 6)


def test_permutations_of_many_clients_are_those_of_each():
    together = seeds.permutation(1, "batches", 4, np.array([7, 2]), size=50)
    assert np.array_equal(together[1], seeds.permutation(1, "batches", 4, 2, size=50))
    assert np.array_equal(np.sort(together, axis=-1), np.tile(np.arange(50), (2, 1)))


def test_streams_differ_by_seed_purpose_and_counter():
    draws = [
        seeds.permutation(seed, purpose, counter, size=100).tobytes()
        for seed in (0, 1)
        for purpose in ("cohort", "batches")
        for counter in (0, 1)
    ]
    assert len(set(draws)) == 8
    assert len(np.unique(seeds.bits(0, "grid", np.arange(300)[:, None], np.arange(300)))) == 90_000


def test_uniform_and_normal_have_their_moments():
    counter = np.arange(200_000)
    u, z = seeds.uniform(0, "moments", counter), seeds.normal(0, "moments", counter)
    assert u.min() >= 0 and u.max() < 1 and np.isfinite(z).all()
    assert abs(u.mean() - 1 / 2) < 0.004 and abs(u.var() - 1 / 12) < 0.002
    assert abs(z.mean()) < 0.015 and abs(z.var() - 1) < 0.02 and abs((z**4).mean() - 3) < 0.15
    counts = np.bincount((u * 100).astype(int), minlength=100)
    assert ((counts - 2000) ** 2 / 2000).sum() < 170  # chi-square with 99 degrees of freedom: p about 1e-5
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.015


@pytest.mark.parametrize("alpha", [0.1, 1.0, 20.0])
def test_dirichlet_parts_have_their_moments(alpha):
    """Mean 1/k and variance (k - 1)/(k²(kα + 1)); each point of its own counter, whatever is asked for beside it."""
    parts = seeds.dirichlet(3, "p", np.arange(20_000), alpha=alpha, size=4)
    np.testing.assert_allclose(parts.sum(-1), 1)
    np.testing.assert_allclose(parts.mean(0), 0.25, atol=0.01)
    np.testing.assert_allclose(parts.var(0), 3 / (16 * (4 * alpha + 1)), rtol=0.05)
    assert np.array_equal(seeds.dirichlet(3, "p", 7, alpha=alpha, size=4), parts[7])


@given(alpha=st.floats(1e-300, 1e300), size=st.integers(1, 50), seed=st.integers(0, 9))
def test_dirichlet_parts_of_any_alpha_are_shares_of_one(alpha, size, seed):
    parts = seeds.dirichlet(seed, "p", np.arange(8), alpha=alpha, size=size)
    assert (parts >= 0).all() and np.allclose(parts.sum(-1), 1)


def test_ranks_are_an_order_within_each_group():
    group = np.array([2, 0, 2, 2, 0, 5])
    place, size = seeds.ranks(0, "p", np.arange(6), group)
    assert size.tolist() == [3, 2, 3, 3, 2, 1]
    assert [sorted(place[group == g].tolist()) for g in (0, 2, 5)] == [[0, 1], [0, 1, 2], [0]]
    order = np.argsort(seeds.bits(0, "p", np.arange(6))[group == 2])
    assert place[group == 2][order].tolist() == [0, 1, 2]


def test_a_tiny_alpha_gives_one_part_everything():
    parts = seeds.dirichlet(0, "p", np.arange(1000), alpha=1e-6, size=5)
    assert np.isfinite(parts).all() and (parts.max(-1) > 0.999).mean() > 0.99
    assert seeds.dirichlet(0, "p", 0, alpha=0.1, size=1).tolist() == [1.0]


def test_samples_are_sorted_and_without_replacement():
    drawn = seeds.sample(5, "cohort", np.arange(200), size=30, count=3)
    assert drawn.shape == (200, 3) and (np.diff(drawn) > 0).all()
    assert np.bincount(drawn.ravel(), minlength=30).min() > 5
    assert seeds.sample(5, "cohort", 0, size=30, count=30).tolist() == list(range(30))
    with pytest.raises(ValueError, match="cannot draw 4 different numbers out of 3"):
        seeds.sample(5, "cohort", size=3, count=4)


def test_small_samples_are_as_they_always_were():
    """The cohorts of published results: the first of a permutation, for every population that was small enough."""
    for size in (30, seeds.MAX_PERMUTED):
        whole = seeds.permutation(3, "cohort", 7, size=size)
        assert np.array_equal(seeds.sample(3, "cohort", 7, size=size, count=10), np.sort(whole[:10]))
    assert seeds.sample(0, "cohort", 1, size=300, count=6).tolist() == [57, 78, 90, 102, 276, 294]
    assert seeds.sample(0, "cohort", 1, size=100_000, count=6).tolist() == [17415, 18925, 22341, 28439, 63776, 98723]


def test_large_samples_are_those_of_each_counter_in_any_shape():
    whole = seeds.sample(9, "cohort", np.arange(4)[:, None], np.arange(25), size=5000, count=600)
    assert whole.shape == (4, 25, 600) and whole.dtype == np.int64
    assert (np.diff(whole) > 0).all() and whole.min() >= 0 and whole.max() < 5000
    assert np.array_equal(whole[3, 7], seeds.sample(9, "cohort", 3, 7, size=5000, count=600))
    assert seeds.sample(9, "cohort", 3, size=5000, count=0).shape == (0,)
    with pytest.raises(ValueError, match="cannot draw -1 different numbers out of 5000"):
        seeds.sample(9, "cohort", 3, size=5000, count=-1)


@pytest.mark.parametrize("size", [4097, 2**13, 116_857])
def test_large_samples_hit_every_number_equally_often(size):
    """Chi-square over 64 classes of equal width, with a probability of about 1e-5 to fail by chance."""
    rounds, count, classes = 4000, 30, 64
    drawn = seeds.sample(1, "cohort", np.arange(rounds), size=size, count=count)
    edges = np.arange(classes + 1) * size // classes
    expected = rounds * count * np.diff(edges) / size
    counts = np.bincount(np.searchsorted(edges, drawn.ravel(), side="right") - 1, minlength=classes)
    assert ((counts - expected) ** 2 / expected).sum() < 120  # 63 degrees of freedom


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_drawing_anew_gives_every_subset_equally_often(count, monkeypatch):
    """Subsets of 0 … 5 drawn as those of large populations are: chi-square over all of them."""
    monkeypatch.setattr(seeds, "MAX_PERMUTED", 0)
    monkeypatch.setattr(seeds, "SPARSE_RATIO", 1)
    rounds = 60_000
    drawn = seeds.sample(2, "subsets", np.arange(rounds), size=6, count=count)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == math.comb(6, count)
    expected = rounds / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 60  # 5, 14, 19 and 5 degrees of freedom: at most 1e-5


def test_a_sample_costs_its_own_size(monkeypatch):
    """Numbers drawn for 30 out of a population: the same few however large that is, and where many must be redrawn."""
    drawn = []
    real = seeds.bits

    def counted(*arguments):
        drawn.append(real(*arguments))
        return drawn[-1]

    monkeypatch.setattr(seeds, "bits", counted)
    for size in (10_000, 100_000, 10**12):
        drawn.clear()
        seeds.sample(0, "cohort", 1, size=size, count=30)
        assert sum(random.size for random in drawn) <= 64
    drawn.clear()
    assert len(np.unique(seeds.sample(0, "cohort", 1, size=2**40, count=2000))) == 2000
    assert sum(random.size for random in drawn) <= 3 * 2000


def test_a_sequence_with_many_repeats_is_drawn_on(monkeypatch):
    """Asked for few numbers at first, the sample is the same as when enough were asked for."""
    real = seeds.bits
    enough = seeds.sample(0, "cohort", np.arange(3), size=5000, count=600)

    def few(seed, purpose, *counters):
        """Of every number two, so that half of what is drawn are repeats."""
        return real(seed, purpose, *counters[:-1], counters[-1] // 2)

    monkeypatch.setattr(seeds, "bits", few)
    assert np.array_equal(seeds.sample(0, "cohort", np.arange(3), size=5000, count=600), enough)


def test_a_counter_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match="float64"):
        seeds.bits(0, "x", np.array([0.5]))
