"""Assign the samples of a data set to clients, with one function for each kind of partition."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from floral.config.reading import ConfigError
from floral.config.schema.partition import Partition, Unseen
from floral.core import seeds
from floral.data.partition_steps import append_unseen, both_sides, cluster_of_clients, deal, finish

Labels = npt.NDArray[np.integer]


def iid_table(
    train_rows: int,
    test_rows: int,
    clients: int,
    clusters: int,
    partition: Partition,
    seed: int,
    unseen: Unseen | None = None,
) -> pl.DataFrame:
    """Deal shuffled samples to the clients in equal shares (kind iid).

    The training samples are shuffled and cut into K shards, whose sizes differ by at most one. The larger shards come
    first. The test samples are dealt in the same way. Of a training shard with n samples, max(min_rows, round(share·n))
    are kept, but at most n. A share of the kept samples becomes the validation split: round(validation·n) of n, at
    least one, never all. `min_rows`, `share` and `validation` are settings of the partition. The table is sorted by
    client, split and row.

    Unseen clients have the numbers K, K + 1, …. They get the last round(unseen.share·N) of the N shuffled training
    samples. They get the same share of the test samples. All samples of their shards are kept, and they have no
    validation split. Their column `cluster` holds the concept of their samples (`concepts_of`).

    Raises:
        ConfigError: there are more clients than training or test samples, or more unseen clients than samples that are
        set aside for them.
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
                f"`unseen`: there are {unseen.clients} unseen clients, but only {aside} {side} samples for them; set "
                f"fewer unseen clients, or `unseen.share` above {unseen.clients / rows:.2g}"
            )
        if clients > rows - aside:
            raise ConfigError(
                f"`clients: {clients}` is more than the number of {side} samples, {rows - aside}; set `clients` to at "
                f"most {rows - aside}"
            )
        sides.append(deal(shuffled[: rows - aside], np.arange(clients)))
        if unseen is not None:
            joining.append(deal(shuffled[rows - aside :], clients + np.arange(unseen.clients)))
    train, test = sides
    table = finish(train, test, clients, clusters, partition, seed)
    return table if unseen is None else append_unseen(table, both_sides(*joining), clients, clusters, unseen)


