"""Hand-made data sets in each layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def _noise(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def make_image():
    """Return a function that writes a noise image of (height, width)."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (40, 60)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        _noise(seed, size).save(path)
        return path

    return write


@pytest.fixture
def make_coco(make_image):
    """Return a function that writes a COCO set: per split, per image, (category id, xywh) boxes."""

    def write(
        root: Path,
        splits: dict[str, list[list[tuple[Any, ...]]]],
        categories: list[tuple[int, str]] | dict[str, list[tuple[int, str]]],
        size: tuple[int, int] = (40, 60),
    ) -> Path:
        image_id = 100
        for split, images in splits.items():
            listed = categories[split] if isinstance(categories, dict) else categories
            content = {
                "images": [],
                "annotations": [],
                "categories": [{"id": key, "name": name} for key, name in listed],
            }
            for boxes in images:
                image_id += 7
                name = f"{image_id}.png"
                make_image(root / "images" / name, image_id, size)
                content["images"].append(
                    {"id": image_id, "file_name": name, "height": size[0], "width": size[1]}
                )
                for category_id, box, *crowd in boxes:
                    content["annotations"].append(
                        {
                            "id": len(content["annotations"]) + 1,
                            "image_id": image_id,
                            "category_id": category_id,
                            "bbox": list(box),
                            "area": box[2] * box[3],
                            "iscrowd": int(bool(crowd)),
                        }
                    )
            file_name = f"instances_{split}.json" if split else "annotations.json"
            target = root / "annotations" / file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(content))
        return root

    return write


@pytest.fixture
def make_voc(make_image):
    """Return a function that writes a VOC set without splits: per image, (name, xyxy) boxes."""

    def write(
        root: Path, images: dict[str, list[tuple[Any, ...]]], size: tuple[int, int] = (40, 60)
    ) -> Path:
        (root / "Annotations").mkdir(parents=True)
        for seed, (stem, boxes) in enumerate(images.items()):
            make_image(root / "JPEGImages" / f"{stem}.png", seed, size)
            objects = "".join(
                f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
                f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
                for name, (x1, y1, x2, y2) in boxes
            )
            (root / "Annotations" / f"{stem}.xml").write_text(
                f"<annotation><filename>{stem}</filename><path>C:\\elsewhere\\{stem}.jpg</path>"
                f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
                f"{objects}</annotation>"
            )
        return root

    return write
