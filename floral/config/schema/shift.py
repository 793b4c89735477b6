"""Values of a task's shift: how the data of the concepts (true clusters) differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from floral.config.schema.base import Frozen, is_none


class Colour(Frozen):
    """Change of the pixel values under one concept.

    The channels are reordered, multiplied by `gain`, moved from medium grey by `contrast`, clipped and then inverted.
    """

    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="New order of the channels, such as [1, 2, 0]; by default the order is unchanged."
    )
    gain: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(1.0,), min_length=1, description="Factor of the pixel values: one for all channels, or one for each."
    )
    contrast: float = Field(
        default=1.0, gt=0, description="Factor of the distance of each pixel value from medium grey."
    )
    invert: bool = Field(default=False, description="Whether black and white are exchanged, after all other changes.")


class Shift(Frozen):
    """Difference between the concepts. floral/data/shifts.py implements each kind."""

    kind: Literal["none", "rotate", "label_shift", "label_permutation", "colour"] = Field(
        default="none",
        description="Kind of shift: rotated images, cyclically moved or permuted labels, changed colours, or none.",
    )
    angles: tuple[float, ...] | None = Field(
        default=None,
        exclude_if=is_none,
        description="For rotate: the angle of each concept in degrees, counter-clockwise; c·360/C by default.",
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="nearest",
        exclude_if=lambda how: how == "nearest",
        description="For rotate: how pixels are interpolated at angles that are not multiples of 90 degrees.",
    )
    colours: tuple[Colour, ...] | None = Field(
        default=None, exclude_if=is_none, description="For colour: the colour change of each concept, one per cluster."
    )

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Shift:
        for key, kind in (("angles", "rotate"), ("colours", "colour")):
            if getattr(self, key) is not None and self.kind != kind:
                raise ValueError(f"shift.kind: {self.kind} has no {key}: leave it out")
        if self.interpolation != "nearest" and self.kind != "rotate":
            raise ValueError(f"shift.kind: {self.kind} has no interpolation: leave it out")
        if self.kind == "colour" and self.colours is None:
            raise ValueError("shift.kind: colour needs colours, one for each cluster, such as [{}, {invert: true}]")
        listed = self.listed
        if listed is not None and any(concept in listed[:at] for at, concept in enumerate(listed)):
            raise ValueError(f"shift: two of its {len(listed)} concepts are equal; make all of them different")
        return self

    @property
    def listed(self) -> tuple[Any, ...] | None:
        """The concepts that the task lists, or None if they follow from the number of clusters."""
        return self.colours if self.angles is None else tuple(angle % 360 for angle in self.angles)

    def unfit(self, shape: Sequence[int]) -> str | None:
        """Return why samples of this shape cannot be shifted, or None if they can."""
        if self.kind == "rotate" and (len(shape) < 2 or shape[0] != shape[1]):
            return (
                f"shift.kind: rotate needs square images, but samples have shape {list(shape)}; use none or label_shift"
            )
        return None

    def turn(self, concept: int, clusters: int) -> tuple[float, float]:
        """Return the rotation of a concept as (a, b), for a/b of a full turn counter-clockwise."""
        if self.angles is not None:
            return self.angles[concept], 360
        return (concept, clusters) if concept < clusters else (2 * (concept - clusters) + 1, 2 * clusters)
