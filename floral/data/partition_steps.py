"""Steps that all kinds of partition have in common.

They deal samples to clients, choose the shift of each sample, keep a share of the training samples, and hold out a
validation split.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.config.schema.partition import Partition, Unseen
from floral.core import seeds

SPLITS = ("train", "validation", "test")
SCHEMA = pl.Schema({"client": pl.Int32, "cluster": pl.Int32, "split": pl.String, "row": pl.Int64})
"""Columns of a partition table. `row` is an index into train_x (splits train, validation) or test_x (split test)."""


def deal(rows: npt.NDArray[np.int64], clients: npt.NDArray[np.int64]) -> pl.DataFrame:
    """Cut `rows` into contiguous shards, one per client. Sizes differ by at most one, and larger shards come first."""
    each, remainder = divmod(len(rows), len(clients))
    sizes = each + (np.arange(len(clients)) < remainder)
    return pl.DataFrame({"client": np.repeat(clients.astype(np.int32), sizes), "row": rows})


def both_sides(train: pl.DataFrame, test: pl.DataFrame) -> pl.DataFrame:
    """Join the training and the test samples to one table. Its column `split` says "train" or "test"."""
    return pl.concat([train.with_columns(split=pl.lit("train")), test.with_columns(split=pl.lit("test"))])


def finish(
    train: pl.DataFrame, test: pl.DataFrame, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """Return the complete, sorted partition table of samples that were dealt to clients.

    Each sample gets a concept, the version of the shift that is applied to it. Then only a share of the training
    and of the test samples is kept, and a validation split is held out.
    """
    table = both_sides(train, test)
    table = (
        table.with_columns(cluster=_concepts(table, clients, clusters, partition, seed)).select(*SCHEMA).cast(SCHEMA)
    )
    table = reduce_rows(table, partition.share, partition.min_rows, seed, "partition subset")
    table = reduce_rows(table, partition.test_share, 1, seed, "partition test subset", "test")
    return _hold_out(table, partition.validation, seed).sort("client", "split", "row")


def append_unseen(
    table: pl.DataFrame, joining: pl.DataFrame, clients: int, clusters: int, unseen: Unseen
) -> pl.DataFrame:
    """Append the samples of the unseen clients to the partition table.

    Unseen clients join only after training. They have the numbers K, K + 1, …, where K is the number of other clients.
    """
    concept = concepts_of(unseen, clusters)[joining["client"].to_numpy() - clients]
    joining = joining.with_columns(cluster=concept).select(*SCHEMA).cast(SCHEMA)
    return pl.concat([table, joining.sort("client", "split", "row")])


def concepts_of(unseen: Unseen, clusters: int) -> npt.NDArray[np.int64]:
    """Return the concept [U] of each of the U unseen clients, which join after training.

    A concept is one version of the shift, for example one angle. The first `seen_cluster` clients get the concepts of
    the C clusters in turn: 0, 1, …, C - 1, 0, 1, …. The other `new_concept` clients get concepts that no cluster has,
    in turn: C, C + 1, …, 2C - 1, C, …. `floral.data.shifts` defines these.
    """
    seen, new = np.arange(unseen.seen_cluster) % clusters, clusters + np.arange(unseen.new_concept) % clusters
    return np.concatenate([seen, new])


def cluster_of_clients(partition: Partition, clients: int, clusters: int) -> npt.NDArray[np.int64]:
    """Return the cluster [K] of each client.

    By default, client k belongs to cluster k mod C. If the task sets `cluster_shares`, each cluster gets its share of
    the clients. The first clients then belong to cluster 0, the next ones to cluster 1, and so on.
    """
    if partition.cluster_shares is None:
        return np.arange(clients) % clusters
    return np.repeat(np.arange(clusters), partition.members(clients, clusters))


def reduce_rows(
    table: pl.DataFrame, share: float, min_rows: int, seed: int, purpose: str, split: str = "train"
) -> pl.DataFrame:
    """Keep only a share of each client's n samples of a split: max(min_rows, round(share·n)), at most n.

    The samples of the other splits are all kept. The random choice depends only on `seed` and on the name `purpose`. A
    larger share keeps all samples that a smaller share keeps, and adds to them. Share 1 changes nothing.
    """
    if share == 1.0:
        return table
    part, rest = (table.filter(condition) for condition in (pl.col("split") == split, pl.col("split") != split))
    rank, size = seeds.ranks(seed, purpose, part["row"].to_numpy(), part["client"].to_numpy())
    count = np.maximum(min_rows, np.rint(share * size))
    return pl.concat([part.filter(rank < count), rest]).sort("client", "split", "row")


def _concepts(
    table: pl.DataFrame, clients: int, clusters: int, partition: Partition, seed: int
) -> npt.NDArray[np.integer]:
    """Return the concept [N] of each sample: the version of the shift that is applied to it.

    If `partition.mixed` is None, the concept is the cluster of the sample's client. Otherwise, it is drawn at random,
    with probabilities that each client has for itself. They are the same for its training and test samples.

    To get a client's probabilities, a vector is drawn from Dirichlet(mixed). Its largest entry is then swapped with the
    entry of the client's cluster, so that this cluster is the most probable concept, and the clusters keep their sizes.
    For mixed → 0, each sample gets the cluster of its client.
    """
    client, cluster = table["client"].to_numpy(), cluster_of_clients(partition, clients, clusters)
    if partition.mixed is None:
        return cluster[client]
    every = np.arange(clients)
    parts = seeds.dirichlet(seed, "partition concepts", every, alpha=partition.mixed, size=clusters)
    largest = parts.argmax(1)
    parts[every, largest], parts[every, cluster] = parts[every, cluster], parts[every, largest]
    side = (table["split"] == "test").to_numpy().astype(np.int64)
    uniform = seeds.uniform(seed, "concept of a row", side, table["row"].to_numpy())
    return (uniform[:, None] >= np.cumsum(parts, axis=1)[client, :-1]).sum(1)


def _hold_out(table: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    """Move round(share·n) of each client's n training samples to the validation split: at least one, never all."""
    if share == 0.0:
        return table
    train, test = (table.filter(pl.col("split") == split) for split in ("train", "test"))
    rank, size = seeds.ranks(seed, "partition validation", train["row"].to_numpy(), train["client"].to_numpy())
    count = np.minimum(np.maximum(1, np.rint(share * size)), size - 1)
    split = np.where(rank < count, "validation", "train")
    return pl.concat([train.with_columns(split=pl.Series(split, dtype=pl.String)), test])
