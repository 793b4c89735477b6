"""Apply the shift of a task: each sample is rotated, recoloured or relabelled as its concept says.

A concept is one version of the shift, for example one angle. Concepts c = 0 … C - 1 belong to the C clusters. Concepts
C, C + 1, … belong to no cluster, but to clients that join after training.

If the task lists its angles or colours, the list also has entries for concepts C, C + 1, …. Otherwise, these concepts
follow from their numbers. For j = 0, 1, …, concept C + j is the rotation half-way between those of clusters j and
j + 1, the label shift by C + j classes, or one more permutation of the labels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from floral.config.reading import ConfigError
from floral.config.schema.shift import Colour, Shift
from floral.core import seeds

IMAGES_PER_CHUNK = 4096
"""Number of images interpolated at a time, to limit memory: the products have 8 bytes per pixel value."""

Images = npt.NDArray[np.uint8]


def apply_inputs(shift: Shift, x: Images, cluster: npt.NDArray[np.integer], clusters: int, scale: int = 255) -> Images:
    """Shift the inputs x [N, H, W] or [N, H, W, 3] of samples, where `cluster` [N] is the concept of each sample.

    Kind rotate: images are rotated counter-clockwise about the centre. If the task lists angles, concept c has angle c
    of the list, counted from 0. Otherwise, the C clusters c = 0 … C - 1 have the angles c·360/C degrees. The concepts
    C + j (j = 0, 1, …), of clients that join after training, have the angles (j + ½)·360/C degrees.
    Multiples of 90° move pixels exactly. At other angles, the setting `interpolation` decides whether a pixel gets the
    value of the nearest pixel, or a mean of the four nearest ones. Pixels from outside the image are 0.

    Kind colour: see `recoloured`; `scale` is the pixel value of white. Other kinds return x unchanged.

    Raises:
        ConfigError: images to be rotated are not square, or the colour change does not fit the channels.
    """
    if shift.kind not in ("rotate", "colour"):
        return x
    if why := shift.unfit(x.shape[1:]):
        raise ConfigError(why)
    shifted = x.copy()
    for c in np.unique(cluster).tolist():
        mine = cluster == c
        if shift.kind == "colour":
            assert shift.colours is not None, "the schema requires it"
            shifted[mine] = recoloured(shift.colours[c], x[mine], scale)
        elif (turn := shift.turn(c, clusters))[0] != 0:
            shifted[mine] = rotated(x[mine], *turn, shift.interpolation == "bilinear")
    return shifted


def rotated(x: Images, numerator: float, denominator: float, interpolate: bool) -> Images:
    """Rotate square images counter-clockwise by the fraction numerator/denominator of a full turn.

    If `interpolate` is True, pixel values are interpolated. Otherwise, each pixel gets the value of the nearest pixel
    of the original image. Quarter turns are exact in both cases.
    """
    pixels, side = x.reshape(len(x), x.shape[1] * x.shape[2], -1), x.shape[1]
    if interpolate and 4 * numerator % denominator:
        return interpolated(pixels, numerator, denominator, side).reshape(x.shape)
    source = rotation(side, numerator, denominator)
    moved = np.take(pixels, source, axis=1)
    moved[:, source < 0] = 0
    return moved.reshape(x.shape)


def interpolated(pixels: Images, numerator: float, denominator: float, side: int) -> Images:
    """Rotate square images counter-clockwise, with bilinear interpolation of the pixel values.

    The images have shape [N, side², channels]: rows and columns are joined to one axis. The angle is the fraction
    numerator/denominator of a full turn. Values are rounded. Pixels from outside the image are 0.
    """
    row, column = _origin(side, numerator, denominator)
    corners = []
    for down in (0, 1):
        for right in (0, 1):
            i, j = np.floor(row).astype(np.int64) + down, np.floor(column).astype(np.int64) + right
            inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
            weight = (1 - np.abs(row - i)) * (1 - np.abs(column - j)) * inside
            corners.append((np.where(inside, i * side + j, 0), weight[:, None]))
    result = np.empty_like(pixels)
    for start in range(0, len(pixels), IMAGES_PER_CHUNK):
        chunk = pixels[start : start + IMAGES_PER_CHUNK]
        mean = sum(weight * chunk[:, source] for source, weight in corners)
        result[start : start + IMAGES_PER_CHUNK] = np.rint(mean)
    return result


def recoloured(colour: Colour, x: Images, scale: int) -> Images:
    """Change the colours of images [N, H, W] or [N, H, W, 3], where `scale` is the pixel value of white.

    Channels are reordered as `channels` says, and multiplied by `gain`. The distance of a value to medium grey is
    multiplied by `contrast`. Then values are rounded, clipped to 0 … scale, and inverted if `invert` is set.

    Raises:
        ConfigError: `channels` is not a permutation of the image's channels, or `gain` has a wrong number of values.
    """
    channels = x.shape[3] if x.ndim == 4 else 1
    order = range(channels) if colour.channels is None else colour.channels
    if sorted(order) != list(range(channels)) or len(colour.gain) not in (1, channels):
        raise ConfigError(
            f"`shift.colours`: samples of shape {list(x.shape[1:])} have {channels} channel(s); set `channels` to a "
            f"permutation of {list(range(channels))} (found {colour.channels}), and `gain` to one number, or to one "
            f"for each channel (found {colour.gain})"
        )
    gain = np.broadcast_to(np.array(colour.gain), channels)
    value = np.arange(256) * gain[:, None]
    table = np.clip(np.rint((value - scale / 2) * colour.contrast + scale / 2), 0, scale).astype(np.uint8)
    if colour.invert:
        table = (scale - table).astype(np.uint8)
    if x.ndim < 4:
        return table[0][x]
    return np.stack([table[position][x[..., channel]] for position, channel in enumerate(order)], axis=-1)


def apply_labels(
    shift: Shift, y: npt.NDArray[np.int64], cluster: npt.NDArray[np.integer], classes: int, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Shift the labels y [N] of samples, where `cluster` [N] is the concept c of each sample.

    Kind label_shift: a label becomes (y + c) mod classes. Kind label_permutation: a label is replaced as the random
    permutation of concept c says (see `permutations`). Other kinds return y unchanged.

    Raises:
        ConfigError: there are fewer permutations than concepts.
    """
    if shift.kind == "label_permutation":
        return permutations(int(cluster.max(initial=0)) + 1, classes, seed)[cluster, y]
    return (y + cluster) % classes if shift.kind == "label_shift" else y


