import numpy as np
import pytest

from floral import seeds


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


def test_samples_are_sorted_and_without_replacement():
    drawn = seeds.sample(5, "cohort", np.arange(200), size=30, count=3)
    assert drawn.shape == (200, 3) and (np.diff(drawn) > 0).all()
    assert np.bincount(drawn.ravel(), minlength=30).min() > 5
    assert seeds.sample(5, "cohort", 0, size=30, count=30).tolist() == list(range(30))
    with pytest.raises(ValueError, match="cannot draw 4 different numbers out of 3"):
        seeds.sample(5, "cohort", size=3, count=4)


def test_a_counter_that_is_no_integer_is_refused():
    with pytest.raises(TypeError, match="float64"):
        seeds.bits(0, "x", np.array([0.5]))
