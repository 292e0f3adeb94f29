from typing import Any

import pytest
import torch

from detofa.data.dataset import load_dataset
from detofa.data.loader import (
    TrainingBatches,
    calibration_images,
    repeat_factors,
)
from detofa.data.transforms import NO_AUGMENTATION, Augmentation
from detofa.errors import UserError
from detofa.imaging import LITE

CATS = [(3, "cat"), (17, "dog")]
SIZES = ((64, 96), (96, 64))


@pytest.fixture
def dataset(tmp_path, make_coco):
    """Seven images; image n has one box n + 5 pixels wide, a dog in the last one."""
    images: list[list[tuple[Any, ...]]] = [
        [(17 if n == 6 else 3, (2, 3, 5 + n, 20))] for n in range(7)
    ]
    images[2].append((3, (30, 1, 20, 20), "crowd"))
    return load_dataset(make_coco(tmp_path, {"train": images}, CATS), "train")


def _batches(dataset, **changes):
    settings = {
        "batch_size": 3,
        "image_sizes": SIZES,
        "augmentation": Augmentation(mosaic=0.3),
        "preprocessing": LITE,
        "seed": 0,
    }
    return TrainingBatches(dataset, **{**settings, **changes})


def _equal(one, other):
    assert torch.equal(one.images, other.images)
    for mine, theirs in zip(one.boxes_xyxy, other.boxes_xyxy, strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(one.labels, other.labels, strict=True):
        assert torch.equal(mine, theirs)


def test_a_batch_depends_on_seed_and_step_alone(dataset):
    straight = _batches(dataset)
    seen = [straight.batch(step) for step in range(8)]
    resumed = _batches(dataset, cache_limit_bytes=0)
    for step in (5, 6, 7, 0):
        _equal(resumed.batch(step), seen[step])
    other = _batches(dataset, seed=1).batch(0)
    assert other.images.shape != seen[0].images.shape or not torch.equal(
        other.images, seen[0].images
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetching_yields_the_same_batches_in_order(dataset, workers):
    batches = _batches(dataset, workers=workers)
    fetched = list(batches.prefetch(2, 9))
    assert len(fetched) == 7
    for step, batch in enumerate(fetched, start=2):
        _equal(batch, batches.batch(step))


def test_leaving_prefetch_early_stops_the_workers(dataset):
    iterator = _batches(dataset, workers=2).prefetch(0, 10**9)
    next(iterator)
    iterator.close()


def test_a_failing_worker_raises_where_the_batch_is_asked_for(dataset):
    for image in dataset.images:
        image.path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        next(_batches(dataset, workers=1).prefetch(0, 3))


def test_batches_have_one_size_the_right_types_and_boxes_inside(dataset):
    batches = _batches(dataset)
    shapes = set()
    for step in range(12):
        batch = batches.batch(step)
        assert batch.images.dtype == torch.float32
        assert batch.images.shape[:2] == (3, 3)
        height, width = batch.images.shape[2:]
        shapes.add((height, width))
        for boxes, labels in zip(batch.boxes_xyxy, batch.labels, strict=True):
            assert boxes.dtype == torch.float32
            assert labels.dtype == torch.int64
            assert boxes.shape == (len(labels), 4)
            assert (boxes >= 0).all()
            assert (boxes[:, 0::2] <= width).all()
            assert (boxes[:, 1::2] <= height).all()
    assert shapes == set(SIZES)


def _widths(batches, steps):
    """Original widths of the boxes of a run of batches, without augmentation at scale 1."""
    return [
        round(float(boxes[0, 2] - boxes[0, 0]))
        for step in steps
        for boxes in batches.batch(step).boxes_xyxy
    ]


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order(dataset):
    batches = _batches(dataset, batch_size=7, image_sizes=((40, 60),), augmentation=NO_AUGMENTATION)
    first, second = _widths(batches, [0]), _widths(batches, [1])
    assert sorted(first) == sorted(second) == list(range(5, 12))
    assert first != second
    assert batches.epoch_size == 7
    across = _batches(dataset, batch_size=3, image_sizes=((40, 60),), augmentation=NO_AUGMENTATION)
    assert sorted(_widths(across, range(7))) == sorted(list(range(5, 12)) * 3)


def test_crowds_are_not_trained_on(dataset):
    batches = _batches(dataset, batch_size=7, image_sizes=((40, 60),), augmentation=NO_AUGMENTATION)
    assert [len(boxes) for boxes in batches.batch(0).boxes_xyxy] == [1] * 7


def test_class_balance_repeats_images_of_rare_classes(dataset):
    assert repeat_factors(dataset, 0.0).tolist() == [1.0] * 7
    assert repeat_factors(dataset, 1.0).tolist() == pytest.approx([1.0] * 6 + [6.0])
    assert repeat_factors(dataset, 0.5)[6] == pytest.approx(6**0.5)
    batches = _batches(
        dataset,
        batch_size=12,
        image_sizes=((40, 60),),
        augmentation=NO_AUGMENTATION,
        class_balance=1.0,
    )
    assert batches.epoch_size == 12
    assert sorted(_widths(batches, [0])) == [5, 6, 7, 8, 9, 10, *[11] * 6]


def test_large_images_are_kept_at_twice_the_input(tmp_path, make_coco):
    images = [[(3, (100, 50, 200, 100))]]
    dataset = load_dataset(make_coco(tmp_path, {"train": images}, CATS, size=(300, 600)), "train")
    batches = _batches(dataset, batch_size=1, image_sizes=((64, 96),), augmentation=NO_AUGMENTATION)
    left, top, right, bottom = batches.batch(0).boxes_xyxy[0][0].tolist()
    # 600 wide -> 192 in the cache -> 96 in the input.
    assert (left, right) == pytest.approx((16, 48), abs=0.01)
    assert bottom - top == pytest.approx(16, abs=0.01)
    assert batches._images.get(0).shape == (96, 192, 3)


def test_the_calibration_set_is_fixed_by_its_seed(dataset):
    settings = dataset, (64, 96), Augmentation(), LITE, 4, 0.0
    first, again, other = (calibration_images(*settings, seed) for seed in (0, 0, 3))
    assert first.shape == (4, 3, 64, 96)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_calibration_set_varies_images_as_training_does(dataset):
    count = 5 * len(dataset.images)
    calibrated = calibration_images(dataset, (64, 96), Augmentation(), LITE, count, 0.5, 0)
    batches = _batches(
        dataset,
        batch_size=count,
        image_sizes=((64, 96),),
        augmentation=Augmentation(),
        seed=0,
        class_balance=0.5,
    )
    assert torch.equal(calibrated, batches.batch(0).images)
    assert len({image.numpy().tobytes() for image in calibrated}) == count


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"seed": -1}, {"workers": -1}, {"image_sizes": ()}, {"class_balance": 2}],
)
def test_settings_out_of_range_are_refused(dataset, change):
    with pytest.raises(UserError):
        _batches(dataset, **change)
