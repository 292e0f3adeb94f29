"""Readers of data sets: annotations in each layout, images, and tars of image folders."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from detofa.data.check import check_dataset
from detofa.data.dataset import available_splits, load_dataset
from detofa.data.image_folder import load_image_folder, unpacked
from detofa.imaging import image_size, letterbox, read_image
from tests.fuzz.mutations import WORDS, changed_bytes, changed_lines, changed_xml, files, json_files
from tests.fuzz.reader import Reader
from tests.fuzz.records import versioned


@cache
def image_bytes(suffix: str = "png", mode: str = "RGB", size: tuple[int, int] = (12, 16)) -> bytes:
    """Return an image of (height, width) as a file of a format."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode in ("LAB", "I;16"):
        image = image.convert("L").convert("I;16") if mode == "I;16" else Image.new("LAB", size)
    elif mode == "F":
        image = image.convert("F")
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, suffix)
    return file.getvalue()


def _load_all(root: Path) -> None:
    """Load what there is as training does, strictly and leniently."""
    check_dataset(root)
    for split in available_splits(root) or ("all",):
        load_dataset(root, split, skip_bad=True)
        load_dataset(root, split)


def coco(folder: Path) -> Reader:
    """Return the reader of COCO's layout, with the splits that `detofa data split` wrote."""
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 12, "width": 16},
            {"id": 2, "file_name": "images/b.png", "height": 12, "width": 16},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 5, 6], "area": 30},
            {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 9.5], "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog", "supercategory": "x"}],
    }
    text = json.dumps(content)
    names = {"train": ["a.png"], "val": ["images/b.png"], "test": []}
    splits = versioned("splits", {"seed": 0, "fractions": [0.5, 0.5, 0], "splits": names})
    return Reader(
        files={
            "annotations.json": text.encode(),
            "detofa_splits.json": splits.encode(),
            "a.png": image_bytes(),
            "images/b.png": image_bytes(),
        },
        changed=files(annotations__json=json_files(text))
        | files(detofa_splits__json=json_files(splits)),
        read=_load_all,
    )


def voc(folder: Path) -> Reader:
    """Return the reader of VOC's layout."""
    text = (
        "<annotation><filename>a.png</filename><size><width>16</width><height>12</height></size>"
        "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5.5</xmax><ymax>9</ymax>"
        "</bndbox></object></annotation>"
    )
    listed = "a\nb\nc 1\n"
    other = text.replace("a.png", "b.png").encode()
    return Reader(
        files={
            "Annotations/a.xml": text.encode(),
            "Annotations/b.xml": other,
            "ImageSets/Main/train.txt": b"a\n",
            "ImageSets/Main/val.txt": b"b\n",
            "JPEGImages/a.png": image_bytes(),
            "JPEGImages/b.png": image_bytes(),
        },
        changed=files(Annotations___a__xml=changed_xml(text))
        | files(ImageSets___Main___train__txt=changed_lines(listed)),
        read=_load_all,
        target="Annotations/a.xml",
    )


_YAML = """\
path: .
train: images/train
val: [images/val, list.txt]
nc: 2
names:
  0: cat
  1: dog
"""
_YAML_PIECES = (
    *("names: [cat, dog]", "test: images/train", "path: ..", "train: /etc", "train: list.txt"),
    *("x: 2020-99-99", "x: !!int ''", "x: !!float ''", "x: !!bool x", "x: !!timestamp x"),
    *("x: !!python/object/apply:os.system ['touch ../escaped']", "x: !!binary '%'", "? [a]\n: b"),
    *("names: {.inf: a}", "names: {1: a, '1': b}", "names: {0x" + "f" * 5000 + ": a}"),
    *("x: &a [*a]", "names: &n {0: *n}", "x: " + "[" * 2000, "x: " + "{a: " * 900, "<<: 1"),
    "? " + "1" * 60_000 + "x\n: y",
    "a: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 10))
    + "\nnames: *a9",
    "m0: &m0 {k: v}\n"
    + "\n".join(f"m{n}: &m{n} {{<<: [{f'*m{n - 1},' * 9}]}}" for n in range(1, 10)),
)  # fmt: skip


def yolo(folder: Path) -> Reader:
    """Return the reader of YOLO's layout."""
    rows = "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.2 0.1 0.3 0.3\n"
    listed = "images/val/c.png\n./images/val/b.png\n"
    row_pieces = ("1e300 0 0 1 1", "inf 0 0 1 1", "0 nan nan nan nan", "0 1 1", "-1 0 0 1 1")
    return Reader(
        files={
            "data.yaml": _YAML.encode(),
            "list.txt": listed.encode(),
            "images/train/a.png": image_bytes(),
            "images/val/b.png": image_bytes(),
            "images/val/c.png": image_bytes(),
            "labels/train/a.txt": rows.encode(),
            "labels/val/b.txt": rows.encode(),
        },
        changed=files(data__yaml=changed_lines(_YAML, _YAML_PIECES))
        | files(labels___train___a__txt=changed_lines(rows, row_pieces))
        | files(list__txt=changed_lines(listed, ("/", "/etc/passwd", "../../a.png", "images"))),
        read=_load_all,
        target="data.yaml",
    )


