import numpy as np
import pytest

from floral.config.reading import ConfigError, parse
from floral.config.schema.data import Synthetic
from floral.data.synthetic import generate, rows_per_client


def test_the_test_share_is_that_of_the_official_code():
    assert [rows_per_client(Synthetic(kind="linear", samples_per_client=n)) for n in (8, 120)] == [(7, 1), (97, 23)]
    with pytest.raises(ConfigError, match="samples_per_client: 5` leaves no test sample"):
        rows_per_client(Synthetic(kind="linear", samples_per_client=5))


def test_shapes_and_types():
    spec = Synthetic(kind="mlp", outputs=1, samples_per_client=120, population=50)
    made = generate(spec, clients=20, clusters=4, seed=0)
    shapes = {name: getattr(made, name).shape for name in vars(made)}
    assert shapes == {
        "train_x": (1940, 10), "train_y": (1940, 1), "test_x": (460, 10), "test_y": (460, 1),
        "global_test_x": (4, 50, 10), "global_test_y": (4, 50, 1),
    }  # fmt: skip
    assert {getattr(made, name).dtype for name in vars(made)} == {np.dtype(np.float32)}


def affine(x, y):
    """The least-squares map y = [x, 1] A of rows and what it leaves over."""
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    return np.linalg.lstsq(design, y.astype(np.float64), rcond=None)[0], design


def test_linear_clusters_are_exact_affine_maps_that_differ_by_a_matrix_of_the_given_rank():
    spec = Synthetic(kind="linear", outputs=10, samples_per_client=100, rank=2, population=64)
    made = generate(spec, clients=6, clusters=3, seed=5)
    maps = [affine(x, y)[0] for x, y in zip(made.global_test_x, made.global_test_y, strict=True)]
    for client in range(6):
        rows = slice(client * 81, (client + 1) * 81)
        _, design = affine(made.train_x[rows], made.train_y[rows])
        np.testing.assert_allclose(design @ maps[client % 3], made.train_y[rows], atol=1e-4)
    difference = maps[1][:10] - maps[0][:10]
    assert (np.linalg.svd(difference)[1] > 1e-3).sum() == 4
    np.testing.assert_allclose(maps[1][10], maps[0][10], atol=1e-4)


def test_scale_zero_makes_all_clusters_equal_and_the_mlp_differs_from_the_linear_teacher():
    spec = Synthetic(kind="linear", samples_per_client=8, scale=0.0, population=64)
    made = generate(spec, clients=4, clusters=4, seed=1)
    (first, _), (second, _) = (affine(made.global_test_x[c], made.global_test_y[c]) for c in (0, 3))
    np.testing.assert_allclose(first, second, atol=1e-4)
    mlp = generate(spec.model_copy(update={"kind": "mlp"}), clients=4, clusters=4, seed=1)
    fitted, design = affine(mlp.global_test_x[0], mlp.global_test_y[0])
    assert np.abs(design @ fitted - mlp.global_test_y[0]).max() > 0.05


def test_weights_have_the_variances_of_the_paper():
    spec = Synthetic(kind="linear", dimension=200, outputs=200, samples_per_client=6, population=400)
    made = generate(spec, clients=2, clusters=2, seed=0)
    maps = [affine(x, y)[0] for x, y in zip(made.global_test_x, made.global_test_y, strict=True)]
    difference = maps[1][:-1] - maps[0][:-1]  # 2·(u₁v₁ᵀ − u₀v₀ᵀ): variance 2²·2/d·1
    assert difference.var() * 200 / 8 == pytest.approx(1, rel=0.35)
    assert maps[0][-1].var() * 200 == pytest.approx(1, rel=0.35)


def test_label_noise_is_on_train_and_test_but_never_on_the_population():
    spec = Synthetic(kind="linear", samples_per_client=400, population=32)
    clean, noisy = (generate(spec.model_copy(update={"label_noise": s}), 2, 2, 0) for s in (0.0, 0.5))
    assert np.array_equal(clean.train_x, noisy.train_x) and np.array_equal(clean.global_test_y, noisy.global_test_y)
    for side in ("train_y", "test_y"):
        assert (getattr(noisy, side) - getattr(clean, side)).std() == pytest.approx(0.5, rel=0.1)


def test_seeds_differ_and_repeat():
    spec = Synthetic(kind="mlp", samples_per_client=8)
    a, b, c = (generate(spec, 4, 2, seed) for seed in (0, 0, 1))
    assert np.array_equal(a.train_y, b.train_y) and not np.array_equal(a.train_y, c.train_y)


def test_more_outputs_than_coordinates_is_a_mistake_of_the_user():
    with pytest.raises(ConfigError, match=r"outputs: 11` is more than `data\.dimension: 10"):
        generate(Synthetic(kind="linear", outputs=11, samples_per_client=8), 2, 2, 0)


# ------------------------------------------------------------------------------------------- variants of the paper


def test_the_plainest_teachers_scale_one_coordinate_each():
    spec = Synthetic(kind="linear", samples_per_client=8, population=64, simple=True)
    made = generate(spec, clients=4, clusters=2, seed=0)
    for c in range(2):
        weight, _ = affine(made.global_test_x[c], made.global_test_y[c])
        expected = np.zeros((11, 3))
        np.fill_diagonal(expected, 1)
        expected[c, c] = 3  # 1 + scale
        np.testing.assert_allclose(weight, expected, atol=1e-4)
    relu = Synthetic(kind="mlp", outputs=1, samples_per_client=8, population=64, simple=True, rank=2)
    made = generate(relu, clients=4, clusters=4, seed=0)
    scaled = made.global_test_x[3] * np.where(np.isin(np.arange(10), (6, 7)), 3, 1)
    np.testing.assert_allclose(made.global_test_y[3, :, 0], np.maximum(scaled, 0).sum(1) / np.sqrt(10), atol=1e-4)
    with pytest.raises(ConfigError, match="simple`: 4 clusters of rank 1 need 4 coordinates, but there are 3"):
        generate(spec, clients=4, clusters=4, seed=0)


def test_normalised_teachers_have_hidden_outputs_of_mean_zero_and_variance_one_in_each_client():
    values = {"kind": "mlp", "outputs": 1, "samples_per_client": 50, "simple": True, "population": 64}
    plain, made = (generate(Synthetic(**values, normalised=n), 4, 2, seed=0) for n in (False, True))
    train, test = made.train_y.reshape(4, -1), made.test_y.reshape(4, -1)
    assert np.array_equal(plain.train_x, made.train_x)
    np.testing.assert_allclose(np.concatenate([train, test], 1).mean(1), 0, atol=1e-6)
    x = np.concatenate([made.train_x.reshape(4, -1, 10), made.test_x.reshape(4, -1, 10)], 1)
    x[:, :, 0] *= np.array([3, 1, 3, 1])[:, None]
    x[:, :, 1] *= np.array([1, 3, 1, 3])[:, None]
    hidden = np.maximum(x, 0)
    expected = ((hidden - hidden.mean(1, keepdims=True)) / hidden.std(1, keepdims=True)).sum(2) / np.sqrt(10)
    np.testing.assert_allclose(np.concatenate([train, test], 1), expected, atol=1e-3)
    with pytest.raises(ConfigError, match="normalised` needs `kind: mlp`, but `kind` is linear"):
        parse(Synthetic, {"kind": "linear", "samples_per_client": 8, "normalised": True}, "toy.yaml")


def test_what_is_not_asked_for_is_not_written_down():
    assert not {"simple", "normalised"} & Synthetic(kind="mlp", samples_per_client=8).model_dump().keys()