def grouped_table(
    train_y: Labels, test_y: Labels, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """Deal the samples of each class to the clients of the cluster that owns this class (kind class_groups).

    `group_of` tells which cluster owns a class. As in `iid_table`, a share of the training samples is kept, and a
    validation split is held out.

    Raises:
        ConfigError: a cluster has more clients than training or test samples, or a class has no cluster.

    Source: arXiv 2410.03497, CIFAR-100.
    """
    cluster = cluster_of_clients(partition, clients, clusters)

    def dealt(y: Labels, purpose: str, side: str) -> pl.DataFrame:
        shuffled = seeds.permutation(seed, purpose, size=len(y))
        group, shards = group_of(y, partition, clusters)[shuffled], []
        for c in range(clusters):
            rows, members = shuffled[group == c], np.flatnonzero(cluster == c)
            if len(members) > len(rows):
                classes = (
                    f"class mod {clusters} = {c}" if partition.groups is None else f"list {c} of `partition.groups`"
                )
                raise ConfigError(
                    f"`partition.kind: class_groups`: cluster {c} has {len(members)} clients, but its classes "
                    f"({classes}) have only {len(rows)} {side} samples; set fewer `clients`, or fewer `clusters`"
                )
            shards.append(deal(rows, members))
        return pl.concat(shards)

    train, test = dealt(train_y, "partition train", "training"), dealt(test_y, "partition test", "test")
    return finish(train, test, clients, clusters, partition, seed)


def group_of(y: Labels, partition: Partition, clusters: int) -> npt.NDArray[np.int64]:
    """Return the cluster [N] to which each sample's class belongs, for partitions of kind class_groups.

    If `partition.groups` is set, class y belongs to the cluster whose list contains y. Otherwise, it belongs to cluster
    y mod C.

    Raises:
        ConfigError: a class is in no list.
    """
    if partition.groups is None:
        return np.asarray(y % clusters, np.int64)
    group = np.full(max(int(y.max(initial=0)), *(max(classes) for classes in partition.groups)) + 1, -1)
    for c, classes in enumerate(partition.groups):
        group[list(classes)] = c
    group_of_sample = group[y]
    if (missing := group_of_sample < 0).any():
        raise ConfigError(
            f"`partition.groups`: class {y[missing].min()} of the data is in no list; add it to one of the lists"
        )
    return group_of_sample


def few_classes_table(
    train_y: Labels, test_y: Labels, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """Deal samples of only `classes_per_client` classes to each client (kind pathological).

    As in `iid_table`, a share of the training samples is kept, and a validation split is held out.

    A client has the same classes in training and test. One client after another, in random order, takes the classes
    that the fewest clients have so far. Ties are broken at random. So the numbers of clients of two classes differ by
    at most one. The clients of a class share its samples evenly.

    Raises:
        ConfigError: classes_per_client is above the number of classes or leaves a class without a client, or a class
        has more clients than samples.

    Source: arXiv 1602.05629, which cuts sorted samples instead, so that a client may have one more class.
    """
    each = partition.classes_per_client
    assert each is not None, "the schema requires it"
    classes = np.unique(train_y)
    if why := partition.unfit(clients, clusters, len(classes)):
        raise ConfigError(why)
    holders: list[list[int]] = [[] for _ in classes]
    for client in seeds.permutation(seed, "partition order of clients", size=clients).tolist():
        tie_break = seeds.bits(seed, "partition classes of a client", client, np.arange(len(classes)))
        for f in np.lexsort((tie_break, np.array([len(members) for members in holders])))[:each]:
            holders[f].append(client)

    def dealt(y: Labels, purpose: str, side: str) -> pl.DataFrame:
        shuffled = seeds.permutation(seed, purpose, size=len(y))
        shards = []
        for f, members in zip(classes.tolist(), holders, strict=True):
            rows = shuffled[y[shuffled] == f]
            if len(rows) < len(members):
                raise ConfigError(
                    f"`partition.kind: pathological`: {len(members)} clients have class {f}, which has only "
                    f"{len(rows)} {side} samples; set fewer `clients`, or a smaller `partition.classes_per_client`"
                )
            shards.append(deal(rows, np.array(members)))
        return pl.concat(shards)

    train, test = dealt(train_y, "partition train", "training"), dealt(test_y, "partition test", "test")
    return finish(train, test, clients, clusters, partition, seed)


def skewed_table(
    train_y: Labels, test_y: Labels, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """Deal the samples of each class to the clients in random proportions from Dirichlet(alpha) (kind dirichlet).

    As in `iid_table`, a share of the training samples is kept, and a validation split is held out.

    The proportions are the same for training and test samples. So a client's test samples have the class frequencies of
    its training samples. Clients also differ in size. If all labels are equal, they differ in size only (kind
    size_skew).

    A client has at least `min_rows` training samples and one test sample. A client with fewer samples receives more,
    from the class with the largest expected count for this client. Of the clients above the minimum, the one with most
    samples of this class gives them.

    For alpha → ∞ every client gets equal shares of all classes. For alpha → 0 each class goes to one client, apart from
    the minimum.

    Raises:
        ConfigError: there are too few samples for min_rows training samples and one test sample per client.

    Source: arXiv 1905.12022 (proportions per class), arXiv 2102.02079 (a minimum, but by sampling again).
    """
    assert partition.alpha is not None, "the schema requires it"
    classes = int(max(train_y.max(initial=0), test_y.max(initial=0))) + 1
    proportions = seeds.dirichlet(seed, "partition classes", np.arange(classes), alpha=partition.alpha, size=clients)
    expected = proportions * np.bincount(train_y, minlength=classes)[:, None]

    def dealt(y: Labels, purpose: str, side: str, floor: int) -> pl.DataFrame:
        if clients * floor > len(y):
            raise ConfigError(
                f"`clients: {clients}`: there are {len(y)} {side} samples, but each client needs at least {floor}; set "
                f"`clients` to at most {len(y) // floor}" + (", or a smaller `partition.min_rows`" if floor > 1 else "")
            )
        of_class = np.bincount(y, minlength=classes)
        ends = np.rint(np.cumsum(proportions, axis=1) * of_class[:, None]).astype(np.int64)
        ends[:, -1] = of_class
        counts = _with_minimum(np.diff(ends, axis=1, prepend=0), expected, floor)
        shuffled = seeds.permutation(seed, purpose, size=len(y))
        rows = shuffled[np.argsort(y[shuffled], kind="stable")]  # sorted by class
        holder = np.repeat(np.tile(np.arange(clients, dtype=np.int32), classes), counts.ravel())
        return pl.DataFrame({"client": holder, "row": rows})

    train = dealt(train_y, "partition train", "training", partition.min_rows)
    test = dealt(test_y, "partition test", "test", 1)
    return finish(train, test, clients, clusters, partition, seed)


def natural_table(
    train_client: Labels,
    test_client: Labels,
    clients: int,
    clusters: int,
    partition: Partition,
    seed: int,
    unseen: Unseen | None = None,
) -> pl.DataFrame:
    """Give each client the samples of one natural client, for example one writer (kind natural).

    As in `iid_table`, a share of the training samples is kept, and a validation split is held out.

    `train_client` and `test_client` [N] hold the natural client of each sample, or -1 if it has none. Natural clients
    with fewer than `min_rows` training samples or without a test sample are skipped. Of the others, K = `clients` are
    chosen at random. They become clients 0, 1, …, K - 1 in the order of the data. The unseen clients are chosen from
    the rest.

    Raises:
        ConfigError: too few natural clients have enough samples.
    """
    natural = int(max(train_client.max(initial=-1), test_client.max(initial=-1))) + 1
    sides = (train_client, test_client)
    train_rows, test_rows = (np.bincount(side[side >= 0], minlength=natural) for side in sides)
    eligible = np.flatnonzero((train_rows >= partition.min_rows) & (test_rows > 0))
    if clients > len(eligible):
        raise ConfigError(
            f"`clients: {clients}`: only {len(eligible)} of {natural} natural clients have a test sample and at least "
            f"{partition.min_rows} training samples; set `clients` to at most {len(eligible)}"
            + (", or a smaller `partition.min_rows`" if partition.min_rows > 1 else "")
        )
    training = eligible[seeds.sample(seed, "partition natural clients", size=len(eligible), count=clients)]

    def samples_of(members: Labels, side: Labels, first: int = 0) -> pl.DataFrame:
        number = np.full(natural + 1, -1)  # The last entry, which -1 selects, is of samples without a natural client.
        number[members] = first + np.arange(len(members))
        client = number[side]
        rows = np.flatnonzero(client >= 0)
        return pl.DataFrame({"client": client[rows].astype(np.int32), "row": rows})

    train, test = (samples_of(training, side) for side in sides)
    table = finish(train, test, clients, clusters, partition, seed)
    if unseen is None:
        return table
    rest = np.setdiff1d(eligible, training)
    if unseen.clients > len(rest):
        raise ConfigError(
            f"`unseen`: {unseen.clients} unseen clients are needed, but only {len(rest)} natural clients remain; set "
            "fewer unseen clients, or fewer `clients`"
        )
    joining = rest[seeds.sample(seed, "partition unseen natural clients", size=len(rest), count=unseen.clients)]
    later = both_sides(*(samples_of(joining, side, clients) for side in sides))
    return append_unseen(table, later, clients, clusters, unseen)


def domains_table(
    natural: tuple[Labels, Labels],
    domain: tuple[Labels, Labels],
    clients: int,
    clusters: int,
    partition: Partition,
    seed: int,
) -> pl.DataFrame:
    """Deal the samples of each domain, for example a genre, to the clients of one cluster (kind domains).

    As in `iid_table`, a share of the training samples is kept, and a validation split is held out.

    `natural` holds two arrays: the natural client of each training sample, and that of each test sample; -1 stands for
    a sample without one. `domain` holds the domain of each sample in the same way, and cluster c gets domain c. In
    random order, each natural client goes as a whole to the client of the cluster that has the fewest training samples.
    Samples without a natural client are shuffled and dealt in equal shares.

    Raises:
        ConfigError: a client would get no training or no test sample.
    """
    of_client = cluster_of_clients(partition, clients, clusters)
    owner = [np.full(len(side), -1) for side in natural]
    for c in range(clusters):
        members, mine = np.flatnonzero(of_client == c), [side == c for side in domain]
        holder = _dealt_whole(natural[0][mine[0]], members, seed)
        for side, purpose in enumerate(("partition train", "partition test")):
            of_whole = mine[side] & np.isin(natural[side], list(holder))
            owner[side][of_whole] = [holder[number] for number in natural[side][of_whole].tolist()]
            single = np.flatnonzero(mine[side] & (natural[side] < 0))
            shares = deal(single[seeds.permutation(seed, purpose, c, size=len(single))], members)
            owner[side][shares["row"].to_numpy()] = shares["client"].to_numpy()
    dealt = []
    for owners, side in zip(owner, ("training", "test"), strict=True):
        rows = np.flatnonzero(owners >= 0)
        counts = np.bincount(owners[rows], minlength=clients)
        if not counts.all():
            raise ConfigError(
                f"`clients: {clients}`: client {int(counts.argmin())} would get no {side} sample of its domain; "
                f"set fewer `clients`"
            )
        dealt.append(pl.DataFrame({"client": owners[rows].astype(np.int32), "row": rows}))
    train, test = dealt
    return finish(train, test, clients, clusters, partition, seed)


def _dealt_whole(natural: Labels, members: npt.NDArray[np.int64], seed: int) -> dict[int, int]:
    """Return the client that gets each natural client: one after another, the client with the fewest samples so far.

    `natural` holds the natural client of each training sample, and `members` the clients that share them.
    """
    numbers, sizes = np.unique(natural[natural >= 0], return_counts=True)
    samples, holder = np.zeros(len(members), np.int64), {}
    for at in seeds.permutation(seed, "partition whole clients", size=len(numbers)).tolist():
        fewest = int(samples.argmin())
        samples[fewest] += sizes[at]
        holder[int(numbers[at])] = int(members[fewest])
    return holder


def _with_minimum(
    counts: npt.NDArray[np.int64], expected: npt.NDArray[np.float64], minimum: int
) -> npt.NDArray[np.int64]:
    """Move samples between clients until each client has at least `minimum`; return the new numbers [class, client].

    `counts` [class, client] holds the numbers of samples before, and `expected` [class, client] the expected numbers. A
    client with too few samples receives some from the class with its largest expected number. They come from a client
    above the minimum, the one with the most samples of this class.
    """
    counts, total = counts.copy(), counts.sum(0)
    for receiver in np.flatnonzero(total < minimum):
        for _ in range(minimum - total[receiver]):
            spare = counts * (total > minimum)
            f = np.argmax(np.where(spare.any(1), expected[:, receiver], -1))
            giver = np.argmax(spare[f])
            counts[f, [giver, receiver]] += [-1, 1]
            total[giver] -= 1
    return counts


def consecutive_table(
    train_each: int, test_each: int, clients: int, clusters: int, partition: Partition, seed: int
) -> pl.DataFrame:
    """Return the partition table of data that are generated client by client.

    Client k has the k-th block of the training samples and the k-th block of the test samples.
    """
    train, test = (deal(np.arange(clients * each), np.arange(clients)) for each in (train_each, test_each))
    return finish(train, test, clients, clusters, partition, seed)
