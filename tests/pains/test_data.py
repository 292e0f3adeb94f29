"""Data, training, resuming: entries 39 to 47."""

import contextlib
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detofa.data.dataset import load_dataset
from detofa.data.evaluation import detections_to_coco, evaluate_detections
from detofa.errors import UserError
from detofa.imaging import image_size, read_image
from detofa.runtime.detections import Detections
from detofa.supernet.detector import StaticDetector
from detofa.train.checkpoint import load_supernet
from tests.pains.empty_rank import SPACE, gradients_of
from tests.ranks import two_ranks
from tests.samples import Quiet, config_of, trainer_of
from tests.test_cli import write_dataset

Box = tuple[int, list[float], dict[str, Any]]
CAT, DOG = {"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}


def write_coco(root, images, *, split="train", categories=(CAT, DOG), size=(40, 60)):
    """Write a split: for each image its boxes, as (category id, xywh, and what else is said)."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    records, boxes = [], list[dict[str, Any]]()
    for number, found in enumerate(images, 1):
        name = f"{split}{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)
        records.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        for category, box, more in found:
            record = {"id": len(boxes) + 1, "image_id": number, "category_id": category}
            record |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            boxes.append(record | more)
    content = {"images": records, "annotations": boxes, "categories": list(categories)}
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
    return path


def truth_of(dataset):
    return [
        Detections(
            boxes_xyxy=image.boxes_xyxy,
            scores=np.linspace(1, 0.5, len(image.labels), dtype=np.float32),
            labels=image.labels,
        )
        for image in dataset.images
    ]


def test_sparse_category_ids_become_labels_in_order_and_come_out_as_they_were(
    tmp_path, loop, detofa
):
    """Entry 39: ids that are sparse or begin at 1 give wrong classes."""
    boxes: list[Box] = [(90, [1, 2, 10, 10], {}), (7, [20, 5, 8, 8], {})]
    write_coco(tmp_path / "sparse", [boxes], categories=(DOG, CAT))
    dataset = load_dataset(tmp_path / "sparse", "train")
    assert [category.id for category in dataset.categories] == [7, 90]
    assert dataset.images[0].labels.tolist() == [1, 0]
    results = detections_to_coco(dataset, truth_of(dataset))
    assert [result["category_id"] for result in results] == [90, 7]
    done = detofa("predict", "subnet.onnx", "squares/images/test", "--score", 0)
    assert done.code == 0, done.err
    record = json.loads((loop / "predictions" / "predictions.json").read_text())
    assert {box["category_id"] for box in record["annotations"]} == {3, 7}
    _, kept = load_supernet(loop / "runs/squares-tiny/supernet.safetensors")
    assert kept.categories == ((3, "cat"), (7, "dog"))


def test_splits_with_categories_in_another_order_agree_and_other_ids_stop(tmp_path):
    """Entry 40: two splits list their categories in another order, and AP is 0."""
    box: list[list[Box]] = [[(90, [1, 2, 10, 10], {})]]
    write_coco(tmp_path, box)
    write_coco(tmp_path, box, split="val", categories=(DOG, CAT))
    write_coco(tmp_path, box, split="test", categories=(CAT | {"id": 90}, DOG | {"id": 7}))
    train = load_dataset(tmp_path, "train")
    val = load_dataset(tmp_path, "val", categories=train.categories)
    assert val.categories == train.categories
    assert val.images[0].labels.tolist() == train.images[0].labels.tolist() == [1]
    with pytest.raises(UserError, match="misses 7 cat, 90 dog and has besides 7 dog, 90 cat"):
        load_dataset(tmp_path, "test", categories=train.categories)


def test_a_turned_photo_is_upright_in_the_reader_and_in_the_check_of_its_size(tmp_path):
    """Entry 41: a phone's photo lies on its side, and its boxes miss."""
    path = write_coco(tmp_path, [[(7, [2, 3, 10, 20], {})]], size=(60, 40))
    stored = np.zeros((40, 60, 3), np.uint8)
    stored[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(stored).save(tmp_path / "train1.jpg", exif=exif, quality=95)
    (tmp_path / "train1.png").unlink()
    content = json.loads(path.read_text().replace(".png", ".jpg"))
    path.write_text(json.dumps(content))
    pixels = read_image(tmp_path / "train1.jpg")
    assert pixels.shape == (60, 40, 3)
    assert pixels[:15].min() > 200
    assert pixels[25:].max() < 50
    assert image_size(tmp_path / "train1.jpg") == (60, 40)
    record = load_dataset(tmp_path, "train").images[0]
    assert (record.height, record.width) == (60, 40)
    content["images"][0] |= {"height": 40, "width": 60}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"upright image is 60x40 .* says 40x60"):
        load_dataset(tmp_path, "train")


def test_images_without_boxes_give_every_weight_a_finite_gradient():
    """Entry 42: a process whose images have no boxes hangs all others."""
    torch.manual_seed(0)
    loss, gradients, _ = gradients_of(StaticDetector(SPACE, SPACE.smallest).train(), [])
    assert torch.isfinite(loss)
    assert all(one is not None and torch.isfinite(one).all() for one in gradients)


@pytest.mark.slow
def test_a_rank_whose_images_have_no_boxes_takes_part_in_every_sum(tmp_path):
    """Entry 42: a process whose images have no boxes hangs all others."""
    ranks = two_ranks("tests.pains.empty_rank", folder=tmp_path)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    assert ranks[0].printed == "both went on\n"


@pytest.mark.slow
def test_a_rank_that_waits_long_for_another_says_so_once_and_waits_on(tmp_path):
    """Entry 42: a process whose images have no boxes hangs all others."""
    ranks = two_ranks("tests.pains.waiting_rank", folder=tmp_path)
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    assert ranks[0].printed == "done\n"
    said = [rank.said for rank in ranks]
    assert said[0] == ""
    assert said[1].startswith("process 1 of 2 has waited 0.2 s for what process 0 does alone")
    assert said[1].endswith("stop all: the same command resumes the run\n")
    assert said[1].count("\n") == 1


def test_a_run_that_is_stopped_and_resumed_equals_a_straight_one(tmp_path):
    """Entry 43: a resumed run is worse than it was."""
    write_dataset(tmp_path / "few", splits=("train", "val"))
    config = config_of(tmp_path / "few", steps=4)
    straight = trainer_of(config, tmp_path / "straight")
    assert straight.train(Quiet(), lambda: False)
    early = Quiet()
    stopped = trainer_of(config, tmp_path / "stopped")
    assert not stopped.train(early, lambda: len(early.losses) == 2)
    resumed = trainer_of(config, tmp_path / "stopped")
    assert resumed.step == 2
    assert resumed.train(Quiet(), lambda: False)
    for module in ("supernet", "averaged"):
        wanted, found = (getattr(trainer, module).state_dict() for trainer in (straight, resumed))
        assert all(torch.equal(value, found[name]) for name, value in wanted.items()), module


def test_one_bad_image_is_counted_and_named_and_can_be_left_out(tmp_path, detofa):
    """Entry 44: one broken image ends training, or labels are left out in silence."""
    box: Box = (7, [1, 2, 10, 10], {})
    write_coco(tmp_path / "few", [[box], [box], [box]])
    (tmp_path / "few" / "train2.png").write_bytes(b"no picture")
    done = detofa("data", "check", "few")
    assert done.code == 1
    assert "1 errors" in done.out
    assert "train2.png" in done.out
    with pytest.raises(UserError, match=r"has 1 faults: .*train2\.png.*--skip-bad"):
        load_dataset(tmp_path / "few", "train")
    assert len(load_dataset(tmp_path / "few", "train", skip_bad=True).images) == 2
    Image.new("RGB", (60, 40)).save(tmp_path / "few" / "train2.png")
    assert len(load_dataset(tmp_path / "few", "train").images) == 3  # nothing is remembered


def test_boxes_outside_or_without_area_are_clipped_or_dropped_and_counted(tmp_path):
    """Entry 45: a box without area trips an assert deep in the loss."""
    boxes = [[5, 5, 0, 10], [70, 5, 10, 10], [50, 30, 30, 30], [1, 1, 8, 8], [-5, 5, 10, 10]]
    write_coco(tmp_path, [[(7, box, {}) for box in boxes], [(90, [1, 1, 5, 5], {})]])
    dataset = load_dataset(tmp_path, "train")
    kept = dataset.images[0].boxes_xyxy
    assert kept.tolist() == [[50, 30, 60, 40], [1, 1, 9, 9], [0, 5, 5, 15]]
    reasons = [fault.reason for fault in dataset.faults]
    for words, count in (("has no area, dropped", 1), ("lies outside the image, dropped", 1),
                         ("reaches outside the image, clipped", 2)):  # fmt: skip
        assert sum(words in reason for reason in reasons) == count, words


def test_a_wrong_folder_is_named_with_what_is_there_instead(tmp_path, detofa):
    """Entry 46: a wrong path is answered with a puzzle about classes."""
    (tmp_path / "photos" / "old").mkdir(parents=True)
    for name in "abc":
        (tmp_path / "photos" / f"{name}.txt").write_text("")
    done = detofa("train", "--data", "photos")
    assert done.code == 1
    assert "photos holds no data set in COCO layout" in done.err
    assert "it holds 3 files and 1 folders: a.txt, b.txt, c.txt, old/" in done.err
    write_coco(tmp_path / "photos" / "real", [[(7, [1, 2, 10, 10], {})]])
    done = detofa("train", "--data", "photos")
    assert "photos is not a data set, but photos/real is (layout coco); give that" in done.err
    assert "the data folder nowhere does not exist" in detofa("train", "--data", "nowhere").err


def test_average_precision_is_that_of_pycocotools_with_crowds_caps_and_areas(tmp_path):
    """Entry 47: a toolkit's own AP is twice COCO's."""
    rng = np.random.default_rng(0)

    def some_box():
        x, y, width, height = (float(value) for value in rng.uniform(4, (200, 130, 190, 160)))
        more = {"iscrowd": int(rng.random() < 0.2), "area": width * height * rng.uniform(0.3, 1)}
        return int(rng.choice([7, 90])), [x, y, width, height], more

    images = [[some_box() for _ in range(6)] for _ in range(6)]
    path = write_coco(tmp_path, images, split="val", size=(300, 400))
    dataset = load_dataset(tmp_path, "val")
    found = []
    for truth in truth_of(dataset):
        rows = rng.integers(0, len(truth), 130)  # of which a hundred count
        found.append(
            Detections(
                boxes_xyxy=(truth.boxes_xyxy[rows] + rng.normal(0, 3, (130, 4))).astype(np.float32),
                scores=rng.random(130).astype(np.float32),
                labels=np.where(rng.random(130) < 0.8, truth.labels[rows], 0),
            )
        )
    ours = evaluate_detections(dataset, found)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        oracle = COCOeval(truth, truth.loadRes(detections_to_coco(dataset, found)), "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    figures = [ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large]
    assert figures == pytest.approx(list(oracle.stats[:6]), abs=1e-9)
    assert all(figure is not None and figure > 0.01 for figure in figures)
