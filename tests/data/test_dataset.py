import json
import shutil

import numpy as np
import pytest

from detofa.data.dataset import Category, available_splits, find_layout, load_dataset
from detofa.errors import UserError
from detofa.files import write_json

CATS = [(3, "cat"), (17, "dog"), (90, "owl")]


def _reasons(dataset, severity):
    return [fault.reason for fault in dataset.faults if fault.severity == severity]


class TestCoco:
    def test_sparse_ids_become_indices_by_sorted_id(self, tmp_path, make_coco):
        root = make_coco(
            tmp_path,
            {"train": [[(90, (1, 2, 3, 4)), (3, (5, 6, 10, 10))], [(17, (0, 0, 60, 40))]]},
            [CATS[2], CATS[0], CATS[1]],
        )
        dataset = load_dataset(root, "train")
        assert dataset.layout == "coco"
        assert dataset.categories == tuple(Category(id=i, name=n) for i, n in CATS)
        assert [image.labels.tolist() for image in dataset.images] == [[2, 0], [1]]
        assert dataset.images[0].boxes_xyxy.tolist() == [[1, 2, 4, 6], [5, 6, 15, 16]]
        assert dataset.images[0].areas.tolist() == [12, 100]
        assert [image.image_id for image in dataset.images] == [107, 114]
        assert (dataset.images[0].height, dataset.images[0].width) == (40, 60)
        assert dataset.boxes_per_class() == (1, 1, 1)

    def test_splits_that_list_categories_in_another_order_agree(self, tmp_path, make_coco):
        boxes = [[(3, (1, 1, 5, 5)), (90, (2, 2, 5, 5))]]
        root = make_coco(
            tmp_path, {"train": boxes, "val": boxes}, {"train": CATS, "val": CATS[::-1]}
        )
        train = load_dataset(root, "train")
        val = load_dataset(root, "val", categories=train.categories[::-1])
        assert val.categories == train.categories
        assert val.images[0].labels.tolist() == train.images[0].labels.tolist() == [0, 2]

    @pytest.mark.parametrize(
        "other", [[(3, "dog"), (17, "cat"), (90, "owl")], CATS[:2], [*CATS, (91, "rat")]]
    )
    def test_a_split_with_other_categories_is_refused(self, tmp_path, make_coco, other):
        boxes = [[(3, (1, 1, 5, 5))]]
        root = make_coco(tmp_path, {"train": boxes, "val": boxes}, {"train": CATS, "val": other})
        train = load_dataset(root, "train")
        with pytest.raises(UserError, match=r"the categories of .*, split val"):
            load_dataset(root, "val", categories=train.categories)

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_val_and_valid_and_validation_are_one_split(self, tmp_path, make_coco, name):
        root = make_coco(tmp_path, {"train": [[]], "valid": [[(3, (1, 1, 5, 5))]]}, CATS)
        assert available_splits(root) == ("train", "val")
        assert load_dataset(root, name).split == "val"

    def test_roboflow_exports_are_read_without_their_umbrella_category(self, tmp_path, make_image):
        for split in ("train", "valid", "test"):
            make_image(tmp_path / split / "a.jpg")
            content = {
                "images": [{"id": 0, "file_name": "a.jpg", "height": 40, "width": 60}],
                "annotations": [
                    {"id": 0, "image_id": 0, "category_id": 2, "bbox": [1, 1, 5, 5], "area": 25}
                ],
                "categories": [
                    {"id": 0, "name": "pets", "supercategory": "none"},
                    {"id": 1, "name": "cat", "supercategory": "pets"},
                    {"id": 2, "name": "dog", "supercategory": "pets"},
                ],
            }
            (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
        assert available_splits(tmp_path) == ("train", "val", "test")
        dataset = load_dataset(tmp_path, "valid")
        assert [(c.id, c.name) for c in dataset.categories] == [(1, "cat"), (2, "dog")]
        assert dataset.images[0].path == tmp_path / "valid" / "a.jpg"
        assert dataset.images[0].labels.tolist() == [1]

    def test_the_official_folders_are_found(self, tmp_path, make_coco):
        root = make_coco(tmp_path, {"val2017": [[(3, (1, 1, 5, 5))]]}, CATS)
        (root / "annotations" / "captions_val2017.json").write_text("{}")
        (root / "images").rename(root / "val2017")
        assert available_splits(root) == ("val",)
        assert load_dataset(root, "val").images[0].path.parent == root / "val2017"

    def test_boxes_outside_are_clipped_and_those_without_area_dropped(self, tmp_path, make_coco):
        boxes = [
            (3, (-5, 10, 20, 10)),
            (3, (50, 30, 20, 20)),
            (3, (10, 10, 0, 5)),
            (3, (10, 10, -4, 5)),
            (3, (70, 10, 5, 5)),
            (3, (float("nan"), 10, 5, 5)),
            (3, (0, 0, 60.01, 40)),
        ]
        dataset = load_dataset(make_coco(tmp_path, {"train": [boxes]}, CATS[:1]), "train")
        expected = [[0, 10, 15, 20], [50, 30, 60, 40], [0, 0, 60, 40]]
        assert dataset.images[0].boxes_xyxy.tolist() == expected
        reasons = " ".join(_reasons(dataset, "warning"))
        assert reasons.count("clipped") == 2
        assert reasons.count("dropped") == 4
        assert reasons.count("has no area") == 2
        assert not _reasons(dataset, "error")

    def test_an_unknown_category_stops_loading_unless_skipped(self, tmp_path, make_coco):
        root = make_coco(tmp_path, {"train": [[(3, (1, 1, 5, 5)), (4, (1, 1, 5, 5))]]}, CATS)
        with pytest.raises(UserError, match=r"unknown category 4 .*--skip-bad"):
            load_dataset(root, "train")
        assert load_dataset(root, "train", skip_bad=True).images[0].labels.tolist() == [0]

    def test_bad_images_stop_loading_unless_skipped(self, tmp_path, make_coco, make_image):
        images = [[(3, (1, 1, 5, 5))]] * 5
        root = make_coco(tmp_path, {"train": images}, CATS)
        paths = sorted((root / "images").iterdir())
        paths[0].unlink()
        paths[1].write_bytes(paths[1].read_bytes()[:500])
        paths[2].write_bytes(b"")
        make_image(paths[3], size=(60, 40))
        with pytest.raises(UserError, match=r"has 4 faults: .*the image does not exist"):
            load_dataset(root, "train")
        dataset = load_dataset(root, "train", skip_bad=True)
        assert [image.path for image in dataset.images] == [paths[4]]
        reasons = _reasons(dataset, "error")
        assert len(reasons) == 4
        assert "60x40 (height x width), but instances_train.json says 40x60" in reasons[3]

    def test_a_class_without_boxes_is_reported(self, tmp_path, make_coco):
        dataset = load_dataset(make_coco(tmp_path, {"train": [[(3, (1, 1, 5, 5))]]}, CATS), "train")
        assert _reasons(dataset, "warning") == ["split train has no boxes of dog, owl"]

    def test_malformed_records_are_faults_that_name_them(self, tmp_path, make_coco):
        root = make_coco(tmp_path, {"train": [[(3, (1, 1, 5, 5))]]}, CATS)
        path = root / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        content["annotations"] += [
            {"id": 50, "image_id": 107, "category_id": 3, "bbox": [1, 2, 3]},
            {"id": 51, "image_id": 107, "category_id": 3},
            {"id": 52, "image_id": 999, "category_id": 3, "bbox": [1, 2, 3, 4]},
            "nonsense",
        ]
        content["images"] += [{"id": 107, "file_name": "107.png"}, {"id": 5}]
        path.write_text(json.dumps(content))
        reasons = " ".join(_reasons(load_dataset(root, "train", skip_bad=True), "error"))
        for text in ("annotation 50", "annotation 51", "nonsense", "999", "107 stands", "image 5"):
            assert text in reasons

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('{"images": [', "not whole JSON"),
            ('{"images": []}', "no list of annotations"),
            ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
            ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "an id"),
            (
                '{"images": [], "annotations": [], "categories": '
                '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
                "same id",
            ),
            (
                '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
                "no image can be used",
            ),
        ],
    )
    def test_a_broken_annotation_file_is_named(self, tmp_path, content, message):
        (tmp_path / "instances_train.json").write_text(content)
        with pytest.raises(UserError, match=message):
            load_dataset(tmp_path, "train")

    def test_two_files_for_one_split_are_refused(self, tmp_path, make_coco):
        root = make_coco(tmp_path, {"train": [[]], "train2017": [[]]}, CATS)
        with pytest.raises(UserError, match="2 COCO annotation files for train"):
            find_layout(root)

    def test_windows_paths_in_file_names_are_found(self, tmp_path, make_coco):
        root = make_coco(tmp_path, {"train": [[(3, (1, 1, 5, 5))]]}, CATS)
        path = root / "annotations" / "instances_train.json"
        path.write_text(path.read_text().replace("107.png", "D:\\\\set\\\\107.png"))
        assert load_dataset(root, "train").images[0].path == root / "images" / "107.png"

    def test_real_coco_images_load(self, data_dir):
        train = load_dataset(data_dir / "coco_ccby", "train")
        val = load_dataset(data_dir / "coco_ccby", "val", categories=train.categories)
        assert (len(train.images), len(val.images)) == (12, 15)
        datasets = (train, val)
        assert sum(len(image.labels) for d in datasets for image in d.images) == 149
        assert sum(int(image.crowd.sum()) for d in datasets for image in d.images) == 1
        assert sum(len(image.labels) == 0 for image in val.images) == 2
        assert len(train.categories) == 80
        assert train.categories[79] == Category(id=90, name="toothbrush")
        assert not [f for d in datasets for f in d.faults if f.severity == "error"]


