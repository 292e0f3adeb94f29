import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.method import glyphs
from benchmarks.method.glyph_scene import paint_crop, paint_scene
from benchmarks.method.glyph_shapes import FONTS, shape_distances, turned_glyph
from benchmarks.method.glyph_task import CLASSES, NO_CLASS, GlyphTask
from benchmarks.method.glyphs import TASK_FILE, make_crops, make_scenes
from detofa.data.check import check_dataset
from detofa.data.dataset import available_splits, load_dataset
from detofa.errors import UserError
from detofa.files import read_json
from detofa.imaging import read_image

ROOT = Path(__file__).resolve().parents[2]
TASK = GlyphTask.at_difficulty(0.5, num_classes=12)


def _digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _scenes(task, count=40):
    return [paint_scene(task, FONTS, np.random.default_rng([7, n])) for n in range(count)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    make_scenes(root, TASK, seed=0, train=40, val=30, test=30)
    return root


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    root = tmp_path_factory.mktemp("crops")
    make_crops(root, TASK, seed=0, train=30, val=12)
    return root


def test_the_same_seed_gives_the_same_scenes_by_bytes(scenes, tmp_path):
    make_scenes(tmp_path / "again", TASK, seed=0, train=40, val=30, test=30)
    assert _digests(tmp_path / "again") == _digests(scenes)
    make_scenes(tmp_path / "other", TASK, seed=1, train=2, val=1, test=1)
    first = "images/train/train_000000.jpg"
    assert _digests(tmp_path / "other")[first] != _digests(scenes)[first]


def test_a_larger_set_begins_with_a_smaller_one(scenes, tmp_path):
    make_scenes(tmp_path / "few", TASK, seed=0, train=3, val=2, test=2)
    few, many = _digests(tmp_path / "few"), _digests(scenes)
    images = [name for name in few if name.endswith(".jpg")]
    assert len(images) == 7
    assert all(few[name] == many[name] for name in images)


def test_scenes_are_a_whole_coco_set_with_three_splits(scenes):
    assert available_splits(scenes) == ("train", "val", "test")
    report = check_dataset(scenes)
    assert [split.num_images for split in report.splits] == [40, 30, 30]
    assert not report.faults
    assert not report.copies
    categories = load_dataset(scenes, "test").categories
    assert [(c.id, c.name) for c in categories] == [
        (label + 1, CLASSES[label].name) for label in range(12)
    ]
    record = read_json(scenes / TASK_FILE, "glyph_task", remake="a test")
    assert GlyphTask.from_json(record["task"]) == TASK
    assert record["images"] == {"train": 40, "val": 30, "test": 30}


def test_boxes_lie_inside_and_have_the_sizes_and_counts_of_the_task(scenes):
    for split in ("train", "val", "test"):
        images = load_dataset(scenes, split).images
        assert {(image.height, image.width) for image in images} == {(128, 160)}
        counts = [len(image.labels) for image in images]
        assert min(counts) >= 1
        assert max(counts) <= 8
        boxes = np.concatenate([image.boxes_xyxy for image in images])
        assert boxes.min() >= 0
        assert (boxes[:, 2] <= 160).all()
        assert (boxes[:, 3] <= 128).all()
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= 2
        assert sides.max(axis=1).min() >= 16 - 3
        assert sides.max() <= 60 + 2


def test_every_class_is_in_each_split_about_equally_often(scenes):
    """About 150 boxes or more and 12 classes, so 12 of each are expected, give or take 4."""
    for split in ("train", "val", "test"):
        counts = np.array(load_dataset(scenes, split).boxes_per_class())
        assert counts.sum() > 120
        assert counts.min() >= 3
        assert counts.max() <= 3 * counts.mean()


def test_no_image_is_in_two_splits_and_no_crop_is_a_scene(scenes, crops):
    for root, count in ((scenes, 100), (crops, 42)):
        pictures = [v for k, v in _digests(root).items() if k.endswith((".jpg", ".png"))]
        assert len(set(pictures)) == len(pictures) == count


def test_each_split_has_the_fonts_it_is_given(tmp_path):
    task = dataclasses.replace(
        TASK, train_fonts=FONTS[:5], val_fonts=FONTS[5:6], test_fonts=FONTS[6:]
    )
    make_scenes(tmp_path, task, seed=0, train=10, val=3, test=10)
    for split, fonts in (("train", FONTS[:5]), ("val", FONTS[5:6]), ("test", FONTS[6:])):
        content = json.loads((tmp_path / "annotations" / f"instances_{split}.json").read_text())
        used = {annotation["font"] for annotation in content["annotations"]}
        assert used <= set(fonts)
        assert len(used) >= min(3, len(fonts))


def test_a_box_is_tight_around_the_glyph():
    """On a plain background, what differs from its median fills the box and nothing else."""
    task = dataclasses.replace(
        GlyphTask.at_difficulty(0, num_classes=50), objects_per_image=(1, 1), rotation_degrees=30.0
    )
    for scene in _scenes(task):
        (glyph,) = scene.glyphs
        background = np.median(scene.pixels.reshape(-1, 3), axis=0)
        rows, columns = np.nonzero(np.abs(scene.pixels - background).max(axis=2) > 45)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(found, glyph.box_xyxy)).max() <= 2


