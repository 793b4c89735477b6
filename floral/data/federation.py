"""The data of one run as the trainer needs them: shifted rows, who holds which, and the population of every cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import Synthetic
from floral.config.schema.task import Normalise, Task
from floral.core import seeds
from floral.data import partition, shifts, synthetic

ARRAYS = ("train_x", "train_y", "test_x", "test_y")
CLIENTS = ("train_client", "test_client")
"""Of a data set with natural clients: which of them each row is of."""

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
GlobalTest = tuple[Array | list[Array], Array | list[Array]]
"""x and y of every cluster: arrays with axis C in front, or lists of C arrays where clusters have unequal many rows."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows before any shift: what a data set and a synthetic teacher have in common."""

    arrays: Mapping[str, Array]
    global_test: Callable[[int], GlobalTest]
    """How many concepts → their populations."""
    classes: int | None
    scale: int
    exact: bool
    digest: str | None


@dataclass(frozen=True, kw_only=True)
class Federation:
    """K clients of C clusters and their rows; images are uint8 [N, H, W] or [N, H, W, 3]; x / scale is in [0, 1].

    train_x, train_y, test_x, test_y: the rows that some client holds, each already under that client's shift.
    rows[split] [K, n_max]: row numbers within train_x (train, validation) or test_x (test), of which the first
    counts[split][k] belong to client k and the rest is padding (row 0, a valid index). cluster [K]: the concept of each
    client's rows, of most of them where clients mix concepts.
    Labels are int64 [N] for classification, and [N, T] for text, whose x are token ids [N, T] with scale 1; for
    regression `classes` is None and they are float32 [N, outputs].
    `test` is what clients are evaluated on: in a run for which `evaluated_on_training` holds it is each client's own
    training shard, and test_x is train_x itself.
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
    """How x / scale is normalised, channel by channel."""
    train_turns: Array | None = None
    """[N] quarter turns by which the shift has rotated each row of train_x, where training images are to be augmented
    before the shift; None: they are not augmented."""
    data_digest: str | None = None
    """Of the stored data set; None of data that are drawn."""
    unseen: Federation | None = None
    """The clients that join after training, with arrays of their own. Their `cluster` is the concept of their rows:
    below `clusters` that of a cluster, else of none. They have no validation rows, and their images no augmentation."""

    @property
    def clients(self) -> int:
        return len(self.cluster)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input row."""
        return self.train_x.shape[1:]

    @property
    def global_test_x(self) -> Array | list[Array]:
        """[C, N, …]: the whole test set under every cluster's shift, or fresh rows of every synthetic cluster; in a
        task with class groups, C arrays: the test rows of every cluster's classes."""
        return self._population[0]

    @property
    def global_test_y(self) -> Array | list[Array]:
        """[C, N] or [C, N, outputs]: the labels of population_x."""
        return self._population[1]

    @cached_property
    def _population(self) -> GlobalTest:
        return self.make_global_test()


def load(run: Run, results: Path, *, test: bool = True) -> Federation:
    """Read the run's partition and data from `results` and apply its shift; without `test`, no test row is read.

    Under the fidelity switch subset = per_variant the partition is full, and the training rows are thinned here by the
    run's seed and the variant's name; partition_digest is that of the partition as stored. Where a task is evaluated on
    its training shards, these are the client's training rows before that thinning, as in the published code.

    Raises:
        ConfigError: the partition or the data are missing, altered or do not belong together (the message has the file
            and the command that makes it), or the shift or the normalisation does not fit the data.
    """
    task = run.task
    manifest, table = _read_partition(run, results)
    joining = table.filter(pl.col("client") >= task.clients)
    table = table.filter(pl.col("client") < task.clients)
    cluster = partition.main_concepts(table, task.clients)
    on_training = test and evaluated_on_training(run)
    shards = table.filter(pl.col("split") != "test").with_columns(split=pl.lit("test"))
    if run.fidelity["subset"] == "per_variant":
        rule = task.partition
        table = partition.reduce_rows(table, rule.share, rule.min_rows, run.seed, f"subset {run.variant.name}")
    sides = {"train": ("train", "validation")} | ({"test": ("test",)} if test else {})
    if on_training:
        table, sides = pl.concat([table.filter(pl.col("split") != "test"), shards]), {"train": partition.SPLITS}
    data = run.partition.data
    source = (
        _teacher(run, data, cluster)
        if isinstance(data, Synthetic)
        else _stored(run, data, manifest["data_digest"], results, ARRAYS if test else ARRAYS[:2])
    )
    _check_text(task, source.arrays["train_y"].ndim == 2 and source.classes is not None)
    if why := task.unfit(source.arrays["train_x"].shape[1:]):
        raise ConfigError(f"task {task.name!r}: {why}")
    federation = _federation(run, source, table, sides, cluster, manifest["digest"])
    if task.unseen is None or not test:
        return federation
    concept = partition.concepts_of(task.unseen, task.concepts)
    _check_concepts(task, concept, source.classes)
    joining = joining.with_columns(pl.col("client") - task.clients)
    unseen = _federation(run, source, joining, sides, concept, manifest["digest"])
    return replace(federation, unseen=replace(unseen, train_turns=None))


