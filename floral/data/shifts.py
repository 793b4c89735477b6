"""How clusters differ: cluster c sees the images rotated by c·360/C degrees, or the labels moved by c.

Concepts C, C + 1, …, of clients that join later, are those of no cluster: C + j is the rotation half-way between those
of clusters j and j + 1, or the labels moved by C + j.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from floral.config import ConfigError
from floral.schema import Shift


def apply_inputs(
    shift: Shift, x: npt.NDArray[np.uint8], cluster: npt.NDArray[np.integer], clusters: int
) -> npt.NDArray[np.uint8]:
    """Shift the inputs x [N, H, W] or [N, H, W, 3] of rows of the clusters `cluster` [N]; cluster 0 never changes.

    rotate: counter-clockwise by c·360/C degrees about the centre, for concept C + j by (j + ½)·360/C. Multiples of 90°
    move pixels exactly; other angles take the nearest pixel, and 0 where there is none. Other shifts return x itself.

    Raises:
        ConfigError: rows that are not square images are to be rotated.
    """
    if shift.kind != "rotate":
        return x
    if x.ndim < 3 or x.shape[1] != x.shape[2]:
        raise ConfigError(
            f"shift.kind: rotate needs square images, but rows have shape {list(x.shape[1:])}; use none or label_shift"
        )
    pixels = x.reshape(len(x), x.shape[1] * x.shape[2], -1)
    shifted = pixels.copy()
    for c in np.setdiff1d(cluster, [0]).tolist():
        half_way = 2 * (c - clusters) + 1
        source = rotation(x.shape[1], *((c, clusters) if c < clusters else (half_way, 2 * clusters)))
        moved = np.take(pixels[cluster == c], source, axis=1)
        moved[:, source < 0] = 0
        shifted[cluster == c] = moved
    return shifted.reshape(x.shape)


def apply_labels(
    shift: Shift, y: npt.NDArray[np.int64], cluster: npt.NDArray[np.integer], classes: int
) -> npt.NDArray[np.int64]:
    """Shift the labels y [N] of rows of the clusters `cluster` [N]: label_shift is (y + c) mod classes."""
    return (y + cluster) % classes if shift.kind == "label_shift" else y


def quarter_turns(shift: Shift, cluster: npt.NDArray[np.integer], clusters: int) -> npt.NDArray[np.int64]:
    """By how many quarter turns `apply_inputs` rotates the rows of the clusters `cluster` [N]; 0 for other shifts."""
    if shift.kind != "rotate":
        return np.zeros(len(cluster), np.int64)
    assert 4 % clusters == 0, "the task allows no other"
    return 4 * cluster.astype(np.int64) // clusters


def rotation(side: int, c: int, clusters: int) -> npt.NDArray[np.int64]:
    """Where each pixel of a side×side image comes from when the image is rotated by c/C of a turn; −1: from outside."""
    pixel = np.arange(side * side)
    if 4 * c % clusters == 0:
        return np.rot90(pixel.reshape(side, side), 4 * c // clusters).ravel()
    angle, centre = 2 * math.pi * c / clusters, (side - 1) / 2
    down, right = pixel // side - centre, pixel % side - centre
    row = np.rint(centre + math.cos(angle) * down + math.sin(angle) * right).astype(np.int64)
    column = np.rint(centre - math.sin(angle) * down + math.cos(angle) * right).astype(np.int64)
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return np.where(inside, row * side + column, -1)
