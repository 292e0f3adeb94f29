import hashlib

import numpy as np
import pytest

from detofa.data import demo
from detofa.data.check import check_dataset
from detofa.data.dataset import available_splits, load_dataset
from detofa.data.demo import make_demo_dataset
from detofa.errors import UserError
from detofa.imaging import read_image


def _digest(root):
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    make_demo_dataset(root, train=40, val=10, test=10)
    return root


def test_the_same_seed_gives_the_same_bytes(small, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        make_demo_dataset(tmp_path / name, seed=seed, train=40, val=10, test=10)
    assert _digest(tmp_path / "again") == _digest(small)
    assert _digest(tmp_path / "other") != _digest(small)


def test_it_is_a_whole_coco_set_with_three_splits(small):
    assert available_splits(small) == ("train", "val", "test")
    report = check_dataset(small)
    assert report.layout == "coco"
    assert [split.num_images for split in report.splits] == [40, 10, 10]
    assert report.num_errors == 0
    assert not report.copies
    assert not [fault for fault in report.faults if "no boxes" not in fault.reason]
    categories = load_dataset(small, "test").categories
    assert [(c.id, c.name) for c in categories] == [(n + 1, str(n)) for n in range(10)]


def test_sizes_and_counts_are_as_promised(small):
    images = load_dataset(small, "train").images
    boxes = np.concatenate([image.boxes_xyxy for image in images])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert 14 <= sides.min() < 26
    assert 60 < sides.max() <= 98
    counts = [len(image.labels) for image in images]
    assert min(counts) >= 1
    assert max(counts) <= 8
    assert {(image.height, image.width) for image in images} == {(192, 224)}


def test_no_original_digit_is_in_two_splits():
    sources = demo._source_digits(0)
    seen = {split: {ink.tobytes() for _, ink in digits} for split, digits in sources.items()}
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]
    for digits in sources.values():
        assert {digit for digit, _ in digits} == set(range(10))


def test_boxes_lie_on_what_stands_out(small):
    """Inside a box the picture varies more than around it, for nearly every box."""
    wins = total = 0
    for image in load_dataset(small, "train").images:
        luma = read_image(image.path).mean(axis=-1)
        for left, top, right, bottom in image.boxes_xyxy.astype(int):
            inside = luma[top:bottom, left:right].std()
            wins += inside > 20
            total += 1
    assert wins / total > 0.95


def test_other_sizes_are_possible(tmp_path):
    make_demo_dataset(tmp_path, train=2, val=1, test=1, image_size=(128, 256))
    image = load_dataset(tmp_path, "train").images[0]
    assert (image.height, image.width) == (128, 256)


@pytest.mark.parametrize("change", [{"seed": -1}, {"val": 0}, {"image_size": (64, 64)}])
def test_wrong_arguments_are_refused(tmp_path, change):
    with pytest.raises(UserError, match="the demo set needs"):
        make_demo_dataset(tmp_path / "set", **change)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_cannot_be_written_is_a_plain_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the demo set"):
        make_demo_dataset(tmp_path / "file", train=1, val=1, test=1)
