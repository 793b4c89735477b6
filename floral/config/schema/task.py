"""Values of a task: data, partition, shift, model and training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from floral.config.schema.base import Frozen, is_none
from floral.config.schema.data import NOTHING, Data, Synthetic


class Colour(Frozen):
    """What one concept does to the pixels, in this order; values are clipped to black and white."""

    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="the order of the channels, such as [1, 2, 0]; as they are by default"
    )
    gain: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0,), min_length=1, description="factor of all channels, or one of each"
    )
    contrast: float = Field(default=1.0, gt=0, description="factor of the distance from medium grey")
    invert: bool = False


class Shift(Frozen):
    """How the concepts differ; floral/data/shifts.py says what each kind does."""

    kind: Literal["none", "rotate", "label_shift", "label_permutation", "colour"] = "none"
    angles: tuple[float, ...] | None = Field(
        default=None, exclude_if=is_none, description="of rotate: degrees of each concept; c·360/C by default"
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="nearest",
        exclude_if=lambda how: how == "nearest",
        description="of rotate by what is no multiple of 90 degrees",
    )
    colours: tuple[Colour, ...] | None = Field(
        default=None, exclude_if=is_none, description="of colour: each concept's"
    )

    @model_validator(mode="after")
    def _keys_are_those_of_the_kind(self) -> Shift:
        for key, kind in (("angles", "rotate"), ("colours", "colour")):
            if getattr(self, key) is not None and self.kind != kind:
                raise ValueError(f"shift.kind: {self.kind} has no {key}: leave it out")
        if self.interpolation != "nearest" and self.kind != "rotate":
            raise ValueError(f"shift.kind: {self.kind} has no interpolation: leave it out")
        if self.kind == "colour" and self.colours is None:
            raise ValueError("shift.kind: colour needs colours, one for each cluster, such as [{}, {invert: true}]")
        listed = self.listed
        if listed is not None and any(one in listed[:at] for at, one in enumerate(listed)):
            raise ValueError(f"shift: two of its {len(listed)} concepts are the same; let each differ")
        return self

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """The concepts, where the task lists them."""
        return self.colours if self.angles is None else tuple(angle % 360 for angle in self.angles)

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Why rows of this shape cannot be shifted so; None: they may."""
        if self.kind == "rotate" and (len(shape) < 2 or shape[0] != shape[1]):
            return f"shift.kind: rotate needs square images, but rows have shape {list(shape)}; use none or label_shift"
        return None

    def turn(self, concept: int, clusters: int) -> tuple[float, float]:
        """By how much rotate turns a concept: (a, b) for a/b of a full turn, counter-clockwise."""
        if self.angles is not None:
            return self.angles[concept], 360
        return (concept, clusters) if concept < clusters else (2 * (concept - clusters) + 1, 2 * clusters)


def _can_be_drawn(alpha: float) -> float:
    if alpha < 1e-300:  # a draw's logarithm, divided by alpha, would be no finite number
        raise ValueError(f"{alpha:g} is too near 0; at 1e-300 one part has everything already")
    return alpha


Alpha = Annotated[float, Field(gt=0), AfterValidator(_can_be_drawn)]
"""Of a symmetric Dirichlet distribution."""