def _federation(
    run: Run, source: Source, table: pl.DataFrame, sides: Mapping[str, Sequence[str]], cluster: Rows, digest: str
) -> Federation:
    """The rows that `table` gives to the clients of `cluster` [K], each row under the shift of its concept."""
    task = run.task
    turns = None
    shifted: dict[str, Array] = {}
    rows: dict[str, Rows] = {}
    counts: dict[str, Rows] = {}
    for side, splits in sides.items():
        held = table.filter(pl.col("split").is_in(splits)).unique("row").sort("row")
        held_rows, of_row = held["row"].to_numpy(), held["cluster"].to_numpy()
        x, y = source.arrays[f"{side}_x"][held_rows], source.arrays[f"{side}_y"][held_rows]
        shifted[f"{side}_x"] = shifts.apply_inputs(task.shift, x, of_row, task.clusters, source.scale)
        shifted[f"{side}_y"] = (
            y
            if source.classes is None
            else shifts.apply_labels(task.shift, y, of_row, source.classes, run.partition_seed)
        )
        if side == "train" and task.partition.label_noise and source.classes is not None:
            shifted["train_y"] = partition.noisy_labels(
                shifted["train_y"], held, task.partition.label_noise, source.classes, run.partition_seed
            )
        if side == "train" and task.augmentation != "none":
            turns = shifts.quarter_turns(task.shift, of_row, task.clusters)
        for split in splits:
            part = table.filter(pl.col("split") == split)
            rows[split], counts[split] = _padded(part, held_rows, len(cluster), run.partition_seed)
    if "test" not in sides:  # clients are evaluated on training rows
        shifted |= {"test_x": shifted["train_x"], "test_y": shifted["train_y"]}
    if "test" not in rows:  # they are not evaluated
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
        classes=source.classes,
        scale=source.scale,
        exact=source.exact,
        partition_digest=digest,
        make_global_test=lambda: source.global_test(max(task.concepts, int(cluster.max()) + 1)),
        normalise=task.normalise,
        train_turns=turns,
        data_digest=source.digest,
    )


def evaluated_on_training(run: Run) -> bool:
    """Whether clients are evaluated on their training shards: the published code of this task did, and so does the run.

    The published CIFAR-100 numbers are accuracies on the clients' training shards.
    """
    return run.task.published_split == "train" and run.fidelity["eval_split"] == "train"


def read_data(name: str, results: Path, sides: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, Array]]:
    """The card and the memory-mapped arrays (all, or those of `sides`) that the fetch stage made of a data set.

    Raises:
        ConfigError: they are missing or damaged.
    """
    folder = results / "data" / name
    try:
        manifest = json.loads((folder / "card.json").read_text())
        return manifest, {
            side: np.load(folder / f"{side}.npy", mmap_mode="r") for side in sides or stored_arrays(manifest)
        }
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.filename}: the data set {name!r} is not there yet; make it with: floral fetch {name}"
        ) from None
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{folder}: damaged ({error}); make it again with: floral fetch {name}") from None


