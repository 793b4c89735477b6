"""How different two colours look, for normal vision and for the three kinds of dichromacy."""

from __future__ import annotations

from functools import cache

import numpy as np

MIN_DIFFERENCE = 12.0
"""Two lines or symbols whose colours differ less are told apart by their dashes and their markers."""

DICHROMACIES = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
"""Kind of vision → matrix from the linear RGB of a colour to that of the colour that it looks like.

Source: Machado, Oliveira and Fernandes, IEEE TVCG 15 (2009), severity 1.
"""
XYZ = np.array([[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07218], [0.01933, 0.11919, 0.95030]])
"""From linear RGB to CIE XYZ (white D65)."""


def difference(first: str, second: str) -> float:
    """Return the colour difference ΔE (CIE 1976) of two colours #rrggbb: the smallest over all kinds of vision."""
    return float(np.linalg.norm(_lab(first) - _lab(second), axis=1).min())


@cache
def _lab(colour: str) -> np.ndarray:
    """Return the CIELAB values [kinds of vision, 3] of a colour."""
    parts = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    seen = np.array([np.clip(matrix @ linear, 0, 1) for matrix in DICHROMACIES.values()])
    ratio = seen @ XYZ.T / XYZ.sum(1)  # to the white of the screen
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=1)
