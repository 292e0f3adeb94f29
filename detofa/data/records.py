"""What a data set is made of, and what a reader of one layout hands over."""

import os
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.imaging import IMAGE_SUFFIXES, image_size

SPLITS = ("train", "val", "test")
_SPLIT_OF_NAME = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_CLIP_TOLERANCE_PIXELS = 0.05  # annotations are often rounded to two digits


@dataclass(frozen=True, kw_only=True)
class Category:
    """A class of objects.

    Attributes:
        id: The data set's own id.
        name: Its name.
    """

    id: int
    name: str


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something wrong in a data set.

    Attributes:
        file: The image or the annotation file.
        reason: What is wrong.
        severity: An "error" costs an image or a whole box its place and stops loading unless bad
            ones are skipped; a "warning" does not stop anything.
    """

    file: Path
    reason: str
    severity: Literal["error", "warning"]

    def __str__(self) -> str:
        """Return one line for a person."""
        return f"{self.file}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image with its boxes.

    Attributes:
        image_id: The data set's own id (COCO), else a number that is unique within the set.
        path: The image file.
        height: Pixels, upright.
        width: Pixels, upright.
        boxes_xyxy: (N, 4) float32, pixels, inside the image, of an area above zero.
        labels: (N,) int64, indices into the categories.
        crowd: (N,) bool, True where a box marks a group (COCO's iscrowd).
        areas: (N,) float64, pixels squared; COCO's own `area` where it has one, else the box's.
    """

    image_id: int
    path: Path
    height: int
    width: int
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Check the shapes."""
        count = len(self.labels)
        assert self.boxes_xyxy.shape == (count, 4), self.boxes_xyxy.shape
        assert self.crowd.shape == self.areas.shape == (count,)


class AnnotatedObject(NamedTuple):
    """A box as a reader found it."""

    category_id: int
    box_xyxy: tuple[float, float, float, float]
    area: float | None = None
    crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """An image as a reader found it; nothing is checked yet.

    Attributes:
        image_id: See `ImageRecord`.
        path: Where the image is, or should be.
        annotated_size: (height, width) that the annotation gives, if it does.
        objects: The boxes.
        normalised: Boxes are fractions of the image's width and height instead of pixels.
        source: The annotation file.
    """

    image_id: int
    path: Path
    annotated_size: tuple[int, int] | None
    objects: tuple[AnnotatedObject, ...]
    normalised: bool = False
    source: Path


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """All that a reader found.

    Attributes:
        categories: Sorted by id.
        images: In the order of the annotation.
        faults: What could not be read.
        own_ids: False where the layout has no category ids, and the reader gave them.
    """

    categories: tuple[Category, ...]
    images: tuple[AnnotatedImage, ...]
    faults: tuple[Fault, ...]
    own_ids: bool = True


def canonical_split(name: str) -> str | None:
    """Return train, val or test for the names in use (valid, validation, train2017), or None."""
    return _SPLIT_OF_NAME.get(name.lower().rstrip(string.digits))


def subfolders(folder: Path) -> list[Path]:
    """Return the folders inside a folder, hidden ones left out, sorted by name."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_in(folder: Path) -> Iterator[Path]:
    """Yield the image files directly in a folder, sorted by name."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                yield path


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as text: {error}") from None


def first_names(names: Iterable[object], limit: int = 5) -> str:
    """Join the first few names for a message: `a, b, c and 12 more`."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return ", ".join(texts[:limit]) + more


def check_image(
    image: AnnotatedImage, label_of_category: dict[int, int]
) -> tuple[ImageRecord | None, list[Fault]]:
    """Turn what a reader found into a record, and say what was wrong with it.

    Boxes are clipped to the image; those without area are dropped.

    Args:
        image: The image as found.
        label_of_category: Index of each category id.

    Returns:
        The record, or None where the image itself cannot be used; and the faults.
    """
    try:
        height, width = image_size(image.path)
    except UserError as error:
        reason = str(error).removeprefix(f"{image.path} ")
        if not os.path.exists(image.path):
            reason = f"the image does not exist (named in {image.source})"
        return None, [Fault(file=image.path, reason=reason, severity="error")]
    if image.annotated_size not in (None, (height, width)):
        assert image.annotated_size is not None
        annotated_height, annotated_width = image.annotated_size
        reason = (
            f"the upright image is {height}x{width} (height x width), but {image.source.name} "
            f"says {annotated_height}x{annotated_width}: its boxes may not fit"
        )
        return None, [Fault(file=image.path, reason=reason, severity="error")]

    faults: list[Fault] = []
    kept: list[tuple[NDArray[np.float64], int, bool, float]] = []
    scale = np.array([width, height, width, height], np.float64)
    for item in image.objects:
        box = np.array(item.box_xyxy, np.float64) * (scale if image.normalised else 1.0)
        clipped, fault = _check_box(box, scale, image.path)
        if fault is not None:
            faults.append(fault)
        label = label_of_category.get(item.category_id)
        if label is None:
            reason = f"a box has the unknown category {item.category_id} (in {image.source})"
            faults.append(Fault(file=image.path, reason=reason, severity="error"))
        elif clipped is not None:
            box_area = float(np.prod(clipped[2:] - clipped[:2]))
            area = item.area if item.area is not None and item.area > 0 else box_area
            kept.append((clipped, label, item.crowd, area))
    record = ImageRecord(
        image_id=image.image_id,
        path=image.path,
        height=height,
        width=width,
        boxes_xyxy=np.array([k[0] for k in kept], np.float32).reshape(-1, 4),
        labels=np.array([k[1] for k in kept], np.int64),
        crowd=np.array([k[2] for k in kept], np.bool_),
        areas=np.array([k[3] for k in kept], np.float64),
    )
    return record, faults


def _check_box(
    box: NDArray[np.float64], limits: NDArray[np.float64], path: Path
) -> tuple[NDArray[np.float64] | None, Fault | None]:
    """Clip a box; return None for one without area; the fault is a warning."""
    text = f"box {', '.join(f'{value:.6g}' for value in box)} (xyxy)"
    if not np.isfinite(box).all():
        return None, Fault(file=path, reason=f"{text} is not finite, dropped", severity="warning")
    if (box[2:] <= box[:2]).any():
        return None, Fault(file=path, reason=f"{text} has no area, dropped", severity="warning")
    clipped = np.clip(box, 0, limits)
    # The record keeps float32, so that is where a box must still have an area.
    if (clipped[2:].astype(np.float32) <= clipped[:2].astype(np.float32)).any():
        return None, Fault(
            file=path, reason=f"{text} lies outside the image, dropped", severity="warning"
        )
    if np.abs(clipped - box).max() > _CLIP_TOLERANCE_PIXELS:
        return clipped, Fault(
            file=path, reason=f"{text} reaches outside the image, clipped", severity="warning"
        )
    return clipped, None
