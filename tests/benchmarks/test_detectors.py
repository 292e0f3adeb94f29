"""The benchmark of detectors gives peers the same boxes to learn, and brings theirs back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import peers
from benchmarks.detectors import (
    Plan,
    detect_all,
    differences_table,
    mark_fronts,
    resampled,
    rescaled,
    rivals,
    table,
)
from detofa.data.dataset import DetectionDataset, load_dataset
from detofa.data.records import Category, ImageRecord
from detofa.errors import UserError
from detofa.imaging import letterbox
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector
from detofa.runtime.postprocess import detections_from_outputs
from detofa.runtime.session import Closing
from detofa.subnet import PostProcessing

BOXES = {"train": [[10.5, 4.0, 20.0, 9.5], [0.0, 0.0, 60.0, 40.0]], "val": [[1.0, 2.0, 3.0, 4.0]]}


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Return a data set in COCO layout of one 40x60 image a split, ids far from labels."""
    for number, (split, boxes) in enumerate(BOXES.items()):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{split}.png")
        record = {
            "images": [{"id": 7 + number, "file_name": f"{split}.png", "height": 40, "width": 60}],
            "categories": [{"id": 5, "name": "RBC"}, {"id": 9, "name": "WBC"}],
            "annotations": [
                {"id": place, "image_id": 7 + number, "category_id": 9 - 4 * (place % 2)}
                | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for place, box in enumerate(boxes)
            ],
        }
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(record))
    return tmp_path


def found_of(boxes_xyxy: list[list[float]]) -> Detections:
    count = len(boxes_xyxy)
    return Detections(
        boxes_xyxy=np.array(boxes_xyxy, np.float32).reshape(-1, 4),
        scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
        labels=np.arange(count),
    )


def test_the_yolo_layout_holds_the_same_boxes(cells: Path, tmp_path: Path) -> None:
    settings = peers.write_yolo_layout(cells, tmp_path / "yolo")
    for split in BOXES:
        expected, found = load_dataset(cells, split), load_dataset(settings.parent, split)
        assert [c.name for c in found.categories] == [c.name for c in expected.categories]
        for ours, theirs in zip(expected.images, found.images, strict=True):
            assert theirs.path.resolve() == ours.path.resolve()
            assert theirs.labels.tolist() == ours.labels.tolist()
            np.testing.assert_allclose(theirs.boxes_xyxy, ours.boxes_xyxy, atol=1e-4)
    peers.write_yolo_layout(cells, tmp_path / "yolo")  # again, over its own links


def test_yolo_boxes_come_back_to_the_image() -> None:
    boxes = np.array([[30.0, 10.5, 100.0, 90.0], [0.0, 0.0, 319.0, 239.0]], np.float32)
    _, placed = letterbox(np.zeros((240, 320, 3), np.uint8), peers.YOLO_SIZE)
    low_x, low_y, high_x, high_y = placed.to_input(boxes).T
    rows = [(low_x + high_x) / 2, (low_y + high_y) / 2, high_x - low_x, high_y - low_y]
    rows += [np.array([0.9, 0.0]), np.array([0.0, 0.8])]
    output = np.stack(rows).astype(np.float32)[None]
    boxes_xyxy, scores = peers.yolo_candidates(output)
    assert output.shape == (1, 6, 2)
    found = detections_from_outputs(boxes_xyxy[0], scores[0], PostProcessing(), placed)
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=1e-4)
    assert found.labels.tolist() == [0, 1]


def test_boxes_of_a_stretched_image_come_back() -> None:
    found = rescaled(found_of([[32, 40, 320, 320]]), (320, 320), (240, 640))
    assert found.boxes_xyxy.tolist() == [[64, 30, 640, 240]]


def test_ssdlite_candidates_are_those_that_torchvision_shows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = model_that_sees()
    image = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    with torch.no_grad():
        (shown,) = model([torch.from_numpy(image).permute(2, 0, 1) / 255])
        (found,) = detect_all(torch_ssdlite(model), [tmp_path / "a.png"], stretches=True)
    assert len(found) == 100
    np.testing.assert_allclose(found.scores, shown["scores"][:100], atol=1e-5)
    np.testing.assert_allclose(found.boxes_xyxy[:50], shown["boxes"][:50], atol=0.01)
    assert found.labels[:50].tolist() == (shown["labels"][:50] - 1).tolist()