class TestVoc:
    def test_fractions_of_pixels_and_names_without_suffix_are_read(self, tmp_path, make_voc):
        root = make_voc(
            tmp_path / "set", {"a": [("dog", (1.5, 2, 10.25, 20)), ("cat", (0, 0, 9, 9))]}
        )
        dataset = load_dataset(root, "all")
        assert dataset.layout == "voc"
        assert [(c.id, c.name) for c in dataset.categories] == [(1, "cat"), (2, "dog")]
        assert dataset.images[0].path == root / "JPEGImages" / "a.png"
        assert dataset.images[0].boxes_xyxy.tolist() == [[1.5, 2, 10.25, 20], [0, 0, 9, 9]]
        assert dataset.images[0].labels.tolist() == [1, 0]

    def test_lists_in_image_sets_are_the_splits(self, tmp_path, make_voc):
        box = (1, 1, 9, 9)
        root = make_voc(tmp_path / "set", {n: [("cat", box)] for n in ("a", "b c", "d")})
        main = root / "ImageSets" / "Main"
        main.mkdir(parents=True)
        (main / "train.txt").write_text("a  1\nb c\n\n")
        (main / "validation.txt").write_text("d\ngone\n")
        (main / "trainval.txt").write_text("a\nd\n")
        (main / "cat_train.txt").write_text("d 1\n")
        assert available_splits(root) == ("train", "val")
        assert [i.path.stem for i in load_dataset(root, "train").images] == ["a", "b c"]
        with pytest.raises(UserError, match=r"gone.xml: cannot read the annotation"):
            load_dataset(root, "val")
        assert [i.image_id for i in load_dataset(root, "val", skip_bad=True).images] == [3]

    def test_ids_of_the_expected_categories_are_taken_over(self, tmp_path, make_voc):
        root = make_voc(tmp_path / "set", {"a": [("dog", (1, 1, 9, 9)), ("cat", (0, 0, 9, 9))]})
        expected = (Category(id=40, name="cat"), Category(id=7, name="dog"))
        dataset = load_dataset(root, "all", categories=expected)
        assert [c.id for c in dataset.categories] == [7, 40]
        assert dataset.images[0].labels.tolist() == [0, 1]
        with pytest.raises(UserError, match="misses owl"):
            load_dataset(root, "all", categories=(*expected, Category(id=1, name="owl")))

    def test_broken_annotations_are_faults(self, tmp_path, make_voc):
        root = make_voc(
            tmp_path / "set",
            {
                "a": [("cat", (1, 1, 9, 9)), ("cat", ("x", 1, 9, 9)), ("", (1, 1, 9, 9))],
                "b": [("cat", (1, 1, 9, 9))],
            },
        )
        (root / "Annotations" / "b.xml").write_text("<annotation><obj")
        dataset = load_dataset(root, "all", skip_bad=True)
        assert dataset.boxes_per_class() == (1,)
        assert len(_reasons(dataset, "error")) == 3

    def test_an_annotated_size_of_zero_says_nothing(self, tmp_path, make_voc):
        root = make_voc(tmp_path / "set", {"a": [("cat", (1, 1, 9, 9))]})
        path = root / "Annotations" / "a.xml"
        path.write_text(path.read_text().replace(">60<", ">0<").replace(">40<", ">0<"))
        assert load_dataset(root, "all").images[0].width == 60

    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_the_two_layouts_of_bccd_agree(self, data_dir, tmp_path, split):
        assert find_layout(data_dir / "bccd") == "coco"
        coco = load_dataset(data_dir / "bccd", split)
        for name in ("Annotations", "ImageSets", "JPEGImages"):
            (tmp_path / name).symlink_to(data_dir / "bccd" / name)
        assert find_layout(tmp_path) == "voc"
        voc = load_dataset(tmp_path, split, categories=coco.categories)
        assert voc.categories == coco.categories
        assert [i.path.name for i in voc.images] == [i.path.name for i in coco.images]
        for one, other in zip(voc.images, coco.images, strict=True):
            assert np.array_equal(one.boxes_xyxy, other.boxes_xyxy)
            assert np.array_equal(one.labels, other.labels)
        # The COCO files leave out the two boxes without area.
        dropped = {fault.file.stem for fault in voc.faults}
        assert dropped <= {"BloodImage_00338", "BloodImage_00343"}
        assert not coco.faults
        expected = {"train": 2804, "val": 1137, "test": 945}[split]
        assert sum(coco.boxes_per_class()) == expected

    def test_the_original_sample_has_two_boxes_without_area(self, data_dir):
        dataset = load_dataset(data_dir / "bccd_original_sample", "all")
        assert len(dataset.images) == 10
        assert [fault.file.stem for fault in dataset.faults] == [
            "BloodImage_00338",
            "BloodImage_00343",
        ]
        assert all("no area" in fault.reason for fault in dataset.faults)


