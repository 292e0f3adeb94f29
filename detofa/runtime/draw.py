"""Showing detections: boxes drawn on a picture, and records in COCO's result format."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detofa.runtime.detections import Detections

_GOLDEN_RATIO = 0.618034
Colour = tuple[int, int, int]


def draw_detections(
    image: NDArray[np.uint8], detections: Detections, class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw boxes with their class and score.

    Args:
        image: (H, W, 3) uint8 RGB; left as it is.
        detections: Boxes in pixels of `image`.
        class_names: The names of the classes in label order.

    Returns:
        (H, W, 3) uint8, a new picture; the best box is drawn last.
    """
    picture = Image.fromarray(image).convert("RGB")
    canvas = ImageDraw.Draw(picture)
    short_side = min(image.shape[:2])
    line_width = max(1, round(short_side / 200))
    font = ImageFont.load_default(size=min(max(round(short_side / 28), 9), 48))
    for index in reversed(range(len(detections))):
        label = int(detections.labels[index])
        box = [round(float(value)) for value in detections.boxes_xyxy[index]]
        box[2], box[3] = max(box[2], box[0]), max(box[3], box[1])
        colour = class_colour(label)
        canvas.rectangle(box, outline=colour, width=line_width)
        text = f"{class_names[label]} {detections.scores[index]:.2f}"
        _draw_label(canvas, picture.size, box, text, colour, font)
    return np.array(picture)


def class_colour(label: int) -> Colour:
    """Return a strong colour; the first few dozen labels have hues that lie apart."""
    red, green, blue = colorsys.hsv_to_rgb((label * _GOLDEN_RATIO) % 1, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def detections_to_json(
    detections: Detections, image_id: int | str, categories: Sequence[tuple[int, str]]
) -> list[dict[str, Any]]:
    """Return records in COCO's result format, with the data set's own category ids.

    Returns:
        One `{"image_id", "category_id", "bbox", "score"}` per box; `bbox` is x, y, width and
        height in pixels of the original image.
    """
    return [
        {
            "image_id": image_id,
            "category_id": categories[int(label)][0],
            "bbox": [
                round(float(value), 3)
                for value in (box[0], box[1], box[2] - box[0], box[3] - box[1])
            ],
            "score": round(float(score), 5),
        }
        for box, score, label in zip(
            detections.boxes_xyxy, detections.scores, detections.labels, strict=True
        )
    ]


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    picture_size: tuple[int, int],
    box_xyxy: list[int],
    text: str,
    colour: Colour,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Write above the box where there is room, else below it, else inside it."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = round(right - left) + 4, round(bottom - top) + 4
    x = max(0, min(box_xyxy[0], picture_size[0] - width - 1))
    y = box_xyxy[1] - height
    if y < 0:
        y = box_xyxy[3] if box_xyxy[3] + height < picture_size[1] else box_xyxy[1]
    canvas.rectangle((x, y, x + width, y + height), fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    canvas.text((x + 2 - left, y + 2 - top), text, fill=ink, font=font)
