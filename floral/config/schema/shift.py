"""Define the YAML keys of a shift: how the data of different clusters differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from floral.config.schema.base import Frozen, is_none


class Colour(Frozen):
    """A change of the pixel values in all images of one concept (the data distribution of a cluster).

    It has five steps. First, `channels` reorders the colour channels. Second, the pixel values are multiplied by
    `gain`. Third, the distance of each value from medium grey is multiplied by `contrast`. Fourth, the values are
    clipped to the range of pixel values. Last, `invert` exchanges black and white.
    """

    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="New order of the channels, such as [1, 2, 0]; by default the order is unchanged."
    )
    gain: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0,),
        min_length=1,
        description="Factor of the pixel values: one for all channels, or one per channel.",
    )
    contrast: float = Field(
        default=1.0, gt=0, description="Factor of the distance of each pixel value from medium grey."
    )
    invert: bool = Field(default=False, description="Whether black and white are exchanged, after all other changes.")


class Shift(Frozen):
    """The difference between the data of different clusters, such as rotated images or permuted labels.

    floral/data/shifts.py implements each `kind`.
    """

    kind: Literal["none", "rotate", "label_shift", "label_permutation", "colour"] = Field(
        default="none",
        description="Kind of shift: rotated images, cyclically moved or permuted labels, changed colours, or none.",
    )
    angles: tuple[float, ...] | None = Field(
        default=None,
        exclude_if=is_none,
        description="For rotate: angle of each concept c in degrees, counter-clockwise; by default c·360/clusters.",
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="nearest",
        exclude_if=lambda how: how == "nearest",
        description="For rotate: how pixels are interpolated at angles that are not multiples of 90 degrees.",
    )
    colours: tuple[Colour, ...] | None = Field(
        default=None, exclude_if=is_none, description="For colour: list of the colour changes, one for each concept."
    )

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Shift:
        for key, kind in (("angles", "rotate"), ("colours", "colour")):
            if getattr(self, key) is not None and self.kind != kind:
                raise ValueError(f"`shift.kind: {self.kind}` has no `{key}`; remove the key `{key}`")
        if self.interpolation != "nearest" and self.kind != "rotate":
            raise ValueError(f"`shift.kind: {self.kind}` has no `interpolation`; remove the key `interpolation`")
        if self.kind == "colour" and self.colours is None:
            raise ValueError(
                "`shift.kind: colour` needs `colours`; list one for each cluster, such as [{}, {invert: true}]"
            )
        listed = self.listed
        if listed is not None and any(concept in listed[:at] for at, concept in enumerate(listed)):
            raise ValueError(
                f"`shift` lists {len(listed)} concepts, but two of them are equal; make all of them different"
            )
        return self

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """The angles or colours that the task lists, one for each concept. None if the task lists neither."""
        return self.colours if self.angles is None else tuple(angle % 360 for angle in self.angles)

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Return why this shift cannot be applied to samples of this shape, or None if it can.

        The returned text names the YAML key and the remedy.
        """
        if self.kind == "rotate" and (len(shape) < 2 or shape[0] != shape[1]):
            return f"`shift.kind: rotate` needs square images, but samples have shape {list(shape)}; set another kind"
        return None

    def turn(self, concept: int, clusters: int) -> tuple[float, float]:
        """Return two numbers a and b: images of the concept are rotated counter-clockwise by a/b of a full turn.

        If the task lists no `angles`, the images of training cluster c are rotated by c / `clusters` of a full turn.
        The angle of a new concept, which only joining clients have, lies halfway between the angles of two clusters.
        """
        if self.angles is not None:
            return self.angles[concept], 360
        return (concept, clusters) if concept < clusters else (2 * (concept - clusters) + 1, 2 * clusters)
