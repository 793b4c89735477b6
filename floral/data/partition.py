"""Who holds which rows: a pure function from sizes and a seed to one table (client, cluster, split, row)."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.config.reading import ConfigError
from floral.config.schema.partition import Partition, Unseen
from floral.core import seeds

Labels = npt.NDArray[np.integer]

SPLITS = ("train", "validation", "test")
SCHEMA = pl.Schema({"client": pl.Int32, "cluster": pl.Int32, "split": pl.String, "row": pl.Int64})


def client_table(
    train_y: Labels,
    test_y: Labels,
    clients: int,
    clusters: int,
    partition: Partition,
    seed: int,
    unseen: Unseen | None = None,
    natural: tuple[Labels, Labels] | None = None,
) -> pl.DataFrame:
    """The table of a data set with these labels, and for `natural` these clients, as `partition.kind` says.

    Raises:
        ConfigError: see the function of each kind.
    """
    sizes = (clients, clusters, partition, seed)
    match partition.kind:
        case "iid":
            return partition_table(len(train_y), len(test_y), *sizes, unseen)
        case "size_skew":
            return skewed_table(np.zeros_like(train_y), np.zeros_like(test_y), *sizes)
        case "dirichlet":
            return skewed_table(train_y, test_y, *sizes)
        case "pathological":
            return few_classes_table(train_y, test_y, *sizes)
        case "class_groups":
            return grouped_table(train_y, test_y, *sizes)
        case "natural":
            assert natural is not None, "the caller sees to it"
            return natural_table(*natural, *sizes, unseen)


def partition_table(
    train_rows: int,
    test_rows: int,
    clients: int,
    clusters: int,
    partition: Partition,
    seed: int,
    unseen: Unseen | None = None,
) -> pl.DataFrame:
    """Deal shuffled rows to the clients, thin the training rows, hold some of them out; of what concept: `_concepts`.

    Train and test rows are shuffled and cut into K contiguous shards whose sizes differ by at most one, the larger
    first. Each training shard keeps max(min_rows, round(share·n)) rows, of which round(validation·n) become the
    validation split (at least 1, and never all). Sorted by client, split, row; `row` counts within train_x (train,
    validation) or test_x (test).

    Clients that are `unseen` are K, K + 1, …: the last round(share·rows) shuffled rows are cut into shards for them,
    which are neither thinned nor held out. Their "cluster" is the concept of their rows (`concepts_of`).

    Raises:
        ConfigError: there are more clients than training or test rows, or more unseen clients than rows set aside.
    """
    sides, joining = [], []
    for side, rows, purpose in (
        ("training", train_rows, "partition train"),
        ("test", test_rows, "partition test"),
    ):
        shuffled = seeds.permutation(seed, purpose, size=rows)
        aside = 0 if unseen is None else round(unseen.share * rows)
        if unseen is not None and unseen.clients > aside:
            raise ConfigError(
                f"unseen: {unseen.clients} clients are more than the {aside} {side} rows set aside for them; set fewer,"
                f" or a share above {unseen.clients / rows:.2g}"
            )
        if clients > rows - aside:
            raise ConfigError(
                f"clients: {clients} is more than the {rows - aside} {side} rows of the data; set clients to at most "
                f"{rows - aside}"
            )
        sides.append(_dealt(shuffled[: rows - aside], np.arange(clients)))
        if unseen is not None:
            joining.append(_dealt(shuffled[rows - aside :], clients + np.arange(unseen.clients)))
    train, test = sides
    table = _finished(train, test, clients, clusters, partition, seed)
    return table if unseen is None else _joined(table, _both(*joining), clients, clusters, unseen)


def _joined(table: pl.DataFrame, later: pl.DataFrame, clients: int, clusters: int, unseen: Unseen) -> pl.DataFrame:
    """The table, and below it the rows of the unseen clients K, K + 1, …"""
    concept = concepts_of(unseen, clusters)[later["client"].to_numpy() - clients]
    later = later.with_columns(cluster=concept).select(*SCHEMA).cast(SCHEMA)
    return pl.concat([table, later.sort("client", "split", "row")])


def concepts_of(unseen: Unseen, clusters: int) -> npt.NDArray[np.int64]:
    """[U] the concepts of unseen clients: clusters 0, 1, … in turn, then C, C + 1, …, of which no cluster has one.

    `floral.data.shifts` says what concept C + j is.
    """
    seen, new = np.arange(unseen.seen_cluster) % clusters, clusters + np.arange(unseen.new_concept) % clusters
    return np.concatenate([seen, new])


def grouped_table(
    train_y: Labels, test_y: Labels, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """As `partition_table`, but a row goes to the clients of its class's cluster (`group_of`), who share its rows.

    Raises:
        ConfigError: a cluster has more clients than training or test rows, or a class has no cluster.

    Source: arXiv 2410.03497, CIFAR-100.
    """
    cluster = cluster_of_clients(partition, clients, clusters)

    def dealt(y: Labels, purpose: str, side: str) -> pl.DataFrame:
        shuffled = seeds.permutation(seed, purpose, size=len(y))
        group, shards = group_of(y, partition, clusters)[shuffled], []
        for c in range(clusters):
            rows, members = shuffled[group == c], np.flatnonzero(cluster == c)
            if len(members) > len(rows):
                classes = f"class mod {clusters} = {c}" if partition.groups is None else f"list {c} of partition.groups"
                raise ConfigError(
                    f"partition.kind: class_groups: cluster {c} has {len(members)} clients, but its classes ({classes})"
                    f" have {len(rows)} {side} rows; set fewer clients or clusters"
                )
            shards.append(_dealt(rows, members))
        return pl.concat(shards)

    train, test = dealt(train_y, "partition train", "training"), dealt(test_y, "partition test", "test")
    return _finished(train, test, clients, clusters, partition, seed)


def group_of(y: Labels, partition: Partition, clusters: int) -> npt.NDArray[np.int64]:
    """[N] the cluster that holds each row's class under class_groups: y mod C, or by the lists in `groups`.

    Raises:
        ConfigError: a class stands in no list.
    """
    if partition.groups is None:
        return np.asarray(y % clusters, np.int64)
    group = np.full(max(int(y.max(initial=0)), *(max(classes) for classes in partition.groups)) + 1, -1)
    for c, classes in enumerate(partition.groups):
        group[list(classes)] = c
    found = group[y]
    if (found < 0).any():
        raise ConfigError(f"partition.groups: class {y[found < 0].min()} of the data is in no list; add it to one")
    return found


def few_classes_table(
    train_y: Labels, test_y: Labels, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """As `partition_table`, but a client has rows of `classes_per_client` classes alone, the same in training and test.

    One client after another, in random order, takes the classes that fewest clients have so far, at random among
    equals: every class has as many clients as any other, up to one. They share its rows evenly.

    Raises:
        ConfigError: the clients take more or fewer classes than there are, or a class has more clients than rows.

    Source: arXiv 1602.05629 (there by cutting sorted rows, so that a client may have a class more).
    """
    each = partition.classes_per_client
    assert each is not None, "the schema sees to it"
    classes = np.unique(train_y)
    if why := partition.unfit(clients, clusters, len(classes)):
        raise ConfigError(why)
    holders: list[list[int]] = [[] for _ in classes]
    for client in seeds.permutation(seed, "partition order of clients", size=clients).tolist():
        chance = seeds.bits(seed, "partition classes of a client", client, np.arange(len(classes)))
        for f in np.lexsort((chance, np.array([len(held) for held in holders])))[:each]:
            holders[f].append(client)

    def dealt(y: Labels, purpose: str, side: str) -> pl.DataFrame:
        shuffled = seeds.permutation(seed, purpose, size=len(y))
        shards = []
        for f, held in zip(classes.tolist(), holders, strict=True):
            rows = shuffled[y[shuffled] == f]
            if len(rows) < len(held):
                raise ConfigError(
                    f"partition.kind: pathological: {len(held)} clients have class {f}, of which there are {len(rows)} "
                    f"{side} rows; set fewer clients or fewer classes_per_client"
                )
            shards.append(_dealt(rows, np.array(held)))
        return pl.concat(shards)

    train, test = dealt(train_y, "partition train", "training"), dealt(test_y, "partition test", "test")
    return _finished(train, test, clients, clusters, partition, seed)


def skewed_table(
    train_y: Labels, test_y: Labels, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """As `partition_table`, but the rows of each class are cut in proportions p ~ Dirichlet(alpha) over the clients,
    the same for training and test rows: so a client's test rows have the class frequencies of its training rows, and
    clients differ in size too.

    A client has at least `min_rows` training rows and one test row: what it lacks is, row by row, of the class of which
    it would have most, taken from the client with most rows of that class among those who can spare one. α → ∞ gives
    every client all classes in equal shares, α → 0 gives each class to one client (but for the floor). With all labels
    alike, clients differ in size alone: that is size_skew.

    Raises:
        ConfigError: not every client can have min_rows training rows and a test row.

    Source: arXiv 1905.12022 (proportions per class), arXiv 2102.02079 (a floor, there by drawing again).
    """
    assert partition.alpha is not None, "the schema sees to it"
    classes = int(max(train_y.max(initial=0), test_y.max(initial=0))) + 1
    proportions = seeds.dirichlet(seed, "partition classes", np.arange(classes), alpha=partition.alpha, size=clients)
    wish = proportions * np.bincount(train_y, minlength=classes)[:, None]

    def dealt(y: Labels, purpose: str, side: str, floor: int) -> pl.DataFrame:
        if clients * floor > len(y):
            raise ConfigError(
                f"clients: {clients} cannot have {floor} of the {len(y)} {side} rows each; set clients to at most "
                f"{len(y) // floor}" + (", or a smaller partition.min_rows" if floor > 1 else "")
            )
        of_class = np.bincount(y, minlength=classes)
        ends = np.rint(np.cumsum(proportions, axis=1) * of_class[:, None]).astype(np.int64)
        ends[:, -1] = of_class
        counts = _floored(np.diff(ends, axis=1, prepend=0), wish, floor)
        shuffled = seeds.permutation(seed, purpose, size=len(y))
        rows = shuffled[np.argsort(y[shuffled], kind="stable")]  # class by class
        holder = np.repeat(np.tile(np.arange(clients, dtype=np.int32), classes), counts.ravel())
        return pl.DataFrame({"client": holder, "row": rows})

    train = dealt(train_y, "partition train", "training", partition.min_rows)
    test = dealt(test_y, "partition test", "test", 1)
    return _finished(train, test, clients, clusters, partition, seed)


def natural_table(
    train_client: Labels,
    test_client: Labels,
    clients: int,
    clusters: int,
    partition: Partition,
    seed: int,
    unseen: Unseen | None = None,
) -> pl.DataFrame:
    """As `partition_table`, but each client holds the rows of one natural client; `train_client`, `test_client` [N]
    say of which each row is.

    Natural clients with fewer than `min_rows` training rows or without a test row are left out. Of the others, in the
    data's order, a random choice of `clients` becomes 0, 1, …, and of those that are left, one of the unseen clients.

    Raises:
        ConfigError: fewer natural clients have that many rows.
    """
    natural = int(max(train_client.max(initial=-1), test_client.max(initial=-1))) + 1
    train_rows, test_rows = (np.bincount(side, minlength=natural) for side in (train_client, test_client))
    fit = np.flatnonzero((train_rows >= partition.min_rows) & (test_rows > 0))
    if clients > len(fit):
        raise ConfigError(
            f"clients: {clients} is more than the {len(fit)} of {natural} natural clients that have a test row and at "
            f"least {partition.min_rows} training rows; set clients to at most {len(fit)}"
            + (", or a smaller partition.min_rows" if partition.min_rows > 1 else "")
        )
    chosen = fit[seeds.sample(seed, "partition natural clients", size=len(fit), count=clients)]

    def held(side: Labels, chosen: Labels, first: int = 0) -> pl.DataFrame:
        place = np.full(natural, -1)
        place[chosen] = first + np.arange(len(chosen))
        client = place[side]
        rows = np.flatnonzero(client >= 0)
        return pl.DataFrame({"client": client[rows].astype(np.int32), "row": rows})

    sides = (train_client, test_client)
    train, test = (held(side, chosen) for side in sides)
    table = _finished(train, test, clients, clusters, partition, seed)
    if unseen is None:
        return table
    left = np.setdiff1d(fit, chosen)
    if unseen.clients > len(left):
        raise ConfigError(
            f"unseen: {unseen.clients} clients are more than the {len(left)} natural clients that are left; set fewer "
            "of them, or fewer clients"
        )
    joining = left[seeds.sample(seed, "partition unseen natural clients", size=len(left), count=unseen.clients)]
    return _joined(table, _both(*(held(side, joining, clients) for side in sides)), clients, clusters, unseen)


def _floored(counts: npt.NDArray[np.int64], wish: npt.NDArray[np.float64], floor: int) -> npt.NDArray[np.int64]:
    """`counts` [class, client] with at least `floor` rows of each client, as `skewed_table` says."""
    counts, total = counts.copy(), counts.sum(0)
    for poor in np.flatnonzero(total < floor):
        for _ in range(floor - total[poor]):
            spare = counts * (total > floor)
            f = np.argmax(np.where(spare.any(1), wish[:, poor], -1))
            rich = np.argmax(spare[f])
            counts[f, [rich, poor]] += [-1, 1]
            total[rich] -= 1
    return counts


def consecutive_table(
    train_each: int, test_each: int, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """The table of data that are made per client: client k holds the k-th `train_each` and `test_each` rows."""
    train, test = (_dealt(np.arange(clients * each), np.arange(clients)) for each in (train_each, test_each))
    return _finished(train, test, clients, clusters, partition, seed)


def cluster_of_clients(partition: Partition, clients: int, clusters: int) -> npt.NDArray[np.int64]:
    """[K] the cluster of each client: k mod C, or by `cluster_shares` cluster 0 first, then cluster 1, …"""
    if partition.cluster_shares is None:
        return np.arange(clients) % clusters
    return np.repeat(np.arange(clusters), partition.members(clients, clusters))


def main_concepts(table: pl.DataFrame, clients: int) -> npt.NDArray[np.int64]:
    """[K] each client's cluster: the concept of most of its training and validation rows, the first among equals."""
    train = table.filter((pl.col("split") != "test") & (pl.col("client") < clients))
    client, concept = train["client"].to_numpy().astype(np.int64), train["cluster"].to_numpy()
    concepts = int(concept.max(initial=0)) + 1
    return np.bincount(client * concepts + concept, minlength=clients * concepts).reshape(clients, -1).argmax(1)


