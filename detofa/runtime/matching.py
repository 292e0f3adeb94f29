"""Whether two runs of a detector gave the same boxes, in whatever order."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from detofa.errors import UserError
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector
from detofa.runtime.postprocess import pairwise_iou


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an exported file may be from PyTorch.

    Attributes:
        head_relative_error: Largest difference of a raw head over its largest value.
        box_iou: Least intersection over union of two boxes that count as the same.
        corner_pixels: Boxes whose corners are no further apart are the same even without area.
        score: Largest difference of their scores.
        found: Part of the boxes that must be found again.
        tie: Boxes whose best score is no more than this above the last candidate's need not be
            found: the cut to the top candidates may have taken others.
    """

    head_relative_error: float = 1e-4
    box_iou: float = 0.99
    corner_pixels: float = 0.01
    score: float = 1e-3
    found: float = 1.0
    tie: float = 1e-3


EXACT = Tolerance()
"""What fp32 in another runtime must keep to."""


@dataclass(frozen=True, kw_only=True)
class BoxMatch:
    """How one set of candidate boxes was found again in another; see `ParityCase`."""

    num_compared: int
    num_matched: int
    worst_iou: float
    worst_score_difference: float


def match_boxes(
    expected: tuple[NDArray[np.float32], NDArray[np.float32]],
    found: tuple[NDArray[np.float32], NDArray[np.float32]],
    tolerance: Tolerance,
) -> BoxMatch:
    """Find the candidate boxes of one image again in another run's, whatever their order.

    Each box takes one of the other run, the assignment with the least difference in all.

    Args:
        expected: boxes_xyxy (K, 4) and scores (K, C).
        found: The same of the other run.
        tolerance: When two boxes are the same.
    """
    if not len(expected[0]) or not len(found[0]):
        compared = len(expected[0])
        return BoxMatch(
            num_compared=compared, num_matched=0, worst_iou=1.0, worst_score_difference=0.0
        )
    distances = np.abs(expected[0][:, None] - found[0][None]).max(axis=2)
    differences = np.abs(expected[1][:, None] - found[1][None]).max(axis=2)
    # Beyond some pixels a box is another one, and how far off it is should not sway the rest.
    rows, columns = linear_sum_assignment(np.minimum(distances, 10) + differences)
    difference = differences[rows, columns]
    overlap = pairwise_iou(expected[0], found[0])[rows, columns]
    overlap[distances[rows, columns] <= tolerance.corner_pixels] = 1
    same = (overlap >= tolerance.box_iou) & (difference <= tolerance.score)
    best = expected[1].max(axis=1)
    compared = best > best.min() + tolerance.tie
    compared[rows[same]] = True  # and those that the other run has no box for, if they count
    return BoxMatch(
        num_compared=int(compared.sum()),
        num_matched=int(same.sum()),
        worst_iou=float(overlap[same].min(initial=1)),
        worst_score_difference=float(difference[same].max(initial=0)),
    )


def same_detections(expected: Detections, found: Detections, tolerance: Tolerance = EXACT) -> bool:
    """Return whether two runs found the same boxes under the same labels, in whatever order."""
    if len(expected) != len(found):
        return False
    if not len(expected):
        return True
    distances = np.abs(expected.boxes_xyxy[:, None] - found.boxes_xyxy[None]).max(axis=2)
    differences = np.abs(expected.scores[:, None] - found.scores[None])
    differences[expected.labels[:, None] != found.labels[None]] = 10
    rows, columns = linear_sum_assignment(np.minimum(distances, 10) + differences)
    overlap = pairwise_iou(expected.boxes_xyxy, found.boxes_xyxy)[rows, columns]
    near = (overlap >= tolerance.box_iou) | (distances[rows, columns] <= tolerance.corner_pixels)
    return bool((near & (differences[rows, columns] <= tolerance.score)).all())


def check_same(detector: Detector, reference: Detector, rng: np.random.Generator) -> int:
    """Compare two runtimes of one file on noise, one image alone and several at once.

    Returns:
        The number of boxes compared: of a file that suppresses, noise may leave none.

    Raises:
        UserError: they do not find the same boxes.
    """
    height, width = reference.session.image_size
    images = list(rng.integers(0, 256, (3, height, width, 3), np.uint8))
    compared = 0
    for some in (images[:1], images):
        inputs, _ = reference.prepare(some)
        if reference.session.suppresses:
            pairs = [one.session.run_suppressed(inputs) for one in (reference, detector)]
            same = all(same_detections(*pair) for pair in zip(*pairs, strict=True))
            compared += sum(map(len, pairs[0]))
        else:
            wanted, found = (
                zip(*one.session.run(inputs), strict=True) for one in (reference, detector)
            )
            matches = [match_boxes(*pair, EXACT) for pair in zip(wanted, found, strict=True)]
            same = all(match.num_matched == match.num_compared for match in matches)
            compared += sum(match.num_compared for match in matches)
        if not same:
            raise UserError(
                "this runtime does not find the boxes that ONNX Runtime finds in the same file; "
                "do not use it for this file, and report this with the versions of both"
            )
    return compared
