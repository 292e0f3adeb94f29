import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detofa.data.dataset import load_dataset
from detofa.data.evaluation import detections_to_coco, evaluate_detections, evaluate_parts
from detofa.runtime.detections import Detections

CATS = [(3, "cat"), (17, "dog")]


def _found(*rows):
    """Detections from (xyxy, score, label) rows."""
    return Detections(
        boxes_xyxy=np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[1] for row in rows], np.float32),
        labels=np.array([row[2] for row in rows], np.int64),
    )


def _truth_as_detections(dataset):
    return [
        Detections(
            boxes_xyxy=image.boxes_xyxy,
            scores=np.ones(len(image.labels), np.float32),
            labels=image.labels,
        )
        for image in dataset.images
    ]


def _noisy(dataset, generator, pixels):
    """The true boxes moved by so many pixels, with random scores and some wrong labels."""
    noisy = []
    for truth in _truth_as_detections(dataset):
        boxes = truth.boxes_xyxy + generator.normal(0, pixels, truth.boxes_xyxy.shape)
        noisy.append(
            Detections(
                boxes_xyxy=boxes.astype(np.float32),
                scores=generator.random(len(truth)).astype(np.float32),
                labels=np.where(generator.random(len(truth)) < 0.8, truth.labels, 0),
            )
        )
    return noisy


def test_a_false_positive_between_two_hits_gives_the_known_precision(tmp_path, make_coco):
    images = [[(17, (10, 10, 10, 10))], [(17, (20, 10, 10, 10))]]
    dataset = load_dataset(make_coco(tmp_path, {"val": images}, CATS), "val")
    found = [
        _found(((10, 10, 20, 20), 0.9, 1), ((40, 20, 50, 30), 0.8, 1)),
        _found(((20, 10, 30, 20), 0.7, 1)),
    ]
    result = evaluate_detections(dataset, found)
    # Precision is 1 up to recall 0.5 (51 of 101 points), then 2/3.
    expected = (51 + 50 * 2 / 3) / 101
    assert result.ap == pytest.approx(expected)
    assert result.ap50 == result.ap75 == pytest.approx(expected)
    assert result.ap_small == pytest.approx(expected)
    assert result.ap_medium is None
    assert result.ap_large is None
    assert [(c.name, c.ap) for c in result.per_class] == [("cat", None), ("dog", result.ap)]


def test_overlap_decides_which_thresholds_count(tmp_path, make_coco):
    dataset = load_dataset(make_coco(tmp_path, {"val": [[(3, (10, 10, 20, 20))]]}, CATS), "val")
    result = evaluate_detections(dataset, [_found(((10, 10, 30, 22.4), 0.9, 0))])
    # IoU 0.62 passes 0.50, 0.55 and 0.60 of the ten thresholds.
    assert (result.ap, result.ap50, result.ap75) == pytest.approx((0.3, 1.0, 0.0))


def test_a_detection_inside_a_crowd_is_no_mistake(tmp_path, make_coco):
    images = [[(3, (1, 1, 10, 10)), (3, (20, 5, 30, 30), "crowd")]]
    dataset = load_dataset(make_coco(tmp_path, {"val": images}, CATS), "val")
    hit = ((1, 1, 11, 11), 0.5, 0)
    in_crowd, elsewhere = ((25, 10, 35, 20), 0.9, 0), ((5, 25, 15, 35), 0.9, 0)
    assert evaluate_detections(dataset, [_found(hit, in_crowd)]).ap == pytest.approx(1)
    assert evaluate_detections(dataset, [_found(hit, elsewhere)]).ap == pytest.approx(0.5)


def test_nothing_found_gives_zero_without_a_sound(tmp_path, make_coco, capsys):
    dataset = load_dataset(make_coco(tmp_path, {"val": [[(3, (1, 1, 9, 9))]]}, CATS), "val")
    result = evaluate_detections(dataset, [_found()])
    assert (result.ap, result.ap50) == (0, 0)
    assert result.per_class[1].ap is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("before", "expected"), [(98, 1 / 99), (99, 1 / 100), (100, 0.0)])