def _write_yolo(root, dataset, split, names="list"):
    for image in dataset.images:
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        shutil.copy(image.path, root / "images" / split / image.path.name)
        size = np.array([image.width, image.height])
        rows = []
        for box, label in zip(image.boxes_xyxy.astype(float), image.labels, strict=True):
            centre, extent = (box[:2] + box[2:]) / 2 / size, (box[2:] - box[:2]) / size
            rows.append(f"{label} {' '.join(f'{v:.9g}' for v in (*centre, *extent))}\n")
        if rows:
            (root / "labels" / split / f"{image.path.stem}.txt").write_text("".join(rows))
    listed = [category.name for category in dataset.categories]
    text = json.dumps(listed if names == "list" else dict(enumerate(listed)))
    (root / "data.yaml").write_text(
        f"path: .\ntrain: images/train\nval: images/val\nnames: {text}\n"
    )


class TestYolo:
    @pytest.mark.parametrize("names", ["list", "mapping"])
    def test_boxes_survive_the_round_trip(self, tmp_path, make_coco, names):
        images = [[(3, (1, 2, 30, 7)), (17, (0, 0, 60, 40))], [], [(90, (11.5, 3.25, 8, 30))]]
        source = make_coco(tmp_path / "coco", {"train": images, "val": images}, CATS)
        root = tmp_path / "yolo"
        for split in ("train", "val"):
            _write_yolo(root, load_dataset(source, split), split, names)
        original, dataset = load_dataset(source, "val"), load_dataset(root, "valid")
        assert dataset.layout == "yolo"
        assert [(c.id, c.name) for c in dataset.categories] == [(0, "cat"), (1, "dog"), (2, "owl")]
        assert available_splits(root) == ("train", "val")
        assert len(dataset.images) == 3
        assert not dataset.faults
        for one, other in zip(dataset.images, original.images, strict=True):
            assert np.allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
            assert np.array_equal(one.labels, other.labels)
            assert (one.height, one.width) == (40, 60)

    def test_roboflow_paths_lists_and_polygons_are_read(self, tmp_path, make_image):
        for split in ("train", "valid"):
            make_image(tmp_path / split / "images" / "a.jpg")
            (tmp_path / split / "labels").mkdir()
            (tmp_path / split / "labels" / "a.txt").write_text("0 0.5 0.25 0.75 0.5 0.6 1.0\n")
        (tmp_path / "list.txt").write_text("./train/images/a.jpg\n")
        (tmp_path / "data.yaml").write_text(
            "names: [cat]\nnc: 1\ntrain: list.txt\nval: ../valid/images\ntest: ../test/images\n"
        )
        with pytest.raises(UserError, match=r"`test: ../test/images` does not exist"):
            load_dataset(tmp_path, "val")
        text = (tmp_path / "data.yaml").read_text().replace("test: ../test/images\n", "")
        (tmp_path / "data.yaml").write_text(text)
        for split in ("train", "val"):
            assert load_dataset(tmp_path, split).images[0].boxes_xyxy.tolist() == [[30, 10, 45, 40]]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("0 0.5 0.5 0.1", "line 1 should hold a class and 4 numbers"),
            ("cat 0.5 0.5 0.1 0.1", "line 1 should hold numbers"),
            ("0 30 20 10 10", "line 1 should hold fractions"),
            ("0 0.5 nan 0.1 0.1", "not finite"),
            ("5 0.5 0.5 0.1 0.1", "unknown category 5"),
        ],
    )
    def test_broken_rows_are_named(self, tmp_path, make_image, row, message):
        make_image(tmp_path / "images" / "a.jpg")
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_text(f"{row}\n")
        (tmp_path / "classes.txt").write_text("cat\n")
        dataset = load_dataset(tmp_path, "all", skip_bad=True)
        assert dataset.layout == "yolo"
        assert not len(dataset.images[0].labels)
        assert any(message in str(fault) for fault in dataset.faults)

    def test_label_files_without_names_ask_for_them(self, tmp_path, make_image):
        make_image(tmp_path / "images" / "a.jpg")
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        with pytest.raises(UserError, match="has no class names; write them in"):
            load_dataset(tmp_path, "all")

    def test_a_broken_yaml_is_named(self, tmp_path):
        (tmp_path / "data.yaml").write_text("names: [a, b\ntrain: {")
        with pytest.raises(UserError, match=r"data.yaml is not valid YAML"):
            find_layout(tmp_path)


