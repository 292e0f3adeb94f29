"""Load a data set of any layout: look, read, check, and say what was found."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from detofa import files
from detofa.data import coco, voc, yolo
from detofa.data.records import (
    SPLITS,
    Annotations,
    Category,
    Fault,
    ImageRecord,
    canonical_split,
    check_image,
    first_names,
    subfolders,
)
from detofa.errors import UserError

__all__ = [
    "SPLITS_FILE",
    "Category",
    "DetectionDataset",
    "Fault",
    "ImageRecord",
    "Layout",
    "available_splits",
    "find_layout",
    "image_name",
    "load_dataset",
]

Layout = Literal["coco", "voc", "yolo"]
SPLITS_FILE = "detofa_splits.json"
WHOLE = "all"
"""The name of the only split of a folder without splits."""

_READERS: dict[Layout, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}


@dataclass(frozen=True, kw_only=True)
class DetectionDataset:
    """One split of a data set.

    Attributes:
        root: Its folder.
        layout: How it is stored; `folder` for an image folder of a classifier.
        split: train, val, test, or all for a folder without splits.
        categories: Sorted by id; labels are indices into them.
        images: In the order of the annotation.
        faults: What was found wrong in this split.
    """

    root: Path
    layout: Layout | Literal["folder"]
    split: str
    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]
    faults: tuple[Fault, ...]

    def boxes_per_class(self) -> tuple[int, ...]:
        """Return the number of boxes of each category, crowds left out."""
        counts = np.zeros(len(self.categories), np.int64)
        for image in self.images:
            np.add.at(counts, image.labels[~image.crowd], 1)
        return tuple(int(count) for count in counts)


def find_layout(root: Path) -> Layout:
    """Return the layout of a data set's folder; COCO comes first where there are several.

    Raises:
        UserError: no such folder, or none of the layouts is in it.
    """
    return _look(root).layout


def available_splits(root: Path) -> tuple[str, ...]:
    """Return the splits of a data set: train, val, test, as far as they are there.

    A folder without splits of its own (or with only one) has those that `detofa data split`
    wrote, if it was run; else the result may be empty.

    Raises:
        UserError: as `find_layout`.
    """
    return _available(root, _look(root).own_splits)


def load_dataset(
    root: Path,
    split: str,
    *,
    categories: tuple[Category, ...] | None = None,
    skip_bad: bool = False,
) -> DetectionDataset:
    """Load one split of a data set.

    Args:
        root: Its folder, in COCO, VOC or YOLO layout.
        split: train, val (or valid, validation) or test; all for a folder without splits.
        categories: What the categories must be (e.g. those of the training split), in any
            order. VOC has no category ids of its own, so there only the names must agree.
        skip_bad: Leave out what is faulty instead of stopping.

    Raises:
        UserError: nothing found, no such split, other categories, or (unless skip_bad) faults.
    """
    found = _look(root)
    annotations, name = _read_split(root, found, split)
    chosen = annotations.categories
    if categories is not None:
        chosen = _agreed(annotations, categories, root, name)
        annotations = _with_ids_of(annotations, chosen)
    labels = {category.id: index for index, category in enumerate(chosen)}
    images: list[ImageRecord] = []
    faults = list(annotations.faults)
    for annotated in annotations.images:
        record, image_faults = check_image(annotated, labels)
        faults += image_faults
        if record is not None:
            images.append(record)
    errors = [fault for fault in faults if fault.severity == "error"]
    if errors and not skip_bad:
        raise UserError(
            f"{root}, split {name}, has {len(errors)} faults: {first_names(errors, 3)}. "
            f"See all with `detofa data check {root}`; mend them, or leave the bad ones out with "
            "--skip-bad"
        )
    if not images:
        raise UserError(f"{root}, split {name}: no image can be used; `detofa data check {root}`")
    dataset = DetectionDataset(
        root=root,
        layout=found.layout,
        split=name,
        categories=chosen,
        images=tuple(images),
        faults=(),
    )
    empty = [c.name for c, n in zip(chosen, dataset.boxes_per_class(), strict=True) if n == 0]
    if empty:
        reason = f"split {name} has no boxes of {first_names(empty)}"
        faults.append(Fault(file=root, reason=reason, severity="warning"))
    return DetectionDataset(
        root=root,
        layout=found.layout,
        split=name,
        categories=chosen,
        images=tuple(images),
        faults=tuple(faults),
    )


def own_splits(root: Path) -> tuple[str, ...]:
    """Return the splits that the layout itself has, those of `detofa data split` left out."""
    return _look(root).own_splits


def image_name(root: Path, path: Path) -> str:
    """Return the name of an image in a splits file: its path below the data set's folder."""
    try:
        return path.relative_to(root).as_posix()
    except ValueError:
        return Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()


