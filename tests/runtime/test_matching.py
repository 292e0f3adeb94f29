"""When two runs of a detector count as the same."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from detofa.imaging import Preprocessing
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector
from detofa.runtime.gates import BARS, EXACT, SHOW_NOTHING
from detofa.runtime.matching import compare_detectors, made_images, same_detections
from detofa.runtime.session import Closing
from detofa.subnet import PostProcessing


@dataclass
class Given(Closing):
    """A session that gives the same candidates for every image."""

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    image_size: tuple[int, int] = (96, 160)
    takes_pixels: bool = False
    suppresses: bool = False
    empty: list[Detections] = field(default_factory=list)

    def run(self, images):
        count = len(images)
        return np.stack([self.boxes_xyxy] * count), np.stack([self.scores] * count)

    def run_suppressed(self, images):
        return self.empty * len(images)


def detector(session):
    scale = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))
    categories = ((1, "a"), (2, "b"))
    return Detector(
        session=session,
        preprocessing=scale,
        postprocessing=PostProcessing(),
        categories=categories,
    )


@pytest.fixture
def candidates():
    """Give three good boxes and 297 poor ones, each in a place of its own."""
    corners = np.stack([np.arange(300) % 20, np.arange(300) // 20], axis=1) * 8.0
    boxes = np.concatenate([corners, corners + 6], axis=1).astype(np.float32)
    scores = np.zeros((300, 2), np.float32)
    scores[:, 0] = np.r_[np.full(3, 0.9), np.linspace(0.2, 0.02, 297)]
    return boxes, scores


def images(*names):
    return {name: np.zeros((96, 160, 3), np.uint8) for name in names or ("one", "two")}


def test_the_same_is_the_same_in_any_order(candidates):
    boxes, scores = candidates
    order = np.random.default_rng(0).permutation(300)
    pair = detector(Given(boxes[order], scores[order])), detector(Given(boxes, scores))
    found = compare_detectors(*pair, images(), EXACT)
    assert not found.faults
    assert found.num_matched == found.num_compared > 500
    assert (found.worst_iou, found.worst_score_difference) == (1.0, 0.0)


def test_boxes_that_would_be_shown_count_for_themselves(candidates):
    """One of a hundred candidates may differ in fp16, but not the best of them."""
    boxes, scores = candidates
    moved = boxes.copy()
    moved[:3] += 300
    pair = detector(Given(moved, scores)), detector(Given(boxes, scores))
    found = compare_detectors(*pair, images(), BARS["fp16"].tolerance)
    assert found.num_matched >= 0.99 * found.num_compared
    assert found.faults[0] == (
        "batch of 1 (one): 3 of 3 boxes that would be shown are not found again"
    )


@pytest.mark.parametrize(("precision", "counts"), [("fp32", True), ("fp16", True), ("int8", False)])
def test_in_int8_boxes_on_images_that_show_nothing_do_not_count(candidates, precision, counts):
    boxes, scores = candidates
    pair = detector(Given(boxes + 50, scores)), detector(Given(boxes, scores))
    tolerance = BARS[precision].tolerance
    assert bool(compare_detectors(*pair, images(*SHOW_NOTHING), tolerance).faults) == counts
    assert compare_detectors(*pair, images("real", *SHOW_NOTHING), tolerance).faults


@pytest.mark.parametrize("what", ["boxes_xyxy", "scores"])
def test_what_is_not_finite_is_a_fault_whatever_the_precision(candidates, what):
    boxes, scores = (values.copy() for values in candidates)
    {"boxes_xyxy": boxes, "scores": scores}[what][7] = np.nan
    for bar in BARS.values():
        pair = detector(Given(boxes, scores)), detector(Given(*candidates))
        found = compare_detectors(*pair, images(*SHOW_NOTHING), bar.tolerance)
        assert "an output is not finite" in found.faults[0]


def test_detections_that_only_one_run_has_are_not_the_same():
    def detections(count):
        boxes = np.array([[8.0 * i, 0, 8.0 * i + 6, 6] for i in range(count)], np.float32)
        return Detections(
            boxes_xyxy=boxes.reshape(-1, 4),
            scores=np.full(count, 0.5, np.float32),
            labels=np.zeros(count, np.int64),
        )

    assert same_detections(detections(3), detections(3))
    assert same_detections(detections(0), detections(0))
    for first, second in ((3, 4), (4, 3), (0, 1), (1, 0)):
        assert not same_detections(detections(first), detections(second))


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_made_images_have_the_size_of_the_input_or_are_cuts(count):
    rng = np.random.default_rng(0)
    real = {str(i): rng.integers(0, 256, (50 + i, 70, 3), np.uint8) for i in range(count)}
    made = made_images(real, (96, 161), rng)
    for name in (*SHOW_NOTHING, "(crowded)"):
        assert made[name].shape == (96, 161, 3)
    assert made["(wide cut)"].shape == (16, 70, 3)
    assert made["(tall cut)"].shape == (50, 23, 3)