class TestFoldersThatAreNoDataSet:
    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(UserError, match=r"gone does not exist"):
            load_dataset(tmp_path / "gone", "train")

    def test_a_file_is_refused(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="is a file"):
            find_layout(tmp_path / "file")

    def test_an_empty_folder_is_said_to_be_empty(self, tmp_path):
        with pytest.raises(UserError, match="it is empty"):
            find_layout(tmp_path)

    def test_what_a_wrong_folder_holds_is_listed(self, tmp_path):
        for name in ("notes.txt", "a.jpg", "b.jpg"):
            (tmp_path / name).touch()
        (tmp_path / "more").mkdir()
        with pytest.raises(
            UserError, match=r"3 files and 1 folders: a.jpg, b.jpg, more/, notes.txt"
        ):
            find_layout(tmp_path)

    def test_the_data_set_one_folder_below_is_pointed_out(self, tmp_path, make_coco):
        make_coco(tmp_path / "pets", {"train": [[]]}, CATS)
        with pytest.raises(UserError, match=r"but .*pets is"):
            find_layout(tmp_path)

    def test_a_split_that_is_not_there_lists_those_that_are(self, tmp_path, make_coco):
        root = make_coco(tmp_path, {"train": [[]], "val": [[]]}, CATS)
        with pytest.raises(UserError, match="no split 'test': it has train, val"):
            load_dataset(root, "test")
        with pytest.raises(UserError, match="unknown split 'minitest'"):
            load_dataset(root, "minitest")

    def test_a_folder_without_splits_names_the_command_that_makes_them(self, tmp_path, make_voc):
        root = make_voc(tmp_path / "set", {"a": [("cat", (1, 1, 9, 9))]})
        assert available_splits(root) == ()
        with pytest.raises(UserError, match=rf"`detofa data split {root}`"):
            load_dataset(root, "train")


