"""From a model's candidate boxes to detections: threshold, clip, non-maximum suppression."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.imaging import Letterbox
from detofa.runtime.detections import Detections
from detofa.subnet import PostProcessing

_NMS_CHUNK = 256  # boxes compared with each other at once; most images are done with the first


def pairwise_iou(
    first_xyxy: NDArray[np.float32], second_xyxy: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the intersection over union of each pair: (N, 4) and (M, 4) to (N, M).

    Two boxes without area have 0.
    """
    x_low, y_low, x_high, y_high = first_xyxy.T[:, :, None]
    other_x_low, other_y_low, other_x_high, other_y_high = second_xyxy.T
    shared = np.minimum(x_high, other_x_high) - np.maximum(x_low, other_x_low)
    shared = shared.clip(0)
    height = np.minimum(y_high, other_y_high) - np.maximum(y_low, other_y_low)
    shared *= height.clip(0)
    total = box_areas(first_xyxy)[:, None] + box_areas(second_xyxy)[None] - shared
    iou: NDArray[np.float32] = np.divide(shared, total, out=np.zeros_like(shared), where=total > 0)
    return iou


def box_areas(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the area of each box in square pixels: (N, 4) to (N,)."""
    areas: NDArray[np.float32] = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=-1)
    return areas


def non_maximum_suppression(
    boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int64],
    iou_threshold: float,
    max_detections: int,
) -> NDArray[np.int64]:
    """Choose the boxes that no better box of the same label covers.

    Args:
        boxes_xyxy: (N, 4), pixels.
        scores: (N,).
        labels: (N,); only boxes of one label suppress each other.
        iou_threshold: Intersection over union above which the weaker box goes.
        max_detections: Boxes chosen at most, over all labels.

    Returns:
        (M,) indices of the chosen boxes, best score first; equal scores keep their order.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    for start in range(0, len(order), _NMS_CHUNK):
        chunk = order[start : start + _NMS_CHUNK]

        def covered_by(boxes: NDArray[np.int64], chunk: NDArray[np.int64] = chunk) -> Any:
            overlap = pairwise_iou(boxes_xyxy[boxes], boxes_xyxy[chunk]) > iou_threshold
            return overlap & (labels[boxes][:, None] == labels[chunk])

        gone = covered_by(np.array(kept, np.int64)).any(axis=0)
        covered = covered_by(chunk)
        for place, index in enumerate(chunk.tolist()):
            if gone[place]:
                continue
            kept.append(index)
            if len(kept) == max_detections:
                return np.array(kept, np.int64)
            gone |= covered[place]
    return np.array(kept, np.int64)


def detections_from_outputs(
    boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    postprocessing: PostProcessing,
    letterbox: Letterbox,
    score_threshold: float | None = None,
) -> Detections:
    """Turn one image's outputs into detections.

    Every class of every box that reaches the threshold is a candidate, so one box can be found
    under two labels. Boxes are clipped to the image; what has no area then, or is not finite, goes.

    Args:
        boxes_xyxy: (K, 4), pixels of the input.
        scores: (K, C), from 0 to 1.
        postprocessing: Thresholds and caps.
        letterbox: Where the image lies in the input.
        score_threshold: Instead of the one of `postprocessing`; `eval` uses a low one.

    Returns:
        At most `max_detections` detections, pixels of the original image.
    """
    threshold = postprocessing.score_threshold if score_threshold is None else score_threshold
    rows, labels = np.nonzero(scores >= threshold)
    original = letterbox.to_original(boxes_xyxy)
    # A side that is not a number compares as false, so such boxes go as well.
    has_area: NDArray[np.bool_] = np.all(original[rows, 2:] > original[rows, :2], axis=1)
    rows, labels = rows[has_area], labels[has_area]
    found, found_scores = original[rows], scores[rows, labels]
    groups = labels if postprocessing.class_aware_nms else np.zeros_like(labels)
    kept = non_maximum_suppression(
        found,
        found_scores,
        groups,
        postprocessing.nms_threshold,
        postprocessing.max_detections,
    )
    return Detections(
        boxes_xyxy=found[kept], scores=found_scores[kept], labels=labels[kept].astype(np.int64)
    )