def test_the_box_covers_what_a_bar_hides():
    hidden = dataclasses.replace(TASK, clutter=0.0, occlusion=0.5)
    shares = [glyph.hidden_share for scene in _scenes(hidden) for glyph in scene.glyphs]
    assert 0.1 < np.mean(shares) < 0.35
    assert max(shares) < 0.6
    for scene in _scenes(hidden, 5):
        for glyph in scene.glyphs:
            left, top, right, bottom = glyph.box_xyxy
            whole = turned_glyph(
                CLASSES[glyph.label].character,
                glyph.font,
                max(right - left, bottom - top),
                glyph.rotation_degrees,
            )
            assert np.abs(np.subtract(whole.shape, (bottom - top, right - left))).max() <= 3


def test_harder_scenes_have_less_contrast_more_clutter_and_more_hidden():
    contrast, clutter, hidden, small, inside = [], [], [], [], []
    for difficulty in (0.0, 0.25, 0.5, 0.75, 1.0):
        painted = _scenes(GlyphTask.at_difficulty(difficulty))
        every = [glyph for scene in painted for glyph in scene.glyphs]
        contrast.append(np.mean([glyph.contrast_luma for glyph in every]))
        hidden.append(np.mean([glyph.hidden_share for glyph in every]))
        clutter.append(np.mean([scene.clutter_share for scene in painted]))
        boxes = np.array([glyph.box_xyxy for glyph in every])
        small.append(np.median((boxes[:, 2:] - boxes[:, :2]).max(axis=1)))
        luma = [scene.pixels @ np.array([0.299, 0.587, 0.114]) for scene in painted]
        inside.append(
            np.mean(
                [
                    picture[g.box_xyxy[1] : g.box_xyxy[3], g.box_xyxy[0] : g.box_xyxy[2]].std()
                    for picture, scene in zip(luma, painted, strict=True)
                    for g in scene.glyphs
                ]
            )
        )
    for falling in (contrast, small, inside):
        assert falling == sorted(falling, reverse=True)
    for rising in (clutter, hidden):
        assert rising == sorted(rising)
    assert (clutter[0], clutter[-1] > 0.08) == (0, True)
    assert (hidden[0] < 0.01, hidden[-1] > 0.1) == (True, True)
    assert inside[-1] < 0.7 * inside[0]


def test_crops_are_folders_of_classes_that_take_turns(crops):
    names = {glyph_class.name for glyph_class in CLASSES[:12]}
    for split, least, most in (("train", 2, 3), ("val", 1, 1)):
        folders = {path.name: sorted(path.iterdir()) for path in (crops / split).iterdir()}
        assert set(folders) == names
        assert all(least <= len(pictures) <= most for pictures in folders.values())
        assert read_image(folders["A"][0]).shape == (64, 64, 3)
        assert folders["small_r"][0].name == "00000.png"


def test_the_same_seed_gives_the_same_crops_by_bytes(crops, tmp_path):
    make_crops(tmp_path / "again", TASK, seed=0, train=30, val=12)
    assert _digests(tmp_path / "again") == _digests(crops)
    make_crops(tmp_path / "other", TASK, seed=1, train=30, val=12)
    first = "train/A/00000.png"
    assert _digests(tmp_path / "other")[first] != _digests(crops)[first]