def stored_arrays(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the arrays of a data set with this card."""
    return (*ARRAYS, *CLIENTS) if "natural_clients" in manifest else ARRAYS


def arrays_digest(arrays: Sequence[Array]) -> str:
    """The sha256 over the types, shapes and bytes of the arrays, which identifies a data set's content."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype.str}{array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def _stored(run: Run, name: str, expected_digest: str, results: Path, sides: Sequence[str]) -> Source:
    manifest, arrays = read_data(name, results, sides)
    if manifest["digest"] != expected_digest:
        raise ConfigError(
            f"{results / run.partition.folder}: this partition was made for other rows than those of "
            f"{results / 'data' / name}; what to do is said by: {_partition_command(run)}"
        )
    task, classes = run.task, manifest["classes"]
    side = "train" if evaluated_on_training(run) else "test"

    def global_test(concepts: int) -> GlobalTest:
        every_x, every_y = [], []
        for c in range(concepts):
            x, y = arrays[f"{side}_x"], arrays[f"{side}_y"]
            if task.partition.kind == "class_groups":
                mine = partition.group_of(y, task.partition, task.clusters) == c
                x, y = x[mine], y[mine]
            cluster = np.full(len(y), c)
            every_x.append(shifts.apply_inputs(task.shift, x, cluster, task.clusters, manifest["scale"]))
            every_y.append(shifts.apply_labels(task.shift, y, cluster, classes, run.partition_seed))
        return (every_x, every_y) if task.partition.kind == "class_groups" else (np.stack(every_x), np.stack(every_y))

    return Source(
        arrays=arrays, global_test=global_test, classes=classes, scale=manifest["scale"], exact=manifest["exact"],
        digest=manifest["digest"],
    )  # fmt: skip


def _check_concepts(task: Task, concept: Rows, classes: int | None) -> None:
    """Raises ConfigError where labels would move by as many as there are classes: that is a cluster's concept."""
    most = int(concept.max())
    if task.shift.kind == "label_shift" and classes is not None and task.clusters <= most and most >= classes:
        left = max(0, classes - task.clusters)
        raise ConfigError(
            f"task {task.name!r}: unseen.new_concept: {classes} classes have {left} label shifts beside those of the "
            f"{task.clusters} clusters; set new_concept to at most {left}"
        )


def _check_text(task: Task, text: bool) -> None:
    """Raises ConfigError where the task says of its rows that they are text, or not, and they are otherwise."""
    if text and task.per is None:
        raise ConfigError(f"task {task.name!r}: the rows of data: {task.data} are text; set per: character, or token")
    if task.per is not None and not text:
        raise ConfigError(
            f"task {task.name!r}: per: {task.per} needs text, but data: {task.data} is none; leave per out"
        )


def _teacher(run: Run, spec: Synthetic, cluster: Rows) -> Source:
    task = run.task
    if task.shift.kind != "none":
        raise ConfigError(
            f"task {task.name!r}: shift.kind: {task.shift.kind} needs a data set; synthetic data have their own"
        )
    made = synthetic.generate(spec, task.clients, task.clusters, run.seed, cluster)
    return Source(
        arrays={side: getattr(made, side) for side in ARRAYS},
        global_test=lambda _: (made.global_test_x, made.global_test_y),
        classes=None,
        scale=1,
        exact=True,
        digest=None,
    )


def _read_partition(run: Run, results: Path) -> tuple[dict[str, Any], pl.DataFrame]:
    folder = results / run.partition.folder
    try:
        manifest = json.loads((folder / "card.json").read_text())
        table = pl.read_parquet(folder / "partition.parquet")
        intact = partition.digest(table) == manifest["digest"]
    except FileNotFoundError:
        raise ConfigError(
            f"{folder}: this partition is not there yet; make it with: {_partition_command(run)}"
        ) from None
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise ConfigError(
            f"{folder / 'partition.parquet'}: damaged ({error}); make it again with: {_partition_command(run)}"
        ) from None
    if not intact:
        raise ConfigError(
            f"{folder / 'partition.parquet'}: altered since it was made; make it again with: {_partition_command(run)}"
        )
    return manifest, table


def _partition_command(run: Run) -> str:
    return f"floral partition --suite <the run's suite> --task {run.task.name} --seed {run.seed}"


def _padded(table: pl.DataFrame, held_rows: Rows, clients: int, seed: int) -> tuple[Rows, Rows]:
    """The rows of one split as positions within `held_rows`, one line per client in random order, filled up with 0.

    The order matters where batches are fixed or averaged: MNIST's later test images are harder, and a client's last,
    short batch must not hold them alone.
    """
    client, row = table["client"].to_numpy(), table["row"].to_numpy()
    counts = np.bincount(client, minlength=clients)
    place, _ = seeds.ranks(seed, "order of a client's rows", row, client)
    padded = np.zeros((clients, counts.max()), np.int64)
    padded[client, place] = np.searchsorted(held_rows, row)
    return padded, counts
