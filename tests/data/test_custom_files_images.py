"""Odd images: pixels are what a viewer shows on white, or the file is refused."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from odd_files import in_order, read, refused
from PIL import Image, ImageCms, PngImagePlugin

from floral.config import catalogue, data_sets
from floral.config.reading import ConfigError
from floral.config.schema.data import CustomData
from floral.data.images import decoded
from floral.data.sources import DataError

RANDOM = np.random.default_rng(0)
COLOUR = Image.fromarray(RANDOM.integers(0, 256, (4, 6, 3)).astype(np.uint8))
GREY = COLOUR.convert("L")
ORIENTATION = 0x0112


def saved(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def with_alpha(alpha: np.ndarray, colour: int = 0) -> Image.Image:
    """An icon of one colour, whose shape is in its alpha channel [H, W]."""
    image = Image.new("RGBA", alpha.shape[::-1], (colour,) * 3)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


DISC = np.array([[0, 255, 255, 255, 255, 0]] * 2 + [[0, 0, 128, 128, 0, 0]] * 2)
SHAPE = with_alpha(DISC)


def keyed(image: Image.Image, key: Any) -> bytes:
    return saved(image, transparency=key)


def png_of_16_bits(channels: int) -> bytes:
    """A PNG file of 6×4 pixels with 16 bits per channel, which Pillow cannot write."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + RANDOM.integers(0, 256, 6 * channels * 2).astype(np.uint8).tobytes() for _ in range(4))
    buffer = io.BytesIO()
    buffer.write(b"\x89PNG\r\n\x1a\n")
    for name, content in (
        (b"IHDR", (6).to_bytes(4) + (4).to_bytes(4) + bytes([16, kind, 0, 0, 0])),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        PngImagePlugin.putchunk(buffer, name, content)
    return buffer.getvalue()


def tiff(channels: int, bits: int, sample_format: int) -> bytes:
    """A TIFF file of 6×4 pixels with samples that Pillow cannot write."""
    data, start = bytes(6 * 4 * channels * bits // 8), 8 + 2 + 10 * 12 + 4
    values = {
        256: 6, 257: 4, 258: bits if channels == 1 else start, 259: 1, 262: 1 if channels == 1 else 2,
        273: start + 6, 277: channels, 278: 4, 279: len(data), 339: sample_format,
    }  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, 3, channels if tag == 258 else 1, value) for tag, value in sorted(values.items())
    )
    head = struct.pack("<2sHIH", b"II", 42, 8, len(values))
    return head + entries + bytes(4) + struct.pack("<HHH", bits, bits, bits) + data


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = SRGB.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
SWAPPED = SWAPPED.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
"""A colour profile whose red is blue, and whose blue is red."""


def folder(root: Path, *odd: bytes, plain: Image.Image = COLOUR) -> Path:
    """A folder of two classes with three plain images each, and these odd ones in class a."""
    for name in "ab":
        (root / name).mkdir(parents=True)
        for row in range(3):
            plain.save(root / name / f"{row}.png")
    for row, content in enumerate(odd):
        (root / "a" / f"odd{row}").write_bytes(content)
    return root


def shown_in(root: Path) -> np.ndarray:
    """The odd image: the only one that is not equal to the plain one."""
    x, _ = in_order(read("folder", root))
    odd = [image for image in x if not np.array_equal(image, np.asarray(COLOUR))]
    return odd[0]


