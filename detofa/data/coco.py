"""COCO layout: annotation files found by looking, images found by their file name."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detofa.data.records import (
    SPLITS,
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Category,
    Fault,
    canonical_split,
    first_names,
    subfolders,
)
from detofa.errors import UserError
from detofa.files import files_in, parse_json

_OTHER_TASKS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info", "detofa")
_SNIFF_LIMIT_BYTES = 64 << 20


def find_splits(root: Path) -> dict[str | None, Path] | None:
    """Find the annotation file of each split.

    Looks in the folder itself, in `annotations*` and in folders named after a split, for
    `instances_train.json`, `train.json`, `_annotations.coco.json` and the like.

    Returns:
        Annotation file per split, with the key None for a file that belongs to no split; None
        where the folder holds no COCO annotations.

    Raises:
        UserError: two files claim the same split.
    """
    found: dict[str | None, list[Path]] = {}
    for path in _candidates(root):
        found.setdefault(_split_of(path, root), []).append(path)
    if not found:
        return None
    if set(found) != {None}:
        found.pop(None, None)
    chosen: dict[str | None, Path] = {}
    for split in sorted(found, key=lambda name: SPLITS.index(name) if name else -1):
        paths = [p for p in found[split] if p.name.startswith("instances")] or found[split]
        if len(paths) > 1:
            raise UserError(
                f"{root} has {len(paths)} COCO annotation files for {split or 'the whole set'}: "
                f"{first_names(p.relative_to(root) for p in paths)}; keep one"
            )
        chosen[split] = paths[0]
    return chosen


def read_annotations(
    root: Path, splits: Mapping[str | None, Path], split: str | None
) -> Annotations:
    """Read one annotation file.

    Args:
        root: The data set's folder.
        splits: What `find_splits` found.
        split: One of its keys.

    Raises:
        UserError: the file is not COCO's object detection format.
    """
    source = splits[split]
    content = _read_json(source)
    categories = _categories(content, source)
    faults: list[Fault] = []
    objects: dict[int, list[AnnotatedObject]] = {}
    for record in content["annotations"]:
        try:
            image_id, item = _object(record)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"annotation {_identify(record)} is not in COCO's form ({error!r})"
            faults.append(Fault(file=source, reason=reason, severity="error"))
        else:
            objects.setdefault(image_id, []).append(item)
    finder = _ImageFinder(root, source)
    images: dict[int, AnnotatedImage] = {}
    for record in content["images"]:
        try:
            image = _image(record, objects, finder, source)
        except (KeyError, TypeError, ValueError, OverflowError, OSError) as error:
            reason = f"image {_identify(record)} is not in COCO's form ({error!r})"
            faults.append(Fault(file=source, reason=reason, severity="error"))
            continue
        if image.image_id in images:
            reason = f"image id {image.image_id} stands there twice, the second is left out"
            faults.append(Fault(file=source, reason=reason, severity="error"))
        else:
            images[image.image_id] = image
    strangers = sorted(set(objects) - set(images))
    if strangers:
        reason = f"annotations of {len(strangers)} unknown image ids: {first_names(strangers)}"
        faults.append(Fault(file=source, reason=reason, severity="error"))
    return Annotations(categories=categories, images=tuple(images.values()), faults=tuple(faults))


def _candidates(root: Path) -> Iterator[Path]:
    folders = [root]
    for folder in subfolders(root):
        if folder.name.lower().startswith(("annotation", "label")) or canonical_split(folder.name):
            folders.append(folder)
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            if path.name.startswith((*_OTHER_TASKS, ".")):
                continue
            well_known = path.name.startswith("instances") or "coco" in path.name.lower()
            if well_known or _looks_like_coco(path):
                yield path


def _looks_like_coco(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size > _SNIFF_LIMIT_BYTES:
            return False
        content = parse_json(path.read_bytes(), finite=False)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content)


def _split_of(path: Path, root: Path) -> str | None:
    for token in re.split(r"[^A-Za-z0-9]+", path.stem):
        split = canonical_split(token)
        if split is not None:
            return split
    return canonical_split(path.parent.name) if path.parent != root else None


def _read_json(source: Path) -> dict[str, Any]:
    try:
        content = parse_json(source.read_bytes(), finite=False)
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(
            f"{source} is not whole JSON ({error}); it may be truncated: copy or export it again"
        ) from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f"{source} should be COCO object detection JSON with lists of images, annotations "
                f"and categories, but has no list of {key}"
            )
    assert isinstance(content, dict)
    return content


def _categories(content: Mapping[str, Any], source: Path) -> tuple[Category, ...]:
    records = content["categories"]
    try:
        categories = [Category(id=int(c["id"]), name=str(c["name"])) for c in records]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{source}: each category needs an id (a number) and a name") from None
    ids = [category.id for category in categories]
    if len(set(ids)) < len(ids):
        raise UserError(f"{source}: two categories have the same id; ids are {first_names(ids)}")
    umbrella = _umbrella_category(content)
    kept = [category for category in categories if category.id != umbrella]
    if not kept:
        raise UserError(f"{source} has no categories; add the classes to its `categories` list")
    return tuple(sorted(kept, key=lambda category: category.id))


def _umbrella_category(content: Mapping[str, Any]) -> int | None:
    """Return the id of the unused category 0 that Roboflow adds as the parent of the others."""
    records = content["categories"]
    parents = [c for c in records if c["id"] == 0 and c.get("supercategory") == "none"]
    others = [c for c in records if c["id"] != 0]
    if len(parents) != 1 or not others:
        return None
    is_parent = all(c.get("supercategory") == parents[0]["name"] for c in others)
    annotations = content["annotations"]
    used = any(isinstance(a, dict) and a.get("category_id") == 0 for a in annotations)
    return 0 if is_parent and not used else None


def _object(record: Mapping[str, Any]) -> tuple[int, AnnotatedObject]:
    x, y, width, height = (float(value) for value in record["bbox"])
    area = record.get("area")
    item = AnnotatedObject(
        category_id=int(record["category_id"]),
        box_xyxy=(x, y, x + width, y + height),
        area=None if area is None else float(area),
        crowd=bool(record.get("iscrowd", 0)),
    )
    return int(record["image_id"]), item


def _image(
    record: Mapping[str, Any],
    objects: Mapping[int, list[AnnotatedObject]],
    finder: "_ImageFinder",
    source: Path,
) -> AnnotatedImage:
    image_id = int(record["id"])
    height, width = record.get("height"), record.get("width")
    return AnnotatedImage(
        image_id=image_id,
        path=finder.find(str(record["file_name"])),
        annotated_size=(int(height), int(width)) if height and width else None,
        objects=tuple(objects.get(image_id, ())),
        source=source,
    )


def _identify(record: Any) -> str:
    return str(record.get("id", "without id")) if isinstance(record, dict) else repr(record)[:40]


class _ImageFinder:
    """Finds images by the file name in the annotation, likely folders first."""

    def __init__(self, root: Path, source: Path) -> None:
        split = _split_of(source, root)
        names = [f.name for f in subfolders(root) if canonical_split(f.name) == split]
        if source.parent != root and canonical_split(source.parent.name):
            names = [source.parent.name]
        bases = [root, root / "images", root / "JPEGImages", root / "data"]
        self._folders = [source.parent, source.parent / "images", source.parent / "data"]
        for name in names:
            self._folders += [root / name, root / name / "images", root / name / "data"]
        self._folders += [
            child
            for base in bases[1:]
            for child in subfolders(base)
            if canonical_split(child.name) == split
        ]
        self._folders += bases
        self._root = root
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, file_name: str) -> Path:
        """Return the image's path; where there is none, the path where it was first looked for."""
        name = file_name.replace("\\", "/")
        for index, folder in enumerate(self._folders):
            path = folder / name
            if os.path.isfile(path):  # Path's raises for a name that the system refuses
                self._folders.insert(0, self._folders.pop(index))
                return path
        anywhere = self._anywhere().get(Path(name).name, [])
        return anywhere[0] if len(anywhere) == 1 else self._root / name

    def _anywhere(self) -> dict[str, list[Path]]:
        if self._by_name is None:
            self._by_name = {}
            for path in sorted(files_in(self._root)):
                self._by_name.setdefault(path.name, []).append(path)
        return self._by_name
