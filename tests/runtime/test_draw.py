import json

import numpy as np
import pytest

from detofa.runtime.detections import Detections
from detofa.runtime.draw import class_colour, detections_to_json, draw_detections


def make_detections(boxes, labels=None, scores=None):
    count = len(boxes)
    return Detections(
        boxes_xyxy=np.array(boxes, np.float32).reshape(count, 4),
        scores=np.array(scores or [0.5] * count, np.float32),
        labels=np.array(labels or [0] * count, np.int64),
    )


def test_nothing_found_leaves_the_picture_as_it_was():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    drawn = draw_detections(image, make_detections([]), [])
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image


def test_a_box_is_drawn_where_it_is_and_the_image_stays():
    image = np.zeros((200, 300, 3), np.uint8)
    drawn = draw_detections(image, make_detections([[50, 60, 150, 120]], [1]), ["a", "b"])
    assert not image.any()
    assert tuple(drawn[90, 50]) == tuple(drawn[120, 100]) == class_colour(1)
    assert not drawn[90, 100].any()
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (columns.min(), rows.max(), columns.max()) == (50, 120, 150)


@pytest.mark.parametrize(
    "box", [[0, 0, 5, 5], [290, 190, 300, 200], [0, 0, 300, 200], [299.6, 0, 299.9, 0.2]]
)
@pytest.mark.parametrize("name", ["x", "a very long name, much wider than the image", "é µ"])
def test_boxes_at_the_edges_and_long_names_are_drawn(box, name):
    image = np.zeros((200, 300, 3), np.uint8)
    drawn = draw_detections(image, make_detections([box]), [name])
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert drawn.any()


def test_the_lines_grow_with_the_picture():
    widths = []
    for side in (100, 400, 2000):
        box = [side // 4, side // 4, side // 2, side // 2]
        drawn = draw_detections(np.zeros((side, side, 3), np.uint8), make_detections([box]), ["a"])
        row = drawn[side * 3 // 8, : side * 3 // 8]
        widths.append(int(row.any(axis=1).sum()))
    assert widths == [1, 2, 10]


def test_classes_have_colours_of_their_own():
    colours = np.array([class_colour(label) for label in range(20)], int)
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(20, dtype=int)
    assert apart.min() >= 30


def test_records_have_the_data_sets_own_ids_and_are_json():
    detections = make_detections([[10, 20, 40, 60.5], [0, 0, 1, 2]], [1, 0], [0.75, 0.25])
    records = detections_to_json(detections, 42, ((7, "a"), (90, "b")))
    assert json.loads(json.dumps(records)) == [
        {"image_id": 42, "category_id": 90, "bbox": [10.0, 20.0, 30.0, 40.5], "score": 0.75},
        {"image_id": 42, "category_id": 7, "bbox": [0.0, 0.0, 1.0, 2.0], "score": 0.25},
    ]
    assert detections_to_json(make_detections([]), "a.jpg", ()) == []
