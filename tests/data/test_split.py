import json
import shutil

import numpy as np
import pytest

from detofa.data.dataset import available_splits, load_dataset
from detofa.data.split import split_dataset, stratify
from detofa.errors import UserError


def _many(count, seed=0):
    """Images of a frequent and a rare class."""
    generator = np.random.default_rng(seed)
    return {
        f"i{number:03d}": [("common", (1, 1, 9, 9))] * int(generator.integers(1, 4))
        + [("rare", (20, 20, 30, 30))] * (number % 10 == 0)
        for number in range(count)
    }


def test_every_class_is_shared_out_as_asked(tmp_path, make_voc):
    root = make_voc(tmp_path / "set", _many(100), size=(32, 40))
    path = split_dataset(root, seed=3)
    assert path == root / "detofa_splits.json"
    assert available_splits(root) == ("train", "val", "test")
    datasets = [load_dataset(root, split) for split in ("train", "val", "test")]
    names = [{image.path.name for image in dataset.images} for dataset in datasets]
    assert len(set.union(*names)) == sum(map(len, names)) == 100
    boxes = np.array([dataset.boxes_per_class() for dataset in datasets])
    shares = boxes / boxes.sum(axis=0)
    assert np.abs(shares[:, 0] - [0.7, 0.15, 0.15]).max() < 0.02
    assert boxes[:, 1].tolist() in ([7, 1, 2], [7, 2, 1], [6, 2, 2])
    assert np.abs(np.array([len(n) for n in names]) - [70, 15, 15]).max() <= 3


def test_the_seed_decides(tmp_path, make_voc):
    root = make_voc(tmp_path / "set", _many(30), size=(32, 40))
    texts = [split_dataset(root, seed=seed).read_text() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_copies_of_an_image_stay_together(tmp_path, make_voc):
    root = make_voc(tmp_path / "set", _many(24), size=(32, 40))
    images = sorted((root / "JPEGImages").iterdir())
    for first, second in zip(images[::2], images[1::2], strict=True):
        shutil.copy(first, second)
    split_dataset(root, fractions=(0.5, 0.25, 0.25))
    splits = json.loads((root / "detofa_splits.json").read_text())["splits"]
    where = {name: split for split, names in splits.items() for name in names}
    for first, second in zip(images[::2], images[1::2], strict=True):
        assert where[f"JPEGImages/{first.name}"] == where[f"JPEGImages/{second.name}"]
    assert {len(names) % 2 for names in splits.values()} == {0}


def test_a_split_without_a_share_is_left_empty(tmp_path, make_voc):
    root = make_voc(tmp_path / "set", _many(10), size=(32, 40))
    split_dataset(root, fractions=(0.8, 0.2, 0))
    assert available_splits(root) == ("train", "val")
    with pytest.raises(UserError, match="no split 'test': it has train, val"):
        load_dataset(root, "test")


def test_coco_and_yolo_sets_without_splits_are_split_too(tmp_path, make_coco, make_image):
    coco = make_coco(tmp_path / "coco", {"": [[(1, (1, 1, 5, 5))]] * 6}, [(1, "cat")])
    yolo = tmp_path / "yolo"
    for number in range(6):
        make_image(yolo / "images" / f"{number}.jpg", number)
        (yolo / "labels").mkdir(exist_ok=True)
        (yolo / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (yolo / "data.yaml").write_text("names: [cat]\n")
    for root in (coco, yolo):
        split_dataset(root, fractions=(0.5, 0.25, 0.25))
        sizes = [len(load_dataset(root, split).images) for split in ("train", "val", "test")]
        assert sum(sizes) == 6
        assert min(sizes) >= 1


def test_a_set_with_only_a_train_split_is_split(tmp_path, make_coco):
    root = make_coco(tmp_path, {"train": [[(1, (1, 1, 5, 5))]] * 8}, [(1, "cat")])
    with pytest.raises(UserError, match=r"it has train; make them with `detofa data split"):
        load_dataset(root, "val")
    split_dataset(root)
    assert available_splits(root) == ("train", "val", "test")
    assert len(load_dataset(root, "train").images) < 8


def test_a_set_with_splits_is_left_alone(data_dir):
    with pytest.raises(UserError, match=r"splits of its own \(train, val, test\)"):
        split_dataset(data_dir / "bccd")


@pytest.mark.parametrize(
    "fractions", [(0.7, 0.3), (0.7, 0.2, 0.2), (-0.1, 0.6, 0.5), (0, 0.5, 0.5)]
)
def test_wrong_fractions_are_refused(tmp_path, fractions):
    with pytest.raises(UserError, match="three shares"):
        split_dataset(tmp_path, fractions=fractions)


def test_too_few_images_are_refused_and_nothing_is_written(tmp_path, make_voc):
    root = make_voc(tmp_path / "set", _many(2), size=(32, 40))
    with pytest.raises(UserError, match="2 different images, too few for 3 splits"):
        split_dataset(root)
    assert not (root / "detofa_splits.json").exists()


def test_an_image_that_vanished_after_splitting_is_named(tmp_path, make_voc):
    root = make_voc(tmp_path / "set", _many(10), size=(32, 40))
    split_dataset(root)
    (root / "Annotations" / "i003.xml").unlink()
    found = []
    for split in ("train", "val", "test"):
        try:
            load_dataset(root, split)
        except UserError as error:
            found.append(str(error))
    assert len(found) == 1
    assert "JPEGImages/i003.png is not in the data set any more" in found[0]


def test_a_truncated_splits_file_names_the_command(tmp_path, make_voc):
    root = make_voc(tmp_path / "set", _many(10), size=(32, 40))
    path = split_dataset(root)
    path.write_text(path.read_text()[:60])
    with pytest.raises(UserError, match="detofa data split"):
        load_dataset(root, "train")


def test_every_split_gets_a_group_even_where_shares_are_small():
    counts = np.ones((3, 2))
    assigned = stratify(counts, np.array([0.98, 0.01, 0.01]), np.random.default_rng(0))
    assert sorted(assigned) == [0, 1, 2]