def noisy_labels(
    y: npt.NDArray[np.int64], held: pl.DataFrame, share: float, classes: int, seed: int
) -> npt.NDArray[np.int64]:
    """The labels y [N] of the rows `held` (client, row), of which round(share·n) of each client's n are replaced by
    another class, uniformly."""
    chance, size = seeds.ranks(seed, "label noise", held["row"].to_numpy(), held["client"].to_numpy())
    other = (seeds.uniform(seed, "noisy label", held["row"].to_numpy()) * (classes - 1)).astype(np.int64)
    return np.where(chance < np.rint(share * size), (y + 1 + other) % classes, y)


def reduce_rows(table: pl.DataFrame, share: float, min_rows: int, seed: int, purpose: str) -> pl.DataFrame:
    """Keep max(min_rows, round(share·n)) of each client's n training rows (never more than n), and all other rows.

    Which rows stay depends on (seed, purpose) alone, and a smaller share keeps a subset of what a larger one keeps.
    Share 1 changes nothing.
    """
    if share == 1.0:
        return table
    train, rest = (table.filter(condition) for condition in (pl.col("split") == "train", pl.col("split") != "train"))
    chance, size = seeds.ranks(seed, purpose, train["row"].to_numpy(), train["client"].to_numpy())
    kept = np.maximum(min_rows, np.rint(share * size))
    return pl.concat([train.filter(chance < kept), rest]).sort("client", "split", "row")