class TestHostileFiles:
    """Each of these once raised something else than a plain error, or never came back."""

    @pytest.mark.parametrize("line", ["/", "a\0b", "x" * 5000])
    def test_a_line_of_a_yolo_list_that_is_no_path_is_named(self, tmp_path, line):
        (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: list.txt\n")
        (tmp_path / "list.txt").write_text(line + "\n")
        with pytest.raises(UserError, match=r"which is no|does not exist|no image can be used"):
            load_dataset(tmp_path, "train")

    @pytest.mark.parametrize(
        "text",
        [
            "x: 2020-99-99",
            "x: !!timestamp x",
            "x: !!int ''",
            "x: " + "[" * 2000,
            "0x" + "f" * 5000 + ": a",
            "a: &a [x]\nb: *a",
            "x: '" + "a" * 200_000 + "'",
        ],
    )
    def test_yaml_that_breaks_its_reader_or_unfolds_is_refused(self, tmp_path, text):
        (tmp_path / "data.yaml").write_text(f"names: [cat]\n{text}\n")
        with pytest.raises(UserError, match="is not valid YAML"):
            load_dataset(tmp_path, "train")

    def test_yaml_with_a_key_of_digits_or_an_infinite_class_is_answered(self, tmp_path, make_image):
        make_image(tmp_path / "images" / "train" / "a.png")
        text = "train: images/train\nnames: {%s: cat}\n? " + "1" * 100_000 + "x\n: y\n"
        (tmp_path / "data.yaml").write_text(text % ".inf")
        with pytest.raises(UserError, match="should be numbers"):
            load_dataset(tmp_path, "train")
        (tmp_path / "data.yaml").write_text(text % "0")
        assert len(load_dataset(tmp_path, "train").images) == 1

    def test_voc_in_an_unknown_encoding_or_of_infinite_size_is_a_fault(self, tmp_path, make_voc):
        root = make_voc(tmp_path, {"a": [("cat", (1, 2, 5, 6))], "b": []})
        (root / "Annotations" / "b.xml").write_text('<?xml version="1.0" encoding="no-such"?><a/>')
        whole = (root / "Annotations" / "a.xml").read_text()
        infinite = whole.replace("<width>60", "<width>1e999")
        (root / "Annotations" / "a.xml").write_text(infinite)
        dataset = load_dataset(root, "all", skip_bad=True)
        assert len(dataset.images) == 1
        assert "unknown encoding" in " ".join(_reasons(dataset, "error"))

    def test_a_voc_list_of_names_that_no_file_has_is_a_fault(self, tmp_path, make_voc):
        root = make_voc(tmp_path, {"a": [("cat", (1, 2, 5, 6))]})
        (root / "ImageSets").mkdir()
        (root / "ImageSets" / "train.txt").write_text("a\n" + "x" * 300 + "\na\0b\n")
        assert len(load_dataset(root, "train", skip_bad=True).images) == 1

    @pytest.mark.parametrize("names", [[["a.png"]], [1], [None], "a.png"])
    def test_splits_of_anything_but_names_are_refused(self, tmp_path, make_coco, names):
        root = make_coco(tmp_path, {"": [[(3, (1, 1, 5, 5))]]}, CATS[:1])
        splits = {"train": names, "val": ["a"], "test": []}
        write_json(root / "detofa_splits.json", "splits", {"splits": splits})
        with pytest.raises(UserError, match="holds no lists of images"):
            load_dataset(root, "train")
