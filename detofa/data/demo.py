"""The demo data set: real handwritten digits on textured backgrounds, made on the fly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detofa import files
from detofa.errors import UserError

_MAX_OBJECTS = 8
_SIDES_PIXELS = (20.0, 84.0)
_MAX_OVERLAP = 0.08  # of the smaller box
_INK_THRESHOLD = 0.35  # coverage from which a pixel belongs to the digit's box
_MIN_CONTRAST = 100.0  # between a digit's colour and what lies under it, in luma


def make_demo_dataset(
    root: Path,
    *,
    seed: int = 0,
    train: int = 600,
    val: int = 100,
    test: int = 150,
    image_size: tuple[int, int] = (192, 224),
) -> None:
    """Write a detection data set in COCO layout, the same bytes for the same arguments.

    Objects are scikit-learn's handwritten digits, from 20 to 84 pixels, 1 to 8 in an image, in
    random colours; no digit's original is in two splits. Category ids are 1 to 10, names 0 to 9.

    Args:
        root: The folder; images go to `images/{split}`, boxes to `annotations`.
        seed: Not negative.
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.
        image_size: (height, width), pixels.

    Raises:
        UserError: scikit-learn is not installed, or the folder cannot be written.
    """
    if seed < 0 or min(train, val, test) < 1 or min(image_size) < 96:
        raise UserError(
            "the demo set needs a seed from 0, an image in each split, and at least 96x96 pixels; "
            f"got {seed}, {(train, val, test)}, {image_size}"
        )
    sources = _source_digits(seed)
    first_image_id, first_box_id = 1, 1
    for number, (split, count) in enumerate((("train", train), ("val", val), ("test", test))):
        generator = np.random.default_rng([seed, number])
        scenes = [_scene(sources[split], image_size, generator) for _ in range(count)]
        num_boxes = _write_split(root, split, scenes, first_image_id, first_box_id)
        first_image_id += count
        first_box_id += num_boxes


_Source = list[tuple[int, NDArray[np.float32]]]
_Scene = tuple[NDArray[np.uint8], list[tuple[int, tuple[int, int, int, int]]]]
_CATEGORIES = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]


def _write_split(
    root: Path, split: str, scenes: list[_Scene], first_image_id: int, first_box_id: int
) -> int:
    """Write images, then the annotations that make them a split; return the number of boxes."""
    annotation_file = root / "annotations" / f"instances_{split}.json"
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    try:
        annotation_file.unlink(missing_ok=True)
        folder = root / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        for index, (pixels, boxes) in enumerate(scenes):
            image_id = first_image_id + index
            height, width = pixels.shape[:2]
            name = f"{split}_{index:05d}.jpg"
            Image.fromarray(pixels).save(folder / name, quality=92)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for digit, (left, top, right, bottom) in boxes:
                annotations.append(
                    {
                        "id": first_box_id + len(annotations),
                        "image_id": image_id,
                        "category_id": digit + 1,
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                    }
                )
    except OSError as error:
        raise UserError(
            f"cannot write the demo set to {root}: {error.strerror or error}; free some space or "
            "choose another folder"
        ) from error
    content = {
        "info": {"description": "Handwritten digits on textures, made by detofa"},
        "images": images,
        "annotations": annotations,
        "categories": _CATEGORIES,
    }
    files.write_text(annotation_file, json.dumps(content, separators=(",", ":")))
    return len(annotations)


def _source_digits(seed: int) -> dict[str, _Source]:
    """Return (digit, (8, 8) ink from 0 to 1) of each split; each original is in one split only."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the demo set needs scikit-learn; install it with pip install 'detofa[demo]'"
        ) from None
    bunch = load_digits()
    ink = bunch.images.astype(np.float32) / 16
    order = np.random.default_rng([seed, 99]).permutation(len(ink))
    ends = {"train": 0.65, "val": 0.8, "test": 1.0}
    sources: dict[str, _Source] = {}
    start = 0
    for split, fraction in ends.items():
        end = round(len(ink) * fraction)
        sources[split] = [(int(bunch.target[index]), ink[index]) for index in order[start:end]]
        start = end
    return sources


def _scene(source: _Source, image_size: tuple[int, int], generator: np.random.Generator) -> _Scene:
    """Draw one image; boxes are whole pixels, xyxy."""
    canvas = _background(image_size, generator)
    boxes: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(int(generator.integers(1, _MAX_OBJECTS + 1, size=2).max())):
        digit, ink = source[int(generator.integers(len(source)))]
        coverage = _glyph(ink, generator)
        place = _free_place(coverage, [box for _, box in boxes], image_size, generator)
        if place is not None:
            boxes.append((digit, _paint(canvas, coverage, place, generator)))
    canvas += generator.normal(0, generator.uniform(1, 6), canvas.shape[:2])[..., None]
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), boxes


