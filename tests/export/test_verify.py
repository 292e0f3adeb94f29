import json
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from detofa.errors import UserError
from detofa.export.export import export_subnet
from detofa.export.to_onnx import export_onnx
from detofa.export.verify import verify_onnx
from detofa.files import sha256_file
from detofa.imaging import read_image
from detofa.runtime.detector import open_detector
from detofa.runtime.gates import Tolerance
from detofa.runtime.manifest import Manifest
from detofa.runtime.matching import match_boxes
from tests.detectors import SmallDetector, export_detector, make_detector
from tests.samples import make_subnet


def scored(rng, count=20):
    corners = rng.uniform(0, 100, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (count, 2))], axis=1)
    return boxes.astype(np.float32), rng.uniform(0, 1, (count, 3)).astype(np.float32)


def test_boxes_in_another_order_are_all_found_again():
    rng = np.random.default_rng(0)
    boxes, scores = scored(rng)
    order = rng.permutation(len(boxes))
    match = match_boxes((boxes, scores), (boxes[order], scores[order]), Tolerance())
    assert (match.num_compared, match.num_matched) == (20, 20)
    assert match.worst_iou == 1
    assert match.worst_score_difference == 0


def test_a_box_that_moved_or_a_score_that_changed_is_missed():
    boxes, scores = scored(np.random.default_rng(1))
    best = int(scores.max(axis=1).argmax())
    moved, changed = boxes.copy(), scores.copy()
    moved[best] += 3
    changed[best] -= 0.01
    for found in ((moved, scores), (boxes, changed)):
        match = match_boxes((boxes, scores), found, Tolerance())
        assert (match.num_compared, match.num_matched) == (20, 19)


def test_a_box_that_the_other_run_has_none_for_is_missed():
    boxes, scores = scored(np.random.default_rng(3))
    match = match_boxes((boxes, scores), (boxes[:15], scores[:15]), Tolerance())
    assert match.num_matched == 15
    assert match.num_compared >= 19
    match = match_boxes((boxes, scores), (boxes[:0], scores[:0]), Tolerance())
    assert (match.num_compared, match.num_matched) == (20, 0)


def test_only_a_tie_with_the_last_candidate_may_be_another_box():
    boxes, scores = scored(np.random.default_rng(2))
    scores[-2:] = 0.0
    other = boxes.copy()
    other[-1] += 50
    match = match_boxes((boxes, scores), (other, scores), Tolerance())
    assert (match.num_compared, match.num_matched) == (19, 19)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    subnet = make_subnet((96, 160))
    module = make_detector(subnet)
    path = tmp_path_factory.mktemp("export") / "a.onnx"
    return subnet, module, path, export_onnx(module, path, image_size=(96, 160), metadata={})


def verify(export, images, module=None, checked_model=None):
    subnet, exported_module, path, done = export
    return verify_onnx(
        module or exported_module,
        path,
        checked_model or done.checked_model,
        images=images,
        preprocessing=subnet.preprocessing,
        rng=np.random.default_rng(0),
    )


def test_a_faithful_export_passes_on_every_image_and_batch(export, images):
    report = verify(export, images)
    assert report.passed, report.reasons
    assert {len(case.images) for case in report.cases} == {1, 2, 5}
    alone = {case.images[0] for case in report.cases if len(case.images) == 1}
    made = {"(blank)", "(noise)", "(wide cut)", "(tall cut)", "(crowded)"}
    assert alone == {"wide", "tall", "even", *made}
    record = report.to_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["passed"]
    assert record["num_matched"] == record["num_compared"] > 1000
    assert all(0 < error < 1e-4 for error in record["head_relative_errors"].values())
    assert record["worst_iou"] > 0.99


def test_a_faithful_export_passes_on_real_photographs(export, data_dir):
    paths = sorted((data_dir / "bccd" / "JPEGImages").glob("*.jpg"))[:4]
    report = verify(export, {path.name: read_image(path) for path in paths})
    assert report.passed, report.reasons
    assert paths[0].name in report.cases[0].images


