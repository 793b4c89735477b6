"""The frozen, validated values that the YAML files hold: tasks, methods, suites, switches, data sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


def _is_none(value: object) -> bool:
    """Of a key that is left out where it is none: what does not have it keeps its hash."""
    return value is None


# ---------------------------------------------------------------------------------------------- tasks


class Synthetic(Frozen):
    """Data drawn from the task's seed: h = x (W + scale u_c v_cᵀ) + b (PAPER: arXiv 2410.03497, synthetic tasks)."""

    kind: Literal["linear", "mlp"]
    dimension: int = Field(default=10, ge=1)
    outputs: int = Field(default=3, ge=1)
    samples_per_client: int = Field(ge=2)
    rank: int = Field(default=1, ge=1)
    scale: float = 2.0
    simple: bool = Field(
        default=False, exclude_if=lambda simple: not simple, description="the plainest teachers, see synthetic.generate"
    )
    normalised: bool = Field(
        default=False,
        exclude_if=lambda normalised: not normalised,
        description="of mlp: hidden outputs have mean 0 and variance 1 within each client",
    )
    label_noise: float = Field(default=0.0, ge=0)
    population: int = Field(
        default=4096, ge=1, description="fresh rows per cluster on which the population risk is measured"
    )

    @model_validator(mode="after")
    def _only_hidden_outputs_are_normalised(self) -> Synthetic:
        if self.normalised and self.kind != "mlp":
            raise ValueError(f"data.normalised: kind: {self.kind} has no hidden outputs; leave it out")
        return self