class Partition(Frozen):
    """Which rows a client holds, and of which concept they are.

    iid: shuffled rows. size_skew: the same, but client sizes are in proportions drawn from a symmetric
    Dirichlet(alpha). dirichlet: the rows of each class are shared out in such proportions. pathological: a client has
    rows of `classes_per_client` classes alone. class_groups: a row of class f goes to the clients of cluster f mod C
    alone, or of the cluster whose list in `groups` has f. natural: a client holds the rows of one natural client of the
    data, for example a writer's.

    A class may be missing for a client under all of them but iid and size_skew, and in small clients under these too.
    """

    kind: Literal["iid", "size_skew", "dirichlet", "pathological", "class_groups", "natural"] = "iid"
    alpha: Alpha | None = Field(
        default=None,
        exclude_if=is_none,
        description="of dirichlet and size_skew: small is very unequal",
    )
    classes_per_client: int | None = Field(
        default=None, ge=1, exclude_if=is_none, description="of pathological: classes that a client has rows of"
    )
    groups: tuple[Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)], ...] | None = Field(
        default=None,
        exclude_if=is_none,
        description="of class_groups: the classes of each cluster; f mod C by default",
    )
    cluster_shares: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, exclude_if=is_none, description="share of the clients in each cluster; equal shares by default"
    )
    mixed: Alpha | None = Field(
        default=None,
        exclude_if=is_none,
        description="each client mixes all concepts, in proportions from Dirichlet(mixed); near 0: one, as without",
    )
    label_noise: float | None = Field(
        default=None,
        gt=0,
        le=1,
        exclude_if=is_none,
        description="share of each client's training and validation labels replaced by another class; test stays clean",
    )
    share: float = Field(default=1.0, gt=0, le=1, description="share of each client's training rows that is kept")
    min_rows: int = Field(default=10, ge=1, description="at least so many training rows are kept")
    validation: float = Field(
        default=0.2, ge=0, lt=1, description="share of the kept training rows held out for tuning"
    )

    @model_validator(mode="after")
    def _keys_are_those_of_the_kind(self) -> Partition:
        for key, kinds, required in (
            ("alpha", ("dirichlet", "size_skew"), "an alpha, for example 0.1"),
            ("classes_per_client", ("pathological",), "classes_per_client, for example 2"),
            ("groups", ("class_groups",), None),
        ):
            given = getattr(self, key) is not None
            if given and self.kind not in kinds:
                raise ValueError(f"partition.kind: {self.kind} has no {key}: leave it out")
            if not given and self.kind in kinds and required:
                raise ValueError(f"partition.kind: {self.kind} needs {required}")
        return self

    @model_validator(mode="after")
    def _groups_are_apart(self) -> Partition:
        listed = [f for group in self.groups or () for f in group]
        if twice := sorted({f for f in listed if listed.count(f) > 1}):
            raise ValueError(f"partition.groups: class {twice[0]} stands twice; give it to one cluster")
        return self

    @model_validator(mode="after")
    def _shares_are_of_one_whole(self) -> Partition:
        if self.cluster_shares and abs(sum(self.cluster_shares) - 1) > 1e-6:
            raise ValueError(
                f"partition.cluster_shares: {list(self.cluster_shares)} sum to {sum(self.cluster_shares):g}; give "
                "shares that sum to 1, such as [0.6, 0.25, 0.1, 0.05]"
            )
        return self

    @model_validator(mode="after")
    def _mixtures_have_concepts(self) -> Partition:
        if self.mixed is not None and self.kind == "class_groups":
            raise ValueError("partition.mixed: class_groups tell clusters apart by their classes; leave mixed out")
        return self

    def unfit(self, clients: int, clusters: int, classes: int) -> str | None:
        """Why rows of so many classes cannot be shared out so, with key and remedy; None: they may."""
        each = self.classes_per_client
        if each is not None and (each > classes or each * clients < classes):
            return (
                f"partition.classes_per_client: {each} for each of {clients} clients, but the training rows have "
                f"{classes} classes; set at most {classes}, and enough that every class has a client"
            )
        if self.kind == "class_groups" and self.groups is None and clusters > classes:
            return f"clusters: {clusters} cannot share {classes} classes; set at most {classes}"
        if self.groups and (left := sorted(set(range(classes)) - {f for group in self.groups for f in group})):
            return f"partition.groups: class {left[0]} of the data is in no list; add it to one"
        return None

    def members(self, clients: int, clusters: int) -> list[int]:
        """The number of clients of each cluster: those of client k mod C, or by `cluster_shares`, whose remainders are
        given out one by one, the largest first."""
        if self.cluster_shares is None:
            return [len(range(c, clients, clusters)) for c in range(clusters)]
        wish = [share * clients for share in self.cluster_shares]
        count = [math.floor(some + 1e-9) for some in wish]
        by_remainder = sorted(range(clusters), key=lambda c: count[c] - wish[c])
        for c in by_remainder[: clients - sum(count)]:
            count[c] += 1
        return count


class Unseen(Frozen):
    """Clients that take no part in training and join after it, with rows of their own, by which those of the others are
    fewer; under natural partitions they are further natural clients. Joining is local training of what is the client's
    own, by the method's own rules, while everything that comes from the server stays as it is."""

    seen_cluster: int = Field(default=0, ge=0, description="clients of clusters 0, 1, … in turn")
    new_concept: int = Field(
        default=0, ge=0, description="clients of concepts C, C + 1, … (at most C of them), which no cluster has"
    )
    share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="of iid: share of all training and test rows, dealt evenly to these clients",
    )
    epochs: int = Field(default=30, ge=1, description="local epochs of a joining client, the same for all methods")
    samples: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0, 1, 5, 10, 20, 50), description="labelled samples in total; and all that a client has"
    )

    @model_validator(mode="after")
    def _somebody_joins(self) -> Unseen:
        if not self.clients:
            raise ValueError("unseen: names no client; set seen_cluster or new_concept, or leave unseen out")
        return self

    @property
    def clients(self) -> int:
        return self.seen_cluster + self.new_concept