_IMAGES = (
    *(("png", "RGB"), ("png", "I;16"), ("png", "P"), ("png", "LA"), ("png", "1")),
    *(("jpeg", "RGB"), ("jpeg", "CMYK"), ("jpeg", "L"), ("bmp", "RGB"), ("bmp", "P")),
    *(("webp", "RGBA"), ("tiff", "RGB"), ("tiff", "LAB"), ("tiff", "F"), ("tiff", "CMYK")),
    *(("gif", "P"), ("ppm", "RGB"), ("tga", "RGB"), ("ico", "RGBA"), ("pcx", "RGB")),
    *(("eps", "RGB"), ("pdf", "RGB"), ("sgi", "RGB"), ("dds", "RGB")),
)


def _read_image(path: Path) -> None:
    height, width = image_size(path)
    pixels = read_image(path)
    assert pixels.shape == (height, width, 3), (pixels.shape, height, width)
    assert min(height, width) > 0
    letterbox(pixels, (64, 64))


def images(folder: Path) -> Reader:
    """Return the reader of images."""
    valid = [image_bytes(*kind) for kind in _IMAGES]
    return Reader(
        files={"a.png": valid[0]},
        changed=files(a__png=st.sampled_from(valid).flatmap(changed_bytes)),
        read=lambda folder: _read_image(folder / "a.png"),
        target="a.png",
    )


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """Return a tar of files by name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            _add(archive, tarfile.TarInfo(name), content)
    return file.getvalue()


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, content: bytes) -> None:
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


_NAMES = (
    *("train/a/0.png", "val/a/1.png", "train/../../escaped", "/escaped", "../escaped", "train/a"),
    *("train", "..", ".", "", "train/b/" + "x" * 300, "train/b/\udcff.png", "a/" * 300 + "b"),
)
_KINDS = (
    *(tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE),
    *(tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.GNUTYPE_SPARSE, b"Z"),
)
_PACKERS: tuple[Callable[[bytes], bytes], ...] = (
    *(bytes, bytes, gzip.compress, bz2.compress, lzma.compress),
)


@st.composite
def _tars(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw a tar with strange members, or a changed one; perhaps compressed."""
    pack = draw(st.sampled_from(_PACKERS))
    if draw(st.booleans()):
        return draw(changed_bytes(pack(valid)))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=draw(st.sampled_from((0, 1, 2)))) as archive:
        for name in draw(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4)):
            member = tarfile.TarInfo(name)
            member.type = draw(st.sampled_from(_KINDS))
            member.linkname = draw(st.sampled_from(_NAMES))
            member.mode = draw(st.sampled_from((0o644, 0o4777, 0)))
            member.mtime = draw(st.sampled_from((0, 2**33 - 1)))
            if archive.format == tarfile.PAX_FORMAT and draw(st.booleans()):
                key = draw(st.sampled_from(("path", "linkpath", "size", "mtime", "GNU.sparse.map")))
                member.pax_headers = {key: draw(st.sampled_from((*_NAMES, *WORDS)))}
            try:
                _add(archive, member, image_bytes())
            except (UnicodeError, ValueError):
                continue
    data = file.getvalue()
    if draw(st.integers(0, 3)) == 0:
        data = with_size(data, draw(st.sampled_from((-1024, -1, 1, 2**40, 2**62))))
    return pack(data)


def with_size(data: bytes, size: int) -> bytes:
    """Return a tar whose first member says another size."""
    member = bytearray(data[:512])
    member[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    member[148:156] = b" " * 8
    member[148:156] = b"%06o\0 " % sum(member)
    return bytes(member) + data[512:]


def image_tars(folder: Path) -> Reader:
    """Return the reader of tars of image folders."""
    names = ("train/a/0.png", "train/b/1.png", "val/a/2.png", "val/b/3.png")
    valid = tar_of(dict.fromkeys(names, image_bytes()))

    def read(folder: Path) -> None:
        root = unpacked(folder / "set.tar", folder / "unpacked")
        categories = load_image_folder(root, "train", skip_bad=True).categories
        load_image_folder(root, "val", categories=categories)

    return Reader(
        files={"set.tar": valid},
        changed=files(set__tar=_tars(valid)),
        read=read,
        target="set.tar",
    )