class Own(Frozen):
    """Your own data, split where they are in two parts (train and test), else by `test_share`.

    folder: images, one folder per class, or folders train and test of such. table: a parquet or CSV file with a row per
    sample, or a folder of two, train.* and test.*. arrays: x and y (and client), or train_x, train_y, test_x and test_y
    (and train_client and test_client), in an .npz file or a folder of .npy files.
    """

    kind: Literal["folder", "table", "arrays"]
    path: str = Field(description="the file or folder, from where commands are typed; ~ is your home")
    label: str | None = Field(default=None, description="of a table: the column of classes, integers 0, 1, … or words")
    features: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="of a table: the columns of numbers; all others by default"
    )
    client: str | None = Field(default=None, description="of a table: the column that says whose each row is")
    test_share: float = Field(default=0.2, gt=0, lt=1, description="share of test rows, of every client's if there are")

    @model_validator(mode="after")
    def _columns_are_of_tables(self) -> Own:
        if self.kind == "table" and self.label is None:
            raise ValueError("data.label: a table needs the name of the column that holds the classes")
        for key in () if self.kind == "table" else ("label", "features", "client"):
            if getattr(self, key) is not None:
                raise ValueError(f"data.{key}: is of kind: table alone; leave it out")
        return self

    @model_validator(mode="after")
    def _a_column_has_one_use(self) -> Own:
        used = [name for name in (self.label, self.client, *(self.features or ())) if name is not None]
        if twice := [name for name in used if used.count(name) > 1]:
            raise ValueError(f"data: column {twice[0]!r} stands twice in label, client and features; name it once")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What its reader is told."""
        keys = {"test_share"} | ({"label", "features", "client"} if self.kind == "table" else set())
        return self.model_dump(mode="json", include=keys)


def _kind_of_data(data: Any) -> str | None:
    kind = data.get("kind") if isinstance(data, Mapping) else getattr(data, "kind", None)
    known = {"linear": "drawn", "mlp": "drawn", "folder": "own", "table": "own", "arrays": "own"}
    return "named" if isinstance(data, str) else known.get(str(kind))


Data = Annotated[
    Annotated[str, Tag("named")] | Annotated[Synthetic, Tag("drawn")] | Annotated[Own, Tag("own")],
    Discriminator(
        _kind_of_data,
        custom_error_type="data",
        custom_error_message="expected a name in config/data.lock, or a kind: linear or mlp (drawn), "
        "folder, table or arrays (your own)",
    ),
]


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
        default=None, exclude_if=_is_none, description="of rotate: degrees of each concept; c·360/C by default"
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="nearest",
        exclude_if=lambda how: how == "nearest",
        description="of rotate by what is no multiple of 90 degrees",
    )
    colours: tuple[Colour, ...] | None = Field(
        default=None, exclude_if=_is_none, description="of colour: each concept's"
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
        exclude_if=_is_none,
        description="of dirichlet and size_skew: small is very unequal",
    )
    classes_per_client: int | None = Field(
        default=None, ge=1, exclude_if=_is_none, description="of pathological: classes that a client has rows of"
    )
    groups: tuple[Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)], ...] | None = Field(
        default=None,
        exclude_if=_is_none,
        description="of class_groups: the classes of each cluster; f mod C by default",
    )
    cluster_shares: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        default=None, exclude_if=_is_none, description="share of the clients in each cluster; equal shares by default"
    )
    mixed: Alpha | None = Field(
        default=None,
        exclude_if=_is_none,
        description="each client mixes all concepts, in proportions from Dirichlet(mixed); near 0: one, as without",
    )
    label_noise: float | None = Field(
        default=None,
        gt=0,
        le=1,
        exclude_if=_is_none,
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


NOTHING = "nothing"
"""The `data` of a task whose runs read and train nothing: what they take is what the pipeline costs."""


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
        default=None, exclude_if=_is_none, description="clients that join after training; none unless the task has them"
    )
    published_split: Literal["train", "test"] = Field(
        default="test", description="rows that the published accuracy of this task was measured on"
    )
    clients: int = Field(ge=1)
    clusters: int = Field(ge=1)
    assumed_clusters: int | None = Field(
        default=None, ge=1, exclude_if=_is_none, description="C that methods are told, where it is not the true number"
    )
    participation: float = Field(gt=0, le=1)
    rounds: int = Field(ge=1)
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(ge=1)
    steps_per_epoch: int | None = Field(
        default=None,
        ge=1,
        exclude_if=_is_none,
        description="steps of a local epoch, whatever number of rows a client has; those of one pass by default",
    )
    lr: float = Field(ge=0)
    router_lr: float = Field(ge=0)
    model: Model
    server: Server = Server()
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    per: Literal["character", "token"] | None = Field(
        default=None,
        exclude_if=_is_none,
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


# -------------------------------------------------------------------------------------------- methods


class Parameter(Frozen):
    """One hyper-parameter of a method: its default and what is allowed."""

    default: float | int | bool | str
    doc: str
    choices: tuple[Any, ...] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    later: bool = Field(
        default=False, description="younger than results that are kept: a run at the default is the one without it"
    )

    def accept(self, value: Any) -> Any:
        """Return `value` if it is allowed, else raise ValueError with what is."""
        if self.choices is not None and isinstance(value, str | bool):
            if value not in self.choices:
                raise ValueError(f"{value!r} is not one of {', '.join(map(str, self.choices))}")
            return value
        if isinstance(self.default, bool) != isinstance(value, bool):
            raise ValueError(f"{value!r} is not a {type(self.default).__name__}")
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{value!r} is not a finite number")
            if isinstance(self.default, str) and self.at_least is None and self.above is None:
                raise ValueError(f"{value!r} is not one of {', '.join(map(str, self.choices or ()))}")
            below = (self.at_least is not None and value < self.at_least) or (
                self.above is not None and value <= self.above
            )
            if below or (self.at_most is not None and value > self.at_most):
                low = f"at least {self.at_least}" if self.at_least is not None else f"above {self.above}"
                raise ValueError(
                    f"{value!r} is out of range: {low}, at most {self.at_most if self.at_most is not None else 'any'}"
                )
        elif not isinstance(value, type(self.default)):
            raise ValueError(f"{value!r} is not a {type(self.default).__name__}")
        return value


SERVER_SEES = {
    "sizes": "how many training rows it has, the weight of a mean",
    "routes": "which clusters it belongs to",
    "updates": "what it trained, by itself and not only as part of a sum",
    "rows": "its training rows, or statistics of them",
}
"""What a server may get to know of a single client."""

ServerSees = tuple[Literal["sizes", "routes", "updates", "rows"], ...]


Condition = Literal["one_local_step", "one_cluster"]
"""What a task can be like that makes one method another; floral/stages/degenerate.py tests it."""


class Equal(Frozen):
    """`variant` with the same values of the parameters that both have gives the same results `when` a task is so."""

    variant: str
    when: Condition


class VariantEntry(Frozen):
    title: str
    set: Mapping[str, Any] = Field(default_factory=dict)
    what: tuple[str, str] | None = Field(default=None, description="instead of the method's two lines")
    oracle: bool = Field(default=False, description="reads the true clusters: a ceiling or control, not a rival")
    global_only: bool = Field(default=False, description="serves one model to all: cannot fit a concept shift")
    equals: tuple[Equal, ...] = Field(default=(), description="besides those of its method")
    server_sees: ServerSees | None = Field(default=None, description="where it differs from its method's")


class MethodFile(Frozen):
    """One file of config/methods: a method, what it is in two lines, its hyper-parameters and named variants."""

    family: str
    source: str
    what: tuple[str, str]
    server_sees: ServerSees = Field(
        description=f"what the server gets to know of a single client, [] or some of: {', '.join(SERVER_SEES)}"
    )
    equals: tuple[Equal, ...] = Field(default=(), description="tasks on which another variant gives the same results")
    parameters: Mapping[str, Parameter] = Field(default_factory=dict)
    variants: Mapping[str, VariantEntry]


class Variant(Frozen):
    """A method with all of its hyper-parameters resolved."""

    name: str
    method: str
    title: str
    family: str
    source: str
    what: tuple[str, str]
    oracle: bool
    global_only: bool = False
    server_sees: ServerSees
    equals: tuple[Equal, ...] = ()
    params: Mapping[str, Any]

    @property
    def optimal_router(self) -> bool:
        return self.params.get("router") == "optimal"

    @property
    def secure_aggregation(self) -> bool:
        """Whether the server needs only sums over clients (all, or those of one cluster) besides sizes and routes, so
        that a protocol that reveals nothing but sums (Bonawitz et al. 2017) can carry the method."""
        return not {"updates", "rows"} & set(self.server_sees)


# ------------------------------------------------------------------------------------ fidelity, suites


class Switch(Frozen):
    """One row of config/fidelity.yaml: what the published code does and what we do."""

    doc: str
    choices: tuple[Any, ...]
    official: Any
    corrected: Any
    report_only: bool = Field(default=False, description="changes how runs are summed up, not what they compute")


class Fidelity(Frozen):
    name: Literal["official", "corrected"]
    switches: Mapping[str, Any]

    def __getitem__(self, switch: str) -> Any:
        return self.switches[switch]


class Block(Frozen):
    """tasks × variants × seeds; `task` and `method` change values of all of them."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all"]
    """Names of config/tasks, or all of them that are benchmarks: a new task is in on arrival."""
    variants: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    fidelity: Literal["official", "corrected"] = "corrected"
    switches: Mapping[str, Any] = Field(default_factory=dict)
    task: Mapping[str, Any] = Field(default_factory=dict)
    method: Mapping[str, Any] = Field(default_factory=dict)
    tuned: bool = Field(default=False, description="learning rates and hyper-parameters from config/tuned")

    @field_validator("seeds")
    @classmethod
    def _seeds_are_natural(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds: {list(seeds)} must not be negative")
        return seeds


class Suite(Frozen):
    name: str
    title: str
    about: str = ""
    suites: tuple[str, ...] = Field(default=(), description="other suites, all runs of which are in this one")
    runs: tuple[Block, ...] = ()

    @model_validator(mode="after")
    def _has_runs(self) -> Suite:
        if not self.runs and not self.suites:
            raise ValueError("runs: a suite has blocks of tasks, variants and seeds, or names suites that have them")
        return self


# ---------------------------------------------------------------------------------------------- tuning


class Rates(Frozen):
    """Learning rates of a run's own, instead of its task's."""

    lr: float = Field(ge=0)
    router_lr: float = Field(ge=0)


class Range(Frozen):
    """From the lowest to the highest learning rate, as multiples of the task's."""

    lowest: float = Field(gt=0)
    highest: float = Field(gt=0)

    @model_validator(mode="after")
    def _has_a_width(self) -> Range:
        if self.highest <= self.lowest:
            raise ValueError(f"highest: {self.highest} must be above lowest: {self.lowest}")
        return self


class Tuning(Frozen):
    """config/tuning.yaml: what every method is tuned with, so that none is favoured."""

    budget: int = Field(ge=1, description="configurations of every variant on every task, one for each learning rate")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        min_length=1, description="of each configuration; a suite with `tuned` may not report them"
    )
    more_seeds: Mapping[str, tuple[Annotated[int, Field(ge=0)], ...]] = Field(
        default_factory=dict, description="task → seeds beside `seeds`, for all its methods"
    )
    share: float = Field(gt=0, le=1, description="of the task's rounds …")
    at_most: int = Field(ge=1, description="… but no more rounds than this")
    lr: Range
    router_lr: Range

    def rounds(self, of_task: int) -> int:
        return min(self.at_most, max(1, round(self.share * of_task)))

    def of(self, task_name: str) -> Self:
        """The same with the seeds of a task."""
        return self.model_copy(update={"seeds": self.seeds + self.more_seeds.get(task_name, ()), "more_seeds": {}})

    @model_validator(mode="after")
    def _no_seed_counts_twice(self) -> Self:
        for task_name in self.more_seeds:
            if len(set(seeds := self.of(task_name).seeds)) < len(seeds):
                raise ValueError(f"more_seeds: {task_name}: {list(seeds)} holds a seed twice")
        return self