def test_a_crop_shows_its_glyph_whole_and_large():
    for number in range(40):
        scene = paint_crop(TASK, number % 12, 64, FONTS, np.random.default_rng(number))
        (glyph,) = scene.glyphs
        assert glyph.label == number % 12
        left, top, right, bottom = glyph.box_xyxy
        assert min(left, top) >= 0
        assert max(right, bottom) <= 64
        assert 0.4 * 64 <= max(right - left, bottom - top) <= 0.95 * 64


def test_the_longer_side_of_a_turned_glyph_is_what_was_asked_for():
    for font in FONTS:
        for character in ("A", "m", "@", "J"):
            for side in (12, 33, 90):
                for angle in (0, -17, 30):
                    coverage = turned_glyph(character, font, side, angle)
                    assert abs(max(coverage.shape) - side) <= 2
                    assert 0 <= coverage.min() <= coverage.max() <= 1


def test_a_turn_is_counter_clockwise():
    """The rightmost ink of an L ends its foot, which goes up; turned back, it is the stem's top."""
    height = {}
    for angle in (-30, 0, 30):
        inked = turned_glyph("L", "DejaVuSans", 100, angle) > 0.5
        height[angle] = 1 - np.flatnonzero(inked[:, -3]).mean() / inked.shape[0]
    assert height[0] < 0.1
    assert 0.15 < height[30] < 0.5
    assert height[-30] > 0.6


def test_classes_have_names_for_folders():
    names = [glyph_class.name for glyph_class in CLASSES]
    assert len({name.lower() for name in names}) == len(CLASSES) == 50
    assert all(name.replace("_", "").isalnum() for name in names)


LEFT_OUT = [("S", "s"), ("O", "o"), ("W", "w"), ("C", "c"), ("Z", "z"), ("P", "p"), ("X", "x")]


@pytest.fixture(scope="module")
def distances():
    """(50 classes, 7 left out, 8 symbols of no class) squared, a mean over three fonts."""
    characters = [glyph_class.character for glyph_class in CLASSES]
    small = [pair[1] for pair in LEFT_OUT]
    fonts = ("DejaVuSans", "DejaVuSerif", "STIXGeneral")
    far = np.eye(50 + 7 + 8)
    return shape_distances([*characters, *small, *NO_CLASS], fonts, 30).mean(axis=0) + far


def test_a_letter_left_out_is_nearer_to_its_capital_than_any_two_classes_are(distances):
    characters = [glyph_class.character for glyph_class in CLASSES]
    closest = distances[:50, :50].min()
    assert closest > 0.11
    for number, (capital, _) in enumerate(LEFT_OUT):
        assert distances[50 + number, characters.index(capital)] < closest


def test_more_classes_are_finer_ones(distances):
    """The closest pair is closer, the more classes there are."""
    closest = [distances[:count, :count].min() for count in (8, 16, 24, 36, 50)]
    assert closest == sorted(closest, reverse=True)
    assert closest[0] > 0.18
    assert closest[2] > 1.2 * closest[-1]


def test_symbols_of_no_class_look_like_no_class(distances):
    assert distances[57:, :50].min() > 0.13


def test_shape_distance_is_zero_for_one_shape_and_large_for_others():
    distances = shape_distances(["O", "O", "L"], FONTS[:1], 30)
    assert distances.shape == (1, 3, 3)
    assert distances[0, 0, 1] == 0
    assert distances[0, 0, 2] > 0.2
    assert (distances == distances.transpose(0, 2, 1)).all()


