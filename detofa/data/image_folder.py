"""Images sorted into folders by class, or a tar of them: what a classifier is trained on.

`train/CLASS/*.jpg` and `val/CLASS/*.jpg`. Each image is read as one object that fills it, so that
all that serves detection data serves it as well.
"""

import bz2
import gzip
import lzma
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from detofa.data.dataset import Category, DetectionDataset
from detofa.data.records import (
    Fault,
    ImageRecord,
    canonical_split,
    first_names,
    images_in,
    subfolders,
)
from detofa.errors import UserError
from detofa.imaging import image_size

_MOST_BYTES, _MOST_TIMES = 1 << 30, 20  # unpacked: whichever is more; images hardly compress
_READ_BYTES = 1 << 14
_OPENERS: Mapping[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_LAYOUT = "train/CLASS/IMAGE.jpg and val/CLASS/IMAGE.jpg"


def load_image_folder(
    root: Path,
    split: str,
    *,
    categories: tuple[Category, ...] | None = None,
    skip_bad: bool = False,
) -> DetectionDataset:
    """Load one split of an image folder.

    Args:
        root: Its folder; see `unpacked` for a tar.
        split: train, val or test, or another usual name of these.
        categories: What the classes must be, those of the training split; by name.
        skip_bad: Leave out images that cannot be read instead of stopping.

    Returns:
        A split whose images each have one box, the image's own, of their class.

    Raises:
        UserError: no such folder, split or class, or (unless skip_bad) images that are broken.
    """
    name = canonical_split(split)
    folder = _split_folders(root).get(name or split)
    if folder is None:
        raise UserError(f"{root} has no split {split!r}; an image folder is laid out as {_LAYOUT}")
    classes = subfolders(folder)
    if not classes:
        raise UserError(f"{folder} holds no folder per class; it should be laid out as {_LAYOUT}")
    found = tuple(Category(id=i + 1, name=path.name) for i, path in enumerate(classes))
    wanted = found if categories is None else categories
    labels = {category.name: label for label, category in enumerate(wanted)}
    unknown = [category.name for category in found if category.name not in labels]
    if unknown:
        raise UserError(f"{folder} has classes that the training split lacks: {unknown}")
    images: list[ImageRecord] = []
    faults: list[Fault] = []
    for path in classes:
        for file in images_in(path):
            try:
                images.append(_whole_image(file, labels[path.name], len(images) + 1))
            except UserError as error:
                faults.append(Fault(file=file, reason=str(error), severity="error"))
    if faults and not skip_bad:
        raise UserError(
            f"{folder}: {len(faults)} images cannot be read: {first_names(faults, 3)}; mend them, "
            "or leave them out with --skip-bad"
        )
    if not images:
        raise UserError(f"{folder} holds no images")
    return DetectionDataset(
        root=root,
        layout="folder",
        split=name or split,
        categories=wanted,
        images=tuple(images),
        faults=tuple(faults),
    )


def unpacked(source: Path, folder: Path) -> Path:
    """Return the image folder itself, or where a tar of it has been unpacked.

    Args:
        source: A folder, or a tar file, which may be compressed.
        folder: Where a tar is unpacked, once; made whole or not at all.

    Raises:
        UserError: neither is there, or the tar is damaged, reaches outside its folder, holds links,
            or would fill the disk.
    """
    if source.is_dir():
        return source
    if not source.is_file():
        raise UserError(f"{source} does not exist; give an image folder, or a tar of one")
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            most = max(_MOST_BYTES, _MOST_TIMES * source.stat().st_size)
            with _opened(source) as content, _tar_of(content) as archive:
                archive.extractall(partial, _only_files(archive, most), filter="data")
                _expect_end(archive)
                _read_out(content, most)
            partial.rename(folder)
        except Exception as error:  # tarfile and the decompressors raise a dozen types
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(f"{source} cannot be unpacked as a tar: {error!r}") from error
    inside = subfolders(folder)
    return inside[0] if not _split_folders(folder) and len(inside) == 1 else folder


class _SmallReads:
    """A file for `tarfile`, which reads a header as long as it says that it is, into memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _READ_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _opened(source: Path) -> IO[bytes]:
    """Open a file, decompressed if it is compressed."""
    with source.open("rb") as file:
        begin = file.read(6)
    for magic, opener in _OPENERS.items():
        if begin.startswith(magic):
            content: IO[bytes] = opener(source)
            return content
    return source.open("rb")


def _tar_of(content: IO[bytes]) -> tarfile.TarFile:
    # It asks no more of a file than these three methods.
    return tarfile.TarFile(fileobj=_SmallReads(content), copybufsize=_READ_BYTES)  # type: ignore[arg-type]


def _only_files(archive: tarfile.TarFile, most: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive as long as they are files and folders, and not too large."""
    total = 0
    for member in archive:
        if not (member.isreg() or member.isdir()):
            raise tarfile.ReadError(f"{member.name!r} is neither a file nor a folder")
        if member.size < 0:  # older Pythons would read such an archive for ever
            raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes")
        total += tarfile.BLOCKSIZE + member.size
        if total > most:
            raise tarfile.ReadError(f"it would fill more than {most} bytes")
        yield member


def _expect_end(archive: tarfile.TarFile) -> None:
    """Raise unless an archive ends with its empty block; tarfile takes a cut one for whole."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it is cut short")


def _read_out(content: IO[bytes], most: int) -> None:
    """Read what follows the end: only there does a decompressor compare the checksum."""
    for _ in range(most // _READ_BYTES):
        if not content.read(_READ_BYTES):
            return
    raise tarfile.ReadError(f"it goes on for more than {most} bytes after its end")


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split, by its canonical name."""
    if not root.is_dir():
        raise UserError(f"the folder {root} does not exist; check the path")
    named = {canonical_split(path.name): path for path in subfolders(root)}
    return {name: path for name, path in named.items() if name is not None}


def _whole_image(path: Path, label: int, image_id: int) -> ImageRecord:
    height, width = image_size(path)
    return ImageRecord(
        image_id=image_id,
        path=path,
        height=height,
        width=width,
        boxes_xyxy=np.array([[0, 0, width, height]], np.float32),
        labels=np.array([label], np.int64),
        crowd=np.zeros(1, bool),
        areas=np.array([height * width], np.float64),
    )
