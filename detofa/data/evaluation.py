"""COCO average precision by pycocotools, with the data set's own ids."""

import contextlib
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detofa.data.dataset import DetectionDataset
from detofa.runtime.detections import Detections

_SILENT = threading.RLock()  # pycocotools prints, and standard output belongs to all threads


@dataclass(frozen=True, kw_only=True)
class ClassAp:
    """Average precision of one class, from 0 to 1; None where the split has no box of it."""

    name: str
    ap: float | None
    ap50: float | None


@dataclass(frozen=True, kw_only=True)
class AveragePrecision:
    """COCO's figures, from 0 to 1.

    Attributes:
        ap: Mean over IoU thresholds 0.50 to 0.95 and over the classes that have boxes.
        ap50: At IoU 0.50.
        ap75: At IoU 0.75.
        ap_small: Objects below 32 x 32 pixels; None where there are none, as below.
        ap_medium: Objects from 32 x 32 to 96 x 96 pixels.
        ap_large: Objects above 96 x 96 pixels.
        per_class: In the order of the categories.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    per_class: tuple[ClassAp, ...]


def evaluate_detections(
    dataset: DetectionDataset, detections: Sequence[Detections]
) -> AveragePrecision:
    """Compute COCO average precision.

    Args:
        dataset: The split; crowds and areas count as COCO counts them.
        detections: One per image, in the order of `dataset.images`.
    """
    evaluation = _evaluation(dataset, detections)
    with _SILENT, contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    precision = _precision(evaluation)
    ap = _mean(precision[..., 0])
    return AveragePrecision(
        ap=ap or 0.0,
        ap50=_mean(precision[0, ..., 0]) or 0.0,
        ap75=_mean(precision[5, ..., 0]) or 0.0,
        ap_small=_mean(precision[..., 1]),
        ap_medium=_mean(precision[..., 2]),
        ap_large=_mean(precision[..., 3]),
        per_class=tuple(
            ClassAp(
                name=category.name,
                ap=_mean(precision[:, :, index, 0]),
                ap50=_mean(precision[0, :, index, 0]),
            )
            for index, category in enumerate(dataset.categories)
        ),
    )


def evaluate_parts(
    dataset: DetectionDataset, detections: Sequence[Detections], parts: Sequence[slice]
) -> list[tuple[float, float]]:
    """Compute AP and AP50 of several parts of a split, in little more time than that of one.

    Args:
        dataset: The split.
        detections: One per image, in the order of `dataset.images`.
        parts: Which images each part has.

    Returns:
        (AP, AP50) of each part, as `evaluate_detections` gives them for those images alone.
    """
    evaluation = _evaluation(dataset, detections)
    params = evaluation.params
    every_size = params.areaRngLbl.index("all")
    params.areaRng, params.areaRngLbl = [params.areaRng[every_size]], ["all"]
    with _SILENT, contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    # Class by class, one record for each image in the order of params.imgIds.
    records = np.array(evaluation.evalImgs, object).reshape(-1, len(params.imgIds))
    columns = {image_id: column for column, image_id in enumerate(params.imgIds)}
    figures = []
    for part in parts:
        chosen = sorted(columns[image.image_id] for image in dataset.images[part])
        evaluation.evalImgs = records[:, chosen].ravel().tolist()
        # What accumulate() takes to have been evaluated; its own argument only works for all.
        evaluation._paramsEval.imgIds = [params.imgIds[column] for column in chosen]
        precision = _precision(evaluation)[..., 0]
        figures.append((_mean(precision) or 0.0, _mean(precision[0]) or 0.0))
    return figures


def _evaluation(dataset: DetectionDataset, detections: Sequence[Detections]) -> COCOeval:
    truth = _truth(dataset)
    results = detections_to_coco(dataset, detections)
    with _SILENT, contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(results) if results else _coco(dataset, [])
        return COCOeval(truth, found, "bbox")


def _precision(evaluation: COCOeval) -> Any:
    """Return the precisions of an evaluation that has been run.

    Returns:
        (IoU thresholds, recalls, classes, areas); -1 where a class has no box.
    """
    with _SILENT, contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate(evaluation._paramsEval)
    return evaluation.eval["precision"][..., -1]


def detections_to_coco(
    dataset: DetectionDataset, detections: Sequence[Detections]
) -> list[dict[str, Any]]:
    """Return detections in COCO's result format, with the data set's own ids.

    Args:
        dataset: The split.
        detections: One per image, in the order of `dataset.images`.

    Returns:
        Records of image_id, category_id, bbox ([x, y, width, height], pixels) and score.
    """
    assert len(detections) == len(dataset.images), (len(detections), len(dataset.images))
    results = []
    for image, found in zip(dataset.images, detections, strict=True):
        boxes = found.boxes_xyxy.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes, found.scores, found.labels, strict=True):
            results.append(
                {
                    "image_id": image.image_id,
                    "category_id": dataset.categories[int(label)].id,
                    "bbox": [float(value) for value in box],
                    "score": float(score),
                }
            )
    return results


def _truth(dataset: DetectionDataset) -> COCO:
    annotations: list[dict[str, Any]] = []
    for image in dataset.images:
        boxes = image.boxes_xyxy.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        for index, label in enumerate(image.labels):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": dataset.categories[int(label)].id,
                    "bbox": [float(value) for value in boxes[index]],
                    "area": float(image.areas[index]),
                    "iscrowd": int(image.crowd[index]),
                }
            )
    return _coco(dataset, annotations)


def _coco(dataset: DetectionDataset, annotations: list[dict[str, Any]]) -> COCO:
    content = COCO()
    content.dataset = {
        "images": [
            {"id": image.image_id, "height": image.height, "width": image.width}
            for image in dataset.images
        ],
        "categories": [{"id": c.id, "name": c.name} for c in dataset.categories],
        "annotations": annotations,
    }
    with _SILENT, contextlib.redirect_stdout(io.StringIO()):
        content.createIndex()
    return content


def _mean(precision: Any) -> float | None:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None
