"""Decode images to pixels as an image viewer shows them: upright, without transparency, in 8 bits, in sRGB."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from floral.data.sources import DataError

FORMATS = {
    "PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG", "BMP": "BMP", "GIF": "GIF", "WEBP": "WebP", "TIFF": "TIFF",
    "PPM": "PPM",
}  # fmt: skip
"""Formats that are read: Pillow's name → the usual name. Pillow cuts deeper colours of some other formats to 8 bits."""
SAVE = f"save it in one of the formats {', '.join(dict.fromkeys(FORMATS.values()))}"
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr"}
"""Pillow modes of grey and RGB images with at most 8 bits per channel. Conversion of other modes changes values."""
BITS_PER_SAMPLE, SAMPLE_FORMAT, UNSIGNED = 258, 339, 1
"""Two tags of TIFF files, and the only value of SAMPLE_FORMAT that is not misread."""
SRGB_GAMMA = 1 / 2.2
ICC_SPACE = slice(16, 20)
"""Bytes of a profile that name its colours, such as "RGB " and "GRAY"."""
ROUNDING = 2
"""Profiles of sRGB by several programs differ by at most so many levels of 256."""
DEEP = re.compile(r";16[BLNS]")
"""Part of the name of a stored format with 16 bits per channel. Pillow cuts such colours to 8 bits while it decodes."""
GREY = ("1", "L", "LA")
"""Modes of Pillow for grey images; LA is transparent."""
FILTER = Image.Resampling.BILINEAR
"""Filter that resizes images. When it shrinks an image, it averages all pixels, so that nothing is left out."""
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, AttributeError, OverflowError,
    struct.error, zlib.error, Image.DecompressionBombError, ImageCms.PyCMSError,
)  # fmt: skip
"""Errors that Pillow raises for a damaged image."""


def pixels(
    images: Iterable[tuple[str, Path | bytes]], count: int, size: Sequence[int] | None = None
) -> npt.NDArray[np.uint8]:
    """Decode images of equal size to an array [N, H, W] if all are grey, otherwise [N, H, W, 3].

    Each image is a pair: its name in error messages, and its file or its content. `count` is their number, N. With
    `size`, height and width in pixels, each image is first resized to it by FILTER, whatever its aspect ratio.

    Raises:
        DataError: an image cannot be decoded, or differs in size from the first one.
    """
    array, first = np.empty((count, 0, 0), np.uint8), ""
    for row, (name, content) in enumerate(images):
        image = decoded(name, content)
        if size is not None:
            image = image.resize((size[1], size[0]), FILTER)
        if not row:
            array, first = np.empty((count, image.height, image.width), np.uint8), name
        height, width = array.shape[1:3]
        if image.size != (width, height):
            raise DataError(
                f"{name}: this image has {image.width}×{image.height} pixels, but {first} has {width}×{height}; resize "
                "all images to one size, or set `data.resize`"
            )
        if image.mode == "RGB" and array.ndim == 3:
            array = np.repeat(array[..., None], 3, axis=-1)
        array[row] = np.asarray(image if array.ndim == 3 else image.convert("RGB"))
    return array


def decoded(name: str, content: Path | bytes) -> Image.Image:
    """Return an image as a viewer shows it on white: in mode L if the file is grey, otherwise in mode RGB.

    The EXIF orientation is applied. Colours of an embedded profile are converted to sRGB. Transparent pixels are mixed
    with white.

    Raises:
        DataError: the image cannot be decoded, or a viewer shows something else than one array of 8-bit pixels.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            if why := _unfit(image):
                raise DataError(f"{name}: {why}")
            grey = image.mode in GREY
            upright = _in_srgb(ImageOps.exif_transpose(image))
            if upright.has_transparency_data:
                upright = _on_white(name, upright.convert("RGBA"))
            return upright.convert("L" if grey else "RGB")
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(
            f"{name}: the image cannot be decoded (damaged, or in an unknown format); remedy: replace or remove it, "
            f"or {SAVE}"
        ) from None
    except BROKEN as error:
        raise DataError(f"{name}: the image cannot be decoded ({error}); remedy: replace or remove it") from None


def _unfit(image: Image.Image) -> str | None:
    """Return why an image is not one array of 8-bit pixels, with the remedy, or None. The image is not decoded."""
    if image.format not in FORMATS:
        return f"this image has the format {image.format}, which is not read; {SAVE}"
    if image.mode not in MODES:
        return f"this image has the mode {image.mode}; save it in grey or RGB, with at most 8 bits per channel"
    # The first argument of Pillow's decoder is the stored format; for PPM, the second is the greatest value.
    arguments = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in getattr(image, "tile", ())]
    if any(DEEP.search(str(stored[0])) for stored in arguments if stored) or (
        image.format == "PPM" and any(isinstance(stored[-1], int) and stored[-1] > 255 for stored in arguments)
    ):
        return "this image has 16 bits per channel; save it with at most 8 bits per channel"
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if max(tags.get(BITS_PER_SAMPLE, (8,))) > 8 or set(tags.get(SAMPLE_FORMAT, ())) - {UNSIGNED}:
        return "this image has samples other than unsigned integers of 8 bits; save it with at most 8 bits per channel"
    gamma = image.info.get("gamma", SRGB_GAMMA)
    if not {"srgb", "icc_profile"} & image.info.keys() and abs(gamma - SRGB_GAMMA) > 0.01:
        return f"this image has the gamma {gamma}, so viewers change its values; save it in sRGB"
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:  # An MPO file is a photo and previews.
        return f"this file has {frames} images (an animation, pages or layers); save one image per file"
    return None


def _in_srgb(image: Image.Image) -> Image.Image:
    """Return an image with the colours of its embedded profile converted to sRGB, or unchanged if it has none.

    Raises:
        ValueError: the profile is for another kind of colours than the image.
    """
    content = image.info.get("icc_profile")
    if not content:
        return image
    conversion = _to_srgb(content, grey=image.mode in GREY)
    if conversion is None:
        return image
    converted = conversion.apply(image.convert(conversion.input_mode))
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted


@lru_cache(maxsize=8)
def _to_srgb(content: bytes, grey: bool) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion of an ICC profile's colours to sRGB, or None if it changes them by rounding only.

    Raises:
        ValueError: the profile is for another kind of colours than a grey image or, if not `grey`, an RGB image.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
    except (OSError, ImageCms.PyCMSError):
        raise ValueError("its colour profile is damaged: save it without the profile") from None
    space = content[ICC_SPACE].decode("latin-1").strip()
    if space != "RGB" and not (grey and space == "GRAY"):
        title = ImageCms.getProfileDescription(profile).strip()
        raise ValueError(f"its colour profile, {title!r}, is for {space} colours, but the image is not")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    conversion = ImageCms.ImageCmsTransform(profile, srgb, "RGB" if space == "RGB" else "L", "RGB")
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    colours = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3))
    colours = colours.convert(conversion.input_mode)
    before, after = (np.asarray(values, np.int16) for values in (colours.convert("RGB"), conversion.apply(colours)))
    return conversion if np.abs(after - before).max() > ROUNDING else None


def _on_white(name: str, image: Image.Image) -> Image.Image:
    """Return an RGBA image on a white background.

    Raises:
        DataError: on white nothing is left, because only the transparency has a shape.
    """
    mixed = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if np.ptp(np.asarray(image)[..., 3]) and not np.ptp(np.asarray(mixed), axis=(0, 1)).any():
        raise DataError(
            f"{name}: this image has one colour on white, because its shape is in its transparency; save it on a "
            "background of another colour, without transparency"
        )
    return mixed
