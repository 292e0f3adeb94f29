"""YOLO layout: data.yaml with the names and the folders, one text file of boxes per image."""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

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
from detofa.files import files_in

_MOST_YAML_BYTES = 1 << 17  # the names of a thousand classes take some 20 KB
_DEEPEST = 50  # lists of a YAML file in each other
_NOT_NORMALISED = 2.0  # a fraction of the image may pass 1 by a little, pixels pass this


def find_splits(root: Path) -> dict[str | None, tuple[Path, ...]] | None:
    """Find the images of each split.

    Splits come from the paths in data.yaml, else from folders such as `images/train` or
    `train/images`.

    Returns:
        Image files per split, with the key None where there are no splits; None where the folder
        has neither a data.yaml nor label files.

    Raises:
        UserError: data.yaml is broken, or names a folder that does not exist.
    """
    settings = _settings_file(root)
    if settings is None and not _has_labels(root):
        return None
    content = _read_yaml(settings) if settings is not None else {}
    found: dict[str, tuple[Path, ...]] = {}
    for key, value in content.items():
        split = canonical_split(str(key))
        if split is not None and value:
            assert settings is not None
            found[split] = _images_at(value, content, settings, str(key))
    if not found:
        for base in (root, root / "images"):
            for folder in subfolders(base):
                split = canonical_split(folder.name)
                paths = tuple(images_in(folder / "images")) or tuple(images_in(folder))
                if split is not None and paths:
                    found[split] = paths
    if not found:
        return {None: tuple(images_in(root / "images")) or tuple(images_in(root))}
    return {split: found[split] for split in SPLITS if split in found}


def read_annotations(
    root: Path, splits: Mapping[str | None, tuple[Path, ...]], split: str | None
) -> Annotations:
    """Read the labels of one split's images.

    An image without a label file has no boxes. A row with more than five values is a polygon,
    and its bounding box is taken.

    Args:
        root: The data set's folder.
        splits: What `find_splits` found.
        split: One of its keys.

    Raises:
        UserError: no class names.
    """
    categories = _categories(root)
    every_image = sorted({path for paths in splits.values() for path in paths})
    image_ids = {path: number for number, path in enumerate(every_image, start=1)}
    images, faults = [], []
    for path in splits[split]:
        label_file = _label_file(path)
        objects, label_faults = _read_labels(label_file)
        faults += label_faults
        images.append(
            AnnotatedImage(
                image_id=image_ids[path],
                path=path,
                annotated_size=None,
                objects=objects,
                normalised=True,
                source=label_file,
            )
        )
    return Annotations(categories=categories, images=tuple(images), faults=tuple(faults))


def _settings_file(root: Path) -> Path | None:
    names = ["data.yaml", "data.yml", "dataset.yaml", "dataset.yml"]
    paths = [root / name for name in names] + sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    for path in paths:
        if path.is_file():
            try:
                content = _parse_yaml(path)
            except ValueError:
                if path.stem == "data":
                    return path
                continue
            if isinstance(content, dict) and "names" in content:
                return path
    return None


def _has_labels(root: Path) -> bool:
    label_folders = [root / "labels", *(folder / "labels" for folder in subfolders(root))]
    return any(path.suffix == ".txt" for folder in label_folders for path in files_in(folder))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = _parse_yaml(path)
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold `names:` and `train:`, `val:`, `test:` paths")
    return content


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no annotations
    """Refuses aliases, by which a few lines can stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has aliases; write out what they stand for")
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Refuse lists in lists in lists: what they take grows with the square of their depth."""
        if self.flow_level >= _DEEPEST:
            raise ValueError(f"it has lists nested more than {_DEEPEST} deep")
        super().fetch_flow_collection_start(token)


def _whole_number(loader: Any, node: Any) -> int:
    number: int = loader.construct_yaml_int(node)
    str(number)  # raises ValueError for thousands of digits, which no message could show
    return number


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def _parse_yaml(path: Path) -> Any:
    """Return what a YAML file holds; raises ValueError where it is none, or too large."""
    try:
        if path.stat().st_size > _MOST_YAML_BYTES:
            raise ValueError(f"it has more than {_MOST_YAML_BYTES} bytes")
        return _yaml_of(path.read_text(encoding="utf-8"))
    except Exception as error:  # PyYAML raises a dozen types for values that are not of their tag
        raise ValueError(str(error) or type(error).__name__) from None


