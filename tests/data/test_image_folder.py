"""Image folders and tars of them, whole or broken."""

import bz2
import gzip
import io
import lzma
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detofa.data import image_folder
from detofa.data.image_folder import load_image_folder, unpacked
from detofa.errors import UserError


def write_folder(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        for name in ("glass", "paper"):
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


def test_each_image_is_one_object_that_fills_it(tmp_path: Path) -> None:
    dataset = load_image_folder(write_folder(tmp_path), "train")
    assert dataset.boxes_per_class() == (3, 3)
    assert [category.name for category in dataset.categories] == ["glass", "paper"]
    for image in dataset.images:
        assert image.boxes_xyxy.tolist() == [[0, 0, 30, 20]]
        assert image.labels[0] == ["glass", "paper"].index(image.path.parent.name)


def test_a_tar_gives_the_same_images_and_is_unpacked_once(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(source, arcname="set")
    first = unpacked(tmp_path / "set.tar", tmp_path / "unpacked")
    names = [image.path.relative_to(first) for image in load_image_folder(first, "val").images]
    folder = load_image_folder(source, "val")
    assert names == [image.path.relative_to(source) for image in folder.images]
    (tmp_path / "set.tar").write_bytes(b"not read again")
    assert unpacked(tmp_path / "set.tar", tmp_path / "unpacked") == first


def test_a_broken_tar_leaves_nothing(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(source, arcname=".")
    whole = (tmp_path / "set.tar").read_bytes().rstrip(b"\0")
    for length in (0, 700, len(whole) // 3, len(whole) // 3 // 512 * 512, len(whole)):
        (tmp_path / "set.tar").write_bytes(whole[:length])
        with pytest.raises(UserError, match="unpacked"):
            unpacked(tmp_path / "set.tar", tmp_path / "unpacked")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.tar"]


def test_a_tar_that_reaches_outside_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "secret", arcname="../escaped")
    with pytest.raises(UserError, match="unpacked"):
        unpacked(tmp_path / "set.tar", tmp_path / "inside" / "unpacked")
    assert not (tmp_path / "escaped").exists()


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", ("train",))
    with pytest.raises(UserError, match="has no split 'val'"):
        load_image_folder(root, "val")
    with pytest.raises(UserError, match="does not exist"):
        load_image_folder(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="does not exist"):
        unpacked(tmp_path / "nowhere.tar", tmp_path / "unpacked")
    (root / "val" / "metal").mkdir(parents=True)
    training = load_image_folder(root, "train")
    with pytest.raises(UserError, match="metal"):
        load_image_folder(root, "val", categories=training.categories)
    (root / "train" / "glass" / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1 images cannot be read.*0\.png"):
        load_image_folder(root, "train")
    assert len(load_image_folder(root, "train", skip_bad=True).images) == 5


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_tar_with_anything_but_files_and_folders_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(write_folder(tmp_path / "set"), arcname=".")
        member = tarfile.TarInfo("train/glass/link.png")
        member.type, member.linkname = kind, "0.png"
        archive.addfile(member)
    with pytest.raises(UserError, match="neither a file nor a folder"):
        unpacked(tmp_path / "set.tar", tmp_path / "unpacked")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "set.tar"]


def test_a_tar_that_would_fill_the_disk_is_refused(tmp_path: Path, monkeypatch) -> None:
    """A megabyte of zeros takes a kilobyte compressed."""
    monkeypatch.setattr(image_folder, "_MOST_BYTES", 1 << 20)
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        for number in range(2):
            member = tarfile.TarInfo(f"train/a/{number}.png")
            member.size = 1 << 20
            archive.addfile(member, io.BytesIO(bytes(1 << 20)))
    with pytest.raises(UserError, match="would fill more than"):
        unpacked(tmp_path / "set.tar.gz", tmp_path / "unpacked")
    assert [path.name for path in tmp_path.iterdir()] == ["set.tar.gz"]


def test_a_header_that_says_it_is_as_large_as_memory_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("train/a/0.png")
        member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 24
        archive.addfile(member, io.BytesIO(bytes(1 << 24)))
    with pytest.raises(UserError, match="a header of 16777216 bytes"):
        unpacked(tmp_path / "set.tar.gz", tmp_path / "unpacked")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_unpacked_and_a_damaged_one_refused(tmp_path: Path, compress) -> None:
    with tarfile.open(tmp_path / "plain", "w") as archive:
        archive.add(write_folder(tmp_path / "set"), arcname=".")
    whole = compress((tmp_path / "plain").read_bytes())
    (tmp_path / "set.tar").write_bytes(whole)
    root = unpacked(tmp_path / "set.tar", tmp_path / "unpacked")
    assert len(load_image_folder(root, "train").images) == 6
    for data in (whole[:-30], whole[:500] + b"\xff" * 9 + whole[509:]):
        (tmp_path / "set.tar").write_bytes(data)
        with pytest.raises(UserError, match="cannot be unpacked as a tar"):
            unpacked(tmp_path / "set.tar", tmp_path / "again")
