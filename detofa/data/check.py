"""Check a data set: count, decode every image, find copies across splits, draw the boxes."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detofa import files
from detofa.data.dataset import (
    WHOLE,
    DetectionDataset,
    Layout,
    available_splits,
    find_layout,
    load_dataset,
)
from detofa.data.records import Fault, ImageRecord
from detofa.errors import UserError
from detofa.imaging import IMAGE_SUFFIXES, letterbox, read_image

_TILE_SIZE = (288, 384)
_FAULT = "#8b0000"
_COLOURS = (
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231",
    "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What one split holds.

    Attributes:
        split: Its name.
        num_images: Images that can be used.
        num_images_without_boxes: Those of them without any box.
        num_boxes: Boxes, crowds left out.
        boxes_per_class: Number of boxes by class name.
        image_sizes: Number of images by (height, width), the most frequent first.
        box_side_percentiles: 5th, 50th and 95th percentile of the square root of the boxes' area,
            pixels; None without boxes.
    """

    split: str
    num_images: int
    num_images_without_boxes: int
    num_boxes: int
    boxes_per_class: Mapping[str, int]
    image_sizes: Mapping[tuple[int, int], int]
    box_side_percentiles: tuple[float, float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        sizes = [
            {"height": height, "width": width, "images": count}
            for (height, width), count in self.image_sizes.items()
        ]
        return {
            "split": self.split,
            "num_images": self.num_images,
            "num_images_without_boxes": self.num_images_without_boxes,
            "num_boxes": self.num_boxes,
            "boxes_per_class": dict(self.boxes_per_class),
            "image_sizes": sizes,
            "box_side_percentiles": self.box_side_percentiles,
        }


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `check_dataset` found.

    Attributes:
        root: The data set's folder.
        layout: Its layout.
        splits: One report per split.
        faults: All faults, errors first.
        copies: Groups of image files with the same bytes that lie in different splits.
    """

    root: Path
    layout: Layout
    splits: tuple[SplitReport, ...]
    faults: tuple[Fault, ...]
    copies: tuple[tuple[Path, ...], ...]

    @property
    def num_errors(self) -> int:
        """Number of faults that stop training unless bad images are skipped."""
        return sum(fault.severity == "error" for fault in self.faults)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "splits": [part.to_json() for part in self.splits],
            "faults": [asdict(fault) | {"file": str(fault.file)} for fault in self.faults],
            "copies": [[str(path) for path in paths] for paths in self.copies],
        }


def check_dataset(root: Path) -> CheckReport:
    """Check all splits of a data set; every image is decoded.

    Raises:
        UserError: nothing found that could be checked, or an annotation file is broken.
    """
    reports: list[SplitReport] = []
    faults: list[Fault] = []
    seen: dict[str, list[tuple[str, Path]]] = {}
    categories = None
    for split in available_splits(root) or (WHOLE,):
        dataset = load_dataset(root, split, skip_bad=True)
        if categories is None:
            categories = dataset.categories
        elif dataset.categories != categories:
            try:
                load_dataset(root, split, categories=categories, skip_bad=True)
            except UserError as error:
                faults.append(Fault(file=root, reason=str(error), severity="error"))
        faults += dataset.faults
        whole: list[ImageRecord] = []
        for image in dataset.images:
            try:
                read_image(image.path)
            except UserError as error:
                reason = str(error).removeprefix(f"{image.path} ")
                faults.append(Fault(file=image.path, reason=reason, severity="error"))
            else:
                whole.append(image)
                seen.setdefault(files.sha256_file(image.path), []).append((split, image.path))
        reports.append(_report(dataset, whole))
    copies = tuple(
        tuple(path for _, path in places)
        for places in seen.values()
        if len({split for split, _ in places}) > 1
    )
    for paths in copies:
        others = ", ".join(str(path) for path in paths[1:])
        reason = f"the same image is in another split: {others}"
        faults.append(Fault(file=paths[0], reason=reason, severity="warning"))
    return CheckReport(
        root=root,
        layout=find_layout(root),
        splits=tuple(reports),
        faults=tuple(sorted(faults, key=lambda fault: fault.severity)),
        copies=copies,
    )


def draw_contact_sheet(report: CheckReport, path: Path, count: int = 12) -> None:
    """Draw images with their boxes and class names into one PNG or JPEG file.

    Those that something is wrong with come first, in the order of the faults, each with the first
    of its faults below it; the others are spread evenly over all splits.

    Args:
        report: What `check_dataset` found.
        path: The picture to write.
        count: Number of images, at most.

    Raises:
        UserError: there is no image at all, or the picture cannot be written.
    """
    images: dict[Path, tuple[ImageRecord, DetectionDataset]] = {}
    for part in report.splits:
        dataset = load_dataset(report.root, part.split, skip_bad=True)
        images |= {image.path: (image, dataset) for image in dataset.images}
    reasons: dict[Path, str] = {}
    for fault in report.faults:
        if fault.file in images or fault.file.suffix.lower() in IMAGE_SUFFIXES:
            reasons.setdefault(fault.file, fault.reason)
    chosen = list(reasons)[:count]
    rest = [path for path in images if path not in reasons]
    spread = np.linspace(0, len(rest) - 1, min(len(rest), count - len(chosen)))
    chosen += [rest[index] for index in np.unique(spread.round().astype(int))]
    if not chosen:
        raise UserError(f"{report.root} has no image that could be drawn; mend what is told above")
    num_columns = math.ceil(math.sqrt(len(chosen)))
    num_rows = math.ceil(len(chosen) / num_columns)
    height, width = _TILE_SIZE
    sheet = Image.new("RGB", (num_columns * width, num_rows * height))
    for position, file in enumerate(chosen):
        row, column = divmod(position, num_columns)
        tile = _tile(file, images.get(file))
        if file in reasons:
            _write_below(tile, f"{file.name}: {reasons[file]}")
        sheet.paste(tile, (column * width, row * height))
    with files.atomic_path(path) as temporary:
        sheet.save(temporary, format="JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG")


def _report(dataset: DetectionDataset, images: list[ImageRecord]) -> SplitReport:
    sizes: dict[tuple[int, int], int] = {}
    counts = np.zeros(len(dataset.categories), np.int64)
    sides: list[float] = []
    for image in images:
        size = (image.height, image.width)
        sizes[size] = sizes.get(size, 0) + 1
        single = ~image.crowd
        np.add.at(counts, image.labels[single], 1)
        boxes = image.boxes_xyxy[single]
        sides += np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).tolist()
    percentiles = np.percentile(sides, (5, 50, 95)) if sides else None
    return SplitReport(
        split=dataset.split,
        num_images=len(images),
        num_images_without_boxes=sum(len(image.labels) == 0 for image in images),
        num_boxes=int(counts.sum()),
        boxes_per_class={
            category.name: int(count)
            for category, count in zip(dataset.categories, counts, strict=True)
        },
        image_sizes=dict(sorted(sizes.items(), key=lambda item: -item[1])),
        box_side_percentiles=None
        if percentiles is None
        else (float(percentiles[0]), float(percentiles[1]), float(percentiles[2])),
    )


def _tile(path: Path, annotated: tuple[ImageRecord, DetectionDataset] | None) -> Image.Image:
    """Return an image with the boxes that are known; an empty tile if it cannot be read."""
    try:
        pixels, box = letterbox(read_image(path), _TILE_SIZE, fill=32)
    except UserError:
        return Image.new("RGB", _TILE_SIZE[::-1], (32, 32, 32))
    tile = Image.fromarray(pixels)
    if annotated is None:
        return tile
    image, dataset = annotated
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(size=11)
    for corners, label in zip(box.to_input(image.boxes_xyxy), image.labels, strict=True):
        left, top, right, bottom = (float(value) for value in corners)
        colour = _COLOURS[int(label) % len(_COLOURS)]
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        name = dataset.categories[int(label)].name
        anchor = (left + 2, max(0.0, top - 13))
        draw.rectangle(draw.textbbox(anchor, name, font=font), fill=colour)
        draw.text(anchor, name, fill="black", font=font)
    return tile


def _write_below(tile: Image.Image, text: str) -> None:
    """Write what is wrong into the lowest lines of a tile, cut off where it does not fit."""
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(size=11)
    height, width = _TILE_SIZE
    lines = textwrap.wrap(text, 64, max_lines=3, placeholder=" ...")
    top = height - 14 * len(lines) - 4
    draw.rectangle((0, top, width, height), fill=_FAULT)
    draw.text((4, top + 2), "\n".join(lines), fill="white", font=font, spacing=2)
