import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest

from detofa.blocks import Block, NeckHead
from detofa.export.onnx_from_blocks import block_onnx, detector_onnx
from detofa.presets import preset
from detofa.profiling.cost import all_blocks, arch_macs
from detofa.runtime.session import open_onnx
from detofa.space import SearchSpace

if TYPE_CHECKING:
    import torch

PRESETS = ("tiny", "lite0", "ofa-mbv3")


def _space(name: str) -> SearchSpace:
    return preset(name, num_classes=3, image_sizes=[(96, 128)])


def _operators(model: bytes, folder: Path) -> Counter[str]:
    """Count the operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return Counter(node.op_type for node in nodes)


def _macs(model: bytes) -> int:
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    weights = {value.name: list(value.dims) for value in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":
            height, width = shapes[node.output[0]][2:]
            total += int(np.prod(weights[node.input[1]])) * height * width
    return total


@pytest.mark.parametrize("name", PRESETS)
def test_built_detectors_have_the_macs_that_are_counted(name: str) -> None:
    space = _space(name)
    for arch in (space.smallest, space.largest):
        rng = np.random.default_rng(0)
        assert _macs(detector_onnx(space.blocks(arch), top_k=300, rng=rng)) == arch_macs(
            space, arch
        )


@pytest.mark.parametrize("name", PRESETS)
def test_a_built_detector_runs_and_keeps_the_best_anchors_first(name: str) -> None:
    space = _space(name)
    blocks = space.blocks(space.smallest)
    session = open_onnx(detector_onnx(blocks, top_k=50, rng=np.random.default_rng(0)))
    images = np.random.default_rng(1).standard_normal((2, 3, 96, 128), np.float32)
    boxes, scores, class_logits, side_logits = session.run(None, {"images": images})
    anchors = 12 * 16 + 6 * 8 + 3 * 4 + 2 * 2
    assert boxes.shape == (2, 50, 4)
    assert scores.shape == (2, 50, 3)
    assert class_logits.shape == (2, anchors, 3)
    assert side_logits.shape == (2, anchors, 4, 16)
    best = scores.max(axis=2)
    assert (np.diff(best, axis=1) <= 0).all()
    np.testing.assert_allclose(
        best[:, 0], 1 / (1 + np.exp(-class_logits.max(axis=(1, 2)))), rtol=1e-5
    )
    assert (boxes[..., 2:] >= boxes[..., :2]).all()


@pytest.mark.parametrize("name", PRESETS)
def test_logits_are_too_small_for_the_softmax_to_underflow(name: str) -> None:
    space = _space(name)
    for arch in (space.smallest, space.largest):
        model = detector_onnx(space.blocks(arch), top_k=50, rng=np.random.default_rng(0))
        images = np.random.default_rng(1).standard_normal((1, 3, 96, 128), np.float32)
        for logits in open_onnx(model).run(["class_logits", "side_logits"], {"images": images}):
            assert 0.01 < logits.std() < 2
            assert np.abs(logits).max() < 10


@pytest.mark.parametrize("name", PRESETS)
def test_every_block_runs_alone_with_the_shapes_it_declares(name: str) -> None:
    seen: set[str] = set()
    for block in all_blocks(_space(name)).values():
        kind = f"{type(block).__name__} {getattr(block, 'stage', '')}"
        if kind in seen:
            continue
        seen.add(kind)
        session = open_onnx(block_onnx(block, top_k=50, rng=np.random.default_rng(0)))
        inputs = {
            entry.name: np.ones((1, *entry.shape[1:]), np.float32) for entry in session.get_inputs()
        }
        first = session.run(None, inputs)[0]
        assert np.isfinite(first).all()
        if not isinstance(block, NeckHead):
            assert first.shape == (1, block.out_channels, *_output_size(block))


def _output_size(block: Block) -> tuple[int, int]:
    stride = getattr(block, "stride", 2)
    return block.height // stride, block.width // stride


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_built_detectors_run_the_same_operators_as_the_real_export(
    name: str, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from detofa.supernet.decode import DecodedDetector
    from detofa.supernet.detector import StaticDetector

    space = _space(name)
    rng = np.random.default_rng(0)
    for arch in (space.arch(space.sample(rng, 1)[0]), space.largest):
        detector = StaticDetector(space, arch)
        for module in detector.modules():  # equal weights would be merged into one
            if isinstance(module, torch.nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    torch.nn.init.uniform_(value, 0.5, 1.5)
        program = _export(
            DecodedDetector(detector, space.neck_head(arch), 300).eval(), arch.image_size
        )
        exported = _operators(program, tmp_path)
        assert (
            _operators(detector_onnx(space.blocks(arch), top_k=300, rng=rng), tmp_path) == exported
        )


def _export(model: "torch.nn.Module", image_size: tuple[int, int]) -> bytes:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, *image_size),),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["boxes_xyxy", "scores", "class_logits", "side_logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data
