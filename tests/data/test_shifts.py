import itertools

import numpy as np
import pytest

from floral.config.reading import ConfigError, parse
from floral.config.schema.shift import Colour, Shift
from floral.config.schema.task import Task
from floral.data.shifts import IMAGES_PER_CHUNK, apply_inputs, apply_labels, permutations, quarter_turns, rotation

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
    with pytest.raises(ConfigError, match="rotate` needs square images"):
        apply_inputs(ROTATE, np.zeros(shape, np.uint8), np.array([0, 1]), 4)


@pytest.mark.parametrize("side", [8, 9])
def test_a_concept_of_no_cluster_is_half_way_between_two(side):
    image = np.random.default_rng(0).integers(0, 255, (1, side, side)).astype(np.uint8)
    for j in range(4):
        half_way = apply_inputs(ROTATE, image, np.array([4 + j]), 4)
        assert np.array_equal(half_way, apply_inputs(ROTATE, image, np.array([2 * j + 1]), 8))
        assert not any(np.array_equal(half_way, apply_inputs(ROTATE, image, np.array([c]), 4)) for c in range(4))
    assert apply_labels(LABELS, np.array([0, 9]), np.array([4, 5]), 10).tolist() == [4, 4]


# ------------------------------------------------------------------------------- listed angles, colours, permutations


def test_angles_may_be_listed_and_full_turns_change_nothing():
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8)).astype(np.uint8)
    shift = Shift(kind="rotate", angles=(0, 90, -90, 180, 45.5))
    turned = apply_inputs(shift, images, np.arange(5), 5)
    for k, turns in enumerate((0, 1, 3, 2)):
        assert np.array_equal(turned[k], np.rot90(images[k], turns))
    assert quarter_turns(shift, np.array([0, 1, 2, 3]), 5).tolist() == [0, 1, 3, 2]
    listed, divided = Shift(kind="rotate", angles=(0, 120, 240)), ROTATE
    cluster = np.array([0, 1, 2, 1, 2])
    assert np.array_equal(apply_inputs(listed, images, cluster, 3), apply_inputs(divided, images, cluster, 3))


def test_interpolation_is_exact_where_the_image_is_a_plane_and_leaves_quarter_turns_alone():
    row, column = np.mgrid[0:15, 0:15]
    plane = (100 + 5 * row + 3 * column).astype(np.uint8)[None]
    smooth = Shift(kind="rotate", angles=(0, 30, 90), interpolation="bilinear")
    turned = apply_inputs(smooth, plane, np.array([1]), 3)[0].astype(float)
    down, right = row - 7, column - 7
    angle = np.radians(30)
    origin = np.cos(angle) * down + np.sin(angle) * right, np.cos(angle) * right - np.sin(angle) * down
    expected = 100 + 5 * (7 + origin[0]) + 3 * (7 + origin[1])
    middle = np.hypot(down, right) <= 7
    assert np.abs(turned - expected)[middle].max() <= 0.5 + 1e-9
    assert turned[0, 0] == 0
    assert np.array_equal(apply_inputs(smooth, plane, np.array([2]), 3)[0], np.rot90(plane[0]))
    many = np.random.default_rng(0).integers(0, 255, (IMAGES_PER_CHUNK + 3, 4, 4)).astype(np.uint8)
    whole = apply_inputs(smooth, many, np.ones(len(many), int), 3)
    assert np.array_equal(whole[-3:], apply_inputs(smooth, many[-3:], np.ones(3, int), 3))


