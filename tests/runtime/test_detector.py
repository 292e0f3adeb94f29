import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

from detofa.errors import UserError
from detofa.files import sha256_file
from detofa.runtime.detector import SUBNET_KEY, Detector, open_detector
from detofa.runtime.manifest import Manifest, manifest_path
from detofa.runtime.session import OnnxSession
from tests.fuzz.models import small_onnx
from tests.samples import make_subnet

from .conftest import brightness_model


def make_manifest(model, subnet, **changes):
    fields = {
        "model_file": model.name,
        "model_sha256": sha256_file(model),
        "runtime": "onnxruntime",
        "precision": "fp32",
        "opset": 18,
        "convolutions": {"node_conv": 1000},
        "inputs": {"images": ("batch", 3, 96, 128)},
        "outputs": {"boxes_xyxy": ("batch", 1, 4), "scores": ("batch", 1, 2)},
        "subnet": subnet,
        "parity": {"passed": True},
        "versions": {"torch": "2"},
    }
    return Manifest(**(fields | changes))


def test_one_file_says_all_that_detection_needs(tmp_path, images):
    subnet = make_subnet(score_threshold=0.1)
    with open_detector(brightness_model(tmp_path / "a.onnx", subnet=subnet)) as detector:
        assert detector.categories == ((7, "red cell"), (90, "platelet"))
        assert detector.class_names == ("red cell", "platelet")
        assert detector.preprocessing == subnet.preprocessing
        assert detector.postprocessing == subnet.postprocessing
        found = detector.detect([images[1], images[2]])
    # 200x300 fills 85x128 of 96x128 below 5 rows; 300x200 fills 96x64 right of 32 columns.
    scale = 200 / 85
    np.testing.assert_allclose(
        found[0].boxes_xyxy[0], [8 * 300 / 128, 11 * scale, 40 * 300 / 128, 43 * scale], rtol=1e-5
    )
    np.testing.assert_allclose(found[1].boxes_xyxy[0], [0, 50, 25, 150], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 3, 5, 8])
def test_a_batch_of_different_images_gives_what_each_gives_alone(tmp_path, images, batch_size):
    path = brightness_model(tmp_path / "a.onnx", subnet=make_subnet())
    with open_detector(path) as detector:
        alone = [detector.detect([image], score_threshold=0)[0] for image in images]
        together = detector.detect(images, score_threshold=0, batch_size=batch_size)
    assert len(together) == len(images)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-5)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert len({round(float(one.scores[0]), 4) for one in alone}) == len(images)


def test_no_images_and_no_detections_are_not_errors(tmp_path, images):
    path = brightness_model(tmp_path / "a.onnx", subnet=make_subnet(score_threshold=1.0))
    with open_detector(path) as detector:
        assert detector.detect([]) == []
        assert [len(found) for found in detector.detect(images, batch_size=2)] == [0] * 5


def test_a_model_from_elsewhere_is_refused_unless_a_manifest_describes_it(tmp_path):
    path = brightness_model(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="was not made by `detofa export`"):
        open_detector(path)
    make_manifest(path, make_subnet()).save(manifest_path(path))
    with open_detector(path) as detector:
        assert detector.class_names == ("red cell", "platelet")


def test_a_manifest_of_another_file_is_refused(tmp_path):
    subnet = make_subnet()
    path = brightness_model(tmp_path / "a.onnx", subnet=subnet)
    beside = manifest_path(path)
    make_manifest(path, subnet, model_sha256="f" * 64).save(beside)
    with pytest.raises(UserError, match=r"SHA-256 .* written for ffffffffffff.*`detofa export`"):
        open_detector(path)
    brightness_model(tmp_path / "b.onnx")
    make_manifest(tmp_path / "b.onnx", subnet).save(beside)
    with pytest.raises(UserError, match=r"describes b\.onnx, not a\.onnx"):
        open_detector(path)


def test_a_manifest_comes_back_as_it_was_and_its_faults_are_named(tmp_path):
    path = brightness_model(tmp_path / "a.onnx")
    beside = manifest_path(path)
    assert beside.name == "a.manifest.json"
    manifest = make_manifest(path, make_subnet())
    manifest.save(beside)
    assert Manifest.load(beside) == manifest
    record = json.loads(beside.read_text())
    for changes, message in [
        ({"opset": None}, "opset"),
        ({"inputs": 3}, "inputs should be values by name"),
        ({"model_file": "../a.onnx"}, "in the same folder"),
        ({"extra": 1}, r"unknown fields \['extra'\]"),
        ({"subnet": {}}, "missing fields"),
        ({"kind": "subnet"}, "its kind is 'subnet'"),
        ({"schema": 9}, "schema 9"),
    ]:
        beside.write_text(json.dumps(record | changes))
        with pytest.raises(UserError, match=message):
            Manifest.load(beside)
    beside.write_text(json.dumps(record))
    path.unlink()
    with pytest.raises(UserError, match=r"a\.onnx, which does not exist"):
        Manifest.load(beside)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_record_inside_a_model_is_named(tmp_path, text):
    path = brightness_model(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.metadata_props.add(key=SUBNET_KEY, value=text)
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"record inside .*a\.onnx cannot be read"):
        open_detector(path)


def test_a_record_for_another_input_size_is_refused(tmp_path):
    path = brightness_model(tmp_path / "a.onnx", image_size=(128, 96), subnet=make_subnet())
    with pytest.raises(UserError, match=r"images of \(128, 96\) .* says \(96, 128\)"):
        open_detector(path)


def test_what_is_no_onnx_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"should be an \.onnx or \.engine file"):
        open_detector(tmp_path / "subnet.json")
    with pytest.raises(UserError, match="does not exist"):
        open_detector(tmp_path / "a.onnx")


def test_any_session_makes_a_detector(tmp_path, images):
    subnet = make_subnet()
    with OnnxSession(brightness_model(tmp_path / "a.onnx")) as session:
        detector = Detector.of_subnet(session, subnet)
        assert len(detector.detect(images[:1], score_threshold=0)[0]) == 2


def test_detection_needs_no_torch(tmp_path):
    path = brightness_model(tmp_path / "a.onnx", subnet=make_subnet())
    program = f"""
import sys
from pathlib import Path
import numpy as np
from detofa.runtime.bench import measure_latency
from detofa.runtime.detector import open_detector
from detofa.runtime.draw import draw_detections, detections_to_json
image = np.full((50, 60, 3), 200, np.uint8)
with open_detector(Path({str(path)!r})) as detector:
    found = detector.detect([image], score_threshold=0)[0]
    draw_detections(image, found, detector.class_names)
    measure_latency(detector.session, rng=np.random.default_rng(0), runs=2, warm_up=1)
    print(len(found), detections_to_json(found, 1, detector.categories)[0]["category_id"])
assert not {{"torch", "torchvision", "onnx"}} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "7"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("old", "new"), [(b"images", b"ima\xffes"), (b"detofa.subnet", b"detofa.s\xffbnet")]
)
def test_names_inside_an_onnx_file_that_are_no_text_are_a_plain_error(tmp_path, old, new):
    path = tmp_path / "a.onnx"
    model = small_onnx().SerializeToString()
    assert old in model
    path.write_bytes(model.replace(old, new))
    with pytest.raises(UserError, match="is not a model that ONNX Runtime can open"):
        open_detector(path)


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000, "{", '"subnet"', "[1e999]"])
def test_a_record_inside_an_onnx_file_that_is_none_is_a_plain_error(tmp_path, text):
    model = small_onnx()
    model.metadata_props[0].value = text
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"the record inside .* cannot be read"):
        open_detector(tmp_path / "a.onnx")