def model_that_sees() -> Any:
    """Return SSDLite with random weights whose scores differ from place to place."""
    model = peers.ssdlite(num_classes=2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    for head in model.head.classification_head.module_list:
        torch.nn.init.normal_(head[1].weight, std=0.1)
    with torch.no_grad():
        model.head(list(model.backbone(torch.randn(4, 3, 320, 320)).values()))
    return model.eval()


def test_ssdlite_is_recalibrated_on_what_it_sees_whatever_it_held_before(cells: Path) -> None:
    pairs = 4 * list(peers._training_pairs(load_dataset(cells, "train")))
    states = []
    for stale in (0.0, 7.0):
        torch.manual_seed(0)
        model = peers.ssdlite(num_classes=2)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                assert norm.running_mean is not None
                norm.running_mean.fill_(stale)
        peers.recalibrate_ssdlite(model, pairs)
        states.append(model.state_dict())
    means = [name for name in states[0] if name.endswith("running_mean")]
    assert len(means) > 50
    for name in means:
        assert torch.equal(states[0][name], states[1][name]), name
        assert states[0][name].abs().max() > 0, name


def torch_ssdlite(model: torch.nn.Module) -> Detector:
    """Return SSDLite's detector with its candidates from PyTorch instead of a file."""
    candidates = peers.SsdliteCandidates(model).eval()

    class TorchSession(Closing):
        takes_pixels = suppresses = False
        image_size = (320, 320)

        def run(self, images):
            return tuple(values.numpy() for values in candidates(torch.from_numpy(images)))

        def run_suppressed(self, images):
            raise AssertionError

    return peers.ssdlite_around(TorchSession(), ((1, "RBC"), (2, "WBC")))


def test_a_stage_is_made_once_and_not_taken_for_another(tmp_path: Path) -> None:
    plan, calls = Plan(data=tmp_path, work=tmp_path), []

    def make():
        calls.append(1)
        return {"cpu_seconds": 2.5}

    first = plan.kept("yolo11n", {"epochs": 3}, make)
    assert first == plan.kept("yolo11n", {"epochs": 3}, make)
    assert first["cpu_seconds"] == 2.5
    assert calls == [1]
    with pytest.raises(UserError, match=r"'epochs': 3, 'seed': 0.*'epochs': 4"):
        plan.kept("yolo11n", {"epochs": 4}, make)


def detector(name: str, ms: float, ap: float, ap50: float) -> dict[str, Any]:
    test = {"ap": ap, "ap50": ap50, "image_size": [256, 320]}
    test["per_class"] = [{"name": "Platelets", "ap": 0.1, "ap50": 0.25}]
    training = {"cpu_seconds": 60.0, "wall_seconds": 61.0}
    return {
        "name": name,
        "family": f"{name}, from scratch",
        "quartiles_ms": [ms - 0.5, ms, ms + 0.5],
        "megabytes": 2.0,
        "test": test,
        "training": training,
    }


def test_a_detector_that_another_beats_is_not_on_the_front() -> None:
    rows = [detector("slow", 9, 0.5, 0.8), detector("fast", 5, 0.3, 0.8)]
    rows += [detector("beaten", 7, 0.2, 0.7)]
    mark_fronts(rows)
    assert [row["fronts"] for row in rows] == [["AP"], ["AP", "AP50"], []]
    lines = table(rows).splitlines()
    assert lines[4] == (
        "| slow | from scratch | 256x320 | 9.00 (8.50 to 9.50) | 0.500 | 0.800 | 0.250 | 2.0 | "
        "60 (61) | AP |"
    )


def crowded(image_id: int, count: int) -> ImageRecord:
    """Return an image of so many boxes, none over another, no file behind it."""
    rows, columns = np.divmod(np.arange(count), 10)
    low = 20 * np.stack([columns, rows], axis=1)
    return ImageRecord(
        path=Path(f"{image_id}.png"),
        image_id=image_id,
        height=200,
        width=200,
        boxes_xyxy=np.concatenate([low, low + 16], axis=1).astype(np.float32),
        labels=np.zeros(count, np.int64),
        areas=np.full(count, 256.0),
        crowd=np.zeros(count, bool),
    )


def test_an_image_drawn_twice_counts_as_two_images() -> None:
    images = tuple(crowded(image_id, 60) for image_id in (3, 8))
    categories = (Category(id=1, name="RBC"),)
    split = DetectionDataset(
        root=Path(), layout="coco", split="test", categories=categories, images=images, faults=()
    )
    perfect = [
        Detections(
            boxes_xyxy=image.boxes_xyxy,
            scores=np.linspace(0.9, 0.5, 60, dtype=np.float32),
            labels=image.labels,
        )
        for image in images
    ]
    halves = [perfect[0], found_of([])]  # the second image's boxes are missed
    drawn = resampled(split, {"all": perfect, "one": halves}, count=12, seed=0)
    assert drawn["ap"]["all"].tolist() == [1.0] * 12  # 120 boxes in one image would be cut to 100
    assert set(drawn["ap50"]["one"].round(2)) == {0.0, 0.5, 1.0}
    again = resampled(split, {"one": halves}, count=12, seed=0)
    assert again["ap50"]["one"].tolist() == drawn["ap50"]["one"].tolist()


def test_a_rival_is_the_slowest_of_a_supernet_that_is_not_slower() -> None:
    ms = {"yolo11n": 9.0, "yolo11n-w0.1875": 6.0, "yolo11n-w0.125": 4.0, "ssdlite320": 5.0}
    ours = {"detofa-imagenet-1": 5.0, "detofa-imagenet-2": 9.0, "detofa-scratch-1": 9.1}
    assert rivals(ms | ours) == [
        ("yolo11n", "detofa-imagenet-2"),
        ("yolo11n-w0.1875", "detofa-imagenet-1"),
        ("ssdlite320", "detofa-imagenet-1"),
    ]


def test_differences_are_shown_with_their_interval() -> None:
    between = {"ap": [-0.01, 0.002, 0.03], "ap50": [0.0, 0.01, 0.02]}
    lines = differences_table([{"peer": "yolo", "detector": "ours", **between}]).splitlines()
    assert lines[2] == "| yolo | ours | +0.002 (-0.010 to +0.030) | +0.010 (+0.000 to +0.020) |"
