"""COCO average precision by faster-coco-eval, with the data set's own ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from detofa.data.dataset import DetectionDataset
from detofa.runtime.detections import Detections


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
    precision = _precision(_evaluation(dataset, detections))
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
    """Compute AP and AP50 of several parts of a split.

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
    figures = []
    for part in parts:
        params.imgIds = [image.image_id for image in dataset.images[part]]
        precision = _precision(evaluation)[..., 0]
        figures.append((_mean(precision) or 0.0, _mean(precision[0]) or 0.0))
    return figures


def _evaluation(dataset: DetectionDataset, detections: Sequence[Detections]) -> COCOeval_faster:
    truth = _truth(dataset)
    results = detections_to_coco(dataset, detections)
    found = truth.loadRes(results) if results else _coco(dataset, [])
    return COCOeval_faster(truth, found, "bbox")


def _precision(evaluation: COCOeval_faster) -> Any:
    """Run an evaluation, and return its precisions.

    Returns:
        (IoU thresholds, recalls, classes, areas); -1 where a class has no box.
    """
    evaluation.evaluate()
    evaluation.accumulate()
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
    return COCO(
        {
            "images": [
                {"id": image.image_id, "height": image.height, "width": image.width}
                for image in dataset.images
            ],
            "categories": [{"id": c.id, "name": c.name} for c in dataset.categories],
            "annotations": annotations,
        }
    )


def _mean(precision: Any) -> float | None:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None
