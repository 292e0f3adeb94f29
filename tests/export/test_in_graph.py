"""Normalisation and suppression inside the graph do what the runtime does outside."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from detofa.errors import UserError
from detofa.export.export import export_subnet
from detofa.export.in_graph import add_suppression, take_pixels
from detofa.imaging import IMAGENET, LITE, Letterbox
from detofa.runtime.bench import measure_file
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector, open_detector
from detofa.runtime.matching import check_same, same_detections
from detofa.runtime.postprocess import detections_from_outputs
from detofa.runtime.session import BOXES_NAME, SCORES_NAME, OnnxSession, open_onnx
from detofa.subnet import PostProcessing
from tests.detectors import SmallDetector
from tests.samples import make_subnet

SIZE = (64, 96)
WHOLE = Letterbox(scale=1.0, pad_top=0, pad_left=0, original_size=SIZE, image_size=SIZE)


def candidates_model(candidates, classes, batch="batch"):
    """Give a model that takes an image and candidates, and passes the candidates through."""
    kinds = {"b": (candidates, 4), "s": (candidates, classes), "images": (3, *SIZE)}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
        for name, shape in kinds.items()
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, candidates, size])
        for name, size in ((BOXES_NAME, 4), (SCORES_NAME, classes))
    ]
    nodes = [
        helper.make_node("Identity", ["b"], [BOXES_NAME]),
        helper.make_node("Identity", ["s"], [SCORES_NAME]),
    ]
    graph = helper.make_graph(nodes, "candidates", inputs, outputs)
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, ir_version=10, opset_imports=opset)


def suppressed(boxes, scores, postprocessing):
    """Run suppression in a graph on (B, K, 4) and (B, K, C)."""
    model = candidates_model(*scores.shape[1:])
    add_suppression(model, postprocessing, SIZE)
    images = np.zeros((len(boxes), 3, *SIZE), np.float32)
    return open_onnx(model.SerializeToString()).run(
        None, {"b": boxes, "s": scores, "images": images}
    )


def scene(rng, batch, candidates, classes):
    """Give crowded boxes: some the same, some outside, some without area, scores with ties."""
    low = rng.integers(-20, 90, (batch, candidates, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + rng.integers(0, 40, low.shape)], axis=2)
    boxes[:, ::7] = boxes[:, :1]
    scores = rng.integers(0, 11, (batch, candidates, classes)) / 10
    return boxes.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("candidates", "classes", "most"), [(60, 3, 100), (40, 1, 5), (3, 2, 100)])
def test_suppression_equals_the_runtimes_image_by_image(seed, candidates, classes, most):
    rng = np.random.default_rng(seed)
    postprocessing = PostProcessing(
        score_threshold=[0.0, 0.3, 0.3, 0.5][seed % 4],
        nms_threshold=[0.3, 0.6, 1.0][seed % 3],
        max_detections=most,
    )
    boxes, scores = scene(rng, 3, candidates, classes)
    found, found_scores, labels, counts = suppressed(boxes, scores, postprocessing)
    assert found.shape == (3, min(most, candidates * classes), 4)
    for row in range(3):
        wanted = detections_from_outputs(boxes[row], scores[row], postprocessing, WHOLE)
        count = counts[row]
        assert count == len(wanted)
        assert found_scores[row, :count].tolist() == wanted.scores.tolist()
        # Of equal scores either may come first: compare as sets.
        first, second = (
            sorted(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
            for a, b, c in (
                (found_scores[row, :count], labels[row, :count], found[row, :count]),
                (wanted.scores, wanted.labels, wanted.boxes_xyxy),
            )
        )
        if count < found.shape[1]:  # at the cap, ties decide which are left out
            assert first == second
        assert not found[row, count:].any()
        assert not found_scores[row, count:].any()
        assert (labels[row, count:] == -1).all()


def test_an_image_without_detections_is_all_padding():
    boxes, scores = scene(np.random.default_rng(0), 2, 10, 2)
    scores[1] = 0
    *_, labels, counts = suppressed(boxes, scores, PostProcessing())
    assert counts[0] > 0
    assert counts[1] == 0
    assert (labels[1] == -1).all()


def test_suppression_over_all_classes_is_refused():
    with pytest.raises(UserError, match="by class"):
        add_suppression(candidates_model(3, 2), PostProcessing(class_aware_nms=False), SIZE)


@pytest.mark.parametrize("preprocessing", [IMAGENET, LITE])
def test_pixels_in_the_graph_are_normalised_as_outside(preprocessing):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["out"])],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *SIZE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", 3, *SIZE])],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    model = take_pixels(model, preprocessing)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    found = open_onnx(model.SerializeToString()).run(None, {"pixels": pixels})[0]
    np.testing.assert_array_equal(found, preprocessing.normalise(pixels))


SUBNET = make_subnet((96, 160))


def exported(path, images, **how):
    return export_subnet(
        SmallDetector(), SUBNET, path, images=images, rng=np.random.default_rng(0), **how
    )


@pytest.fixture
def plenty(monkeypatch):
    """Let a comparison of the small detector's few boxes count."""
    monkeypatch.setattr("detofa.export.verify.FEWEST_BOXES", 1)


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("pixels", [False, True])
def test_every_form_of_a_file_finds_the_same(tmp_path, images, plenty, pixels, batch):
    usual, other, inside = (tmp_path / f"{name}.onnx" for name in ("usual", "other", "inside"))
    exported(usual, images)
    done = exported(other, images, pixels=pixels, batch=batch)
    shape = (*SUBNET.arch.image_size, 3) if pixels else (3, *SUBNET.arch.image_size)
    name = "pixels" if pixels else "images"
    assert done.manifest.inputs == {name: ("batch" if batch is None else batch, *shape)}
    done = exported(inside, images, pixels=pixels, batch=batch, suppress=True)
    assert list(done.manifest.outputs) == [
        "detected_boxes_xyxy",
        "detected_scores",
        "detected_labels",
        "num_detected",
    ]
    filling = [np.resize(image, (*SUBNET.arch.image_size, 3)) for image in images.values()]
    found = []
    for path in (usual, other, inside):
        with open_detector(path) as detector:
            found.append(detector.detect(filling, batch_size=2))
            assert len(detector.detect(list(images.values()), batch_size=3)) == 3
    for first, second, third in zip(*found, strict=True):
        assert len(first) == len(second) == len(third) > 0
        for one in (second, third):
            np.testing.assert_allclose(one.boxes_xyxy, first.boxes_xyxy, atol=1e-3)
            np.testing.assert_allclose(one.scores, first.scores, atol=1e-5)
            np.testing.assert_array_equal(one.labels, first.labels)
    latency = measure_file(inside, runs=3)
    assert latency.batch == (batch or 1)
    assert latency.wall.p50_ms > 0
    if batch is not None:
        with pytest.raises(UserError, match=f"takes batches of {batch}, not of 7"):
            measure_file(inside, runs=3, batch=7)