@lru_cache(maxsize=4)  # PyYAML reads 30 KB a second, and a file is asked for several times
def _yaml_of(text: str) -> Any:
    return yaml.load(text, _Loader)


def _images_at(value: Any, content: dict[str, Any], settings: Path, key: str) -> tuple[Path, ...]:
    """Return the images at one of data.yaml's paths: a folder, a list file, or several."""
    images: list[Path] = []
    for entry in value if isinstance(value, list) else [value]:
        path = _resolve(str(entry), content, settings, key)
        if path.is_file():
            for line in read_lines(path):
                if line.strip():
                    images.append(_listed(path, line.strip().replace("\\", "/")))
        else:
            inner = list(images_in(path)) or list(images_in(path / "images"))
            images += inner or [p for folder in subfolders(path) for p in images_in(folder)]
    return tuple(dict.fromkeys(images))


def _listed(source: Path, line: str) -> Path:
    try:
        path = (source.parent / line).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        raise UserError(f"{source} lists {line[:60]!r}, which is no path: {error}") from None
    if not path.name:
        raise UserError(f"{source} lists {line[:60]!r}, which is no image")
    return path


def _resolve(entry: str, content: dict[str, Any], settings: Path, key: str) -> Path:
    folder = settings.parent
    entry = entry.replace("\\", "/")
    stripped = entry
    while stripped.startswith(("../", "./")):  # Roboflow writes ../train/images for train/images
        stripped = stripped.split("/", 1)[1]
    base = str(content.get("path") or "")
    tried = [folder / base / entry, folder / entry, folder / base / stripped, folder / stripped]
    for path in tried:
        if os.path.exists(path):  # Path's raises for a name that the system refuses
            return path
    raise UserError(
        f"{settings}: `{key}: {entry}` does not exist; looked for {tried[0]} and {tried[-1]}; "
        "correct the path (it is relative to `path:`, or to this file)"
    )


def _categories(root: Path) -> tuple[Category, ...]:
    settings = _settings_file(root)
    names: Any = None
    if settings is not None:
        names = _read_yaml(settings).get("names")
    else:
        for path in (root / "classes.txt", root / "labels" / "classes.txt"):
            if path.is_file():
                names = [line.strip() for line in read_lines(path)]
                names = [name for name in names if name]
                break
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UserError(
            f"{settings or root} has no class names; write them in {root / 'data.yaml'} as "
            "`names: [first, second]`"
        )
    try:
        return tuple(
            sorted(
                (Category(id=int(key), name=str(name)) for key, name in names.items()),
                key=lambda category: category.id,
            )
        )
    except (OverflowError, TypeError, ValueError):
        raise UserError(f"{settings}: the keys of `names` should be numbers") from None


def _label_file(image: Path) -> Path:
    """Return the label file of an image: `images` becomes `labels`, or it lies beside it."""
    parts = list(image.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            path = Path(*parts).with_suffix(".txt")
            return path if os.path.exists(path) else image.with_suffix(".txt")
    beside = image.with_suffix(".txt")
    inner = image.parent / "labels" / beside.name
    return inner if os.path.exists(inner) else beside


def _read_labels(path: Path) -> tuple[tuple[AnnotatedObject, ...], list[Fault]]:
    if not os.path.isfile(path):
        return (), []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = f"cannot read the labels ({error})"
        return (), [Fault(file=path, reason=reason, severity="error")]
    objects, faults = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                objects.append(_parse_row(line))
            except ValueError as error:
                reason = f"line {number} {error}"
                faults.append(Fault(file=path, reason=reason, severity="error"))
    return tuple(objects), faults


def _parse_row(line: str) -> AnnotatedObject:
    fields = line.split()
    try:
        category = float(fields[0])
        values = [float(field) for field in fields[1:]]
    except ValueError:
        raise ValueError(f"should hold numbers, got {line.strip()[:60]!r}") from None
    if not category.is_integer() or not (
        len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)
    ):
        raise ValueError(
            f"should hold a class and 4 numbers (or a polygon), got {line.strip()[:60]!r}"
        )
    if max(abs(value) for value in values) > _NOT_NORMALISED:
        raise ValueError(f"should hold fractions of the image size, got {line.strip()[:60]!r}")
    if len(values) == 4:
        x, y, width, height = values
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    return AnnotatedObject(category_id=int(category), box_xyxy=box)