TURNED = COLOUR.transpose(Image.Transpose.ROTATE_90)
ON_WHITE = Image.alpha_composite(Image.new("RGBA", (6, 4), "white"), SHAPE).convert("RGB")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (saved(COLOUR.transpose(Image.Transpose.FLIP_LEFT_RIGHT), exif=tagged(2)), COLOUR),
        (saved(COLOUR, exif=tagged(3)), COLOUR.transpose(Image.Transpose.ROTATE_180)),
        (saved(COLOUR.transpose(Image.Transpose.FLIP_TOP_BOTTOM), exif=tagged(4)), COLOUR),
        (saved(TURNED, exif=tagged(6)), COLOUR),
        (saved(TURNED, "WEBP", lossless=True, exif=tagged(6)), COLOUR),
        (saved(TURNED, "TIFF", exif=tagged(6)), COLOUR),
        (saved(COLOUR.transpose(Image.Transpose.TRANSPOSE), exif=tagged(5)), COLOUR),
        (saved(COLOUR.transpose(Image.Transpose.TRANSVERSE), exif=tagged(7)), COLOUR),
        (saved(COLOUR.transpose(Image.Transpose.ROTATE_270), exif=tagged(8)), COLOUR),
        (saved(SHAPE), ON_WHITE),
        (saved(SHAPE.convert("LA")), ON_WHITE),
        (saved(SHAPE, "WEBP", lossless=True, exact=True), ON_WHITE),
        (saved(Image.merge("LA", (Image.new("L", (6, 4)), SHAPE.getchannel("A")))), ON_WHITE),
        (saved(with_alpha(np.full((4, 6), 255), 7)), Image.new("RGB", (6, 4), (7, 7, 7))),
        (saved(with_alpha(np.zeros((4, 6)))), Image.new("RGB", (6, 4), "white")),
        (keyed(Image.new("P", (6, 4), 0), 0), Image.new("RGB", (6, 4), "white")),
        (keyed(Image.new("L", (6, 4), 9), 9), Image.new("RGB", (6, 4), "white")),
        (keyed(Image.new("RGB", (6, 4), (1, 2, 3)), (1, 2, 3)), Image.new("RGB", (6, 4), "white")),
        (saved(COLOUR.quantize(200), "GIF"), COLOUR),
        (saved(GREY), GREY.convert("RGB")),
        (saved(GREY.convert("1")), GREY.convert("1").convert("RGB")),
        (saved(COLOUR, "BMP"), None),
    ],
    ids=lambda value: "image" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_an_image_is_read_as_a_viewer_shows_it(tmp_path, content, expected):
    root = folder(tmp_path / "mine", content)
    if expected is None or np.array_equal(np.asarray(expected), np.asarray(COLOUR)):
        assert all(np.array_equal(image, np.asarray(COLOUR)) for image in in_order(read("folder", root))[0])
    else:
        assert np.array_equal(shown_in(root), np.asarray(expected))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (COLOUR, Image.merge("RGB", COLOUR.split()[::-1])),
        (COLOUR.quantize(200), Image.merge("RGB", COLOUR.split()[::-1])),
        (GREY, GREY),
        (SHAPE, ON_WHITE),
        (Image.merge("RGBA", (*COLOUR.split(), SHAPE.getchannel("A"))), None),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_colours_of_a_profile_are_converted(image, expected, kind):
    shown = decoded("x", saved(image, kind, icc_profile=SWAPPED))
    if expected is None:
        expected = Image.new("RGB", (6, 4), "white")
        expected.paste(Image.merge("RGB", image.split()[2::-1]), mask=image.getchannel("A"))
    assert shown.mode == expected.mode
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_grey_images_are_grey_with_and_without_transparency():
    clear = Image.merge("LA", (GREY, Image.new("L", GREY.size, 255)))
    assert decoded("x", saved(clear)).mode == decoded("x", saved(GREY)).mode == "L"
    assert decoded("x", saved(clear)).tobytes() == GREY.tobytes()


def test_the_profile_of_srgb_changes_nothing():
    assert decoded("x", saved(COLOUR, icc_profile=SRGB)).tobytes() == COLOUR.tobytes()


def test_an_upright_photograph_beside_a_turned_one_has_the_same_size(tmp_path):
    """48×32 pixels beside 32×48 pixels with a tag, as a telephone stores them; JPEG loses a little."""
    photo = Image.fromarray(np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8)).convert("RGB")
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    assert turned.size == (32, 48)
    root = folder(tmp_path / "mine", saved(turned, "JPEG", quality=95, exif=tagged(6)), plain=photo)
    x, _ = in_order(read("folder", root))
    assert x.shape == (7, 32, 48, 3) and np.abs(x.astype(int) - np.asarray(photo).astype(int)).max() < 16


@pytest.mark.parametrize("kind", ["1", "L"])
def test_grey_images_with_a_transparent_value_stay_grey(tmp_path, kind):
    root = folder(tmp_path / "mine", keyed(GREY.convert(kind), 255), plain=GREY)
    assert read("folder", root).train_x.ndim == 3


def gamma(value: float) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", round(value * 100_000).to_bytes(4))
    return chunks


def two_pages(kind: str) -> bytes:
    return saved(COLOUR, kind, save_all=True, append_images=[COLOUR.transpose(Image.Transpose.ROTATE_180)])