class Model(Frozen):
    """A file of floral/models and the arguments of its `build`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Normalise(Frozen):
    """Inputs, once scaled to [0, 1], become (x - mean) / std, channel by channel."""

    mean: tuple[float, ...] = Field(min_length=1)
    std: tuple[Annotated[float, Field(gt=0)], ...]

    @model_validator(mode="after")
    def _one_pair_per_channel(self) -> Normalise:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}; give one of each per channel")
        return self


class Server(Frozen):
    optimiser: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(default=1.0, gt=0)


class Task(Frozen):
    name: str
    title: str
    data: Data = Field(description='a name in config/data.lock, what to draw, your own, or "nothing"')
    shift: Shift = Shift()
    normalise: Normalise | None = None
    augmentation: Literal["none", "flip_crop"] = Field(
        default="none",
        description="training images are flipped and cropped at random: as if before a rotation, and after a colour "
        "(the border of a crop stays black)",
    )
    partition: Partition = Partition()
    unseen: Unseen | None = Field(
        default=None, exclude_if=is_none, description="clients that join after training; none unless the task has them"
    )
    published_split: Literal["train", "test"] = Field(
        default="test", description="rows that the published accuracy of this task was measured on"
    )
    clients: int = Field(ge=1)
    clusters: int = Field(ge=1)
    assumed_clusters: int | None = Field(
        default=None, ge=1, exclude_if=is_none, description="C that methods are told, where it is not the true number"
    )
    participation: float = Field(gt=0, le=1)
    rounds: int = Field(ge=1)
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(ge=1)
    steps_per_epoch: int | None = Field(
        default=None,
        ge=1,
        exclude_if=is_none,
        description="steps of a local epoch, whatever number of rows a client has; those of one pass by default",
    )
    lr: float = Field(ge=0)
    router_lr: float = Field(ge=0)
    model: Model
    server: Server = Server()
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    per: Literal["character", "token"] | None = Field(
        default=None,
        exclude_if=is_none,
        description="of text: what a row is a series of; each is a label, of which loss and accuracy are means",
    )
    eval_every: int | None = Field(default=None, ge=1, description="rounds between evaluations; rounds/50 by default")

    @model_validator(mode="after")
    def _clusters_have_clients(self) -> Task:
        if self.clusters > self.clients:
            raise ValueError(f"clusters: {self.clusters} is more than clients: {self.clients}")
        if self.assumed > self.clients:
            raise ValueError(f"assumed_clusters: {self.assumed} is more than clients: {self.clients}")
        return self

    @model_validator(mode="after")
    def _partition_fits_the_clusters(self) -> Task:
        rule, own = self.partition, isinstance(self.data, Synthetic)
        if rule.groups is not None and len(rule.groups) != self.clusters:
            raise ValueError(f"partition.groups: {len(rule.groups)} lists, but clusters is {self.clusters}")
        if (rule.cluster_shares or rule.mixed) and self.concepts < 2:
            key = "cluster_shares" if rule.cluster_shares else "mixed"
            raise ValueError(
                f"partition.{key}: this task has one concept, so no clusters: set a shift, or leave it out"
            )
        if rule.cluster_shares is not None:
            if len(rule.cluster_shares) != self.clusters:
                raise ValueError(
                    f"partition.cluster_shares: {len(rule.cluster_shares)} shares, but clusters is {self.clusters}"
                )
            if 0 in (count := rule.members(self.clients, self.clusters)):
                raise ValueError(
                    f"partition.cluster_shares: {list(rule.cluster_shares)} of {self.clients} clients leave cluster "
                    f"{count.index(0)} empty; raise its share, or set more clients"
                )
        if own and (rule.mixed or rule.label_noise):
            key = "mixed: needs a data set" if rule.mixed else "label_noise: is data.label_noise in synthetic data"
            raise ValueError(f"partition.{key}; leave it out")
        if rule.label_noise and self.published_split == "train":
            raise ValueError("partition.label_noise: published_split: train evaluates on training rows; leave one out")
        return self

    @model_validator(mode="after")
    def _loss_and_shift_fit_the_data(self) -> Task:
        if not isinstance(self.data, Synthetic):
            if self.loss != "cross_entropy":
                raise ValueError(f"loss: {self.loss} does not fit a data set with classes; set loss: cross_entropy")
            return self
        if self.loss != "mse":
            raise ValueError(f"loss: {self.loss} does not fit synthetic data, whose targets are numbers; set loss: mse")
        if self.normalise or self.augmentation != "none":
            raise ValueError("normalise and augmentation need a data set of images; leave them out")
        if self.partition.kind != "iid":
            raise ValueError(
                f"partition.kind: {self.partition.kind} needs a data set with classes; set partition.kind: iid"
            )
        if self.published_split == "train":
            raise ValueError("published_split: train needs a data set; synthetic data have a test split: leave it out")
        if self.shift.kind != "none":
            raise ValueError(
                f"shift.kind: {self.shift.kind} needs a data set; synthetic data have their own, so leave shift out"
            )
        return self

    @model_validator(mode="after")
    def _text_is_no_image(self) -> Task:
        if self.per is None:
            return self
        if isinstance(self.data, Synthetic):
            raise ValueError(f"per: {self.per} needs a data set of text; leave per out")
        if self.shift.kind != "none" or self.normalise or self.augmentation != "none":
            raise ValueError(f"per: {self.per}: text has no shift, normalise or augmentation; leave them out")
        if self.partition.kind not in ("natural", "iid"):
            raise ValueError(f"partition.kind: {self.partition.kind} needs a class of each row; set natural or iid")
        if self.partition.label_noise or self.partition.mixed:
            raise ValueError(f"per: {self.per}: text has no label_noise or mixed concepts; leave them out of partition")
        return self

    @model_validator(mode="after")
    def _rotation_can_follow_augmentation(self) -> Task:
        if self.augmentation == "none" or self.shift.kind != "rotate":
            return self
        turns = [self.shift.turn(c, self.clusters) for c in range(self.clusters)] if self._concepts_are_listed() else []
        if any(4 * part % whole for part, whole in turns):
            found = f"clusters is {self.clusters}" if self.shift.angles is None else f"angles are {self.shift.angles}"
            raise ValueError(
                f"augmentation: {self.augmentation} with shift.kind: rotate needs quarter turns (clusters: 1, 2 or 4,"
                f" or angles that are multiples of 90), but {found}; set augmentation: none"
            )
        return self

    @model_validator(mode="after")
    def _every_concept_is_listed(self) -> Task:
        if not self._concepts_are_listed():
            new = self.unseen.new_concept if self.unseen else 0
            raise ValueError(
                f"shift: lists {len(self.shift.listed or ())} concepts, but clusters is {self.clusters}"
                + (f" and unseen.new_concept {new}" if new else "")
            )
        return self

    def _concepts_are_listed(self) -> bool:
        listed, new = self.shift.listed, self.unseen.new_concept if self.unseen else 0
        return listed is None or len(listed) == self.clusters + new

    @model_validator(mode="after")
    def _somebody_can_join(self) -> Task:
        if self.unseen is None:
            return self
        if isinstance(self.data, Synthetic) or self.partition.kind not in ("iid", "natural") or self.partition.mixed:
            raise ValueError(
                "unseen: needs a data set under partition.kind: iid or natural, not mixed; leave unseen out"
            )
        if self.partition.kind == "natural" and "share" in self.unseen.model_fields_set:
            raise ValueError("unseen.share: is of partition.kind: iid; natural clients keep their rows: leave it out")
        if self.unseen.new_concept and self.shift.kind == "none":
            raise ValueError("unseen.new_concept: shift.kind: none has no concept but one; set new_concept: 0")
        return self

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Why rows of this shape cannot be what the task makes of them, with key and remedy; None: they may."""
        if why := self.shift.unfit(shape):
            return why
        channels = shape[2] if len(shape) == 3 else 1
        if self.normalise is not None and len(self.normalise.mean) != channels:
            return (
                f"normalise: {len(self.normalise.mean)} means and stds, but rows of shape {list(shape)} have {channels}"
                " channel(s); give one of each per channel"
            )
        if self.augmentation != "none" and len(shape) < 2:
            return (
                f"augmentation: {self.augmentation} needs images, but rows have shape {list(shape)}; set augmentation: "
                "none"
            )
        return None

    @property
    def assumed(self) -> int:
        """C, the number of clusters that methods reckon with."""
        return self.assumed_clusters or self.clusters

    @property
    def concepts(self) -> int:
        """How many true clusters there are: C, or 1 where no shift, class group or teacher tells clusters apart."""
        apart = isinstance(self.data, Synthetic) or self.shift.kind != "none" or self.partition.kind == "class_groups"
        return self.clusters if apart else 1

    @property
    def objective(self) -> Literal["cross_entropy", "token_cross_entropy", "mse"]:
        """What a sample loses."""
        return self.loss if self.per is None else "token_cross_entropy"

    @property
    def skewed(self) -> bool:
        """Whether clients of one cluster differ in what their rows are like, so that none has those of its cluster."""
        return self.partition.kind in ("dirichlet", "pathological", "natural") or self.partition.mixed is not None

    @property
    def noop(self) -> bool:
        """Whether its runs do nothing."""
        return self.data == NOTHING

    @property
    def cohort(self) -> int:
        """M, the number of clients that take part in a round."""
        return max(1, round(self.participation * self.clients))

    def local_steps(self, rows: int) -> int:
        """Steps per round of a client with so many training rows: epochs·⌈rows / batch⌉, or by `steps_per_epoch`."""
        return self.epochs * (self.steps_per_epoch or -(-rows // self.batch))

    @property
    def evaluation_period(self) -> int:
        return self.eval_every or max(1, self.rounds // 50)
