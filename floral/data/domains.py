"""Reader of one kind of data from two sources, which are its domains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from floral.core import seeds
from floral.data.readers import Labelled, digits_csv, idx
from floral.data.sources import RawFile

SIDE, INNER = 28, 20
"""Side of an MNIST image in pixels, and of the box in its middle that a digit fills (yann.lecun.com/exdb/mnist)."""


def digit_sources(files: Sequence[RawFile]) -> Labelled:
    """Read handwritten digits of two sources: MNIST (domain 0) and the 8×8 digits of scikit-learn (domain 1).

    The files are the four of MNIST, and then digits.csv. Of MNIST, as many random training and test images are taken as
    the 8×8 digits have, always the same. The 8×8 digits are enlarged to 20×20 pixels by bilinear interpolation, in the
    middle of 28×28 pixels, as the digits of MNIST are. No writer is in both sources.
    """
    *mnist_files, digits_file = files
    mnist, digits = idx(mnist_files), digits_csv([digits_file])
    sides = {}
    for side in ("train", "test"):
        x, y = getattr(mnist, f"{side}_x"), getattr(mnist, f"{side}_y")
        small, labels = getattr(digits, f"{side}_x"), getattr(digits, f"{side}_y")
        mnist_rows = seeds.sample(0, f"digit sources {side}", size=len(x), count=len(small))
        sides[f"{side}_x"] = np.concatenate([x[mnist_rows], enlarged(small, digits.scale)])
        sides[f"{side}_y"] = np.concatenate([y[mnist_rows], labels])
        sides[f"{side}_domain"] = np.repeat(np.arange(2, dtype=np.int32), [len(mnist_rows), len(small)])
    return Labelled(**sides, classes=10, scale=255, domains=("mnist", "digits"))


def enlarged(images: npt.NDArray[np.uint8], scale: int) -> npt.NDArray[np.uint8]:
    """Return images [N, H, W] with values from 0 to `scale` as [N, 28, 28] with values from 0 to 255.

    An image fills the 20×20 pixels in the middle. The other pixels are 0.
    """
    result = np.zeros((len(images), SIDE, SIDE), np.uint8)
    start = (SIDE - INNER) // 2
    for target, image in zip(result, images, strict=True):
        white = np.rint(image * (255 / scale)).astype(np.uint8)
        inner = Image.fromarray(white).resize((INNER, INNER), Image.Resampling.BILINEAR)
        target[start : start + INNER, start : start + INNER] = np.asarray(inner)
    return result


READERS: dict[str, Callable[[Sequence[RawFile]], Labelled]] = {"digit_sources": digit_sources}