def test_colours_are_reordered_stretched_clipped_and_inverted():
    image = np.array([[[[10, 100, 200]]]], np.uint8)

    def seen(**colour):
        return apply_inputs(Shift(kind="colour", colours=(Colour(**colour),)), image, np.array([0]), 1)[
            0, 0, 0
        ].tolist()

    assert seen() == [10, 100, 200]
    assert seen(channels=(1, 2, 0)) == [100, 200, 10]
    assert seen(gain=(2.0,)) == [20, 200, 255] and seen(channels=(2, 1, 0), gain=(1.0, 0.5, 2.0)) == [200, 50, 20]
    assert seen(contrast=0.5) == [69, 114, 164] and seen(contrast=3.0) == [0, 45, 255]
    assert seen(invert=True) == [245, 155, 55] and seen(gain=(2.0,), invert=True) == [235, 55, 0]
    grey = np.array([[[0, 4], [8, 16]]], np.uint8)
    inverted = apply_inputs(Shift(kind="colour", colours=(Colour(invert=True),)), grey, np.array([0]), 1, scale=16)
    assert inverted.tolist() == [[[16, 12], [8, 0]]]
    wrong = Shift(kind="colour", colours=(Colour(channels=(1, 0)),))
    with pytest.raises(ConfigError, match=r"have 3 channel\(s\); set `channels` to a permutation of \[0, 1, 2\]"):
        apply_inputs(wrong, image, np.array([0]), 1)


def test_every_concept_has_a_permutation_of_its_own():
    shift, labels = Shift(kind="label_permutation"), np.arange(10)
    seen = [apply_labels(shift, labels, np.full(10, c), 10, seed=3).tolist() for c in range(6)]
    assert seen[0] == labels.tolist() and all(sorted(some) == labels.tolist() for some in seen)
    assert len({tuple(some) for some in seen}) == 6
    together = apply_labels(shift, np.array([7, 7, 7]), np.array([0, 2, 5]), 10, seed=3)
    assert together.tolist() == [7, seen[2][7], seen[5][7]]
    assert apply_labels(shift, labels, np.full(10, 1), 10, seed=4).tolist() != seen[1]
    assert sorted(map(tuple, permutations(6, 3, 0).tolist())) == sorted(itertools.permutations(range(3)))
    with pytest.raises(ConfigError, match="2 classes have 2 permutations, but 3 concepts need one each; set fewer"):
        permutations(3, 2, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "label_shift", "angles": [0, 90]}, "label_shift` has no `angles`"),
        ({"kind": "rotate", "colours": [{}, {"invert": True}]}, "rotate` has no `colours`"),
        ({"kind": "colour"}, "colour` needs `colours`; list one for each cluster"),
        ({"kind": "none", "interpolation": "bilinear"}, "none` has no `interpolation`"),
        ({"kind": "rotate", "angles": [0, 360]}, "lists 2 concepts, but two of them are equal"),
        ({"kind": "colour", "colours": [{}, {}]}, "lists 2 concepts, but two of them are equal"),
        ({"kind": "colour", "colours": [{"gain": [0]}]}, "gain.0: must be greater than 0"),
    ],
)
def test_a_wrong_shift_is_named_with_its_remedy(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(Shift, values, "shift")


def test_a_list_has_one_concept_for_each_cluster_and_new_client(task_values):
    angles = {"kind": "rotate", "angles": [0, 20, 40]}
    with pytest.raises(ConfigError, match=r"`shift` lists 3 concepts, but `clusters` is 2;"):
        parse(Task, {**task_values, "shift": angles}, "toy.yaml")
    assert parse(Task, {**task_values, "shift": angles, "unseen": {"new_concept": 1}}, "toy.yaml")
    augmented = {**task_values, "clusters": 3, "shift": angles, "augmentation": "flip_crop"}
    with pytest.raises(ConfigError, match=r"`angles` that are multiples of 90\), but `angles` are \[0.0, 20.0, 40.0\]"):
        parse(Task, augmented, "toy.yaml")
    assert parse(Task, augmented | {"shift": {"kind": "rotate", "angles": [0, 180, 90]}}, "toy.yaml")


@pytest.fixture
def task_values():
    return {
        "name": "toy", "title": "Toy", "data": "digits", "clients": 10, "clusters": 2, "participation": 0.5,
        "rounds": 1, "batch": 16, "lr": 0.1, "router_lr": 0.1, "model": {"kind": "mlp"},
    }  # fmt: skip


def test_shifts_without_the_new_keys_are_written_as_before():
    assert Shift(kind="rotate").model_dump(mode="json") == {"kind": "rotate"}
