import json
import shutil

import pytest
from PIL import Image

from detofa.data.check import check_dataset, draw_contact_sheet
from detofa.errors import UserError

CATS = [(3, "cat"), (17, "dog")]


def test_it_counts_images_boxes_classes_and_sizes(tmp_path, make_coco):
    train = [[(3, (0, 0, 10, 10)), (3, (0, 0, 20, 20))], [], [(17, (5, 5, 10, 10))]]
    report = check_dataset(make_coco(tmp_path, {"train": train, "val": [[]]}, CATS))
    first, second = report.splits
    assert report.layout == "coco"
    assert (first.split, first.num_images, first.num_images_without_boxes) == ("train", 3, 1)
    assert first.num_boxes == 3
    assert first.boxes_per_class == {"cat": 2, "dog": 1}
    assert first.image_sizes == {(40, 60): 3}
    assert first.box_side_percentiles == pytest.approx((10, 10, 19))
    assert second.box_side_percentiles is None
    assert [fault.reason for fault in report.faults] == ["split val has no boxes of cat, dog"]
    assert report.num_errors == 0


def test_every_image_is_decoded(tmp_path, make_coco):
    root = make_coco(tmp_path, {"train": [[(3, (0, 0, 10, 10))]] * 2}, CATS[:1])
    path = sorted((root / "images").iterdir())[1]
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)  # header and tail stay whole
    path.write_bytes(content)
    report = check_dataset(root)
    assert report.num_errors == 1
    assert report.faults[0].file == path
    assert report.splits[0].num_images == 1


def test_all_faults_are_found_errors_first(tmp_path, make_coco):
    boxes = [(3, (-5, 0, 10, 10)), (99, (1, 1, 5, 5))]
    root = make_coco(tmp_path, {"train": [boxes, [(3, (1, 1, 5, 5))]]}, CATS)
    sorted((root / "images").iterdir())[1].unlink()
    report = check_dataset(root)
    assert [f.severity for f in report.faults] == ["error"] * 2 + ["warning"] * 2
    assert report.num_errors == 2


def test_the_same_image_in_two_splits_is_reported(tmp_path, make_coco):
    root = make_coco(tmp_path, {"train": [[]] * 2, "val": [[]]}, CATS)
    paths = sorted((root / "images").iterdir())
    shutil.copy(paths[0], paths[2])
    report = check_dataset(root)
    assert report.copies == ((paths[0], paths[2]),)
    assert any("the same image is in another split" in fault.reason for fault in report.faults)


def test_splits_with_other_categories_are_a_fault(tmp_path, make_coco):
    splits = {"train": [[(3, (1, 1, 5, 5))]], "val": [[(3, (1, 1, 5, 5))]]}
    root = make_coco(tmp_path, splits, {"train": CATS, "val": CATS[:1]})
    report = check_dataset(root)
    assert report.num_errors == 1
    assert "misses 17 dog" in report.faults[0].reason


def test_a_set_without_splits_is_checked_whole(tmp_path, make_voc):
    root = make_voc(tmp_path / "set", {"a": [("cat", (1, 1, 9, 9))]})
    assert [split.split for split in check_dataset(root).splits] == ["all"]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="it is empty"):
        check_dataset(tmp_path)


def test_bccd_is_whole(data_dir):
    report = check_dataset(data_dir / "bccd")
    assert [split.num_boxes for split in report.splits] == [2804, 1137, 945]
    totals = {"RBC": 0, "WBC": 0, "Platelets": 0}
    for split in report.splits:
        for name, count in split.boxes_per_class.items():
            totals[name] += count
    assert totals == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    assert report.num_errors == 0


def test_boxes_are_drawn_where_they_are(tmp_path, make_coco):
    root = make_coco(tmp_path, {"train": [[(3, (12, 10, 30, 20))]] * 5}, CATS, size=(48, 64))
    for path in (root / "images").iterdir():
        Image.new("RGB", (64, 48)).save(path)
    draw_contact_sheet(check_dataset(root), tmp_path / "sheet.png", 4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (768, 576)
        tile = sheet.crop((0, 0, 384, 288))  # six times the image
    coloured = tile.getchannel("R").point(lambda value: 255 * (value > 150)).getbbox()
    assert coloured is not None
    assert coloured[0] == 72
    assert coloured[2:] == (253, 181)


def test_faulty_images_are_drawn_first_with_what_is_wrong(tmp_path, make_coco):
    good = [(3, (12, 10, 30, 20))]
    outside = [(3, (40, 10, 50, 20))]
    splits = {"train": [good] * 3 + [outside], "val": [good] * 2}
    root = make_coco(tmp_path, splits, CATS[:1], size=(48, 64))
    paths = sorted((root / "images").iterdir())
    for path in paths:
        Image.new("RGB", (64, 48), (0, 0, 80 + paths.index(path))).save(path)
    paths[-1].write_bytes(b"no picture")
    paths[0].unlink()
    report = check_dataset(root)
    assert report.num_errors == 2
    draw_contact_sheet(report, tmp_path / "sheet.png", 4)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (768, 576)
        tiles = [sheet.crop((x, y, x + 384, y + 288)) for y in (0, 288) for x in (0, 384)]
    told = [tile.getpixel((1, 286)) == (139, 0, 0) for tile in tiles]
    assert told == [True, True, True, False]  # two errors, a warning, a whole image
    empty = [tile.getpixel((3, 3)) == (32, 32, 32) for tile in tiles]
    assert empty == [True, True, False, False]
    draw_contact_sheet(report, tmp_path / "small.png", 1)
    with Image.open(tmp_path / "small.png") as sheet:
        assert sheet.size == (384, 288)


def test_a_sheet_that_cannot_be_written_is_a_plain_error(tmp_path, make_coco):
    report = check_dataset(make_coco(tmp_path, {"train": [[(3, (1, 1, 5, 5))]]}, CATS))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        draw_contact_sheet(report, tmp_path / "file" / "sheet.png", 1)


def test_a_missing_image_of_the_annotation_is_named_with_it(tmp_path, make_coco):
    root = make_coco(tmp_path, {"train": [[(3, (1, 1, 5, 5))]] * 2}, CATS)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "elsewhere.png"
    path.write_text(json.dumps(content))
    report = check_dataset(root)
    assert "elsewhere.png" in str(report.faults[0])
    assert "instances_train.json" in str(report.faults[0])
