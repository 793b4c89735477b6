"""Define the YAML keys of a partition: which samples each client holds, and which clients join after training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from floral.config.schema.base import Frozen, is_none


def _not_too_small(alpha: float) -> float:
    if alpha < 1e-300:  # With a smaller alpha, the logarithm of a gamma sample divided by alpha would overflow.
        raise ValueError(
            f"{alpha:g} is too close to 0; set at least 1e-300 (at 1e-300, one client already gets all samples)"
        )
    return alpha


Alpha = Annotated[float, Field(gt=0), AfterValidator(_not_too_small)]
"""Concentration of a symmetric Dirichlet distribution, a positive number. A small value gives unequal shares."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of partition: its properties, and the version of its code."""

    skewed: bool
    """Whether clients of one cluster have different data distributions."""
    version: int = 1
    """Increase it when the same partition gives other samples: partitions of this kind and their runs get new names."""


KINDS = {
    "iid": Kind(skewed=False),
    "size_skew": Kind(skewed=False),
    "dirichlet": Kind(skewed=True),
    "pathological": Kind(skewed=True),
    "class_groups": Kind(skewed=False),
    "natural": Kind(skewed=True),
    "domains": Kind(skewed=True),
}
"""Values of the key `partition.kind`."""


class Partition(Frozen):
    """The rule that assigns samples and a concept (the data distribution of a cluster) to each client.

    The key `kind` is the name of the rule.

    - iid: the samples are shuffled, and all clients get equal shares.

    - size_skew: the samples are shuffled. The share of each client is drawn from a symmetric Dirichlet(alpha)
      distribution.

    - dirichlet: for each class, the shares of the clients are drawn from a symmetric Dirichlet(alpha) distribution.

    - pathological: each client has samples of only `classes_per_client` classes.

    - class_groups: each cluster has its own classes. The list of the cluster in `groups` names them. Without `groups`,
      class f belongs to cluster f mod C, where C is the number of clusters.

    - natural: each client holds the samples of one natural client of the data, such as a writer.

    - domains: each cluster has the samples of one domain of the data, such as the genre of a text. Cluster c has domain
      c. All samples of a natural client, such as an article, go to one client. The other samples are shuffled and
      shared equally.

    With every rule, some clients can have no samples of some class. With iid and size_skew, this happens only to
    clients with few samples.
    """

    kind: Literal["iid", "size_skew", "dirichlet", "pathological", "class_groups", "natural", "domains"] = Field(
        default="iid", description="Rule that assigns samples to clients."
    )
    alpha: Alpha | None = Field(
        default=None,
        exclude_if=is_none,
        description="For dirichlet and size_skew: concentration of the Dirichlet distribution; small: unequal shares.",
    )
    classes_per_client: int | None = Field(
        default=None, ge=1, exclude_if=is_none, description="For pathological: number of classes of each client."
    )
    groups: tuple[Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)], ...] | None = Field(
        default=None,
        exclude_if=is_none,
        description="For class_groups: one list of classes for each cluster; by default class f is in cluster f mod C.",
    )
    cluster_shares: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None,
        exclude_if=is_none,
        description="Shares of the clients in each cluster, which sum to 1; by default the shares are equal.",
    )
    mixed: Alpha | None = Field(
        default=None,
        exclude_if=is_none,
        description="Each client mixes concepts with shares from Dirichlet(mixed); by default it has a single concept.",
    )
    label_noise: float | None = Field(
        default=None,
        gt=0,
        le=1,
        exclude_if=is_none,
        description="Share of each client's training and validation labels that are set to another class.",
    )
    share: float = Field(default=1.0, gt=0, le=1, description="Share of each client's training samples that is kept.")
    test_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        exclude_if=lambda share: share == 1.0,
        description="Share of each client's test samples that is kept, at least one; fewer test samples save time.",
    )
    min_rows: int = Field(default=10, ge=1, description="Minimum number of training samples that each client keeps.")
    validation: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="Share of each client's kept training samples that are used for validation instead.",
    )

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Partition:
        for key, kinds, required in (
            ("alpha", ("dirichlet", "size_skew"), "set it, for example `alpha: 0.1`"),
            ("classes_per_client", ("pathological",), "set it, for example `classes_per_client: 2`"),
            ("groups", ("class_groups",), None),
        ):
            is_set = getattr(self, key) is not None
            if is_set and self.kind not in kinds:
                raise ValueError(f"`partition.kind: {self.kind}` has no `{key}`; remove the key `{key}`")
            if not is_set and self.kind in kinds and required:
                raise ValueError(f"`partition.kind: {self.kind}` needs `{key}`; {required}")
        return self

    @model_validator(mode="after")
    def _groups_are_disjoint(self) -> Partition:
        listed = [f for group in self.groups or () for f in group]
        if repeated := sorted({f for f in listed if listed.count(f) > 1}):
            raise ValueError(f"`partition.groups`: class {repeated[0]} is listed twice; list it for one cluster only")
        return self

    @model_validator(mode="after")
    def _shares_sum_to_1(self) -> Partition:
        if self.cluster_shares and abs(sum(self.cluster_shares) - 1) > 1e-6:
            raise ValueError(
                f"`partition.cluster_shares`: {list(self.cluster_shares)} sum to {sum(self.cluster_shares):g}; give "
                "shares that sum to 1, such as [0.6, 0.25, 0.1, 0.05]"
            )
        return self

    @model_validator(mode="after")
    def _mixtures_have_concepts(self) -> Partition:
        if self.mixed is not None and self.kind in ("class_groups", "domains"):
            raise ValueError(f"`partition.mixed` cannot be used with `kind: {self.kind}`; remove the key `mixed`")
        return self

    @property
    def skewed(self) -> bool:
        """Whether clients of one cluster have different data distributions."""
        return KINDS[self.kind].skewed or self.mixed is not None

    def unfit(self, clients: int, clusters: int, classes: int) -> str | None:
        """Return why this rule cannot divide data with `classes` classes among the clients, or None if it can.

        The returned text names the YAML key and the remedy.
        """
        each = self.classes_per_client
        if each is not None and (each > classes or each * clients < classes):
            return (
                f"`partition.classes_per_client: {each}` does not fit {clients} clients and {classes} classes; set at "
                f"most {classes}, and enough that every class has a client"
            )
        if self.kind == "class_groups" and self.groups is None and clusters > classes:
            return f"`clusters: {clusters}` is more than the {classes} classes of the data; set at most {classes}"
        if self.groups and (missing := sorted(set(range(classes)) - {f for group in self.groups for f in group})):
            return f"`partition.groups`: class {missing[0]} of the data is in no list; add it to one list"
        return None

    def members(self, clients: int, clusters: int) -> list[int]:
        """Return the number of clients in each cluster.

        By default, client k is in cluster k mod C, where C is the number of clusters. With `cluster_shares`, the number
        of clients in a cluster is its share times `clients`, rounded down. The clients that remain go to the clusters
        that lost most by rounding, one client to each.
        """
        if self.cluster_shares is None:
            return [len(range(c, clients, clusters)) for c in range(clusters)]
        target = [share * clients for share in self.cluster_shares]
        count = [math.floor(size + 1e-9) for size in target]
        by_remainder = sorted(range(clusters), key=lambda c: count[c] - target[c])
        for c in by_remainder[: clients - sum(count)]:
            count[c] += 1
        return count


