"""Pictures for reports: the true boxes beside what several detectors found."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detofa.data.dataset import ImageRecord
from detofa.imaging import resize
from detofa.runtime.detections import Detections
from detofa.runtime.draw import class_colour, draw_detections

Pixels = NDArray[np.uint8]
_GAP_PIXELS = 8
_TITLE_PIXELS = 26
_PAPER = (255, 255, 255)
_INK = (30, 30, 30)


def comparison_sheet(
    images: Sequence[Pixels],
    records: Sequence[ImageRecord],
    found: Mapping[str, Sequence[Detections]],
    class_names: Sequence[str],
    *,
    enlarge: float = 2,
) -> Pixels:
    """Draw a sheet with a row for each image: the truth, then each detector's boxes.

    Args:
        images: (H, W, 3) uint8 RGB each, all of one size.
        records: Their true boxes.
        found: What each detector found in each image, by the detector's name.
        class_names: The names of the classes in label order.
        enlarge: Factor by which images are enlarged, so that labels are readable.

    Returns:
        (H, W, 3) uint8.
    """
    assert images, "a sheet needs an image"
    assert len(images) == len(records), (len(images), len(records))
    height, width = (round(side * enlarge) for side in images[0].shape[:2])
    columns = 1 + len(found)
    sheet = Image.new(
        "RGB",
        (
            columns * width + (columns - 1) * _GAP_PIXELS,
            _TITLE_PIXELS + len(images) * (height + _GAP_PIXELS) - _GAP_PIXELS,
        ),
        _PAPER,
    )
    canvas = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=17)
    for column, title in enumerate(["true boxes", *found]):
        canvas.text((column * (width + _GAP_PIXELS) + 2, 2), title, fill=_INK, font=font)
    for row, (image, record) in enumerate(zip(images, records, strict=True)):
        large = resize(image, (height, width))
        tiles = [draw_truth(large, record, class_names, enlarge)]
        for detections in found.values():
            enlarged = Detections(
                boxes_xyxy=detections[row].boxes_xyxy * np.float32(enlarge),
                scores=detections[row].scores,
                labels=detections[row].labels,
            )
            tiles.append(draw_detections(large, enlarged, class_names))
        for column, tile in enumerate(tiles):
            left = column * (width + _GAP_PIXELS)
            sheet.paste(Image.fromarray(tile), (left, _TITLE_PIXELS + row * (height + _GAP_PIXELS)))
    return np.array(sheet)


def draw_truth(
    image: Pixels, record: ImageRecord, class_names: Sequence[str], enlarge: float = 1
) -> Pixels:
    """Draw the true boxes of an image with their classes.

    Args:
        image: (H, W, 3) uint8 RGB, `enlarge` times the size of the record's image.
        record: Its boxes.
        class_names: The names of the classes in label order.
        enlarge: See above.

    Returns:
        (H, W, 3) uint8, a new picture.
    """
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(11, min(image.shape[:2]) // 24))
    for box, label in zip(record.boxes_xyxy * enlarge, record.labels, strict=True):
        left, top, right, bottom = (round(float(side)) for side in box)
        colour = class_colour(int(label))
        canvas.rectangle((left, top, right, bottom), outline=colour, width=2)
        name = class_names[int(label)]
        extent = canvas.textbbox((left + 3, top - 2), name, font=font, anchor="lb")
        down = max(0, 1 - round(extent[1]))  # where there is no room above the box
        x0, y0, x1, y1 = (extent[0] - 3, extent[1] - 2 + down, extent[2] + 3, extent[3] + 2 + down)
        canvas.rectangle((x0, y0, x1, y1), fill=colour)
        light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        ink = (0, 0, 0) if light else (255, 255, 255)
        canvas.text((left + 3, top - 2 + down), name, fill=ink, font=font, anchor="lb")
    return np.array(picture)
