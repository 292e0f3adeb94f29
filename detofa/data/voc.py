"""Pascal VOC layout: one XML file per image; coordinates may be fractions of a pixel.

Coordinates are taken as they stand: xmin, ymin, xmax, ymax are the edges of the box in pixels.
Objects marked difficult are ordinary boxes here.
"""

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from detofa.data.records import (
    SPLITS,
    AnnotatedImage,
    AnnotatedObject,
    Annotations,
    Category,
    Fault,
    canonical_split,
    images_in,
    read_lines,
    subfolders,
)
from detofa.errors import UserError


def find_splits(root: Path) -> dict[str | None, tuple[Path, ...]] | None:
    """Find the annotation files of each split.

    Splits come from `ImageSets/Main/{split}.txt`, or from folders named after a split that hold
    XML files. Names in a list without an XML file are kept, so that reading reports them.

    Returns:
        Annotation files per split, with the key None where there are no splits; None where the
        folder holds no VOC annotations.
    """
    annotations = _annotation_folder(root)
    if annotations is not None:
        lists: dict[str, Path] = {}
        for folder in (root / "ImageSets" / "Main", root / "ImageSets"):
            if folder.is_dir():
                for path in sorted(folder.glob("*.txt")):
                    split = canonical_split(path.stem)
                    if split is not None:
                        lists.setdefault(split, path)
        if not lists:
            return {None: tuple(sorted(annotations.glob("*.xml")))}
        return {s: _listed(lists[s], annotations) for s in SPLITS if s in lists}
    found: dict[str | None, tuple[Path, ...]] = {}
    for folder in subfolders(root):
        split = canonical_split(folder.name)
        inner = _annotation_folder(folder)
        if split is not None and inner is not None:
            found[split] = tuple(sorted(inner.glob("*.xml")))
    return {split: found[split] for split in SPLITS if split in found} or None


def read_annotations(
    root: Path, splits: Mapping[str | None, tuple[Path, ...]], split: str | None
) -> Annotations:
    """Read the annotation files of one split.

    VOC has no category ids: the names found in all splits get 1, 2, ... in alphabetical order.

    Args:
        root: The data set's folder.
        splits: What `find_splits` found.
        split: One of its keys.

    Raises:
        UserError: no object has a name.
    """
    wanted = set(splits[split])
    every_file = sorted({path for paths in splits.values() for path in paths})
    faults: list[Fault] = []
    trees: dict[Path, ElementTree.Element] = {}
    names: set[str] = set()
    for path in every_file:
        try:
            tree = ElementTree.parse(path).getroot()
        except (OSError, LookupError, ElementTree.ParseError, ValueError) as error:
            # LookupError: an encoding that Python does not know
            if path in wanted:
                reason = f"cannot read the annotation ({getattr(error, 'strerror', None) or error})"
                faults.append(Fault(file=path, reason=reason, severity="error"))
            continue
        names |= {_name(item) for item in tree.iter("object") if _name(item)}
        if path in wanted:
            trees[path] = tree
    if not names:
        raise UserError(f"the annotations in {root} hold no objects; each needs a <name>, <bndbox>")
    categories = tuple(Category(id=n, name=name) for n, name in enumerate(sorted(names), start=1))
    id_of_name = {category.name: category.id for category in categories}
    image_ids = {path: number for number, path in enumerate(every_file, start=1)}
    finder = _ImageFinder(root)
    images = []
    for path, tree in trees.items():
        objects, object_faults = _objects(tree, path, id_of_name)
        faults += object_faults
        images.append(
            AnnotatedImage(
                image_id=image_ids[path],
                path=finder.find(path, tree.findtext("filename") or ""),
                annotated_size=_size(tree),
                objects=objects,
                source=path,
            )
        )
    return Annotations(
        categories=categories, images=tuple(images), faults=tuple(faults), own_ids=False
    )


def _annotation_folder(root: Path) -> Path | None:
    for folder in (root / "Annotations", root / "annotations", root):
        if folder.is_dir() and next(folder.glob("*.xml"), None) is not None:
            return folder
    return None


def _listed(path: Path, annotations: Path) -> tuple[Path, ...]:
    files = []
    for line in read_lines(path):
        name = line.strip()
        if name:
            whole = annotations / f"{name}.xml"
            found = os.path.exists(whole)  # Path's raises for a name that the system refuses
            files.append(whole if found else annotations / f"{name.split()[0]}.xml")
    return tuple(dict.fromkeys(files))


def _name(item: ElementTree.Element) -> str:
    return (item.findtext("name") or "").strip()


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Return (height, width); many tools leave them 0 or out, which says nothing."""
    try:
        height = round(float(tree.findtext("size/height") or 0))
        width = round(float(tree.findtext("size/width") or 0))
    except (OverflowError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _objects(
    tree: ElementTree.Element, path: Path, id_of_name: dict[str, int]
) -> tuple[tuple[AnnotatedObject, ...], list[Fault]]:
    objects, faults = [], []
    for item in tree.iter("object"):
        name = _name(item)
        try:
            left, top, right, bottom = (
                float(item.findtext(f"bndbox/{side}") or "missing")
                for side in ("xmin", "ymin", "xmax", "ymax")
            )
            objects.append(
                AnnotatedObject(category_id=id_of_name[name], box_xyxy=(left, top, right, bottom))
            )
        except (KeyError, ValueError):
            reason = f"object {name or 'without a name'} has no whole <name> and <bndbox>"
            faults.append(Fault(file=path, reason=reason, severity="error"))
    return tuple(objects), faults


class _ImageFinder:
    """Finds the image of an annotation by the annotation's own name, else by <filename>."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_stem: dict[Path, dict[str, Path]] = {}

    def find(self, annotation: Path, file_name: str) -> Path:
        """Return the image's path, or where it should be."""
        name = PurePosixPath(file_name.strip().replace("\\", "/")).name
        parent = annotation.parent
        folders = [self._root / "JPEGImages", self._root / "images", parent]
        folders += [parent.parent / "JPEGImages", parent.parent / "images"]
        for stem in (annotation.stem, PurePosixPath(name).stem, name):
            for folder in folders:
                path = self._stems(folder).get(stem)
                if path is not None:
                    return path
        return folders[0] / (name or f"{annotation.stem}.jpg")

    def _stems(self, folder: Path) -> dict[str, Path]:
        if folder not in self._by_stem:
            self._by_stem[folder] = {path.stem: path for path in images_in(folder)}
        return self._by_stem[folder]