def test_a_task_goes_through_json():
    assert GlyphTask.from_json(json.loads(json.dumps(TASK.to_json()))) == TASK


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 51}, "num_classes should be a number .whole. from 2 to 50, got 51"),
        ({"num_classes": 12.0}, "num_classes should be a number .whole."),
        ({"image_size": (128,)}, "image_size should be 2 numbers .whole. from 32 to 4096"),
        ({"objects_per_image": (0, 3)}, "objects_per_image should be 2 numbers"),
        ({"objects_per_image": (5, 3)}, "objects_per_image is .least, most., got .5, 3.; swap"),
        ({"size_pixels": (16.0, 128.0)}, "size_pixels should be 2 numbers from 8 to 115.2"),
        ({"rotation_degrees": 45.0}, "rotation_degrees should be a number from 0 to 30"),
        ({"clutter": 1.5}, "clutter should be a number from 0 to 1, got 1.5"),
        ({"occlusion": float("nan")}, "occlusion should be a number from 0 to 0.5, got nan"),
        ({"contrast_luma": (50.0, 200.0)}, "contrast_luma should be 2 numbers from 5 to 125"),
        ({"train_fonts": ()}, "fonts should be some of DejaVuSans, "),
        ({"test_fonts": ("Papyrus",)}, "got .'Papyrus',."),
    ],
)
def test_a_task_out_of_range_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TASK, **change)


def test_other_wrong_tasks_are_refused():
    with pytest.raises(UserError, match="difficulty should be a number from 0 to 1, got 2"):
        GlyphTask.at_difficulty(2)
    with pytest.raises(UserError, match="a glyph task is an object with the fields"):
        GlyphTask.from_json({"num_classes": 3})
    with pytest.raises(UserError, match="got list"):
        GlyphTask.from_json([])
    with pytest.raises(UserError, match="clutter should be a number from 0 to 1, got 'much'"):
        GlyphTask.from_json(TASK.to_json() | {"clutter": "much"})


@pytest.mark.parametrize("change", [{"seed": -1}, {"train": 0}, {"test": 0}])
def test_wrong_counts_of_scenes_are_refused(tmp_path, change):
    with pytest.raises(UserError, match="a set of scenes needs a seed from 0 and an image in each"):
        make_scenes(
            tmp_path / "set", TASK, **({"seed": 0, "train": 1, "val": 1, "test": 1} | change)
        )
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("change", [{"seed": -1}, {"val": 11}, {"crop_pixels": 16}])
def test_wrong_counts_of_crops_are_refused(tmp_path, change):
    with pytest.raises(UserError, match="an image of each of the 12 classes in each split"):
        make_crops(tmp_path / "set", TASK, **({"seed": 0, "train": 12, "val": 12} | change))
    assert not (tmp_path / "set").exists()


def test_a_folder_that_is_not_empty_is_refused(scenes, tmp_path):
    with pytest.raises(UserError, match="not an empty folder; remove it, or choose another"):
        make_scenes(scenes, TASK, seed=0, train=1, val=1, test=1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        make_crops(tmp_path / "file", TASK, seed=0, train=12, val=12)


def test_a_folder_that_cannot_be_made_is_a_plain_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*; free some space or choose another"):
        make_scenes(tmp_path / "file" / "set", TASK, seed=0, train=1, val=1, test=1)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    glyph_shapes = sys.modules[turned_glyph.__module__]
    with pytest.raises(UserError, match=r"install it with pip install 'detofa\[demo\]'"):
        glyph_shapes._font_folder.__wrapped__()


def test_commands_make_what_the_functions_make(tmp_path):
    arguments = ["scenes", str(tmp_path / "set"), "--train", "2", "--val", "1", "--test", "1"]
    _command([*arguments, "--classes", "12"])
    make_scenes(tmp_path / "same", TASK, seed=0, train=2, val=1, test=1)
    assert _digests(tmp_path / "set") == _digests(tmp_path / "same")
    again = _command(arguments, check=False)
    assert again.returncode == 1
    assert again.stderr.startswith("error: ")
    _command(["crops", str(tmp_path / "crops"), "--classes", "3", "--train", "3", "--val", "3"])
    assert len(_digests(tmp_path / "crops")) == 7


def test_the_sheet_has_a_row_of_scenes_and_one_of_crops_for_each_difficulty(tmp_path):
    tasks = {"easy": GlyphTask.at_difficulty(0), "hard": GlyphTask.at_difficulty(1)}
    sheet = glyphs.contact_sheet(tasks, columns=2, seed=0)
    assert sheet.shape == (2 * (28 + 3 * 128 + 64), 2 * 3 * 160, 3)
    assert sheet.dtype == np.uint8


def _command(arguments, check=True):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.method.glyphs", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=check,
    )