def _glyph(ink: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Enlarge a digit smoothly, slant and turn it a little, and cut it to its ink."""
    low, high = _SIDES_PIXELS
    side = generator.uniform(low, high)
    unit = max(1, round(side / 7))
    padded = np.pad(ink, 2)
    large = Image.fromarray((padded * 255).astype(np.uint8)).resize(
        (12 * unit * 2, 12 * unit * 2), Image.Resampling.BICUBIC
    )
    middle = large.width / 2
    angle = np.deg2rad(generator.uniform(-12, 12))
    shear = generator.uniform(-0.15, 0.15)
    matrix = np.array(
        [[np.cos(angle), np.sin(angle) + shear], [-np.sin(angle), np.cos(angle)]], np.float64
    )
    shift = middle - matrix @ np.array([middle, middle])
    coefficients = (*matrix[0], shift[0], *matrix[1], shift[1])
    turned = large.transform(
        large.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    top, bottom, left, right = _ink_bounds(np.asarray(turned, np.float32) / np.float32(255))
    cut = turned.crop((left, top, right, bottom))
    scale = side / max(cut.size)
    aspect = generator.uniform(0.9, 1.15)
    size = (max(4, round(cut.width * scale * aspect)), max(8, round(cut.height * scale)))
    resized = np.asarray(cut.resize(size, Image.Resampling.BILINEAR), np.float32)
    rising = np.clip((resized / 255 - 0.15) / 0.4, 0, 1)
    return np.asarray(rising * rising * (3 - 2 * rising), np.float32)


def _ink_bounds(coverage: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of the ink; bottom and right are one past it."""
    rows = np.flatnonzero((coverage > _INK_THRESHOLD).any(axis=1))
    columns = np.flatnonzero((coverage > _INK_THRESHOLD).any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _free_place(
    coverage: NDArray[np.float32],
    boxes: list[tuple[int, int, int, int]],
    image_size: tuple[int, int],
    generator: np.random.Generator,
) -> tuple[int, int] | None:
    """Return (top, left) where a glyph hardly overlaps others, or None after 20 tries."""
    height, width = coverage.shape
    for _ in range(20):
        top = int(generator.integers(0, image_size[0] - height + 1))
        left = int(generator.integers(0, image_size[1] - width + 1))
        for other_left, other_top, other_right, other_bottom in boxes:
            overlap_x = min(left + width, other_right) - max(left, other_left)
            overlap_y = min(top + height, other_bottom) - max(top, other_top)
            other_area = (other_right - other_left) * (other_bottom - other_top)
            shared = max(0, overlap_x) * max(0, overlap_y)
            if shared > _MAX_OVERLAP * min(height * width, other_area):
                break
        else:
            return top, left
    return None


def _paint(
    canvas: NDArray[np.float32],
    coverage: NDArray[np.float32],
    place: tuple[int, int],
    generator: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Blend a glyph into the canvas in a colour that stands out; return its box, xyxy."""
    top, left = place
    height, width = coverage.shape
    under = canvas[top : top + height, left : left + width]
    luma = float((under @ np.array([0.299, 0.587, 0.114], np.float32)).mean())
    darker = luma - _MIN_CONTRAST > 10 and (luma + _MIN_CONTRAST > 245 or generator.random() < 0.5)
    if darker:
        target = generator.uniform(0, luma - _MIN_CONTRAST)
    else:
        target = generator.uniform(min(250.0, luma + _MIN_CONTRAST), 255)
    colour = _colour_of_luma(target, generator)
    opacity = coverage[..., None] * np.float32(generator.uniform(0.85, 1.0))
    under += (colour - under) * opacity
    ink_top, ink_bottom, ink_left, ink_right = _ink_bounds(coverage)
    return left + ink_left, top + ink_top, left + ink_right, top + ink_bottom


def _colour_of_luma(luma: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a random RGB colour of about this luma."""
    weights = np.array([0.299, 0.587, 0.114])
    tint = generator.uniform(-90, 90, 3)
    tint -= weights @ tint
    return np.clip(luma + tint, 0, 255).astype(np.float32)


def _background(image_size: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw a texture of two near colours: gradient, clouds, stripes, checks or blobs."""
    height, width = image_size
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(0, width / height, width, dtype=np.float32)[None, :]
    angle = generator.uniform(0, 2 * np.pi)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    across = -np.sin(angle) * columns + np.cos(angle) * rows
    match int(generator.integers(5)):
        case 0:
            mix = (along - along.min()) / np.ptp(along)
        case 1:
            mix = _clouds(image_size, generator)
        case 2:
            waves = np.sin(along * generator.uniform(20, 90) + generator.uniform(0, 6))
            mix = 0.5 + 0.5 * np.tanh(waves * generator.uniform(0.5, 4))
        case 3:
            frequency = generator.uniform(12, 40)
            mix = 0.5 + 0.5 * np.tanh(3 * np.sin(along * frequency) * np.sin(across * frequency))
        case _:
            mix = np.clip(_clouds(image_size, generator) * 6 - 2.5, 0, 1)
    middle = generator.uniform(50, 205)
    spread = generator.uniform(10, 35)
    first = _colour_of_luma(middle - spread, generator)
    second = _colour_of_luma(middle + spread, generator)
    canvas = first + (second - first) * np.asarray(mix, np.float32)[..., None]
    canvas += (_clouds(image_size, generator)[..., None] - 0.5) * np.float32(25)
    return canvas.astype(np.float32)


def _clouds(image_size: tuple[int, int], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return smooth noise from 0 to 1: three octaves, enlarged."""
    height, width = image_size
    total = np.zeros(image_size, np.float32)
    for cells, weight in ((3, 0.55), (8, 0.3), (24, 0.15)):
        coarse = generator.random((cells, cells * width // height + 1), dtype=np.float32)
        octave = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        total += np.float32(weight) * np.asarray(octave)
    low, high = float(total.min()), float(total.max())
    return (total - low) / np.float32(high - low)
