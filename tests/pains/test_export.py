"""Export and numerics: entries 28 to 38."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from torchvision.ops import batched_nms

from detofa.data.dataset import load_dataset
from detofa.errors import UserError
from detofa.export.export import export_subnet
from detofa.imaging import Letterbox, Preprocessing
from detofa.runtime.detector import open_detector
from detofa.runtime.matching import same_detections
from detofa.runtime.postprocess import detections_from_outputs
from detofa.runtime.session import OnnxSession, open_onnx
from detofa.runtime.tensorrt.make import EnginePlan, make_engine
from detofa.subnet import PostProcessing, Subnet
from detofa.supernet.decode import DecodedDetector, anchor_points
from detofa.train.checkpoint import load_supernet
from detofa.train.evaluate import Recalibration, extract_recalibrated
from detofa.train.run import RunFolder
from tests.detectors import make_pictures
from tests.pains.conftest import SIZE, bright_detector, judge_of
from tests.samples import make_subnet

BLACK = np.zeros((*SIZE, 3), np.uint8)
WHITE = np.full((*SIZE, 3), 255, np.uint8)
HALF = np.concatenate([BLACK[:, :96], WHITE[:, 96:]], axis=1)  # two of five columns of cells


def test_export_gives_the_chosen_subnet_with_statistics_of_its_own(loop):
    """Entry 28: nobody knows how to export a subnet, nor that its statistics must be renewed."""
    subnet = Subnet.load(loop / "subnet.json")
    supernet, record = load_supernet(loop / "runs/squares-tiny/supernet.safetensors")
    config = RunFolder(path=loop / "runs/squares-tiny").load_config()
    few = Recalibration.of_run(
        config, load_dataset(loop / "squares", "train"), record.preprocessing
    )
    detector = extract_recalibrated(supernet, subnet.arch, few)
    module = DecodedDetector.of_subnet(detector, subnet)
    images = np.random.default_rng(0).standard_normal((2, 3, *subnet.arch.image_size), np.float32)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(images))[1].numpy()
    with OnnxSession(loop / "subnet.onnx") as session:
        np.testing.assert_allclose(session.run(images)[1], wanted, atol=1e-5)
    manifest = json.loads((loop / "subnet.manifest.json").read_text())
    assert manifest["parity"]["passed"]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_precision_that_costs_average_precision_is_rejected(tmp_path, precision):
    """Entry 29: in half precision AP falls, or every box is lost, on some GPUs only."""
    path = tmp_path / "cells.onnx"
    with pytest.raises(UserError, match=r"its AP is 0\.2000, PyTorch's 0\.5000"):
        export_subnet(
            bright_detector(),
            make_subnet(SIZE),
            path,
            images=make_pictures(),
            rng=np.random.default_rng(0),
            precision=precision,
            judge=judge_of(0.2),
        )
    assert not path.exists()
    assert (tmp_path / "cells.onnx.rejected").is_file()
    assert json.loads((tmp_path / "cells.onnx.rejected.json").read_text())["most_harmed"]


def made(exported, tmp_path):
    plan = EnginePlan(onnx_path=exported.model_path, manifest=exported.manifest, builds=1)
    return make_engine(plan, tmp_path / "cells.engine", images=make_pictures(), judge=judge_of())


def test_one_value_that_is_not_finite_rejects_the_very_engine(cells, tensorrt, tmp_path):
    """Entry 30: half precision overflows, and not where one looks for it."""
    assert made(cells(), tmp_path).verified["num_matched"] > 100
    (tmp_path / "cells.engine").unlink()

    def spoiled(name, values):
        values = values.copy()
        values.flat[-1] = np.nan
        return values

    tensorrt.outputs_become = spoiled
    with pytest.raises(UserError, match="an output is not finite"):
        made(cells(), tmp_path)
    assert not (tmp_path / "cells.engine").exists()


def test_an_engine_that_silently_stayed_fp32_is_not_taken_for_fp16(cells, tensorrt, tmp_path):
    """Entry 31: TensorRT 11 has no flag for half precision, and builds fp32."""
    assert made(cells(precision="fp16"), tmp_path).share_of_macs == 1
    assert not hasattr(tensorrt.BuilderFlag, "FP16")
    tensorrt.say = "fp32"
    with pytest.raises(UserError, match=r"only 0% of the .* are in fp16"):
        made(cells(precision="fp16"), tmp_path)


def test_an_image_without_objects_is_padding_and_no_failure(cells):
    """Entry 32: a photo without objects breaks the file, or its count is that of the trace."""
    path = cells(suppress=True).model_path
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    with open_detector(path) as detector:
        inputs, _ = detector.prepare([BLACK, WHITE, HALF, noise])
        found = [len(one) for one in detector.detect([BLACK, WHITE, HALF])]
    boxes, scores, labels, counts = open_onnx(path).run(None, {"images": inputs})
    assert counts[:3].tolist() == found == [0, 15, 6]
    assert boxes.shape == (4, 30, 4)
    for row, count in enumerate(counts):
        assert (labels[row, count:] == -1).all()
        assert not boxes[row, count:].any()
        assert not scores[row, count:].any()


def test_any_batch_size_runs_and_was_tried_before_the_file_got_its_name(cells):
    """Entry 33: the file takes no batch but the one that it was traced with."""
    exported = cells()
    assert isinstance(exported.manifest.inputs["images"][0], str)
    assert {len(batch) for batch in exported.manifest.parity["batches"]} == {1, 2, 5}
    images = np.random.default_rng(0).standard_normal((7, 3, *SIZE), np.float32)
    session = open_onnx(exported.model_path)
    alone = [session.run(["scores"], {"images": images[row : row + 1]})[0] for row in range(7)]
    for count in (3, 7):
        found = session.run(["scores"], {"images": images[:count]})[0]
        np.testing.assert_allclose(found, np.concatenate(alone[:count]), rtol=1e-5, atol=1e-7)


def test_suppression_in_the_graph_keeps_the_images_of_a_batch_apart(cells):
    """Entry 34: suppression in the graph is wrong for more than one image."""
    images = [HALF, BLACK, WHITE, np.flip(HALF, axis=1)]
    with open_detector(cells(suppress=True).model_path) as inside:
        together = inside.detect(images, batch_size=4)
        alone = [inside.detect([image])[0] for image in images]
    with open_detector(cells().model_path) as outside:
        wanted = outside.detect(images, batch_size=4)
    assert [len(one) for one in together] == [6, 0, 15, 6]
    for one, two, three in zip(together, alone, wanted, strict=True):
        assert same_detections(one, two)
        assert same_detections(one, three)


def test_no_box_is_dropped_by_a_cap_that_nobody_stated():
    """Entry 35: suppression drops boxes beyond 5000, and disregards classes."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 980, (2500, 2)).astype(np.float32)
    boxes = np.concatenate([low, low + rng.uniform(4, 20, low.shape).astype(np.float32)], axis=1)
    scores = rng.uniform(0.3, 1, (2500, 3)).astype(np.float32)
    stated = PostProcessing(nms_threshold=0.5, max_detections=9000, top_k=2500)
    whole = Letterbox(
        scale=1, pad_top=0, pad_left=0, original_size=(1000, 1000), image_size=(1000, 1000)
    )
    found = detections_from_outputs(boxes, scores, stated, whole)
    every = torch.from_numpy(np.repeat(boxes, 3, axis=0)), torch.from_numpy(scores.flatten())
    labels = torch.arange(3).repeat(2500)
    kept = batched_nms(*every, labels, 0.5)
    assert len(found) == len(kept) > 5000
    assert found.scores.tolist() == every[1][kept].tolist()
    assert found.labels.tolist() == labels[kept].tolist()
    told = make_subnet().to_json()["postprocessing"]
    assert {"top_k", "max_detections", "class_aware_nms", "nms_threshold"} <= set(told)