class Space(Frozen):
    """What is tried of a variant beside the learning rates: each combination with equally many of these."""

    router_lr: int = Field(default=1, ge=1, description="number of the router's; 1: the task's")
    values: Mapping[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="hyper-parameter → its values, in order"
    )


class SearchFile(Space):
    """One file of config/search: the space of a method, and of the variants that have one of their own."""

    variants: Mapping[str, Space] = Field(default_factory=dict)


class Configuration(Frozen):
    """One point of a search space; `params` are those that the space names."""

    rates: Rates
    params: Mapping[str, Any]


class Tuned(Frozen):
    """One entry of config/tuned/<task>.yaml: the chosen values of a variant and where they come from."""

    rates: Rates
    params: Mapping[str, Any]
    search: str = Field(description="digest of all that decided the search; another one makes the entry stale")
    budget: int
    seeds: tuple[int, ...]
    rounds: int
    commit: str | None = Field(description="of the code that searched")
    default: float | None = Field(description="validation loss of the untuned values; null: diverged or refused")
    losses: tuple[float | None, ...] = Field(description="validation loss of every configuration, in the grid's order")


# ----------------------------------------------------------------------------------------------- data


class DataFile(Frozen):
    """One raw file of a data set: where it comes from and the hash of its unpacked content."""

    path: str = Field(description="path below the data folder (FLORAL_DATA or data_dir), absolute of your own data")
    urls: tuple[str, ...] = ()
    sha256: str | None = Field(
        default=None, description="of the unpacked content; none: recorded at first, marked unverified"
    )


class DataSet(Frozen):
    """One entry of config/data.lock, or a task's own data."""

    title: str
    reader: str
    exact: bool = Field(default=True, description="false: a lossy or partial copy, marked so in the report")
    note: str = ""
    files: tuple[DataFile, ...] = ()
    classes: int | None = Field(default=None, ge=1, description="how many; none: only known once the data are read")
    options: Mapping[str, Any] = Field(default_factory=dict, description="keyword arguments of the reader")
    own: bool = Field(default=False, description="declared in a task: not in data.lock, and known to nobody else")
