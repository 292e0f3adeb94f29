"""Image folders and tars of them, whole or broken."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