def test_photos_of_other_shapes_have_the_same_ap_before_and_after_export(loop, detofa):
    """Entry 36: weights see rectangles and the file squares, and AP differs."""
    tall = loop / "tall"
    (tall / "annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(200, 60), (60, 200), (150, 90)]):
        pixels = rng.integers(0, 80, (height, width, 3), np.uint8)
        pixels[20:50, 10:40] = 255
        Image.fromarray(pixels).save(tall / f"{number}.png")
    # The best boxes of the weights are the truth, so that others have a lower precision.
    assert detofa("predict", "subnet.json", "tall", "--score", 0).code == 0
    truth = json.loads((loop / "predictions" / "predictions.json").read_text())
    best = [
        sorted(
            (box for box in truth["annotations"] if box["image_id"] == image["id"]),
            key=lambda box: -box["score"],
        )[:4]
        for image in truth["images"]
    ]
    truth["annotations"] = [box for boxes in best for box in boxes]
    (tall / "annotations" / "instances_test.json").write_text(json.dumps(truth))
    found = []
    for model in ("subnet.json", "subnet.onnx"):
        done = detofa("eval", model, "--data", "tall", "--json")
        assert done.code == 0, done.err
        found.append(json.loads(done.out))
    assert found[0]["ap"] > 0.9
    for name in ("ap", "ap50", "ap_small"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-6)
    stored = onnx.load(loop / "subnet.onnx").metadata_props[0].value
    kept = Subnet.load(loop / "subnet.json").preprocessing
    assert Preprocessing.from_json(json.loads(stored)["preprocessing"]) == kept


@pytest.mark.parametrize(
    ("size", "box", "point"),
    [
        ((320, 512), (192.5, 64.5, 207.5, 79.5), (100, 36)),
        ((512, 320), (64.5, 192.5, 79.5, 207.5), (36, 100)),
    ],
)
def test_height_and_width_keep_their_places(cells, size, box, point):
    """Entry 37: height and width change places in an export, and no square shows it."""
    left, top = round(box[0]), round(box[1])
    photo = np.zeros((size[0] // 2, size[1] // 2, 3), np.uint8)
    photo[top : top + 16, left : left + 16] = 255  # one cell of the input, which is twice as large
    with open_detector(cells(size=size).model_path) as detector:
        assert detector.session.image_size == size
        (found,) = detector.detect([photo])
    assert found.boxes_xyxy.tolist() == [pytest.approx(box, abs=0.01)]
    subnet = make_subnet(size)
    points, strides = anchor_points(subnet.space.neck_head(subnet.arch))
    row, column = point[1] // 8, point[0] // 8
    assert points[row * (size[1] // 8) + column].tolist() == list(point)
    assert strides[0] == 8


def test_int8_is_calibrated_through_the_loader_that_runs_and_names_its_images(cells):
    """Entry 38: int8 finds nothing, since it was calibrated on other preprocessing."""
    exported = cells(precision="int8")
    pictures = make_pictures()
    assert exported.manifest.parity["calibrated_on"] == sorted(pictures)
    with open_detector(exported.model_path) as detector:
        inputs, _ = detector.prepare(list(pictures.values()))
    pooled = inputs.reshape(len(inputs), 3, SIZE[0] // 32, 32, SIZE[1] // 32, 32).mean((3, 5))
    graph = onnx.load(exported.model_path).graph
    (quantise,) = (
        node for node in graph.node if node.op_type == "QuantizeLinear" and "conv" not in node.name
    )
    (scale,) = (one for one in graph.initializer if one.name == quantise.input[1])
    largest = float(np.abs(pooled).max())
    assert numpy_helper.to_array(scale) == pytest.approx(largest / 127, rel=1e-3)
