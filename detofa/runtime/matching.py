"""Whether two runs of a detector gave the same boxes, in whatever order."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from detofa.errors import UserError
from detofa.imaging import resize
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector
from detofa.runtime.gates import EXACT, SHOW_NOTHING, Tolerance
from detofa.runtime.postprocess import pairwise_iou

BATCH_SIZES = (1, 2, 5)
"""Images that go through a model together when it is compared."""


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
    match = match_detections(expected, found, tolerance)
    return match.num_matched == match.num_compared


def match_detections(expected: Detections, found: Detections, tolerance: Tolerance) -> BoxMatch:
    """Find the detections of one image again in another run's, under the same labels.

    All of both count: one that only the other run has is not matched either.
    """
    compared = max(len(expected), len(found))
    if not len(expected) or not len(found):
        return BoxMatch(
            num_compared=compared, num_matched=0, worst_iou=1.0, worst_score_difference=0.0
        )
    distances = np.abs(expected.boxes_xyxy[:, None] - found.boxes_xyxy[None]).max(axis=2)
    differences = np.abs(expected.scores[:, None] - found.scores[None])
    differences[expected.labels[:, None] != found.labels[None]] = 10
    rows, columns = linear_sum_assignment(np.minimum(distances, 10) + differences)
    overlap = pairwise_iou(expected.boxes_xyxy, found.boxes_xyxy)[rows, columns]
    overlap[distances[rows, columns] <= tolerance.corner_pixels] = 1
    difference = differences[rows, columns]
    same = (overlap >= tolerance.box_iou) & (difference <= tolerance.score)
    return BoxMatch(
        num_compared=compared,
        num_matched=int(same.sum()),
        worst_iou=float(overlap[same].min(initial=1)),
        worst_score_difference=float(difference[same].max(initial=0)),
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How a detector found the boxes of another one again.

    Attributes:
        num_compared: Boxes that had to be found.
        num_matched: Those that were.
        worst_iou: Least intersection over union of the matched boxes.
        worst_score_difference: Largest difference of their scores.
        faults: What is wrong, each with the names of the images; nothing if they are the same.
    """

    num_compared: int
    num_matched: int
    worst_iou: float
    worst_score_difference: float
    faults: tuple[str, ...]


def compare_detectors(
    detector: Detector,
    reference: Detector,
    images: Mapping[str, NDArray[np.uint8]],
    tolerance: Tolerance,
) -> Comparison:
    """Compare two runtimes of one model, on every image alone and on batches of several.

    Args:
        detector: What is in question.
        reference: What finds the boxes that count.
        images: Each (H, W, 3) uint8, by name.
        tolerance: How far the two may be apart.
    """
    faults, matches = list[str](), list[BoxMatch]()
    for batch in batches_of(list(images), None):
        inputs, _ = reference.prepare([images[name] for name in batch])
        found = _matched(detector, reference, inputs, tolerance)
        where = f"batch of {len(batch)} ({', '.join(batch)})"
        if found is None:
            faults.append(f"{where}: an output is not finite")
            continue
        count = [tolerance.counts(name) for name in batch]
        for name, some in zip(("boxes", "boxes that would be shown"), found, strict=True):
            here = [match for match, counts in zip(some, count, strict=True) if counts]
            compared = sum(match.num_compared for match in here)
            missing = compared - sum(match.num_matched for match in here)
            if missing > (1 - tolerance.found) * compared:
                faults.append(f"{where}: {missing} of {compared} {name} are not found again")
        matches += [match for match, counts in zip(found[0], count, strict=True) if counts]
    return Comparison(
        num_compared=sum(match.num_compared for match in matches),
        num_matched=sum(match.num_matched for match in matches),
        worst_iou=min((match.worst_iou for match in matches), default=1.0),
        worst_score_difference=max((one.worst_score_difference for one in matches), default=0.0),
        faults=tuple(faults),
    )


def _matched(
    detector: Detector, reference: Detector, inputs: NDArray[Any], tolerance: Tolerance
) -> tuple[list[BoxMatch], list[BoxMatch]] | None:
    """Return how boxes of each image were found again, and how those that would be shown were.

    None if an output is not finite.
    """
    session, other = detector.session, reference.session
    if other.suppresses:
        expected, found = other.run_suppressed(inputs), session.run_suppressed(inputs)
        if not all(np.isfinite(v).all() for one in found for v in (one.boxes_xyxy, one.scores)):
            return None
        shown = [match_detections(*pair, tolerance) for pair in zip(expected, found, strict=True)]
        return shown, shown
    wanted, got = other.run(inputs), session.run(inputs)
    if not all(np.isfinite(values).all() for values in got):
        return None
    least = reference.postprocessing.score_threshold + tolerance.score
    matches, best = [], []
    for row in range(len(inputs)):
        boxes, scores = wanted[0][row], wanted[1][row]
        matches.append(match_boxes((boxes, scores), (got[0][row], got[1][row]), tolerance))
        kept = scores.max(axis=1) >= least
        all_count = replace(tolerance, tie=-1.0)
        best.append(match_boxes((boxes[kept], scores[kept]), (got[0][row], got[1][row]), all_count))
    return matches, best


def check_same(
    detector: Detector,
    reference: Detector,
    rng: np.random.Generator,
    tolerance: Tolerance = EXACT,
) -> int:
    """Compare two runtimes of one file on noise, one image alone and several at once.

    Returns:
        The number of boxes compared: of a file that suppresses, noise may leave none.

    Raises:
        UserError: they do not find the same boxes.
    """
    height, width = reference.session.image_size
    noise = rng.integers(0, 256, (5, height, width, 3), np.uint8)
    images = {f"noise {number}": image for number, image in enumerate(noise)}
    found = compare_detectors(detector, reference, images, tolerance)
    if found.faults:
        raise UserError(
            "this runtime does not find the boxes that ONNX Runtime finds in the same file "
            f"({found.faults[0]}); do not use it for this file, and report this with the versions "
            "of both"
        )
    return found.num_compared


def made_images(
    images: Mapping[str, NDArray[np.uint8]], size: tuple[int, int], rng: np.random.Generator
) -> dict[str, NDArray[np.uint8]]:
    """Return images that real ones seldom are, by name.

    A blank one, noise, a wide and a tall cut of the first real one, and a crowded one: four real
    ones, each at half the (height, width) of the input.
    """
    first, (height, width) = next(iter(images.values())), size
    four = list(itertools.islice(itertools.cycle(images.values()), 4))
    halves = [(height // 2, width // 2), (height // 2, width - width // 2)]
    rows = [
        np.hstack([resize(one, half) for one, half in zip(pair, halves, strict=True)])
        for pair in (four[:2], four[2:])
    ]
    return {
        SHOW_NOTHING[0]: np.zeros((*size, 3), np.uint8),
        SHOW_NOTHING[1]: rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "(wide cut)": first[: max(1, first.shape[0] // 3)],
        "(tall cut)": first[:, : max(1, first.shape[1] // 3)],
        "(crowded)": np.vstack(rows),
    }


def batches_of(names: list[str], fixed: int | None) -> list[tuple[str, ...]]:
    """Return every image alone, then batches of different images; or all in batches of one size."""
    if fixed is not None:
        cycle = [*names, *(names * fixed)[:fixed]]
        return [tuple(cycle[start : start + fixed]) for start in range(0, len(names), fixed)]
    batches: list[tuple[str, ...]] = [(name,) for name in names]
    for size in BATCH_SIZES[1:]:
        batches += [tuple(names[:size]), tuple(names[-size:])]
    return batches
