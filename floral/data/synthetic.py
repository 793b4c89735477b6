"""Synthetic regression data: one linear or one-hidden-layer teacher per cluster, with low-rank differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from floral.config.reading import ConfigError
from floral.config.schema.data import Synthetic
from floral.core import seeds

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """Synthetic samples of the clients, and the global test set of each cluster.

    The k-th block of train_x [K·n, d] and train_y [K·n, outputs] has the samples of client k. The same holds for test_x
    and test_y. global_test_x [C, N, d] and global_test_y [C, N, outputs] have fresh samples of each cluster.
    """

    train_x: Floats
    train_y: Floats
    test_x: Floats
    test_y: Floats
    global_test_x: Floats
    global_test_y: Floats


def rows_per_client(spec: Synthetic) -> tuple[int, int]:
    """Return the numbers of training and test samples of each client.

    The test part is int((1 − 0.8)·n), as in the official code. With its rounding error, 120 samples give 23 test
    samples, not 24.

    Raises:
        ConfigError: there are too few samples for one test sample.
    """
    test = int((1 - 0.8) * spec.samples_per_client)
    if test < 1:
        raise ConfigError(
            f"data.samples_per_client: {spec.samples_per_client} leaves no test sample (a fifth); set at least 6"
        )
    return spec.samples_per_client - test, test


def generate(
    spec: Synthetic, clients: int, clusters: int, seed: int, cluster: npt.NDArray[np.int64] | None = None
) -> Arrays:
    """Generate x ~ N(0, I) and y from the teacher of each client's cluster c, with h = x (W + scale·u_c v_cᵀ) + b.

    `cluster` [K] holds the cluster c of each client k; without it, c = k mod C.

    W [d, d] ~ N(0, 1/d), u_c [d, rank] ~ N(0, 1/d), v_c [d, rank] ~ N(0, 1/rank), b [d] ~ N(0, 1/d).
    linear: y is the first `outputs` coordinates of h. mlp: y = ReLU(h) W_out with W_out [d, outputs] ~ N(0, 1/d).
    Training and test targets get label_noise·N(0, I). The global test set has no noise.

    simple: W = I, b = 0, W_out = 1/√d, and the r-th columns of u_c and v_c are the unit vector of coordinate
    rank·c + r. So cluster c scales `rank` coordinates by 1 + scale, and no other cluster scales these.

    normalised: each coordinate of ReLU(h) has mean 0 and variance 1 over all samples of a client, training and test
    together, or over the global test set of a cluster.

    Raises:
        ConfigError: a linear teacher has more outputs than coordinates, simple teachers have fewer coordinates than
            clusters, or there are too few samples.

    Source: arXiv 2410.03497, synthetic tasks.
    """
    d = spec.dimension
    if spec.kind == "linear" and spec.outputs > d:
        raise ConfigError(f"data.outputs: {spec.outputs} is more than data.dimension: {d}; set at most {d}")
    train_each, _ = rows_per_client(spec)

    def gaussian(purpose: str, *shape: int, variance: float = 1.0) -> npt.NDArray[np.float64]:
        return np.sqrt(variance) * seeds.normal(
            seed, f"synthetic {purpose}", *np.ix_(*(np.arange(size) for size in shape))
        )

    base, bias, readout = (
        gaussian("W", d, d, variance=1 / d),
        gaussian("b", d, variance=1 / d),
        gaussian("W_out", d, spec.outputs, variance=1 / d),
    )
    u, v = (
        gaussian("u", clusters, d, spec.rank, variance=1 / d),
        gaussian("v", clusters, d, spec.rank, variance=1 / spec.rank),
    )
    if spec.simple:
        free = spec.outputs if spec.kind == "linear" else d  # coordinates that reach the targets
        if clusters * spec.rank > free:
            raise ConfigError(
                f"data.simple: {clusters} clusters of rank {spec.rank} need {clusters * spec.rank} coordinates, "
                f"but there are {free}; set fewer clusters, or a larger data.dimension or data.outputs"
            )
        base, bias, readout = np.eye(d), np.zeros(d), np.full((d, spec.outputs), 1 / np.sqrt(d))
        u = v = np.eye(d)[:, : clusters * spec.rank].reshape(d, clusters, spec.rank).swapaxes(0, 1)
    weight = base + spec.scale * u @ v.swapaxes(1, 2)

    def targets(x: npt.NDArray[np.float64], cluster: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        hidden = x @ weight[cluster] + bias
        if spec.kind == "linear":
            return hidden[..., : spec.outputs]
        active = np.maximum(hidden, 0.0)
        if spec.normalised:
            active = (active - active.mean(-2, keepdims=True)) / np.sqrt(active.var(-2, keepdims=True) + 1e-5)
        return active @ readout

    x = gaussian("x", clients, spec.samples_per_client, d)
    noise = spec.label_noise * gaussian("noise", clients, spec.samples_per_client, spec.outputs)
    y = targets(x, np.arange(clients) % clusters if cluster is None else cluster) + noise
    global_test_x = gaussian("population", clusters, spec.population, d)
    global_test_y = targets(global_test_x, np.arange(clusters))

    def flat(values: npt.NDArray[np.float64]) -> Floats:
        return values.reshape(-1, values.shape[-1]).astype(np.float32)

    return Arrays(
        train_x=flat(x[:, :train_each]), train_y=flat(y[:, :train_each]),
        test_x=flat(x[:, train_each:]), test_y=flat(y[:, train_each:]),
        global_test_x=global_test_x.astype(np.float32), global_test_y=global_test_y.astype(np.float32),
    )  # fmt: skip