def test_only_the_hundred_best_of_an_image_count(tmp_path, make_coco, before, expected):
    dataset = load_dataset(make_coco(tmp_path, {"val": [[(3, (1, 1, 10, 10))]]}, CATS), "val")
    wrong = [((30, 20, 40, 30), 0.9 - row / 1000, 0) for row in range(before)]
    result = evaluate_detections(dataset, [_found(*wrong, ((1, 1, 11, 11), 0.5, 0))])
    assert result.ap == pytest.approx(expected)


def test_a_box_on_an_image_without_objects_costs_precision(tmp_path, make_coco):
    dataset = load_dataset(make_coco(tmp_path, {"val": [[], [(3, (1, 1, 10, 10))]]}, CATS), "val")
    hit, wrong = ((1, 1, 11, 11), 0.5, 0), ((5, 5, 15, 15), 0.9, 0)
    assert evaluate_detections(dataset, [_found(), _found(hit)]).ap == pytest.approx(1)
    assert evaluate_detections(dataset, [_found(wrong), _found(hit)]).ap == pytest.approx(0.5)


def test_the_order_of_images_boxes_and_categories_changes_nothing(tmp_path, make_coco):
    rng = np.random.default_rng(0)
    images = [
        [(CATS[label][0], (*rng.uniform(0, 25, 2), *rng.uniform(4, 14, 2))) for label in (0, 1, 1)]
        for _ in range(6)
    ]
    root = make_coco(tmp_path, {"val": images}, CATS)
    straight = load_dataset(root, "val")
    found = dict(
        zip((image.path.name for image in straight.images), _noisy(straight, rng, 1.0), strict=True)
    )
    before = evaluate_detections(straight, list(found.values()))
    assert 0.1 < before.ap < 0.9
    path = root / "annotations" / "instances_val.json"
    record = json.loads(path.read_text())
    for part in ("images", "annotations", "categories"):
        record[part] = [record[part][row] for row in rng.permutation(len(record[part]))]
    for number, annotation in enumerate(record["annotations"]):
        annotation["id"] = 5 * number + 3  # with gaps
    path.write_text(json.dumps(record))
    mixed = load_dataset(root, "val")
    assert [image.path.name for image in mixed.images] != list(found)
    labels = {category.id: label for label, category in enumerate(mixed.categories)}
    moved = [
        dataclasses.replace(
            found[image.path.name],
            labels=np.array(
                [labels[straight.categories[label].id] for label in found[image.path.name].labels]
            ),
        )
        for image in mixed.images
    ]
    after = evaluate_detections(mixed, moved)
    assert after.ap == pytest.approx(before.ap, abs=1e-12)
    assert {one.name: one.ap for one in after.per_class} == {
        one.name: pytest.approx(one.ap) for one in before.per_class
    }


def test_results_carry_the_original_ids(tmp_path, make_coco):
    dataset = load_dataset(
        make_coco(tmp_path, {"val": [[], [(3, (1, 1, 9, 9))]]}, CATS[::-1]), "val"
    )
    results = detections_to_coco(dataset, [_found(), _found(((1, 2, 4, 8), 0.5, 1))])
    assert results == [
        {"image_id": 114, "category_id": 17, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}
    ]


@pytest.mark.parametrize("name", ["bccd", "coco_ccby"])
def test_the_truth_itself_scores_one(data_dir, name):
    dataset = load_dataset(data_dir / name, "val")
    crowds_out = [
        Detections(
            boxes_xyxy=image.boxes_xyxy[~image.crowd],
            scores=np.ones(int((~image.crowd).sum()), np.float32),
            labels=image.labels[~image.crowd],
        )
        for image in dataset.images
    ]
    assert evaluate_detections(dataset, crowds_out).ap == pytest.approx(1)