def read_splits(root: Path) -> dict[str, list[str]]:
    """Read what `detofa data split` wrote: image names per split.

    Raises:
        UserError: missing or not whole.
    """
    remake = f"`detofa data split {root}`"
    content = files.read_json(root / SPLITS_FILE, "splits", remake=remake)
    splits = content.get("splits")
    if not isinstance(splits, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in splits.values()
    ):
        raise UserError(f"{root / SPLITS_FILE} holds no lists of images; make it with {remake}")
    return splits


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The layout of a folder, and what its reader found for each split."""

    layout: Layout
    splits: Mapping[str | None, Any]

    @property
    def own_splits(self) -> tuple[str, ...]:
        return tuple(split for split in SPLITS if split in self.splits)

    def read(self, root: Path, split: str | None) -> Annotations:
        annotations: Annotations = _READERS[self.layout].read_annotations(root, self.splits, split)
        return annotations


def _look(root: Path) -> _Found:
    found = _look_inside(root) if root.is_dir() else None
    if found is None:
        raise UserError(_nothing_found(root))
    return found


def _look_inside(root: Path) -> _Found | None:
    for layout, reader in _READERS.items():
        splits = reader.find_splits(root)
        if splits is not None:
            return _Found(layout=layout, splits=splits)
    return None


def _available(root: Path, own: tuple[str, ...]) -> tuple[str, ...]:
    if len(own) < 2 and (root / SPLITS_FILE).exists():
        named = read_splits(root)
        return tuple(split for split in SPLITS if named.get(split))
    return own


def _read_split(root: Path, found: _Found, split: str) -> tuple[Annotations, str]:
    """Return the annotations of a split, and the split's canonical name."""
    name = WHOLE if split == WHOLE else canonical_split(split)
    own = found.own_splits
    splits = _available(root, own)
    base = own[0] if own else None
    if name == WHOLE and len(own) < 2:
        return found.read(root, base), WHOLE
    if name not in splits:
        raise UserError(_no_split(root, split, splits, own))
    if len(own) >= 2 or not (root / SPLITS_FILE).exists():
        return found.read(root, name), name
    annotations = found.read(root, base)
    wanted = set(read_splits(root)[name])
    images = tuple(i for i in annotations.images if image_name(root, i.path) in wanted)
    missing = wanted - {image_name(root, image.path) for image in images}
    faults = [
        Fault(
            file=root / SPLITS_FILE,
            reason=f"{item} is not in the data set any more; run `detofa data split {root}`",
            severity="error",
        )
        for item in sorted(missing)
    ]
    kept = Annotations(
        categories=annotations.categories,
        images=images,
        faults=(*annotations.faults, *faults),
        own_ids=annotations.own_ids,
    )
    return kept, name


def _agreed(
    annotations: Annotations, categories: Iterable[Category], root: Path, split: str
) -> tuple[Category, ...]:
    """Return the expected categories sorted by id, or say how those found differ."""
    expected = tuple(sorted(categories, key=lambda category: category.id))
    if annotations.own_ids:
        wanted = {f"{c.id} {c.name}" for c in expected}
        found = {f"{c.id} {c.name}" for c in annotations.categories}
    else:
        wanted = {c.name for c in expected}
        found = {c.name for c in annotations.categories}
    if wanted != found:
        differences = []
        if wanted - found:
            differences.append(f"misses {first_names(sorted(wanted - found))}")
        if found - wanted:
            differences.append(f"has besides {first_names(sorted(found - wanted))}")
        raise UserError(
            f"the categories of {root}, split {split}, are not the expected ones: it "
            f"{' and '.join(differences)}; give all splits the same categories, with the same ids"
        )
    return expected


def _with_ids_of(annotations: Annotations, categories: tuple[Category, ...]) -> Annotations:
    """Give the expected ids to annotations of a layout that has none."""
    if annotations.own_ids:
        return annotations
    id_of_name = {category.name: category.id for category in categories}
    new_id = {c.id: id_of_name[c.name] for c in annotations.categories}
    images = []
    for image in annotations.images:
        objects = tuple(o._replace(category_id=new_id[o.category_id]) for o in image.objects)
        images.append(
            type(image)(
                image_id=image.image_id,
                path=image.path,
                annotated_size=image.annotated_size,
                objects=objects,
                normalised=image.normalised,
                source=image.source,
            )
        )
    return Annotations(
        categories=categories,
        images=tuple(images),
        faults=annotations.faults,
        own_ids=False,
    )


def _no_split(root: Path, split: str, splits: tuple[str, ...], own: tuple[str, ...]) -> str:
    if canonical_split(split) is None:
        return f"unknown split {split!r}; the splits are train, val and test"
    there = f"it has {', '.join(splits)}" if splits else "it has no splits"
    if len(own) >= 2 or (root / SPLITS_FILE).exists():
        return f"{root} has no split {split!r}: {there}; use one of these"
    return f"{root} has no split {split!r}: {there}; make them with `detofa data split {root}`"


def _nothing_found(root: Path) -> str:
    if not root.exists():
        return f"the data folder {root} does not exist; check the path"
    if not root.is_dir():
        return f"{root} is a file; give the folder that holds the data set"
    for folder in subfolders(root):
        inside = _look_inside(folder)
        if inside is not None:
            return (
                f"{root} is not a data set, but {folder} is (layout {inside.layout}); give that "
                "folder"
            )
    every = sorted(p for p in root.iterdir() if not p.name.startswith("."))
    if not every:
        found = "it is empty"
    else:
        names = [f"{p.name}/" if p.is_dir() else p.name for p in every]
        num_files = sum(p.is_file() for p in every)
        num_folders = len(every) - num_files
        found = f"it holds {num_files} files and {num_folders} folders: {first_names(names)}"
    return (
        f"{root} holds no data set in COCO layout (instances_train.json), VOC layout "
        f"(Annotations/*.xml) or YOLO layout (data.yaml): {found}"
    )