def test_another_networks_export_fails_and_names_the_images(export, images):
    report = verify(export, images, module=make_detector(export[0], seed=1))
    assert not report.passed
    text = "\n".join(report.reasons)
    assert "batch of 1 (tall): class_logits differs by" in text
    assert "boxes are not found again" in text
    assert "batch of 5" in text


def test_a_slightly_wrong_head_fails_even_if_no_box_moves(export, images):
    model = onnx.load_from_string(export[3].checked_model)
    bias = next(e for e in model.graph.initializer if e.name.endswith("side_tower.output.bias"))
    values = numpy_helper.to_array(bias)
    bias.CopyFrom(numpy_helper.from_array(values + np.float32(0.05), bias.name))
    report = verify(export, images, checked_model=model.SerializeToString())
    assert not report.passed
    assert all("side_logits differs by" in reason for reason in report.reasons)


def test_outputs_that_are_not_finite_fail_and_the_report_stays_json(export, images):
    module = make_detector(export[0])
    with torch.no_grad():
        next(p for n, p in module.named_parameters() if n.endswith("bias")).fill_(math.nan)
    report = verify(export, images, module=module)
    assert len(report.reasons) == len(report.cases)
    assert all("not finite" in reason for reason in report.reasons)
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("image_size", [(96, 160), (160, 96)])
def test_a_subnet_becomes_a_model_and_a_manifest_that_open(tmp_path, images, image_size):
    subnet = make_subnet(image_size)
    path = tmp_path / "new" / "cells.onnx"
    done = export_subnet(SmallDetector(), subnet, path, images=images, rng=np.random.default_rng(0))
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "cells.manifest.json",
        "cells.onnx",
    ]
    manifest = Manifest.load(done.manifest_path)
    assert manifest == done.manifest
    assert manifest.model_sha256 == sha256_file(path)
    assert manifest.subnet == subnet
    assert manifest.parity["passed"]
    assert manifest.versions["torch"] == torch.__version__.split("+")[0]
    with open_detector(path) as detector:
        assert detector.session.image_size == image_size
        assert detector.categories == subnet.categories
        found = detector.detect(list(images.values()), score_threshold=0.01, batch_size=3)
    assert all(len(one) > 0 for one in found)
    path.rename(tmp_path / "alone.onnx")
    open_detector(tmp_path / "alone.onnx").close()


class Drifting(torch.nn.Module):
    """Differs from its own export: its copies for the export and for PyTorch do not agree."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        boxes, scores, class_logits, side_logits = self.module(images)
        if not torch.compiler.is_exporting():
            class_logits = class_logits + 0.1
        return boxes, scores, class_logits, side_logits


def test_a_failed_gate_keeps_the_file_only_as_rejected(tmp_path, images):
    subnet = make_subnet((96, 160))
    path = tmp_path / "a.onnx"
    path.write_bytes(b"an earlier export that is good")
    module = Drifting(SmallDetector())
    with pytest.raises(UserError, match=r"a\.onnx\.rejected.*wide.*class_logits differs"):
        export_subnet(module, subnet, path, images=images, rng=np.random.default_rng(0))
    left = sorted(entry.name for entry in tmp_path.iterdir())
    assert left == ["a.onnx", "a.onnx.rejected", "a.onnx.rejected.json"]
    assert path.read_bytes() == b"an earlier export that is good"


def test_an_export_needs_images_and_an_onnx_name(tmp_path, images):
    subnet = make_subnet((96, 160))
    module = SmallDetector()
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"should end in \.onnx"):
        export_subnet(module, subnet, tmp_path / "a.engine", images=images, rng=rng)
    with pytest.raises(UserError, match="none were given"):
        export_subnet(module, subnet, tmp_path / "a.onnx", images={}, rng=rng)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("space_name", ["ofa-mbv3", "lite0"])
@pytest.mark.slow
def test_the_other_spaces_export_as_well(tmp_path, images, space_name):
    subnet = make_subnet((128, 192), space_name)
    done = export_detector(subnet, tmp_path / "a.onnx", images)
    assert done.report.passed
