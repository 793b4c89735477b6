"""The data of one run: the shifted samples of each client, and the global test set of every cluster.

The shift changes samples in a way that differs between clusters, for example by a rotation (`floral.data.shifts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import Synthetic
from floral.config.schema.task import Normalise, Task
from floral.core import seeds
from floral.data import partition, shifts
from floral.data.partition_steps import SPLITS, concepts_of, reduce_rows
from floral.data.samples import GlobalTest, Samples, evaluated_on_training, stored_samples, synthetic_samples
from floral.data.stored import ARRAYS, Array, read_partition

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The samples of K clients in C clusters.

    train_x, train_y, test_x and test_y hold the samples of all clients, after the shift (`floral.data.shifts`). Images
    are uint8 [N, H, W] or [N, H, W, 3]. Divided by `scale`, their values are in [0, 1]. Labels are int64 [N]. Text has
    token ids x [N, T] with scale 1, and labels [N, T]. For regression, `classes` is None and y is float32 [N, outputs].

    The array rows[split], of shape [K, n_max], holds indices into train_x (splits train and validation) or test_x
    (split test). The first counts[split][k] indices of row k are the samples of client k. The rest is padding with the
    valid index 0.

    cluster [K] is the concept of each client's samples. A concept is one version of the shift. If a client has samples
    of several concepts, `cluster` has the most frequent one.

    Clients are evaluated on the split test. If they are evaluated on their training samples (see
    `evaluated_on_training`), the split test contains the training samples, and test_x is train_x.
    """

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array
    rows: Mapping[str, Rows]
    counts: Mapping[str, Rows]
    cluster: Rows
    clusters: int
    classes: int | None
    scale: int
    exact: bool
    partition_digest: str
    make_global_test: Callable[[], GlobalTest]
    normalise: Normalise | None = None
    """Normalisation of x / scale in each channel."""
    train_turns: Array | None = None
    """Quarter turns [N] by which the shift rotated each image of train_x; None without augmentation.

    The augmentation needs them, because it acts as if before the rotation.
    """
    data_digest: str | None = None
    """Digest of the stored data set; None for synthetic data."""
    client_names: tuple[str, ...] | None = None
    """The names of the clients in the data [K], such as names of writers; None if the clients have no names."""
    unseen: Federation | None = None
    """The clients that join after training, with their own arrays; None if the task has none.

    Their `cluster` is the concept of their samples. From `clusters` on, it is a concept that no cluster has. They have
    no validation samples, and their images are not augmented.
    """

    @property
    def clients(self) -> int:
        """The number K of clients."""
        return len(self.cluster)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input sample."""
        return self.train_x.shape[1:]

    @property
    def global_test_x(self) -> Array | list[Array]:
        """The inputs of the global test set of every cluster, [C, N, …].

        Each cluster has the complete test set, after the shift of this cluster. With synthetic data, each cluster has
        newly generated samples instead. If each cluster has its own classes or its own domain (partition kinds
        class_groups and domains), the result is a list of C arrays, with the test samples of each cluster.
        """
        return self._global_test[0]

    @property
    def global_test_y(self) -> Array | list[Array]:
        """The labels of global_test_x, [C, N], or its targets [C, N, outputs] for regression.

        If each cluster has its own classes or its own domain, the result is a list of C arrays.
        """
        return self._global_test[1]

    @cached_property
    def _global_test(self) -> GlobalTest:
        return self.make_global_test()


def load(run: Run, results: Path, *, test: bool = True) -> Federation:
    """Return the data of a run: read its partition and its samples from the folder `results`, and apply the shift.

    With test=False, no test samples are read. `partition_digest` of the result is the digest of the stored partition.

    In some published code, each variant of a method trains on another random part of each client's training samples.
    With the run's setting `subset: per_variant`, this function selects such a part, which depends on the seed and the
    variant. If clients are evaluated on their training samples, the evaluation still uses all of them, as in the
    published code.

    Raises:
        ConfigError: the partition or the data are missing, altered or do not belong together, or the data do not fit
        the task. The message names the file and the command that makes it.
    """
    task = run.task
    manifest, table = read_partition(run, results)
    joining = table.filter(pl.col("client") >= task.clients)
    table = table.filter(pl.col("client") < task.clients)
    cluster = partition.main_concepts(table, task.clients)
    on_training = test and evaluated_on_training(run)
    shards = table.filter(pl.col("split") != "test").with_columns(split=pl.lit("test"))
    if run.fidelity["subset"] == "per_variant":
        rule = task.partition
        table = reduce_rows(table, rule.share, rule.min_rows, run.seed, f"subset {run.variant.name}")
    sides = {"train": ("train", "validation")} | ({"test": ("test",)} if test else {})
    if on_training:
        table, sides = pl.concat([table.filter(pl.col("split") != "test"), shards]), {"train": SPLITS}
    data = run.partition.data
    samples = (
        synthetic_samples(run, data, cluster)
        if isinstance(data, Synthetic)
        else stored_samples(run, data, manifest["data_digest"], results, ARRAYS if test else ARRAYS[:2])
    )
    _check_text(task, samples.arrays["train_y"].ndim == 2 and samples.classes is not None)
    if why := task.unfit(samples.arrays["train_x"].shape[1:]):
        raise ConfigError(f"task {task.name!r}: {why}")
    names = manifest.get("client_names")  # of the training clients and then of the unseen clients
    federation = _federation(run, samples, table, sides, cluster, manifest["digest"])
    federation = replace(federation, client_names=names and tuple(names[: task.clients]))
    if task.unseen is None or not test:
        return federation
    concept = concepts_of(task.unseen, task.concepts)
    _check_concepts(task, concept, samples.classes)
    joining = joining.with_columns(pl.col("client") - task.clients)
    unseen = _federation(run, samples, joining, sides, concept, manifest["digest"])
    unseen = replace(unseen, train_turns=None, client_names=names and tuple(names[task.clients :]))
    return replace(federation, unseen=unseen)


def _federation(
    run: Run, samples: Samples, table: pl.DataFrame, sides: Mapping[str, Sequence[str]], cluster: Rows, digest: str
) -> Federation:
    """Return the samples of the clients in `table` as a Federation. Each sample is shifted according to its concept.

    `cluster` [K] holds the clients' clusters. `sides` maps "train" to the splits whose samples are in train_x, and
    "test" to those whose samples are in test_x.
    """
    task = run.task
    turns = None
    shifted: dict[str, Array] = {}
    rows: dict[str, Rows] = {}
    counts: dict[str, Rows] = {}
    for side, splits in sides.items():
        present = table.filter(pl.col("split").is_in(splits)).unique("row").sort("row")
        present_rows, concept = present["row"].to_numpy(), present["cluster"].to_numpy()
        x, y = samples.arrays[f"{side}_x"][present_rows], samples.arrays[f"{side}_y"][present_rows]
        shifted[f"{side}_x"] = shifts.apply_inputs(task.shift, x, concept, task.clusters, samples.scale)
        shifted[f"{side}_y"] = (
            y
            if samples.classes is None
            else shifts.apply_labels(task.shift, y, concept, samples.classes, run.partition_seed)
        )
        if side == "train" and task.partition.label_noise and samples.classes is not None:
            shifted["train_y"] = partition.noisy_labels(
                shifted["train_y"], present, task.partition.label_noise, samples.classes, run.partition_seed
            )
        if side == "train" and task.augmentation != "none":
            turns = shifts.quarter_turns(task.shift, concept, task.clusters)
        for split in splits:
            part = table.filter(pl.col("split") == split)
            rows[split], counts[split] = _padded(part, present_rows, len(cluster), run.partition_seed)
    if "test" not in sides:  # clients are evaluated on training samples
        shifted |= {"test_x": shifted["train_x"], "test_y": shifted["train_y"]}
    if "test" not in rows:  # clients are not evaluated
        shifted |= {"test_x": shifted["train_x"][:0], "test_y": shifted["train_y"][:0]}
        rows["test"], counts["test"] = np.zeros((len(cluster), 0), np.int64), np.zeros(len(cluster), np.int64)
    return Federation(
        train_x=shifted["train_x"],
        train_y=shifted["train_y"],
        test_x=shifted["test_x"],
        test_y=shifted["test_y"],
        rows=rows,
        counts=counts,
        cluster=cluster,
        clusters=task.clusters,
        classes=samples.classes,
        scale=samples.scale,
        exact=samples.exact,
        partition_digest=digest,
        make_global_test=lambda: samples.global_test(max(task.concepts, int(cluster.max()) + 1)),
        normalise=task.normalise,
        train_turns=turns,
        data_digest=samples.digest,
    )


def _check_concepts(task: Task, concept: Rows, classes: int | None) -> None:
    """Raise ConfigError if a new concept would shift labels in the same way as an existing cluster.

    A new concept is a shift that only clients that join after training have. With n classes, labels are shifted mod n,
    so that a shift by n + 1 classes equals a shift by 1. The C clusters shift labels by 0 … C - 1 classes, and new
    concepts by C, C + 1, …. So each new concept must shift labels by fewer than n classes.
    """
    most = int(concept.max())
    if task.shift.kind == "label_shift" and classes is not None and task.clusters <= most and most >= classes:
        available = max(0, classes - task.clusters)
        raise ConfigError(
            f"task {task.name!r}: {classes} classes leave only {available} label shifts that no cluster has, but each "
            f"new concept needs one; set `unseen.new_concept` to at most {available}"
        )


def _check_text(task: Task, is_text: bool) -> None:
    """Raise ConfigError if a task with text lacks the key `per`, or if a task without text has it.

    The key `per` names the unit of text that the model predicts: a character or a token.
    """
    if is_text and task.per is None:
        raise ConfigError(
            f"task {task.name!r}: the data {task.data!r} are text; set `per: character` or `per: token`, the unit "
            "that the model predicts"
        )
    if task.per is not None and not is_text:
        raise ConfigError(
            f"task {task.name!r}: `per: {task.per}` is for text only, but the data {task.data!r} are not text; "
            "remove the key `per`"
        )


def _padded(table: pl.DataFrame, present_rows: Rows, clients: int, seed: int) -> tuple[Rows, Rows]:
    """Return the samples of one split as a padded table [K, n_max], and each client's number of samples [K].

    Row k of the result holds the samples of client k in random order, followed by zeros. A sample is given by its
    position in `present_rows`, the sorted rows of the data set that are used.

    The order is random because some methods use fixed batches or average over batches. MNIST's later test images are
    harder, and no batch should contain only these.
    """
    client, row = table["client"].to_numpy(), table["row"].to_numpy()
    counts = np.bincount(client, minlength=clients)
    position, _ = seeds.ranks(seed, "order of a client's rows", row, client)
    padded = np.zeros((clients, counts.max()), np.int64)
    padded[client, position] = np.searchsorted(present_rows, row)
    return padded, counts