DEEP = r"odd0: this image has 16 bits per channel; save it with at most 8 bits per channel"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_of_16_bits(3), DEEP),
        (png_of_16_bits(4), DEEP),
        (png_of_16_bits(2), DEEP),
        (png_of_16_bits(1), r"odd0: this image has the mode I;16; save it in grey or RGB, with at most 8"),
        (b"P6 6 4 65535\n" + bytes(144), DEEP),
        (b"P6 6 4 1000\n" + bytes(144), DEEP),
        (tiff(3, 16, 1), DEEP),
        (tiff(1, 8, 2), r"odd0: this image has samples other than unsigned integers of 8 bits; save it"),
        (b"P5 6 4 1000\n" + bytes(48), r"odd0: this image has the mode I; save it in grey or RGB, with at most 8"),
        (saved(Image.new("F", (6, 4)), "TIFF"), r"odd0: this image has the mode F; save it"),
        *((saved(COLOUR.convert("CMYK"), kind), r"odd0: this image has the mode CMYK; save it in grey or RGB")
          for kind in ("JPEG", "TIFF")),
        *((saved(COLOUR, kind), rf"odd0: this image has the format {kind}, which is not read; save it in one of the "
           r"formats PNG, JPEG, BMP, GIF, WebP, TIFF, PPM")
          for kind in ("JPEG2000", "SGI", "AVIF", "TGA", "PCX")),
        (saved(COLOUR, pnginfo=gamma(1.0)), r"odd0: this image has the gamma 1\.0, .* save it in sRGB"),
        (saved(COLOUR, icc_profile=SRGB[:16] + b"CMYK" + SRGB[20:]), r"decoded \(its colour profile, .* for CMYK"),
        (saved(COLOUR, icc_profile=SRGB[:16] + b"GRAY" + SRGB[20:]), r"decoded \(its colour profile, .* for GRAY"),
        (saved(COLOUR, icc_profile=b"broken"), r"odd0: .* \(its colour profile is damaged: save it without"),
        (saved(Image.new("LAB", (6, 4)), "TIFF"), r"odd0: this image has the mode LAB; save it"),
        *((two_pages(kind), r"odd0: this file has 2 images \(an animation, pages or layers\); save one image")
          for kind in ("GIF", "TIFF", "PNG", "WEBP")),
        (saved(with_alpha(DISC, 255)), r"odd0: this image has one colour on white, because its shape is in"),
        (saved(Image.merge("LA", (Image.new("L", (6, 4), 255), SHAPE.getchannel("A")))), r"one colour on white"),
        (saved(TURNED), r"odd0: this image has 4×6 pixels, but .*0\.png has 6×4; resize all images to one size"),
        (saved(COLOUR, exif=tagged(6)), r"odd0: this image has 4×6 pixels, but"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"odd0: the image cannot be decoded .*remedy: replace"),
        (saved(COLOUR)[:-40], r"odd0: the image cannot be decoded"),
        (b"P6 99999 99999 255\n", r"odd0: the image cannot be decoded .*decompression bomb"),
    ],
    ids=lambda value: "image" if isinstance(value, bytes) else None,
)  # fmt: skip
def test_an_image_that_would_be_misread_is_refused(tmp_path, content, message):
    refused("folder", folder(tmp_path / "mine", content), message)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage, and shows the rest.
def test_a_damaged_image_never_ends_in_a_traceback(tmp_path):
    for kind, at in itertools.product(("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"), range(0, 120, 7)):
        content = bytearray(saved(COLOUR.resize((20, 20)), kind, **({} if kind == "GIF" else {"exif": tagged(6)})))
        content[at] ^= 255
        try:
            assert decoded("x", bytes(content)).mode in ("L", "RGB")
        except DataError as error:
            assert str(error).startswith("x: ")


def test_two_names_of_a_class_that_look_the_same_are_refused(tmp_path):
    root = folder(tmp_path / "mine")
    (root / "a").rename(root / "caf\u00e9")
    (root / "b").rename(root / "cafe\u0301")
    refused("folder", root, r"labels \(y\) has 'cafe\\u0301' and 'caf\\xe9', which look the same; write both")


# ------------------------------------------------------------------------------------------------------------- resize


def test_images_are_resized_by_pillows_bilinear_filter(tmp_path):
    for label, image in (("a", COLOUR), ("b", COLOUR.resize((9, 5))), ("b", GREY)):
        (tmp_path / "mine" / label).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "mine" / label / f"{image.mode}.png")
        image.save(tmp_path / "mine" / label / f"copy_{image.mode}.png")
    refused("folder", tmp_path / "mine", r"resize all images to one size, or set `data\.resize`")
    x, _ = in_order(read("folder", tmp_path / "mine", resize=[3, 2]))
    assert x.shape == (6, 3, 2, 3)
    expected = np.asarray(COLOUR.resize((2, 3), Image.Resampling.BILINEAR))
    assert sum(np.array_equal(image, expected) for image in x) == 2
    frame = pl.DataFrame({"image": [saved(COLOUR), saved(GREY.resize((5, 5)))] * 2, "label": [0, 1, 0, 1]})
    frame.write_parquet(tmp_path / "mine.parquet")
    x, _ = in_order(read("table", tmp_path / "mine.parquet", label="label", resize=[3, 2]))
    assert sum(np.array_equal(image, expected) for image in x) == 2
    frame.with_columns(image=pl.Series([1.5, 2.5, 1.5, 3.5])).write_parquet(tmp_path / "mine.parquet")
    refused("table", tmp_path / "mine.parquet", r"`data\.resize` is for images, but .* none", label="label", resize=3)


def test_resize_is_part_of_the_name_of_the_data_and_wrong_values_are_refused(tmp_path):
    def name(**options: Any) -> object:
        return data_sets.stored_data(CustomData(kind="folder", path=str(tmp_path), **options))

    assert name(resize=64) == name(resize=[64, 64]) and len({name(), name(resize=64), name(resize=[64, 32])}) == 3
    for wrong in (0, -3, 4097, True, 1.5, "64", [64], [64, 0], [1, 2, 3], {"side": 64}):
        values = {"title": "Mine", "data": {"kind": "folder", "path": str(tmp_path), "resize": wrong}}
        with pytest.raises(ConfigError, match=r"data\.resize: must be a side length in pixels from 1 to 4096, such as"):
            catalogue.task("digits_rotate", values)
    with pytest.raises(ValueError, match=r"`data\.resize` is for `kind: folder` and `kind: table` only"):
        CustomData(kind="arrays", path="mine.npz", resize=64)