def test_parts_have_the_figures_of_their_images_alone(tmp_path, make_coco):
    generator = np.random.default_rng(1)
    images = [
        [(int(generator.choice([3, 17])), (5, 5, 12 + 3 * n, 20)), (3, (50, 40, 40, 30))]
        for n in range(7)
    ]
    images[4] = []  # no boxes
    dataset = load_dataset(make_coco(tmp_path, {"val": images}, CATS), "val")
    found = _noisy(dataset, generator, 4)
    parts = [slice(None), slice(0, None, 2), slice(1, None, 2), slice(4, 5)]
    figures = evaluate_parts(dataset, found, parts)
    for part, (ap, ap50) in zip(parts, figures, strict=True):
        alone = dataclasses.replace(dataset, images=dataset.images[part])
        expected = evaluate_detections(alone, found[part])
        assert (ap, ap50) == (expected.ap, expected.ap50)
    assert 0 < figures[1][0] < 1
    assert figures[1] != figures[2]
    assert figures[3] == (0.0, 0.0)
    assert evaluate_parts(dataset, [_found()] * 7, parts) == [(0.0, 0.0)] * 4


def _assert_equal_to_pycocotools(result, truth_path, dataset, detections):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(truth_path))
        results = truth.loadRes(detections_to_coco(dataset, detections))
        oracle = COCOeval(truth, results, "bbox")
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    ours = (result.ap, result.ap50, result.ap75)
    by_area = (result.ap_small, result.ap_medium, result.ap_large)
    found = [-1 if value is None else value for value in (*ours, *by_area)]
    assert found == pytest.approx(list(oracle.stats[:6]), abs=1e-9)
    for index, of_class in enumerate(result.per_class):
        precision = oracle.eval["precision"][:, :, index, 0, -1]
        assert of_class.ap == (pytest.approx(precision.mean()) if precision.max() > -1 else None)


def test_figures_equal_pycocotools_on_the_original_file(data_dir):
    dataset = load_dataset(data_dir / "coco_ccby", "val")
    noisy = _noisy(dataset, np.random.default_rng(0), 6)
    result = evaluate_detections(dataset, noisy)
    path = data_dir / "coco_ccby" / "instances_val.json"
    _assert_equal_to_pycocotools(result, path, dataset, noisy)
    assert 0.05 < result.ap < 0.95


@pytest.mark.parametrize("seed", range(8))
def test_figures_equal_pycocotools_with_crowds_ties_and_more_boxes_than_count(
    tmp_path, make_coco, seed
):
    generator = np.random.default_rng(seed)
    categories = [(3, "cat"), (17, "dog"), (90, "never seen")]

    def annotation():
        x, y = generator.uniform(0, (150, 100))
        width, height = generator.uniform(4, 40, 2)
        crowd = ("crowd",) if generator.random() < 0.2 else ()
        return (int(generator.choice([3, 17])), (x, y, width, height), *crowd)

    images = [[annotation() for _ in range(generator.integers(0, 6))] for _ in range(9)]
    root = make_coco(tmp_path, {"val": images}, categories, (160, 220))
    dataset = load_dataset(root, "val")
    found = []
    for truth in _truth_as_detections(dataset):
        rows = generator.integers(0, max(1, len(truth)), 130 if len(truth) else 0)
        boxes = truth.boxes_xyxy[rows] + generator.normal(0, 3, (len(rows), 4))
        found.append(
            Detections(
                boxes_xyxy=boxes.astype(np.float32),
                scores=(generator.integers(1, 20, len(rows)) / 20).astype(np.float32),  # many ties
                labels=truth.labels[rows],
            )
        )
    result = evaluate_detections(dataset, found)
    path = root / "annotations" / "instances_val.json"
    _assert_equal_to_pycocotools(result, path, dataset, found)
    assert 0.01 < result.ap < 0.99
