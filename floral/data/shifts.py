"""How clusters differ: cluster c sees its images rotated or in other colours, or its labels moved or permuted.

Concepts C, C + 1, …, of clients that join later, are those of no cluster: C + j is the rotation half-way between those
of clusters j and j + 1, the labels moved by C + j, the next permutation, or what the task lists after its clusters'.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from floral.config.reading import ConfigError
from floral.config.schema.shift import Colour, Shift
from floral.core import seeds

AT_ONCE = 4096
"""Images that are interpolated in one piece: their neighbours are numbers of 8 bytes each."""

Images = npt.NDArray[np.uint8]


def apply_inputs(shift: Shift, x: Images, cluster: npt.NDArray[np.integer], clusters: int, scale: int = 255) -> Images:
    """Shift the inputs x [N, H, W] or [N, H, W, 3] of rows of the concepts `cluster` [N], in which `scale` is white.

    rotate: counter-clockwise about the centre by c·360/C degrees, for concept C + j by (j + ½)·360/C, or by the task's
    angles. Multiples of 90° move pixels exactly; other angles take the nearest pixel or interpolate between the four
    around, and take 0 where there is none. colour: as `recoloured` says. Other shifts return x itself.

    Raises:
        ConfigError: rows that are not square images are to be rotated, or colours do not fit their channels.
    """
    if shift.kind not in ("rotate", "colour"):
        return x
    if why := shift.unfit(x.shape[1:]):
        raise ConfigError(why)
    shifted = x.copy()
    for c in np.unique(cluster).tolist():
        mine = cluster == c
        if shift.kind == "colour":
            assert shift.colours is not None, "the schema sees to it"
            shifted[mine] = recoloured(shift.colours[c], x[mine], scale)
        elif (turn := shift.turn(c, clusters))[0] != 0:
            shifted[mine] = rotated(x[mine], *turn, shift.interpolation == "bilinear")
    return shifted


def rotated(x: Images, part: float, whole: float, interpolate: bool) -> Images:
    """Square images rotated counter-clockwise by part/whole of a turn."""
    pixels, side = x.reshape(len(x), x.shape[1] * x.shape[2], -1), x.shape[1]
    if interpolate and 4 * part % whole:
        return interpolated(pixels, part, whole, side).reshape(x.shape)
    source = rotation(side, part, whole)
    moved = np.take(pixels, source, axis=1)
    moved[:, source < 0] = 0
    return moved.reshape(x.shape)


def interpolated(pixels: Images, part: float, whole: float, side: int) -> Images:
    """As `rotation`, but each pixel [N, side², channels] is the mean of the four around where it comes from,
    rounded; those outside are 0."""
    row, column = _origin(side, part, whole)
    corners = []
    for down in (0, 1):
        for right in (0, 1):
            i, j = np.floor(row).astype(np.int64) + down, np.floor(column).astype(np.int64) + right
            inside = (i >= 0) & (i < side) & (j >= 0) & (j < side)
            weight = (1 - np.abs(row - i)) * (1 - np.abs(column - j)) * inside
            corners.append((np.where(inside, i * side + j, 0), weight[:, None]))
    result = np.empty_like(pixels)
    for at in range(0, len(pixels), AT_ONCE):
        some = pixels[at : at + AT_ONCE]
        result[at : at + AT_ONCE] = np.rint(sum(weight * some[:, source] for source, weight in corners))
    return result


def recoloured(colour: Colour, x: Images, scale: int) -> Images:
    """Images [N, H, W] or [N, H, W, 3] with their channels reordered, multiplied by `gain`, moved away from medium grey
    by `contrast`, rounded, clipped to 0 … scale, and at last inverted. Black borders that augmentation adds stay black.

    Raises:
        ConfigError: `channels` is no order of the channels that there are, or `gain` has another number.
    """
    channels = x.shape[3] if x.ndim == 4 else 1
    order = range(channels) if colour.channels is None else colour.channels
    if sorted(order) != list(range(channels)) or len(colour.gain) not in (1, channels):
        raise ConfigError(
            f"shift.colours: rows of shape {list(x.shape[1:])} have {channels} channel(s); channels must be an order"
            f" of {list(range(channels))} (found {colour.channels}), gain one, or one of each (found {colour.gain})"
        )
    gain = np.broadcast_to(np.array(colour.gain), channels)
    value = np.arange(256) * gain[:, None]
    table = np.clip(np.rint((value - scale / 2) * colour.contrast + scale / 2), 0, scale).astype(np.uint8)
    if colour.invert:
        table = (scale - table).astype(np.uint8)
    if x.ndim < 4:
        return table[0][x]
    return np.stack([table[at][x[..., channel]] for at, channel in enumerate(order)], axis=-1)


def apply_labels(
    shift: Shift, y: npt.NDArray[np.int64], cluster: npt.NDArray[np.integer], classes: int, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Shift the labels y [N] of rows of the concepts `cluster` [N]: label_shift is (y + c) mod classes,
    label_permutation the c-th permutation of the seed.

    Raises:
        ConfigError: there are fewer permutations than concepts.
    """
    if shift.kind == "label_permutation":
        return permutations(int(cluster.max(initial=0)) + 1, classes, seed)[cluster, y]
    return (y + cluster) % classes if shift.kind == "label_shift" else y


def permutations(concepts: int, classes: int, seed: int) -> npt.NDArray[np.int64]:
    """[concepts, classes] the new label of each class: the identity, then random permutations, none twice.

    Raises:
        ConfigError: there are fewer permutations than concepts.
    """
    if concepts > math.factorial(min(classes, 20)):
        raise ConfigError(
            f"shift.kind: label_permutation: {classes} classes have {math.factorial(classes)} permutations, fewer than "
            f"the {concepts} concepts; set fewer clusters"
        )
    found, drawn = {tuple(range(classes)): None}, 0
    while len(found) < concepts:
        found[tuple(seeds.permutation(seed, "label permutation", drawn, size=classes).tolist())] = None
        drawn += 1
    return np.array(list(found))


def quarter_turns(shift: Shift, cluster: npt.NDArray[np.integer], clusters: int) -> npt.NDArray[np.int64]:
    """By how many quarter turns `apply_inputs` rotates the rows of the clusters `cluster` [N]; 0 for other shifts."""
    turns = np.zeros(len(cluster), np.int64)
    for c in np.unique(cluster).tolist() if shift.kind == "rotate" else ():
        part, whole = shift.turn(c, clusters)
        assert 4 * part % whole == 0, "the task allows no other"
        turns[cluster == c] = 4 * part // whole % 4
    return turns


def rotation(side: int, part: float, whole: float) -> npt.NDArray[np.int64]:
    """Where each pixel of a side×side image comes from when the image is rotated by part/whole of a turn; −1: from
    outside."""
    if 4 * part % whole == 0:
        return np.rot90(np.arange(side * side).reshape(side, side), int(4 * part // whole)).ravel()
    row, column = (np.rint(place).astype(np.int64) for place in _origin(side, part, whole))
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return np.where(inside, row * side + column, -1)


def _origin(side: int, part: float, whole: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Row and column that each pixel comes from, as fractions."""
    pixel, angle, centre = np.arange(side * side), 2 * math.pi * part / whole, (side - 1) / 2
    down, right = pixel // side - centre, pixel % side - centre
    row = centre + math.cos(angle) * down + math.sin(angle) * right
    column = centre - math.sin(angle) * down + math.cos(angle) * right
    return row, column
