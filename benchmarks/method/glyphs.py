"""The glyph task: scenes of many glyph classes, made to need capacity, as hard as one wants them.

    python -m benchmarks.method.glyphs sheet glyphs.png
    python -m benchmarks.method.glyphs scenes data/glyphs --difficulty 0.5 --classes 24
    python -m benchmarks.method.glyphs crops data/glyph_crops --difficulty 0.5 --classes 24

Every image has a random generator of its own, seeded by the seed, the kind of set, the split and
the image's number. So splits share no background, placement or turned glyph (they share fonts,
unless the task says otherwise), scenes and crops share none either, and a set of more images
begins with those of a smaller one.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.method.glyph_scene import PaintedGlyph, Scene, paint_crop, paint_scene
from benchmarks.method.glyph_task import CLASSES, GlyphTask
from detofa import files
from detofa.data.dataset import load_dataset
from detofa.errors import UserError
from detofa.imaging import read_image, resize
from detofa.report.pictures import draw_truth

__all__ = ["CLASSES", "TASK_FILE", "GlyphTask", "make_crops", "make_scenes"]

TASK_FILE = "glyph_task.json"
"""Written last into a set's folder: what the set was made from."""

_SCENES, _CROPS = 0, 1
_SPLIT_NUMBERS = {"train": 0, "val": 1, "test": 2}
_MIN_CROP_PIXELS = 32
_CROP_PIXELS = 64
_ENLARGE = 3
_TITLE_PIXELS = 28


def make_scenes(
    folder: Path, task: GlyphTask, *, seed: int, train: int, val: int, test: int
) -> None:
    """Write a detection data set in COCO layout, the same bytes for the same arguments.

    A box is tight around the whole glyph, also where a bar hides a part of it; all of it lies
    inside the image. Annotations say besides how each glyph was drawn: `font`,
    `rotation_degrees`, `contrast_luma`, `hidden_share`.

    Args:
        folder: New or empty; images go to `images/{split}`, boxes to `annotations`.
        task: What the scenes look like.
        seed: Not negative.
        train: Number of training images.
        val: Number of validation images.
        test: Number of test images.

    Raises:
        UserError: an argument is out of its range, the folder is not empty or cannot be written,
            or matplotlib, which ships the fonts, is not installed.
    """
    counts = {"train": train, "val": val, "test": test}
    if seed < 0 or min(counts.values()) < 1:
        raise UserError(
            f"a set of scenes needs a seed from 0 and an image in each split; got {seed}, {counts}"
        )
    _check_empty(folder)
    first_image_id, first_box_id = 1, 1
    for split, count in counts.items():
        scenes = (
            paint_scene(task, task.fonts(split), _generator(seed, _SCENES, split, index))
            for index in range(count)
        )
        num_boxes = _write_split(folder, split, task, scenes, first_image_id, first_box_id)
        first_image_id += count
        first_box_id += num_boxes
    _write_task(folder, task, {"seed": seed, "images": counts})


def make_crops(
    folder: Path,
    task: GlyphTask,
    *,
    seed: int,
    train: int,
    val: int,
    crop_pixels: int = _CROP_PIXELS,
) -> None:
    """Write an image-folder classification set, the same bytes for the same arguments.

    A crop shows one glyph, whole and large, in the task's style, without symbols of no class.
    Classes take turns, so that each has as many images as any other, or one more.

    Args:
        folder: New or empty; images go to `train/CLASS/NNNNN.png` and `val/CLASS/NNNNN.png`.
        task: What the crops look like; its sizes and number of objects do not matter here.
        seed: Not negative.
        train: Number of training images, all classes together.
        val: Number of validation images, all classes together.
        crop_pixels: Height and width of a crop.

    Raises:
        UserError: as `make_scenes`.
    """
    counts = {"train": train, "val": val}
    if seed < 0 or min(counts.values()) < task.num_classes or crop_pixels < _MIN_CROP_PIXELS:
        raise UserError(
            f"a set of crops needs a seed from 0, an image of each of the {task.num_classes} "
            f"classes in each split, and crops of {_MIN_CROP_PIXELS} pixels or more; got {seed}, "
            f"{counts}, {crop_pixels}"
        )
    _check_empty(folder)
    for split, count in counts.items():
        for index in range(count):
            number, label = divmod(index, task.num_classes)
            generator = _generator(seed, _CROPS, split, index)
            scene = paint_crop(task, label, crop_pixels, task.fonts(split), generator)
            _save(folder / split / CLASSES[label].name / f"{number:05d}.png", scene.pixels)
    _write_task(folder, task, {"seed": seed, "images": counts, "crop_pixels": crop_pixels})


def contact_sheet(tasks: Mapping[str, GlyphTask], *, columns: int, seed: int) -> NDArray[np.uint8]:
    """Draw a picture of tasks: of each a row of scenes with their boxes, and a row of crops.

    Args:
        tasks: By the title of their rows; all of one image size.
        columns: Scenes in a row.
        seed: Of the data sets.

    Returns:
        (H, W, 3) uint8.
    """
    rows = [np.concatenate(_rows_of(title, task, columns, seed)) for title, task in tasks.items()]
    return np.concatenate(rows)