def test_lower_scores_than_a_file_gives_are_refused(tmp_path, images, plenty):
    path = tmp_path / "inside.onnx"
    exported(path, images, suppress=True)
    with open_detector(path) as detector:
        strict = detector.detect(list(images.values()), score_threshold=0.8)
        assert all((one.scores >= 0.8).all() for one in strict)
        with pytest.raises(UserError, match="leaves out scores below"):
            detector.detect(list(images.values()), score_threshold=0.01)


def test_a_graph_that_suppresses_otherwise_is_not_written(tmp_path, images, plenty, monkeypatch):
    def wrong(model, postprocessing, image_size):
        less = dataclasses.replace(postprocessing, max_detections=2)
        add_suppression(model, less, image_size)

    monkeypatch.setattr("detofa.export.export.add_suppression", wrong)
    with pytest.raises(UserError, match=r"rejected.*suppression inside the graph finds 2 boxes"):
        exported(tmp_path / "a.onnx", images, suppress=True)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["a.onnx.rejected", "a.onnx.rejected.json"]


def test_suppression_that_cannot_be_is_refused_before_anything_is_exported(tmp_path, images):
    over_all = dataclasses.replace(SUBNET.postprocessing, class_aware_nms=False)
    subnet = dataclasses.replace(SUBNET, postprocessing=over_all)
    with pytest.raises(UserError, match="by class"):
        export_subnet(
            SmallDetector(),
            subnet,
            tmp_path / "a.onnx",
            images=images,
            rng=np.random.default_rng(0),
            suppress=True,
        )


@pytest.mark.openvino
def test_openvino_finds_what_the_graph_suppresses(tmp_path, images, plenty):
    path = tmp_path / "a.onnx"
    exported(path, images, suppress=True)
    with open_detector(path) as reference, open_detector(path, runtime="openvino") as detector:
        assert check_same(detector, reference, np.random.default_rng(0)) > 0
        found = reference.detect(list(images.values()))
        for first, second in zip(found, detector.detect(list(images.values())), strict=True):
            assert len(first) > 0
            assert same_detections(first, second)
            fewer = Detections(
                boxes_xyxy=first.boxes_xyxy[1:], scores=first.scores[1:], labels=first.labels[1:]
            )
            relabelled = dataclasses.replace(first, labels=1 - first.labels)
            moved = dataclasses.replace(first, boxes_xyxy=first.boxes_xyxy + 5)
            for other in (fewer, relabelled, moved):
                assert not same_detections(first, other)
                assert not same_detections(other, first)


def test_sessions_say_what_they_take(tmp_path, images, plenty):
    exported(tmp_path / "a.onnx", images, pixels=True, batch=2)
    with OnnxSession(tmp_path / "a.onnx") as session:
        assert (session.takes_pixels, session.suppresses, session.batch) == (True, False, 2)
        assert Detector.of_subnet(session, SUBNET).session is session
        with pytest.raises(AssertionError):
            session.run(np.zeros((2, 3, 96, 160), np.float32))
    assert onnx.load(tmp_path / "a.onnx").graph.input[0].type.tensor_type.elem_type == (
        TensorProto.UINT8
    )
