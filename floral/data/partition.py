"""Compute the partition of a data set, a table that assigns its samples to clients.

The columns are client, cluster, split and row. The table depends only on the labels and a seed.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.config.schema.partition import Partition, Unseen
from floral.core import seeds
from floral.data.partition_kinds import (
    Labels,
    domains_table,
    few_classes_table,
    grouped_table,
    iid_table,
    natural_table,
    skewed_table,
)
from floral.data.partition_steps import SPLITS


def client_table(
    train_y: Labels,
    test_y: Labels,
    clients: int,
    clusters: int,
    partition: Partition,
    seed: int,
    unseen: Unseen | None = None,
    natural: tuple[Labels, Labels] | None = None,
    domain: tuple[Labels, Labels] | None = None,
) -> pl.DataFrame:
    """Return the partition table of a data set, for the kind `partition.kind`.

    `natural` holds two arrays: the natural client of each training sample, and that of each test sample. A natural
    client is, for example, a writer. `domain` holds the domain of each sample in the same way. Only the kinds natural
    and domains need them; with domains, there need be no natural clients.

    Raises:
        ConfigError: the data do not fit the kind of partition. The functions of partition_kinds.py list the reasons.
    """
    sizes = (clients, clusters, partition, seed)
    match partition.kind:
        case "iid":
            return iid_table(len(train_y), len(test_y), *sizes, unseen)
        case "size_skew":
            return skewed_table(np.zeros_like(train_y), np.zeros_like(test_y), *sizes)
        case "dirichlet":
            return skewed_table(train_y, test_y, *sizes)
        case "pathological":
            return few_classes_table(train_y, test_y, *sizes)
        case "class_groups":
            return grouped_table(train_y, test_y, *sizes)
        case "natural":
            assert natural is not None, "callers check that the data have natural clients"
            return natural_table(*natural, *sizes, unseen)
        case "domains":
            assert domain is not None, "callers check that the data have domains"
            without = np.full(len(train_y), -1), np.full(len(test_y), -1)
            return domains_table(natural or without, domain, *sizes)


def main_concepts(table: pl.DataFrame, clients: int) -> npt.NDArray[np.int64]:
    """Return the cluster [K] of each client: the most frequent concept among its training and validation samples.

    A concept is one version of the shift, for example one angle. If several concepts are equally frequent, the one with
    the lowest number is returned.
    """
    train = table.filter((pl.col("split") != "test") & (pl.col("client") < clients))
    client, concept = train["client"].to_numpy().astype(np.int64), train["cluster"].to_numpy()
    concepts = int(concept.max(initial=0)) + 1
    return np.bincount(client * concepts + concept, minlength=clients * concepts).reshape(clients, -1).argmax(1)


def noisy_labels(
    y: npt.NDArray[np.int64], samples: pl.DataFrame, share: float, classes: int, seed: int
) -> npt.NDArray[np.int64]:
    """Replace round(share·n) of each client's n labels by other classes, uniformly at random.

    y [N] holds the labels of `samples`, a table with the columns client and row.
    """
    rank, size = seeds.ranks(seed, "label noise", samples["row"].to_numpy(), samples["client"].to_numpy())
    step = (seeds.uniform(seed, "noisy label", samples["row"].to_numpy()) * (classes - 1)).astype(np.int64)
    return np.where(rank < np.rint(share * size), (y + 1 + step) % classes, y)


def digest(table: pl.DataFrame) -> str:
    """Return the SHA-256 of the table's content.

    The digest stays the same if the table is stored with other settings or another version of parquet.
    """
    content = hashlib.sha256()
    codes = table["split"].replace_strict(list(SPLITS), range(len(SPLITS)), return_dtype=pl.Int32)
    for column in (table["client"], table["cluster"], codes, table["row"]):
        content.update(column.to_numpy().astype("<i8").tobytes())
    return content.hexdigest()
