"""Stage partition: assign samples to clients, and write partition.parquet, card.json (a manifest) and card.svg."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.config import data_sets
from floral.config.reading import ConfigError
from floral.config.run import PartitionJob
from floral.config.schema.data import Synthetic
from floral.config.schema.task import Task
from floral.data.fit import unfit_domains
from floral.data.partition import client_table, digest, main_concepts
from floral.data.partition_kinds import consecutive_table
from floral.data.partition_steps import SPLITS, reduce_rows
from floral.data.stored import CLIENTS, DOMAINS, client_names, read_data
from floral.data.synthetic import rows_per_client
from floral.io.files import atomic
from floral.io.locks import held

if TYPE_CHECKING:  # a second of import that only the picture needs
    import altair as alt

Labels = npt.NDArray[np.integer]

SIZES = ("min", "median", "max")
"""The quantiles that the manifest has of sizes and shares over clients."""


def partition(job: PartitionJob, results: Path, task: Task | None = None) -> Path:
    """Assign the samples to clients, write the files of the partition, and return their folder.

    partition.parquet is a table with the client of every sample, card.json describes the partition, and card.svg is a
    chart. Equal values of `job` give equal tables. If `task` is given, card.json also has the number of local steps per
    round of this task.

    If several tasks share the table, card.json has the steps of the task for which this function was called last. In
    some tasks, each variant trains only on its own random subset of the samples. Then card.json also says which share
    of the samples is in a subset, and the local steps are counted for a subset.

    Raises:
        ConfigError: the data are missing, the data have changed since this partition was made, the data lack the
            classes or natural clients that the partition needs, or there are more clients than samples.
    """
    with held(results / f"{job.folder}.lock", f"making {job.folder.name}"):
        return _partition(job, results, task)


def _partition(job: PartitionJob, results: Path, task: Task | None) -> Path:
    """Make the partition and write all files. The caller holds the lock of the folder."""
    sizes = (job.clients, job.clusters, job.partition, job.seed)
    natural = names = None
    if isinstance(job.data, Synthetic):
        full_table = consecutive_table(*rows_per_client(job.data), *sizes)
        data_digest, labelled = None, full_table.select("client", "cluster", "split")
    else:
        data, arrays = read_data(job.data, results, thresholds=job.thresholds)
        train_y, test_y = np.asarray(arrays["train_y"]), np.asarray(arrays["test_y"])
        if train_y.ndim > 1 and job.partition.kind not in ("iid", "natural"):
            raise ConfigError(
                f"task {job.task!r}: `partition.kind: {job.partition.kind}` needs a class for each sample, but the "
                f"samples of {job.data!r} are text; set `partition.kind` to natural or iid"
            )
        natural = _natural_clients(job, arrays) if job.partition.kind == "natural" else None
        names = None if natural is None else client_names(job.data, results)
        of_samples = natural or _optional(arrays, CLIENTS), _domains(job, data, arrays)
        full_table = client_table(train_y, test_y, *sizes, job.unseen, *of_samples)
        data_digest = data["digest"]
        labelled = _with_labels(full_table, train_y, test_y) if train_y.ndim == 1 else full_table
    named = {} if natural is None or names is None else _names(full_table, natural[0], names)
    table, rows = (frame.filter(pl.col("client") < job.clients) for frame in (full_table, labelled))
    folder = results / job.folder
    _check_same_data(folder, job, data_digest)
    manifest: dict[str, Any] = {
        "task": job.task,
        "clients": job.clients,
        "clusters": job.clusters,
        "seed": job.seed,
        "digest": digest(full_table),
        "data_digest": data_digest,
        "rows": {split: _spread(_per_client(table, split, job.clients)) for split in SPLITS},
        "rows_of_cluster": {split: _per_client(table, split, job.clients, job.clusters).tolist() for split in SPLITS},
        "clients_of_cluster": np.bincount(main_concepts(table, job.clients), minlength=job.clusters).tolist(),
    }
    if named:
        manifest["client_names"] = [named[client] for client in sorted(named)]
    if job.partition.mixed is not None:
        manifest["main_concept_share"] = _quantiles(_main_share(table, job.clients, job.clusters))
    if job.unseen is not None:
        joining = full_table.filter(pl.col("client") >= job.clients).with_columns(pl.col("client") - job.clients)
        spread = {split: _spread(_per_client(joining, split, job.unseen.clients)) for split in ("train", "test")}
        kinds = {"seen_cluster": job.unseen.seen_cluster, "new_concept": job.unseen.new_concept}
        manifest["unseen"] = {**kinds, "first_client": job.clients, "rows": spread}
    trained = table
    if task and (rule := task.partition).share != job.partition.share:
        manifest["thinned_at_training"] = {"share": rule.share, "min_rows": rule.min_rows}
        # Variants keep different samples, but the same number of samples.
        trained = reduce_rows(table, rule.share, rule.min_rows, job.seed, "size of a subset")
    if task:
        steps = _spread(np.array([task.local_steps(n) for n in _per_client(trained, "train", job.clients).tolist()]))
        fixed = {"steps_per_epoch": task.steps_per_epoch} if task.steps_per_epoch else {}
        manifest["local_steps_per_round"] = {"batch": task.batch, "epochs": task.epochs, **fixed} | {
            key: steps[key] for key in SIZES
        }
    if "class" in rows.columns:
        manifest["label_skew"] = _quantiles(_label_skew(rows, data["classes"], job.clients))
        manifest["class_counts"] = {split: _class_counts(rows, split, data["classes"], job.clients) for split in SPLITS}
    picture, parquet = io.StringIO(), io.BytesIO()
    _chart(job, labelled, manifest).save(picture, format="svg")
    full_table.write_parquet(parquet)
    # One line per key: the counts of hundreds of clients stay readable.
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items())
    atomic(folder / "card.svg", picture.getvalue().encode())
    atomic(folder / "card.json", f"{{\n{lines}\n}}\n".encode())
    atomic(folder / "partition.parquet", parquet.getvalue())  # last, because it marks the folder as complete
    return folder


def _check_same_data(folder: Path, job: PartitionJob, data_digest: str | None) -> None:
    """Raise ConfigError if the data have changed since the partition in the folder was made.

    The partition is not replaced, because existing runs may use it.

    Data can change under the same name if config/data.lock has no sha256 of the files, or if the code that reads the
    files changes.
    """
    try:
        before = json.loads((folder / "card.json").read_text())["data_digest"]
    except (FileNotFoundError, ValueError, KeyError):  # not made yet, or damaged
        return
    if before != data_digest:
        raise ConfigError(
            f"{folder}: this partition was made from other files of {job.data!r} than those that are stored now\n"
            f"  remedy: restore the old files; or copy the new sha256 from data/{job.data}/card.json in the results to "
            f"{data_sets.place(str(job.data))}; or remove {folder} and the runs of {job.task!r}"
        )


def _natural_clients(job: PartitionJob, arrays: Mapping[str, Labels]) -> tuple[Labels, Labels]:
    """Return the natural client of each training sample and of each test sample.

    A natural client is a client that is named in the data, such as the writer of a handwritten digit.

    Raises:
        ConfigError: the data have no natural clients.
    """
    if missing := [side for side in CLIENTS if side not in arrays]:
        raise ConfigError(
            f"task {job.task!r}: `partition.kind: natural` needs data that name the client of each sample, but "
            f"{job.data!r} has no {missing[0]}; set another `partition.kind`"
        )
    train, test = (np.asarray(arrays[side]) for side in CLIENTS)
    return train, test


def _domains(
    job: PartitionJob, manifest: Mapping[str, Any], arrays: Mapping[str, Labels]
) -> tuple[Labels, Labels] | None:
    """Return the domain of each training sample and of each test sample, or None if the partition does not use them.

    Raises:
        ConfigError: the data have no domains, or not one for each cluster.
    """
    if job.partition.kind != "domains":
        return None
    if why := unfit_domains(manifest, job.clusters):
        raise ConfigError(f"task {job.task!r}: {why}")
    return _optional(arrays, DOMAINS)


def _optional(arrays: Mapping[str, Labels], sides: tuple[str, str]) -> tuple[Labels, Labels] | None:
    """Return two arrays of a data set, or None if it does not have them."""
    train, test = sides
    return (np.asarray(arrays[train]), np.asarray(arrays[test])) if train in arrays else None


def _names(table: pl.DataFrame, train_client: Labels, names: Sequence[str]) -> dict[int, str]:
    """Return client of the partition → the name of its natural client in the data, for training and unseen clients.

    `train_client` holds the number of each training sample's natural client, and `names` the name for each number.
    """
    first = table.filter(pl.col("split") == "train").unique("client", keep="first")
    return {client: names[int(train_client[row])] for client, row in first.select("client", "row").iter_rows()}


def _with_labels(table: pl.DataFrame, train_y: Labels, test_y: Labels) -> pl.DataFrame:
    """Add the column `class` to the table: the label of each sample in the data set, before any shift."""
    row, is_test = table["row"].to_numpy(), (table["split"] == "test").to_numpy()
    labels = np.empty(len(table), np.int64)
    labels[is_test], labels[~is_test] = test_y[row[is_test]], train_y[row[~is_test]]
    return table.with_columns(pl.Series("class", labels))


def _per_client(table: pl.DataFrame, split: str, clients: int, clusters: int | None = None) -> Labels:
    """Return how many samples of a split each client has.

    If the number of clusters is given, return how many samples of the split each cluster has.
    """
    in_split = table.filter(pl.col("split") == split)
    return np.bincount(in_split["cluster" if clusters else "client"].to_numpy(), minlength=clusters or clients)


def _class_counts(table: pl.DataFrame, split: str, classes: int, clients: int) -> list[list[int]]:
    """Return how many samples of each class a client has in a split, as a list counts[client][class]."""
    in_split = table.filter(pl.col("split") == split)
    cell = in_split["client"].to_numpy() * classes + in_split["class"].to_numpy()
    return np.bincount(cell, minlength=clients * classes).reshape(clients, classes).tolist()


def _label_skew(table: pl.DataFrame, classes: int, clients: int) -> npt.NDArray[np.float64]:
    """Return how much the training labels of each client differ from those of all clients together.

    The result [K] has one value for each of the K clients. The value is the total variation distance between the label
    frequencies of the client and those of all clients. 0 means equal frequencies, and 1 means that no class is in
    common.
    """
    counts = np.array(_class_counts(table, "train", classes, clients), dtype=float)
    frequencies = counts / counts.sum(1, keepdims=True)
    return np.abs(frequencies - counts.sum(0) / counts.sum()).sum(1) / 2


def _main_share(table: pl.DataFrame, clients: int, concepts: int) -> npt.NDArray[np.float64]:
    """Return which share of each client's training samples belongs to the client's most frequent concept.

    The samples of a client may come from several concepts. A concept is the data distribution of one cluster. The
    result [K] has one value for each of the K clients.
    """
    train = table.filter(pl.col("split") == "train")
    cell = train["client"].to_numpy().astype(np.int64) * concepts + train["cluster"].to_numpy()
    counts = np.bincount(cell, minlength=clients * concepts).reshape(clients, concepts)
    return counts.max(1) / counts.sum(1)


def _quantiles(values: npt.NDArray[np.float64]) -> dict[str, float]:
    """Return the minimum, median and maximum of the values, rounded to 4 decimals."""
    named = zip(SIZES, (values.min(), np.median(values), values.max()), strict=True)
    return {name: round(float(value), 4) for name, value in named}


def _spread(values: Labels) -> dict[str, float]:
    """Return the total, minimum, median and maximum of the counts."""
    return {
        "total": int(values.sum()),
        "min": int(values.min()),
        "median": float(np.median(values)),
        "max": int(values.max()),
    }


def _chart(job: PartitionJob, table: pl.DataFrame, manifest: dict[str, Any]) -> alt.Chart:
    """Plot the training samples as a heat map, with one row per class and one column per client.

    Regression and text have no classes. For them, plot the number of samples of each client and split as bars.
    """
    import altair as alt

    subtitle = _subtitle(job, manifest)
    if job.unseen is not None:
        subtitle.append(f"clients from {job.clients} on join after training; their samples are not used in training")
    clients = int(table["client"].to_numpy().max()) + 1
    client = alt.X("client:O", title="client", axis=_axis(clients))
    if "class" in table.columns:
        table = table.filter(pl.col("split") == "train")
        title = f"{job.task}, seed {job.seed}: training samples by class (before the shift)"
        counts = table.group_by("client", "class").len("rows").sort("client", "class")
        colour = alt.Color("rows:Q", title="samples", scale=alt.Scale(range=["#ffffff", "#08519c"], domainMin=0))
        classes = alt.Y("class:O", title="class", axis=_axis(int(table["class"].to_numpy().max()) + 1))
        chart = alt.Chart(counts).mark_rect().encode(client, classes, colour)
    else:
        title = f"{job.task}, seed {job.seed}: samples per client"
        order = pl.col("split").replace_strict(list(SPLITS), range(len(SPLITS)))
        counts = table.group_by("client", "split").len("rows").with_columns(order=order).sort("client", "order")
        scale = alt.Scale(domain=list(SPLITS), range=["#08519c", "#6baed6", "#bdbdbd"])
        colour = alt.Color("split:N", title=None, scale=scale)
        chart = alt.Chart(counts).mark_bar().encode(client, alt.Y("rows:Q", title="samples"), colour, order="order:Q")
    text = alt.TitleParams(title, subtitle=subtitle, anchor="start", subtitleColor="#555", offset=12)
    width = max(320, min(900, 24 * clients))
    return chart.properties(width=width, height=220, title=text).configure_view(stroke=None)


def _subtitle(job: PartitionJob, manifest: dict[str, Any]) -> list[str]:
    """Describe the partition in one or two lines, for example with its clusters, samples and label skew.

    A value that the partition does not have is left out.
    """
    sizes = ", ".join(f"{_range(manifest['rows'][split])} {split}" for split in SPLITS)
    members = manifest["clients_of_cluster"]
    members_text = (
        f"of {', '.join(map(str, members))} clients"
        if job.partition.cluster_shares
        else f"cluster = client mod {job.clusters}"
    )
    clusters = f"in {job.clusters} clusters ({members_text})" if job.clusters > 1 else "of one concept"
    facts = []
    if "label_skew" in manifest:
        facts.append(
            f"label skew {manifest['label_skew']['median']:.2f} (median; 0: equal frequencies, 1: no class in common)"
        )
    if "main_concept_share" in manifest:
        facts.append(
            f"{manifest['main_concept_share']['median']:.0%} of a client's samples belong to its main concept (median)"
        )
    if job.partition.label_noise:
        facts.append(f"{job.partition.label_noise:.0%} of the training labels will be replaced at random")
    if "local_steps_per_round" in manifest:
        facts.append(f"{_range(manifest['local_steps_per_round'])} local steps per round")
    return [f"{job.clients} clients {clusters}; each has {sizes} samples", *(["; ".join(facts)] if facts else [])]


def _axis(count: int) -> alt.Axis:
    """Return a chart axis for the numbers 0, …, count − 1, with at most 20 labels."""
    import altair as alt

    return alt.Axis(values=list(range(0, count, math.ceil(count / 20))), labelAngle=0, grid=False)


def _range(spread: dict[str, float]) -> str:
    """Return the minimum and maximum as text, such as "3–7", or a single number if they are equal."""
    low, high = int(spread["min"]), int(spread["max"])
    return f"{low}" if low == high else f"{low}–{high}"
