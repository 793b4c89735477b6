"""The samples of a run before any shift, from a stored data set or a synthetic teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from floral.config.reading import ConfigError
from floral.config.run import Run
from floral.config.schema.data import Synthetic
from floral.data import partition_kinds, shifts, synthetic
from floral.data.stored import ARRAYS, Array, partition_command, read_data

GlobalTest = tuple[Array | list[Array], Array | list[Array]]
"""x and y of the global test set of every cluster.

Arrays have a leading axis C. They are lists of C arrays where clusters have different numbers of samples.
"""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a run before any shift, and its global test set."""

    arrays: Mapping[str, Array]
    """train_x, train_y and, where they are read, test_x, test_y."""
    global_test: Callable[[int], GlobalTest]
    """Number of concepts → their global test sets, shifted."""
    classes: int | None
    """Number of classes; None for regression."""
    scale: int
    """Value of white; x / scale is in [0, 1] for images."""
    exact: bool
    """Whether the data are the original, not a lossy or partial copy."""
    digest: str | None
    """Digest of the stored data set; None for synthetic data."""


def evaluated_on_training(run: Run) -> bool:
    """Return whether clients are evaluated on their training samples.

    The published CIFAR-100 accuracies were measured in this way. The fidelity switch eval_split selects it.
    """
    return run.task.published_split == "train" and run.fidelity["eval_split"] == "train"


def stored_samples(run: Run, name: str, expected_digest: str, results: Path, sides: Sequence[str]) -> Samples:
    """Read the arrays `sides` of a stored data set.

    Raises:
        ConfigError: the data set is missing or damaged, or the partition was made for another one.
    """
    manifest, arrays = read_data(name, results, sides)
    if manifest["digest"] != expected_digest:
        raise ConfigError(
            f"{results / run.partition.folder}: this partition was made for other samples than those in "
            f"{results / 'data' / name}; this command says what to do: {partition_command(run)}"
        )
    task, classes = run.task, manifest["classes"]
    side = "train" if evaluated_on_training(run) else "test"

    def global_test(concepts: int) -> GlobalTest:
        every_x, every_y = [], []
        for c in range(concepts):
            x, y = arrays[f"{side}_x"], arrays[f"{side}_y"]
            if task.partition.kind == "class_groups":
                mine = partition_kinds.group_of(y, task.partition, task.clusters) == c
                x, y = x[mine], y[mine]
            cluster = np.full(len(y), c)
            every_x.append(shifts.apply_inputs(task.shift, x, cluster, task.clusters, manifest["scale"]))
            every_y.append(shifts.apply_labels(task.shift, y, cluster, classes, run.partition_seed))
        return (every_x, every_y) if task.partition.kind == "class_groups" else (np.stack(every_x), np.stack(every_y))

    return Samples(
        arrays=arrays, global_test=global_test, classes=classes, scale=manifest["scale"], exact=manifest["exact"],
        digest=manifest["digest"],
    )  # fmt: skip


def synthetic_samples(run: Run, spec: Synthetic, cluster: npt.NDArray[np.int64]) -> Samples:
    """Generate synthetic samples for clients of the clusters `cluster` [K].

    Raises:
        ConfigError: the task has a shift, or the values of the synthetic data contradict each other.
    """
    task = run.task
    if task.shift.kind != "none":
        raise ConfigError(
            f"task {task.name!r}: shift.kind: {task.shift.kind} needs a data set; synthetic data have a built-in "
            "shift: leave shift out"
        )
    generated = synthetic.generate(spec, task.clients, task.clusters, run.seed, cluster)
    return Samples(
        arrays={side: getattr(generated, side) for side in ARRAYS},
        global_test=lambda _: (generated.global_test_x, generated.global_test_y),
        classes=None,
        scale=1,
        exact=True,
        digest=None,
    )
