"""Subnets and small ONNX files made in code."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from detofa.runtime.detector import metadata_of


def brightness_model(
    path: Path, *, image_size=(96, 128), subnet=None, output_names=("boxes_xyxy", "scores")
) -> Path:
    """Write a detector that says one box at (8, 16, 40, 48), with scores from the image's mean.

    The scores are sigmoid(mean) for class 0 and sigmoid(-mean) for class 1.
    """
    box = np.array([[[8, 16, 40, 48]]], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axes_12"], ["column"]),
        helper.make_node("Neg", ["column"], ["negative"]),
        helper.make_node("Concat", ["column", "negative"], ["logits"], axis=2),
        helper.make_node("Sigmoid", ["logits"], [output_names[1]]),
        helper.make_node("Mul", ["column", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "box"], [output_names[0]]),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *image_size])],
        [
            helper.make_tensor_value_info(output_names[0], TensorProto.FLOAT, ["batch", 1, 4]),
            helper.make_tensor_value_info(output_names[1], TensorProto.FLOAT, ["batch", 1, 2]),
        ],
        [
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes_12"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
            numpy_helper.from_array(box, "box"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if subnet is not None:
        helper.set_model_props(model, metadata_of(subnet))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def images():
    """Give images of several shapes and brightnesses; one is smaller than the input."""
    rng = np.random.default_rng(0)
    sizes = [(96, 128), (200, 300), (300, 200), (40, 50), (128, 96)]
    return [
        rng.integers(30 * index, 30 * index + 120, (*size, 3), dtype=np.uint8)
        for index, size in enumerate(sizes)
    ]
