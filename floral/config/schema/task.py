"""Define the YAML keys of a task: data, model and training.

The keys below `shift`, `partition` and `unseen` are defined in the modules shift and partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from floral.config.schema.base import Frozen, is_empty, is_none
from floral.config.schema.data import NOTHING, Data, Synthetic
from floral.config.schema.partition import Partition, Unseen
from floral.config.schema.shift import Shift


def is_trained(base: str) -> bool:
    """Return whether `base` has its default, with which it is left out of the hash of a run."""
    return base == "trained"


class Model(Frozen):
    """A model: the name of a Python file of models, and the arguments of the function `build` in this file.

    The file is in floral/models, or in the folder models of the study.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str = Field(
        description="Name of a file in floral/models or in the study's models/, without `.py`; `module` for any "
        "torch.nn.Module. Keys not in this table are keyword arguments of its `build`."
    )
    weights: str | None = Field(
        default=None,
        exclude_if=is_none,
        description="File of initial values (.safetensors), absolute or relative to the folder of the study.",
    )
    ignore: tuple[str, ...] = Field(
        default=(),
        exclude_if=is_empty,
        description="Patterns of names that need not be in `weights`, or are not read from it, such as `head.*`.",
    )
    adapt: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        exclude_if=is_none,
        description="Patterns of layers that get adaptors; by default all for which there are adaptors.",
    )
    freeze: tuple[str, ...] = Field(
        default=(), exclude_if=is_empty, description="Patterns of layers or parameters that are never trained."
    )
    head: str | None = Field(
        default=None, exclude_if=is_none, description="Name of the linear layer that is the head; the last by default."
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `build`."""
        return dict(self.model_extra or {})

    @property
    def all_keys(self) -> dict[str, Any]:
        """All keys of the model that are set: `kind`, the arguments of `build`, and the other keys."""
        return {"kind": self.kind, **self.arguments, **self.model_dump(mode="json", include=PREPARATION)}


PREPARATION = {"weights", "ignore", "adapt", "freeze", "head"}
"""Keys of a model that are no arguments of its `build`."""


class Normalise(Frozen):
    """Normalisation of the inputs. An input x is scaled to [0, 1] and then replaced by (x - mean) / std per channel."""

    mean: tuple[float, ...] = Field(min_length=1, description="Mean of each channel, for inputs scaled to [0, 1].")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="Standard deviation of each channel, for inputs scaled to [0, 1]."
    )

    @model_validator(mode="after")
    def _one_pair_per_channel(self) -> Normalise:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"`mean` has {len(self.mean)} values and `std` has {len(self.std)}; give each one value per channel"
            )
        return self


class Server(Frozen):
    """The server optimiser. It changes the model on the server by the averaged update of the clients."""

    optimiser: Literal["sgd", "adam"] = Field(
        default="sgd", description="Server optimiser; `sgd` with `lr: 1` is plain averaging."
    )
    lr: float = Field(default=1.0, gt=0, description="Learning rate of the server optimiser.")


class Local(Frozen):
    """The optimiser of local training. Its state starts anew in each round; it is neither sent nor stored."""

    optimiser: Literal["sgd", "adamw"] = Field(
        default="sgd", description="Optimiser of a client's local training; its learning rate is `lr` of the task."
    )
    schedule: Literal["constant", "round", "training"] = Field(
        default="constant",
        description="For adamw: learning rate over time; `round` falls linearly to 0 over a client's steps of a round, "
        "`training` over all rounds.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="For adamw: weight decay, as in torch.optim.AdamW.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.999), description="For adamw: decay rates of the two moments of the gradient."
    )
    epsilon: float = Field(default=1e-8, gt=0, description="For adamw: number that is added to the divisor of a step.")

    @model_validator(mode="after")
    def _options_belong_to_adamw(self) -> Local:
        if self.optimiser == "sgd" and (options := sorted(self.model_fields_set - {"optimiser"})):
            raise ValueError(f"`{options[0]}` is for `optimiser: adamw`; set this optimiser, or remove `{options[0]}`")
        return self


def is_sgd(local: Local) -> bool:
    """Return whether `local` has its default, with which it is left out of the hash of a run."""
    return local.optimiser == "sgd"


class Task(Frozen):
    """A task, which is a learning problem: data, clients, model and training schedule."""

    name: str = Field(description="Name of the task, taken from the name of its file.")
    title: str = Field(description="Title of the task in reports.")
    data: Data = Field(
        description='Data set: a name in config/data.lock, synthetic data, custom data, or "nothing" (no training).'
    )
    thresholds: tuple[float, ...] | None = Field(
        default=None,
        min_length=1,
        exclude_if=is_none,
        description="For data with ratings: bounds of the classes, ascending; n bounds give n + 1 classes.",
    )
    shift: Shift = Field(default=Shift(), description="How the data of the concepts (true clusters) differ.")
    normalise: Normalise | None = Field(
        default=None, description="Normalisation of the input channels; by default inputs are only scaled to [0, 1]."
    )
    augmentation: Literal["none", "flip_crop"] = Field(
        default="none",
        description="Random flips and crops of training images; as if made before rotations and after colour shifts.",
    )
    partition: Partition = Field(default=Partition(), description="How samples are assigned to clients.")
    unseen: Unseen | None = Field(
        default=None, exclude_if=is_none, description="Clients that join after training; by default there are none."
    )
    published_split: Literal["train", "test"] = Field(
        default="test", description="Part of each client's samples on which the published accuracy was measured."
    )
    clients: int = Field(ge=1, description="Number of clients that take part in training, K.")
    clusters: int = Field(
        default=1,
        ge=1,
        description="Number of true clusters of clients, C; needed if the data of the clusters differ.",
    )
    assumed_clusters: int | None = Field(
        default=None,
        ge=1,
        exclude_if=is_none,
        description="Number of clusters that methods assume; by default the true number, `clusters`.",
    )
    participation: float = Field(gt=0, le=1, description="Share of the clients that take part in each round.")
    rounds: int = Field(ge=1, description="Number of communication rounds.")
    epochs: int = Field(default=1, ge=1, description="Number of local epochs of a client in each round.")
    batch: int = Field(ge=1, description="Batch size of local training, in samples.")
    steps_per_epoch: int | None = Field(
        default=None,
        ge=1,
        exclude_if=is_none,
        description="Number of local steps in an epoch; by default, an epoch is one pass over the training samples.",
    )
    lr: float = Field(ge=0, description="Learning rate of local SGD for model parameters.")
    router_lr: float = Field(
        default=None,  # type: ignore[arg-type]  # replaced by `lr` before the check
        ge=0,
        description="Learning rate of local SGD for router logits; by default that of the model parameters, `lr`.",
    )
    model: Model = Field(description="Model that the clients train.")
    base: Literal["trained", "frozen"] = Field(
        default="trained",
        exclude_if=is_trained,
        description="Whether the model is trained; `frozen`: only its head and the adaptors of methods are.",
    )
    local: Local = Field(default=Local(), exclude_if=is_sgd, description="Optimiser of local training; by default SGD.")
    server: Server = Field(default=Server(), description="Server optimiser.")
    loss: Literal["cross_entropy", "mse"] = Field(
        default="cross_entropy", description="Training loss: cross-entropy for classes, mean squared error otherwise."
    )
    per: Literal["character", "token"] | None = Field(
        default=None,
        exclude_if=is_none,
        description="For text: unit that the model predicts. Loss and accuracy are means over these units.",
    )
    eval_every: int | None = Field(
        default=None, ge=1, description="Number of rounds between two evaluations; rounds/50 by default."
    )

    @model_validator(mode="before")
    @classmethod
    def _router_lr_is_lr(cls, values: Any) -> Any:
        return {"router_lr": values["lr"], **values} if isinstance(values, dict) and "lr" in values else values

    @model_validator(mode="after")
    def _thresholds_ascend(self) -> Task:
        bounds = self.thresholds
        if bounds is not None and list(bounds) != sorted(set(bounds)):
            raise ValueError(f"`thresholds: {list(bounds)}` do not ascend; sort them, and name each once")
        if bounds is not None and (not isinstance(self.data, str) or self.data == NOTHING):
            raise ValueError("`thresholds` needs a data set with ratings as `data`; remove the key `thresholds`")
        return self

    @model_validator(mode="after")
    def _clusters_are_given_if_they_differ(self) -> Task:
        if self._has_distinct_concepts() and "clusters" not in self.model_fields_set:
            raise ValueError(
                "the data of the clusters differ (by `shift`, `partition.kind: class_groups` or `domains`, or as "
                "synthetic data), but `clusters` is missing; add the number of clusters"
            )
        return self

    @model_validator(mode="after")
    def _clusters_have_clients(self) -> Task:
        if self.clusters > self.clients:
            raise ValueError(f"`clusters: {self.clusters}` is more than `clients: {self.clients}`; set fewer clusters")
        if self.assumed > self.clients:
            raise ValueError(
                f"`assumed_clusters: {self.assumed}` is more than `clients: {self.clients}`; set fewer assumed clusters"
            )
        return self

    @model_validator(mode="after")
    def _partition_fits_the_clusters(self) -> Task:
        rule = self.partition
        if rule.groups is not None and len(rule.groups) != self.clusters:
            raise ValueError(
                f"`partition.groups` has {len(rule.groups)} lists, but `clusters` is {self.clusters}; give one "
                "per cluster"
            )
        if (rule.cluster_shares or rule.mixed) and self.concepts < 2:
            key = "cluster_shares" if rule.cluster_shares else "mixed"
            raise ValueError(
                f"`partition.{key}` needs clusters with different data, but all clusters of this task have the same "
                f"distribution; set `shift`, or remove `{key}`"
            )
        if rule.cluster_shares is not None:
            if len(rule.cluster_shares) != self.clusters:
                raise ValueError(
                    f"`partition.cluster_shares` has {len(rule.cluster_shares)} shares, but `clusters` is "
                    f"{self.clusters}; give one share per cluster"
                )
            if 0 in (count := rule.members(self.clients, self.clusters)):
                raise ValueError(
                    f"`partition.cluster_shares: {list(rule.cluster_shares)}` of {self.clients} clients leave cluster "
                    f"{count.index(0)} without a client; raise the share of this cluster, or set more `clients`"
                )
        if isinstance(self.data, Synthetic) and rule.mixed:
            raise ValueError("`partition.mixed` needs a data set, but these data are synthetic; remove the key `mixed`")
        if isinstance(self.data, Synthetic) and rule.label_noise:
            raise ValueError("`partition.label_noise` is not for synthetic data; set `data.label_noise` instead")
        if rule.label_noise and self.published_split == "train":
            raise ValueError(
                "`partition.label_noise` makes training labels wrong, but `published_split: train` evaluates on these "
                "labels; remove one of the two keys"
            )
        return self

    @model_validator(mode="after")
    def _loss_and_shift_fit_the_data(self) -> Task:
        if not isinstance(self.data, Synthetic):
            if self.loss != "cross_entropy":
                raise ValueError(f"`loss: {self.loss}` does not fit a data set with classes; set `loss: cross_entropy`")
            return self
        if self.loss != "mse":
            raise ValueError(
                f"`loss: {self.loss}` does not fit synthetic data, whose targets are numbers; set `loss: mse`"
            )
        if self.normalise or self.augmentation != "none":
            raise ValueError(
                "`normalise` and `augmentation` need a data set, but these data are synthetic; remove both keys"
            )
        if self.partition.kind != "iid":
            raise ValueError(
                f"`partition.kind: {self.partition.kind}` needs a data set with classes, but these data are synthetic; "
                "set `partition.kind: iid`"
            )
        if self.published_split == "train":
            raise ValueError(
                "`published_split: train` cannot be used with synthetic data, which are evaluated on test samples; "
                "remove the key `published_split`"
            )
        if self.shift.kind != "none":
            raise ValueError(
                f"`shift.kind: {self.shift.kind}` cannot be used with synthetic data, whose clusters already differ; "
                "remove the key `shift`"
            )
        return self

    @model_validator(mode="after")
    def _text_has_no_image_options(self) -> Task:
        if self.per is None:
            return self
        if isinstance(self.data, Synthetic):
            raise ValueError(
                f"`per: {self.per}` is for a data set of text, but these data are synthetic; remove the key `per`"
            )
        if self.shift.kind != "none" or self.normalise or self.augmentation != "none":
            raise ValueError(
                f"`shift`, `normalise` and `augmentation` cannot be used with text (`per: {self.per}`); remove them"
            )
        if self.partition.kind not in ("natural", "iid"):
            raise ValueError(
                f"`partition.kind: {self.partition.kind}` needs one class per sample, which text "
                f"(`per: {self.per}`) does not have; set `partition.kind` to natural or iid"
            )
        if self.partition.label_noise or self.partition.mixed:
            raise ValueError(
                "`partition.label_noise` and `partition.mixed` cannot be used with text "
                f"(`per: {self.per}`); remove these two keys"
            )
        return self

    @model_validator(mode="after")
    def _rotation_can_follow_augmentation(self) -> Task:
        if self.augmentation == "none" or self.shift.kind != "rotate":
            return self
        turns = [self.shift.turn(c, self.clusters) for c in range(self.clusters)] if self._concepts_are_listed() else []
        if any(4 * numerator % denominator for numerator, denominator in turns):
            present = (
                f"`clusters` is {self.clusters}"
                if self.shift.angles is None
                else f"`angles` are {list(self.shift.angles)}"
            )
            raise ValueError(
                f"`augmentation: {self.augmentation}` needs rotations by quarter turns (1, 2 or 4 `clusters`, or "
                f"`angles` that are multiples of 90), but {present}; set `augmentation: none`"
            )
        return self

    @model_validator(mode="after")
    def _every_concept_is_listed(self) -> Task:
        if not self._concepts_are_listed():
            new = self.unseen.new_concept if self.unseen else 0
            and_new = f" and `unseen.new_concept` is {new}" if new else ""
            raise ValueError(
                f"`shift` lists {len(self.shift.listed or ())} concepts, but `clusters` is {self.clusters}"
                f"{and_new}; list one for each cluster, and one for each new concept"
            )
        return self

    def _concepts_are_listed(self) -> bool:
        listed, new = self.shift.listed, self.unseen.new_concept if self.unseen else 0
        return listed is None or len(listed) == self.clusters + new

    @model_validator(mode="after")
    def _unseen_clients_can_join(self) -> Task:
        if self.unseen is None:
            return self
        if isinstance(self.data, Synthetic) or self.partition.kind not in ("iid", "natural") or self.partition.mixed:
            raise ValueError(
                "`unseen` cannot be used with synthetic data, with `partition.mixed`, or with a `partition.kind` other "
                "than iid and natural; remove the key `unseen`"
            )
        if self.partition.kind == "natural" and "share" in self.unseen.model_fields_set:
            raise ValueError(
                "`unseen.share` is for `partition.kind: iid`, but the kind is natural; remove the key `share`"
            )
        if self.unseen.new_concept and self.shift.kind == "none":
            raise ValueError("`unseen.new_concept` needs a shift, but `shift.kind` is none; set `new_concept: 0`")
        return self

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Return why samples of this shape cannot be used in this task, or None if they can.

        The returned text names the YAML key and the remedy.
        """
        if why := self.shift.unfit(shape):
            return why
        channels = shape[2] if len(shape) == 3 else 1
        if self.normalise is not None and len(self.normalise.mean) != channels:
            return (
                f"`normalise` has {len(self.normalise.mean)} value(s) of `mean` and `std`, but samples of shape "
                f"{list(shape)} have {channels} channel(s); give each one value per channel"
            )
        if self.augmentation != "none" and len(shape) < 2:
            return (
                f"`augmentation: {self.augmentation}` needs images, but samples have shape {list(shape)}; "
                "set `augmentation: none`"
            )
        return None

    @property
    def assumed(self) -> int:
        """The number of clusters that methods assume: `assumed_clusters` if it is set, otherwise `clusters`."""
        return self.assumed_clusters or self.clusters

    @property
    def concepts(self) -> int:
        """The number of concepts. A concept is a data distribution that is common to the clients of a true cluster.

        The number is `clusters` if the clusters differ by a shift, by class groups, by domains, or by the teachers of
        synthetic data. Otherwise all clusters have the same distribution, and the number is 1.
        """
        return self.clusters if self._has_distinct_concepts() else 1

    def _has_distinct_concepts(self) -> bool:
        differs = self.shift.kind != "none" or self.partition.kind in ("class_groups", "domains")
        return isinstance(self.data, Synthetic) or differs

    @property
    def objective(self) -> Literal["cross_entropy", "token_cross_entropy", "mse"]:
        """The name of the loss that training minimises.

        For text, it is `token_cross_entropy`. For other data, it is the value of the key `loss`.
        """
        return self.loss if self.per is None else "token_cross_entropy"

    @property
    def skewed(self) -> bool:
        """Whether clients are evaluated on their own test samples, and not on the test set of their cluster.

        They are if the clients of one cluster have different data distributions, because the test set of a cluster then
        has the distribution of no single client. They also are if only a share of the test samples is kept.
        """
        return self.partition.skewed or self.partition.test_share < 1

    @property
    def noop(self) -> bool:
        """Whether runs of this task read no data and train no model (`data: nothing`)."""
        return self.data == NOTHING

    @property
    def cohort(self) -> int:
        """The number of clients that are selected for training in each round, M."""
        return max(1, round(self.participation * self.clients))

    def local_steps(self, samples: int) -> int:
        """Return the number of local SGD steps in a round, for a client with `samples` training samples.

        The number is epochs·⌈samples / batch⌉, where ⌈ ⌉ rounds up. If the key `steps_per_epoch` is set, the number is
        epochs·steps_per_epoch.
        """
        return self.epochs * (self.steps_per_epoch or -(-samples // self.batch))

    @property
    def evaluation_period(self) -> int:
        """The number of rounds between two evaluations.

        It is `eval_every` if this key is set, and otherwise rounds/50, rounded down, but at least 1.
        """
        return self.eval_every or max(1, self.rounds // 50)