def digest(table: pl.DataFrame) -> str:
    """The sha256 of the table's content, which no parquet setting or version changes."""
    content = hashlib.sha256()
    codes = table["split"].replace_strict(list(SPLITS), range(len(SPLITS)), return_dtype=pl.Int32)
    for column in (table["client"], table["cluster"], codes, table["row"]):
        content.update(column.to_numpy().astype("<i8").tobytes())
    return content.hexdigest()


def _dealt(rows: npt.NDArray[np.int64], clients: npt.NDArray[np.int64]) -> pl.DataFrame:
    each, more = divmod(len(rows), len(clients))
    sizes = each + (np.arange(len(clients)) < more)
    return pl.DataFrame({"client": np.repeat(clients.astype(np.int32), sizes), "row": rows})


def _both(train: pl.DataFrame, test: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([train.with_columns(split=pl.lit("train")), test.with_columns(split=pl.lit("test"))])


def _finished(
    train: pl.DataFrame, test: pl.DataFrame, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    table = _both(train, test)
    table = (
        table.with_columns(cluster=_concepts(table, clients, clusters, partition, seed)).select(*SCHEMA).cast(SCHEMA)
    )
    table = reduce_rows(table, partition.share, partition.min_rows, seed, "partition subset")
    return _held_out(table, partition.validation, seed).sort("client", "split", "row")


def _concepts(
    table: pl.DataFrame, clients: int, clusters: int, partition: Partition, seed: int
) -> npt.NDArray[np.integer]:
    """[N] the concept of each row: its client's cluster, or where `mixed`, drawn from the client's own proportions.

    These are a draw from Dirichlet(mixed) whose largest part is moved to the client's cluster, for training and test
    rows alike: the clusters keep their sizes, and mixed → 0 is the partition without it.
    """
    client, cluster = table["client"].to_numpy(), cluster_of_clients(partition, clients, clusters)
    if partition.mixed is None:
        return cluster[client]
    every = np.arange(clients)
    parts = seeds.dirichlet(seed, "partition concepts", every, alpha=partition.mixed, size=clusters)
    largest = parts.argmax(1)
    parts[every, largest], parts[every, cluster] = parts[every, cluster], parts[every, largest]
    side = (table["split"] == "test").to_numpy().astype(np.int64)
    chance = seeds.uniform(seed, "concept of a row", side, table["row"].to_numpy())
    return (chance[:, None] >= np.cumsum(parts, axis=1)[client, :-1]).sum(1)


def _held_out(table: pl.DataFrame, share: float, seed: int) -> pl.DataFrame:
    if share == 0.0:
        return table
    train, test = (table.filter(pl.col("split") == split) for split in ("train", "test"))
    chance, size = seeds.ranks(seed, "partition validation", train["row"].to_numpy(), train["client"].to_numpy())
    held_out = np.minimum(np.maximum(1, np.rint(share * size)), size - 1)
    split = np.where(chance < held_out, "validation", "train")
    return pl.concat([train.with_columns(split=pl.Series(split, dtype=pl.String)), test])
