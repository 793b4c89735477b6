import numpy as np
import pytest

from floral.config import ConfigError
from floral.data.shifts import apply_inputs, apply_labels, rotation
from floral.schema import Shift

ROTATE, LABELS, NONE = (Shift(kind=kind) for kind in ("rotate", "label_shift", "none"))


@pytest.mark.parametrize("shape", [(40, 7, 7), (40, 8, 8), (40, 8, 8, 3)])
def test_four_clusters_are_exact_quarter_turns(shape):
    images = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    cluster = np.arange(40) % 4
    shifted = apply_inputs(ROTATE, images, cluster, 4)
    assert shifted.dtype == np.uint8
    for image, turned, c in zip(images, shifted, cluster, strict=True):
        assert np.array_equal(turned, np.rot90(image, c))


def test_eighths_turn_counter_clockwise_about_the_centre_and_fill_with_zero():
    image = np.zeros((1, 9, 9), np.uint8)
    image[0, 4, 4], image[0, 4, 7] = 200, 100
    turned = apply_inputs(ROTATE, image, np.array([1]), 8)[0]
    assert turned[4, 4] == 200 and turned[2, 6] == 100
    full = apply_inputs(ROTATE, np.full((1, 9, 9), 255, np.uint8), np.array([1]), 8)[0]
    assert full[0, 0] == full[8, 8] == 0 and full[4, 0] == 255


@pytest.mark.parametrize("side", [8, 9])
def test_the_nearest_pixel_rule_agrees_with_the_quarter_turns(side):
    centre = (side - 1) / 2
    for c in range(1, 7):
        source = rotation(side, c, 7)
        inside = source >= 0
        pixel = np.arange(side * side)
        to = np.stack([pixel // side - centre, pixel % side - centre])
        start = np.stack([source // side - centre, source % side - centre])
        angle = 2 * np.pi * c / 7
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])  # of (down, right)
        assert np.abs(turn @ start - to)[:, inside].max() <= 0.5 * np.sqrt(2) + 1e-9
    assert np.array_equal(turn_by_quarter(side), np.rot90(np.arange(side * side).reshape(side, side)).ravel())


def turn_by_quarter(side):
    return rotation(side, 2, 8)


def test_cluster_zero_and_the_caller_s_array_are_untouched():
    images = np.random.default_rng(0).integers(0, 255, (6, 5, 5)).astype(np.uint8)
    before = images.copy()
    shifted = apply_inputs(ROTATE, images, np.array([0, 1, 2, 0, 1, 2]), 3)
    assert np.array_equal(images, before)
    assert np.array_equal(shifted[[0, 3]], images[[0, 3]]) and not np.array_equal(shifted[1], images[1])


def test_labels_move_by_their_cluster_and_inputs_do_not():
    labels, cluster = np.array([0, 9, 9, 5]), np.array([0, 1, 3, 2])
    assert apply_labels(LABELS, labels, cluster, 10).tolist() == [0, 0, 2, 7]
    assert apply_labels(ROTATE, labels, cluster, 10) is labels
    images = np.zeros((4, 2, 2), np.uint8)
    assert apply_inputs(LABELS, images, cluster, 4) is images and apply_inputs(NONE, images, cluster, 4) is images


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 10)])
def test_only_square_images_rotate(shape):
    with pytest.raises(ConfigError, match="rotate needs square images"):
        apply_inputs(ROTATE, np.zeros(shape, np.uint8), np.array([0, 1]), 4)


@pytest.mark.parametrize("side", [8, 9])
def test_a_concept_of_no_cluster_is_half_way_between_two(side):
    image = np.random.default_rng(0).integers(0, 255, (1, side, side)).astype(np.uint8)
    for j in range(4):
        half_way = apply_inputs(ROTATE, image, np.array([4 + j]), 4)
        assert np.array_equal(half_way, apply_inputs(ROTATE, image, np.array([2 * j + 1]), 8))
        assert not any(np.array_equal(half_way, apply_inputs(ROTATE, image, np.array([c]), 4)) for c in range(4))
    assert apply_labels(LABELS, np.array([0, 9]), np.array([4, 5]), 10).tolist() == [4, 4]