def _rows_of(title: str, task: GlyphTask, columns: int, seed: int) -> list[NDArray[np.uint8]]:
    height, width = (side * _ENLARGE for side in task.image_size)
    names = [CLASSES[label].name for label in range(task.num_classes)]
    banner = Image.new("RGB", (columns * width, _TITLE_PIXELS), (255, 255, 255))
    ImageDraw.Draw(banner).text((4, 4), title, fill=(0, 0, 0), font=ImageFont.load_default(17))
    with tempfile.TemporaryDirectory() as folder:
        make_scenes(Path(folder), task, seed=seed, train=columns, val=1, test=1)
        records = load_dataset(Path(folder), "train", skip_bad=True).images
        images = [resize(read_image(record.path), (height, width)) for record in records]
    scenes = [
        draw_truth(image, record, names, _ENLARGE)
        for image, record in zip(images, records, strict=True)
    ]
    num_crops = columns * width // _CROP_PIXELS
    crops = np.full((_CROP_PIXELS, columns * width, 3), 255, np.uint8)
    for index in range(num_crops):
        generator = _generator(seed, _CROPS, "train", index)
        scene = paint_crop(
            task, index % task.num_classes, _CROP_PIXELS, task.fonts("train"), generator
        )
        crops[:, index * _CROP_PIXELS : (index + 1) * _CROP_PIXELS] = scene.pixels
    return [np.array(banner), np.concatenate(scenes, axis=1), crops]


def _generator(seed: int, kind: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, kind, _SPLIT_NUMBERS[split], index])


def _write_split(
    folder: Path,
    split: str,
    task: GlyphTask,
    scenes: Iterator[Scene],
    first_image_id: int,
    first_box_id: int,
) -> int:
    """Write images, then their annotations; return the number of boxes."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    height, width = task.image_size
    for index, scene in enumerate(scenes):
        image_id = first_image_id + index
        name = f"{split}_{index:06d}.jpg"
        _save(folder / "images" / split / name, scene.pixels)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for glyph in scene.glyphs:
            box_id = first_box_id + len(annotations)
            annotations.append({"id": box_id, "image_id": image_id, **_annotation(glyph)})
    content = {
        "info": {"description": "Scenes of glyphs"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": label + 1, "name": CLASSES[label].name} for label in range(task.num_classes)
        ],
    }
    text = json.dumps(content, separators=(",", ":"))
    files.write_text(folder / "annotations" / f"instances_{split}.json", text)
    return len(annotations)


def _annotation(glyph: PaintedGlyph) -> dict[str, Any]:
    left, top, right, bottom = glyph.box_xyxy
    return {
        "category_id": glyph.label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": (right - left) * (bottom - top),
        "iscrowd": 0,
        "font": glyph.font,
        "rotation_degrees": round(glyph.rotation_degrees, 2),
        "contrast_luma": round(glyph.contrast_luma, 2),
        "hidden_share": round(glyph.hidden_share, 4),
    }


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} is there already and not an empty folder; remove it, or choose another (a "
            f"set that is whole has {TASK_FILE})"
        )


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an image as JPEG or PNG, by the suffix of the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=92, compress_level=3)  # JPEG's, PNG's
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another "
            "folder"
        ) from error


def _write_task(folder: Path, task: GlyphTask, arguments: dict[str, Any]) -> None:
    files.write_json(folder / TASK_FILE, "glyph_task", {"task": task.to_json(), **arguments})


def main() -> None:
    """Make a data set, or a picture of what it would look like."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method.glyphs", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    scenes = commands.add_parser("scenes", help="a detection set in COCO layout")
    crops = commands.add_parser("crops", help="a classification set in folders")
    sheet = commands.add_parser("sheet", help="a picture of scenes and crops by difficulty")
    scenes.add_argument("out", type=Path, metavar="FOLDER")
    scenes.add_argument("--test", type=int, default=1000, help="images; default %(default)s")
    crops.add_argument("out", type=Path, metavar="FOLDER")
    crops.add_argument("--pixels", type=int, default=_CROP_PIXELS, help="height and width")
    sheet.add_argument("out", type=Path, metavar="OUT.png")
    sheet.add_argument("--difficulties", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    sheet.add_argument("--columns", type=int, default=4)
    for command in (scenes, crops):
        command.add_argument("--difficulty", type=float, default=0.5, help="from 0 to 1")
        command.add_argument("--train", type=int, default=4000, help="images; default %(default)s")
        command.add_argument("--val", type=int, default=500, help="images; default %(default)s")
    for command in (scenes, crops, sheet):
        command.add_argument("--classes", type=int, default=24, help=f"up to {len(CLASSES)}")
        command.add_argument("--size", type=int, nargs=2, default=(128, 160), metavar=("H", "W"))
        command.add_argument("--seed", type=int, default=0)
    try:
        _run(parser.parse_args())
    except UserError as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    def task(difficulty: float) -> GlyphTask:
        height, width = options.size
        return GlyphTask.at_difficulty(
            difficulty, num_classes=options.classes, image_size=(height, width)
        )

    match options.command:
        case "scenes":
            make_scenes(
                options.out,
                task(options.difficulty),
                seed=options.seed,
                train=options.train,
                val=options.val,
                test=options.test,
            )
        case "crops":
            make_crops(
                options.out,
                task(options.difficulty),
                seed=options.seed,
                train=options.train,
                val=options.val,
                crop_pixels=options.pixels,
            )
        case "sheet":
            tasks = {f"difficulty {level:g}": task(level) for level in options.difficulties}
            _save(options.out, contact_sheet(tasks, columns=options.columns, seed=options.seed))


if __name__ == "__main__":
    main()
