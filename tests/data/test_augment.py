"""Random flips and crops against a plain loop over images, with and without the rotation that follows."""

import numpy as np
import pytest
import torch

from floral.data.augment import DRAWS, PADDING, flip_crop

SIDE = 12


def drawn(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {name: torch.rand(count, generator=random) for name in DRAWS}


def images(count, shape=(SIDE, SIDE, 3), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (count, *shape)).astype(np.uint8))


def plain(image, flip, down, right):
    """One image: mirror, pad with black, cut."""
    image = image[:, ::-1] if flip < 0.5 else image
    height, width = image.shape[:2]
    padded = np.zeros((height + 2 * PADDING, width + 2 * PADDING, *image.shape[2:]), np.uint8)
    padded[PADDING : PADDING + height, PADDING : PADDING + width] = image
    top, left = int(down * (2 * PADDING + 1)), int(right * (2 * PADDING + 1))
    return padded[top : top + height, left : left + width]


def one_by_one(x, noise):
    columns = [noise[f"augment/{name}"].tolist() for name in ("flip", "down", "right")]
    return np.stack([plain(image, *uniform) for image, *uniform in zip(x.numpy(), *columns, strict=True)])


@pytest.mark.parametrize("shape", [(SIDE, SIDE, 3), (SIDE, SIDE), (9, 14, 3)])
def test_without_turns_it_is_mirror_pad_and_cut(shape):
    x, noise = images(300, shape), drawn(300)
    found = flip_crop(x, noise, torch.zeros(300, dtype=torch.long))
    assert found.dtype == torch.uint8 and found.shape == x.shape
    assert np.array_equal(found.numpy(), one_by_one(x, noise))


def test_rotation_follows_augmentation():
    """Rows that are stored rotated come out as if they had been augmented first and rotated then."""
    x, noise, turns = images(400), drawn(400), torch.arange(400) % 4
    stored = np.stack([np.rot90(image, q) for image, q in zip(x.numpy(), turns.tolist(), strict=True)])
    found = flip_crop(torch.from_numpy(stored), noise, turns)
    expected = [np.rot90(image, q) for image, q in zip(one_by_one(x, noise), turns.tolist(), strict=True)]
    assert np.array_equal(found.numpy(), np.stack(expected))


def test_a_quarter_turn_mirrors_top_to_bottom():
    x = images(1)
    noise = {
        "augment/flip": torch.zeros(1),
        "augment/down": torch.full((1,), 0.5),
        "augment/right": torch.full((1,), 0.5),
    }
    for turns, axis in ((0, 2), (1, 1), (2, 2), (3, 1)):
        assert torch.equal(flip_crop(x, noise, torch.tensor([turns])), x.flip(axis))


def test_every_offset_is_reached_equally_often_and_a_draw_of_one_is_the_last():
    count = 20_000
    x = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    x[0, 6, 6] = 1
    random = drawn(count) | {"augment/flip": torch.ones(count)}
    found = flip_crop(x.expand(count, -1, -1), random, torch.zeros(count, dtype=torch.long))
    where = found.nonzero()
    assert len(where) == count  # a pixel near the middle never leaves the image
    cells = np.bincount((where[:, 1] - 2) * 9 + where[:, 2] - 2, minlength=81)
    assert len(cells) == 81 and abs(cells / count * 81 - 1).max() < 0.3
    ones = {name: torch.ones(1) for name in DRAWS}
    assert flip_crop(x, ones, torch.zeros(1, dtype=torch.long)).nonzero().tolist() == [[0, 6 - PADDING, 6 - PADDING]]


def test_half_of_the_images_are_mirrored():
    x = images(1).expand(4000, -1, -1, -1)
    noise = drawn(4000) | {f"augment/{name}": torch.full((4000,), 0.5) for name in ("down", "right")}
    mirrored = (flip_crop(x, noise, torch.zeros(4000, dtype=torch.long)) == x.flip(2)).flatten(1).all(1)
    assert 0.46 < mirrored.double().mean() < 0.54


def test_lifted_over_clients_it_is_the_same():
    x, turns = images(60).reshape(5, 12, SIDE, SIDE, 3), torch.arange(60).reshape(5, 12) % 4
    noise = {name: uniform.reshape(5, 12) for name, uniform in drawn(60).items()}
    vectorised = torch.vmap(flip_crop)(x, noise, turns)
    flat = flip_crop(x.flatten(0, 1), {name: uniform.flatten() for name, uniform in noise.items()}, turns.flatten())
    assert torch.equal(vectorised, flat.reshape(x.shape))


def test_decoded_images_are_cut_alike():
    x, noise, turns = images(50), drawn(50), torch.arange(50) % 4
    assert torch.equal(flip_crop(x.double(), noise, turns), flip_crop(x, noise, turns).double())