def permutations(concepts: int, classes: int, seed: int) -> npt.NDArray[np.int64]:
    """Return a permutation of the classes for each concept: entry [c, y] is the new label of class y in concept c.

    Concept 0 leaves the classes unchanged. The other concepts have random permutations. No two concepts have the same
    permutation.

    Raises:
        ConfigError: there are fewer permutations than concepts.
    """
    if concepts > math.factorial(min(classes, 20)):
        raise ConfigError(
            f"`shift.kind: label_permutation`: {classes} classes have {math.factorial(classes)} permutations, but "
            f"{concepts} concepts need one each; set fewer `clusters`"
        )
    distinct, attempt = {tuple(range(classes)): None}, 0
    while len(distinct) < concepts:
        distinct[tuple(seeds.permutation(seed, "label permutation", attempt, size=classes).tolist())] = None
        attempt += 1
    return np.array(list(distinct))


def quarter_turns(shift: Shift, cluster: npt.NDArray[np.integer], clusters: int) -> npt.NDArray[np.int64]:
    """Return the number of quarter turns [N] by which `apply_inputs` rotates each sample.

    The number is 0 if the shift is no rotation. `cluster` [N] is the concept of each sample.
    """
    turns = np.zeros(len(cluster), np.int64)
    for c in np.unique(cluster).tolist() if shift.kind == "rotate" else ():
        numerator, denominator = shift.turn(c, clusters)
        assert 4 * numerator % denominator == 0, "the schema requires quarter turns"
        turns[cluster == c] = 4 * numerator // denominator % 4
    return turns


def rotation(side: int, numerator: float, denominator: float) -> npt.NDArray[np.int64]:
    """Return, for each pixel of a rotated image, the index of the pixel of the original image that it shows [side²].

    The rotation is the fraction numerator/denominator of a full turn, counter-clockwise. −1 stands for a pixel outside
    the original image.
    """
    if 4 * numerator % denominator == 0:
        return np.rot90(np.arange(side * side).reshape(side, side), int(4 * numerator // denominator)).ravel()
    row, column = (np.rint(position).astype(np.int64) for position in _origin(side, numerator, denominator))
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return np.where(inside, row * side + column, -1)


def _origin(side: int, numerator: float, denominator: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return, for each pixel of a rotated image, its position in the original image: the row and the column.

    Both results are [side²]. The positions need not be integers, and may be outside the image.
    """
    pixel, angle, centre = np.arange(side * side), 2 * math.pi * numerator / denominator, (side - 1) / 2
    down, right = pixel // side - centre, pixel % side - centre
    row = centre + math.cos(angle) * down + math.sin(angle) * right
    column = centre - math.sin(angle) * down + math.cos(angle) * right
    return row, column
