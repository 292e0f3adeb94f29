"""Test images: the true boxes beside what the chosen detector found."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detofa.data.dataset import Category, DetectionDataset, ImageRecord, load_dataset
from detofa.errors import UserError
from detofa.imaging import read_image
from detofa.report.front import run_option
from detofa.report.page import Cell, Picture, Section, Table
from detofa.report.pictures import comparison_sheet
from detofa.report.source import Source
from detofa.runtime.detections import Detections
from detofa.train.checkpoint import load_subnet
from detofa.train.evaluate import torch_detector_of

_COUNT = 8
_PIXELS = 320  # of the longer side of each half


def gallery_section(source: Source) -> Section:
    """Return the first images of the test split, or of the validation split without one."""
    name, title, run = "gallery", "Test images", run_option(source)
    chosen = source.chosen
    if chosen is None:
        return Section(
            name=name,
            title=title,
            missing=f"No detector is chosen yet: `detofa search --pareto{run}` chooses some.",
        )
    try:
        dataset = _dataset(source)
    except UserError as error:
        return Section(
            name=name,
            title=title,
            missing=f"The images are not here ({error}); name their folder with "
            f"`detofa report{run} --data DIR`.",
        )
    records = dataset.images[:_COUNT]
    images = [read_image(record.path) for record in records]
    subnet, module = load_subnet(chosen.path)
    with torch_detector_of(module, subnet) as detector:
        found = detector.detect(images)
    names = subnet.class_names
    words = [
        (_counted(record.labels, names), _counted(one.labels, names))
        for record, one in zip(records, found, strict=True)
    ]
    rows: list[tuple[Cell, ...]] = [
        (record.path.name, len(record.labels), len(one), true, guess)
        for record, one, (true, guess) in zip(records, found, words, strict=True)
    ]
    return Section(
        name=name,
        title=title,
        text=(
            f"The first {len(records)} images of the {dataset.split} split, not chosen by hand: "
            f"left the true boxes, right those of {chosen.path} with scores of "
            f"{subnet.postprocessing.score_threshold:g} and above.",
        ),
        pictures=tuple(
            _picture(image, record, one, names, f"True: {true}. Found: {guess}.")
            for image, record, one, (true, guess) in zip(images, records, found, words, strict=True)
        ),
        tables=(
            Table(
                caption="Boxes in these images",
                columns=("image", "true", "found", "true classes", "found classes"),
                rows=tuple(rows),
            ),
        ),
    )


def _dataset(source: Source) -> DetectionDataset:
    assert source.record is not None
    categories = tuple(Category(id=i, name=name) for i, name in source.record.categories)
    try:
        return load_dataset(source.data, "test", categories=categories, skip_bad=True)
    except UserError:
        return load_dataset(source.data, "val", categories=categories, skip_bad=True)


def _picture(
    image: NDArray[np.uint8],
    record: ImageRecord,
    found: Detections,
    names: tuple[str, ...],
    told: str,
) -> Picture:
    scale = _PIXELS / max(image.shape[:2])
    sheet = comparison_sheet([image], [record], {"found": [found]}, names, enlarge=scale)
    return Picture(
        title=record.path.name,
        description=told,
        jpeg=jpeg_bytes(sheet),
        width=sheet.shape[1],
        height=sheet.shape[0],
    )


def jpeg_bytes(pixels: NDArray[np.uint8], quality: int = 70) -> bytes:
    """Return (H, W, 3) uint8 pixels as a JPEG file."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=quality, optimize=True)
    return written.getvalue()


def _counted(labels: NDArray[np.int64], names: tuple[str, ...]) -> str:
    """Return in words how many boxes there are of each class: `cat ×2, dog ×1`."""
    counts = np.bincount(labels, minlength=len(names))
    told = [f"{name} ×{count}" for count, name in zip(counts, names, strict=True) if count]
    return ", ".join(told) or "none"