class Unseen(Frozen):
    """Clients that take no part in training and join after the last round.

    With `partition.kind: iid`, they get the share `share` of all samples, and the training clients get the rest. With
    `partition.kind: natural`, they are natural clients of the data (such as writers) that no training client uses. A
    client that has joined trains only its private parameters, which are never sent to the server. The parameters that
    it receives from the server stay unchanged.
    """

    seen_cluster: int = Field(
        default=0, ge=0, description="Number of joining clients with the concepts of clusters 0, 1, … in turn."
    )
    new_concept: int = Field(
        default=0, ge=0, description="Number of joining clients with new concepts C, C + 1, …; at most C new concepts."
    )
    share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="For iid: share of all training and test samples that the joining clients get, in equal parts.",
    )
    epochs: int = Field(
        default=30, ge=1, description="Number of local epochs that a joining client trains, the same for all methods."
    )
    samples: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 5, 10, 20, 50),
        description="Numbers of labelled samples with which clients join; the size of the smallest client is added.",
    )

    @model_validator(mode="after")
    def _has_clients(self) -> Unseen:
        if not self.clients:
            raise ValueError(
                "`unseen` has no clients; set `seen_cluster` or `new_concept` above 0, or remove the key `unseen`"
            )
        return self

    @property
    def clients(self) -> int:
        """The number of clients that join after the last round, U."""
        return self.seen_cluster + self.new_concept
