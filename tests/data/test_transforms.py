import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detofa.data.transforms import (
    NO_AUGMENTATION,
    Augmentation,
    Sample,
    mosaic_sample,
    training_sample,
)
from detofa.errors import UserError
from detofa.imaging import letterbox

GEOMETRY_ONLY = dataclasses.replace(
    NO_AUGMENTATION,
    horizontal_flip=0.5,
    vertical_flip=0.5,
    min_scale=0.4,
    max_scale=1.8,
    aspect=1.3,
)


def _scene(size=(120, 200), boxes=((30, 20, 90, 70), (120, 60, 180, 110))) -> Sample:
    """Black, with a box of each brightness: 100 for the first, 200 for the second."""
    image = np.zeros((*size, 3), np.uint8)
    for label, (left, top, right, bottom) in enumerate(boxes):
        image[top:bottom, left:right] = 100 * (label + 1)
    return Sample(image, np.array(boxes, np.float32), np.arange(len(boxes)))


def test_without_augmentation_it_is_a_letterbox_at_the_edge_of_its_play():
    scene = _scene()
    expected, box = letterbox(scene.image, (96, 160))
    sample = training_sample(*scene, (96, 160), NO_AUGMENTATION, np.random.default_rng(0))
    assert np.abs(sample.image.astype(int) - expected).max() <= 2
    assert np.allclose(sample.boxes_xyxy, box.to_input(scene.boxes_xyxy), atol=1e-4)
    assert sample.labels.tolist() == [0, 1]


@given(
    seed=st.integers(0, 2**32),
    height=st.integers(2, 8).map(lambda n: 32 * n),
    width=st.integers(2, 8).map(lambda n: 32 * n),
)
def test_boxes_follow_their_pixels(seed, height, width):
    sample = training_sample(
        *_scene(), (height, width), GEOMETRY_ONLY, np.random.default_rng(seed), fill=0
    )
    assert sample.image.shape == (height, width, 3)
    for (left, top, right, bottom), label in zip(sample.boxes_xyxy, sample.labels, strict=True):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        of_box = np.abs(sample.image[..., 0].astype(int) - 100 * (int(label) + 1)) < 40
        # The middle has the box's brightness; outside of the box it occurs only at soft edges.
        assert of_box[int((top + bottom) / 2), int((left + right) / 2)]
        outside = of_box.copy()
        outside[
            max(0, int(top) - 2) : int(np.ceil(bottom)) + 2,
            max(0, int(left) - 2) : int(np.ceil(right)) + 2,
        ] = False
        others = [b for b, n in zip(sample.boxes_xyxy, sample.labels, strict=True) if n != label]
        for other in others:
            x1, y1, x2, y2 = other
            outside[max(0, int(y1) - 2) : int(y2) + 3, max(0, int(x1) - 2) : int(x2) + 3] = False
        if len(sample.labels) == 2:
            assert not outside.any()


def test_a_mirrored_box_lands_on_the_other_side():
    scene = _scene((100, 200), ((10, 20, 30, 50),))
    mirror = dataclasses.replace(NO_AUGMENTATION, horizontal_flip=1.0)
    sample = training_sample(*scene, (100, 200), mirror, np.random.default_rng(0))
    assert sample.boxes_xyxy.tolist() == [[170, 20, 190, 50]]
    upside_down = dataclasses.replace(NO_AUGMENTATION, vertical_flip=1.0)
    sample = training_sample(*scene, (100, 200), upside_down, np.random.default_rng(0))
    assert sample.boxes_xyxy.tolist() == [[10, 50, 30, 80]]


def test_boxes_whose_centre_is_cut_off_go():
    zoom = dataclasses.replace(NO_AUGMENTATION, min_scale=3.0, max_scale=3.0)
    counts = [
        len(training_sample(*_scene(), (120, 200), zoom, np.random.default_rng(seed)).labels)
        for seed in range(40)
    ]
    assert set(counts) == {0, 1}


def test_the_generator_decides():
    images = [
        training_sample(*_scene(), (96, 96), Augmentation(), np.random.default_rng(seed)).image
        for seed in (5, 5, 6)
    ]
    assert np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_the_source_is_not_changed():
    scene = _scene()
    before = scene.image.copy(), scene.boxes_xyxy.copy()
    training_sample(*scene, (96, 96), Augmentation(), np.random.default_rng(1))
    assert np.array_equal(scene.image, before[0])
    assert np.array_equal(scene.boxes_xyxy, before[1])


def test_brightness_alone_scales_every_channel():
    brighter = dataclasses.replace(NO_AUGMENTATION, brightness=0.5)
    image = np.full((32, 32, 3), (40, 80, 100), np.uint8)
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    seen = []
    for seed in range(20):
        sample = training_sample(image, *empty, (32, 32), brighter, np.random.default_rng(seed))
        pixel = sample.image[5, 5].astype(float)
        seen.append(pixel[0] / 40)
        assert np.allclose(pixel / [40, 80, 100], seen[-1], atol=0.03)
    assert 0.5 <= min(seen) < 0.8
    assert 1.2 < max(seen) <= 1.52


def test_saturation_and_hue_leave_gray_alone():
    colours = dataclasses.replace(NO_AUGMENTATION, saturation=1.0, hue=0.5)
    image = np.full((32, 32, 3), 90, np.uint8)
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    sample = training_sample(image, *empty, (32, 32), colours, np.random.default_rng(0))
    assert np.abs(sample.image.astype(int) - 90).max() <= 1


def test_a_mosaic_holds_four_images_and_their_boxes():
    four = []
    for value in (60, 120, 180, 240):
        image = np.full((60, 100, 3), value, np.uint8)
        box = np.array([[0, 0, 100, 60]], np.float32)
        four.append(Sample(image, box, np.array([value])))
    sample = mosaic_sample(four, (128, 160), NO_AUGMENTATION, np.random.default_rng(0))
    assert sample.labels.tolist() == [60, 120, 180, 240]
    for (left, top, right, bottom), label in zip(sample.boxes_xyxy, sample.labels, strict=True):
        part = sample.image[int(top) : int(bottom), int(left) : int(right)]
        assert np.median(part) == label
        assert (sample.image == label).sum() == pytest.approx(
            (right - left) * (bottom - top) * 3, rel=0.02
        )


@pytest.mark.parametrize(
    "change",
    [
        {"horizontal_flip": 1.5},
        {"min_scale": 0},
        {"min_scale": 2.0, "max_scale": 1.0},
        {"hue": 0.6},
        {"aspect": 0.5},
    ],
)
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(UserError, match="augmentation"):
        Augmentation(**change)
