"""Images to detect in, and what is written about what was found."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from detofa.errors import UserError
from detofa.files import files_in, write_bytes, write_json
from detofa.imaging import IMAGE_SUFFIXES, read_image
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector
from detofa.runtime.draw import detections_to_json, draw_detections


def image_files(given: Sequence[Path]) -> list[Path]:
    """Return the image files that are given, and those anywhere in the folders given.

    Raises:
        UserError: a path does not exist, or there are no images.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in files_in(path) if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise UserError(
                    f"the folder {path} has no images; those read are {', '.join(IMAGE_SUFFIXES)}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path} does not exist; give images or folders of images")
    return list(dict.fromkeys(found))


def write_predictions(
    output: Path, paths: Sequence[Path], found: Sequence[Detections], detector: Detector
) -> None:
    """Write a picture for each image, with its boxes, and predictions.json in COCO's format.

    Args:
        output: Folder for all of it.
        paths: The images.
        found: The detections of each.
        detector: What found them.

    Raises:
        UserError: a picture would replace one of the images.
    """
    taken: set[str] = set()
    names = [_free_name(path.stem, taken) for path in paths]
    own = {path.resolve() for path in paths}
    for name in names:
        if (output / name).resolve() in own:
            raise UserError(
                f"{output / name} is one of the images, and a picture with boxes would replace it; "
                "choose another folder with --output"
            )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows = zip(paths, names, found, strict=True)
    for number, (path, name, detections) in enumerate(rows, start=1):
        pixels = read_image(path)
        buffer = io.BytesIO()
        drawn = draw_detections(pixels, detections, detector.class_names)
        Image.fromarray(drawn).save(buffer, format="PNG")
        write_bytes(output / name, buffer.getvalue())
        height, width = pixels.shape[:2]
        record = {"id": number, "file_name": str(path), "height": height, "width": width}
        images.append(record | {"picture": name})
        for box in detections_to_json(detections, number, detector.categories):
            area = box["bbox"][2] * box["bbox"][3]
            annotations.append(box | {"id": len(annotations) + 1, "area": area, "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in detector.categories]
    content = {"images": images, "categories": categories, "annotations": annotations}
    write_json(output / "predictions.json", "predictions", content)


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = f"{stem}.png", 2
    while name in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name)
    return name
