"""What may move into the graph: normalisation of pixels before the network, suppression after."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from detofa.errors import UserError
from detofa.imaging import Preprocessing
from detofa.runtime.session import BOXES_NAME, DETECTION_NAMES, PIXELS_NAME, SCORES_NAME
from detofa.subnet import PostProcessing


class _Nodes:
    """Nodes under construction, named after what they belong to."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.nodes = prefix, list[onnx.NodeProto]()
        self.constants: list[onnx.TensorProto] = []

    def add(
        self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
    ) -> str:
        """Add a node; return the name of what it computes (of several outputs, the first)."""
        first = name or f"{self.prefix}/{op.lower()}_{len(self.nodes)}"
        names = [first, *(f"{first}_{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, name=first, **attributes))
        return first

    def constant(self, value: Any, dtype: type[np.generic]) -> str:
        """Add a constant."""
        name = f"{self.prefix}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant of (len(values),) int64."""
        return self.constant(values, np.int64)


def take_pixels(model: onnx.ModelProto, preprocessing: Preprocessing) -> onnx.ModelProto:
    """Return a model that takes letterboxed images as they are: (batch, H, W, 3) uint8, RGB."""
    taking = onnx.ModelProto()
    taking.CopyFrom(model)
    graph = taking.graph
    entry = graph.input[0]
    batch, _, height, width = entry.type.tensor_type.shape.dim
    made = _Nodes("pixels")
    mean, std = (
        made.constant(values, np.float32) for values in (preprocessing.mean, preprocessing.std)
    )
    floats = made.add("Cast", PIXELS_NAME, to=TensorProto.FLOAT)
    normalised = made.add("Div", made.add("Sub", floats, mean), std)
    made.add("Transpose", normalised, name=entry.name, perm=[0, 3, 1, 2])
    nodes = [*made.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(made.constants)
    shape = [batch.dim_param or batch.dim_value, height.dim_value, width.dim_value, 3]
    pixels = helper.make_tensor_value_info(PIXELS_NAME, TensorProto.UINT8, shape)
    del graph.input[:]
    graph.input.append(pixels)
    onnx.checker.check_model(taking, full_check=True)
    return taking


def add_suppression(
    model: onnx.ModelProto, postprocessing: PostProcessing, image_size: tuple[int, int]
) -> None:
    """Make a model give detections instead of candidates, in place.

    It does what `detofa.runtime.postprocess` does for an image that fills the input: boxes are
    clipped to the input, and what has no area then goes. The outputs are padded: boxes (batch, D,
    4) and scores (batch, D) with zeros, labels (batch, D) with -1, D the most detections of an
    image; and their number (batch,). ONNX's NonMaxSuppression does the work.

    Args:
        model: Gives candidate boxes (batch, K, 4) and scores (batch, K, C).
        postprocessing: Thresholds and caps, fixed from here on.
        image_size: (height, width) of the input.

    Raises:
        UserError: see `check_suppressible`.
    """
    check_suppressible(postprocessing)
    graph = model.graph
    shapes = {
        entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim]
        for entry in graph.output
    }
    candidates, classes = shapes[SCORES_NAME][1:]
    count = min(postprocessing.max_detections, candidates * classes)
    threshold = np.float32(postprocessing.score_threshold)
    below = np.nextafter(threshold, np.float32(-1))  # ONNX wants more than it, and we at least it
    height, width = image_size
    made = _Nodes("suppression")
    size = made.constant([width, height, width, height], np.float32)
    zero, one = made.constant(0, np.float32), made.constant(1, np.float32)
    minus_one = made.constant(-1, np.float32)
    least = made.constant(below, np.float32)

    boxes = made.add("Min", made.add("Max", BOXES_NAME, zero), size)
    low, high = (
        made.add("Slice", boxes, made.integers(start), made.integers(start + 2), made.integers(2))
        for start in (0, 2)
    )
    sides = made.add("ReduceMin", made.add("Sub", high, low), made.integers(2), keepdims=1)
    scores = made.add("Where", made.add("Greater", sides, zero), SCORES_NAME, minus_one)
    by_class = made.add("Transpose", scores, perm=[0, 2, 1])
    kept = made.add(
        "NonMaxSuppression",
        boxes,
        by_class,
        made.integers(candidates),
        made.constant([postprocessing.nms_threshold], np.float32),
        made.constant([below], np.float32),
    )
    # What was kept gets its score back, all else -1; then the best of all classes are taken.
    number = made.add("Slice", made.add("Shape", kept), made.integers(0), made.integers(1))
    marks = made.add("Expand", one, number)
    nothing = made.add("Mul", by_class, zero)
    kept_mask = made.add("ScatterND", nothing, kept, marks)
    survived = made.add("Where", made.add("Greater", kept_mask, zero), by_class, minus_one)
    flat = made.add(
        "Reshape", made.add("Transpose", survived, perm=[0, 2, 1]), made.integers(0, -1)
    )
    best = made.add("TopK", flat, made.integers(count), outputs=2)
    places = f"{best}_1"
    labels = made.add("Mod", places, made.integers(classes))
    rows = made.add("Div", places, made.integers(classes))
    chosen = made.add(
        "GatherND", boxes, made.add("Unsqueeze", rows, made.integers(2)), batch_dims=1
    )
    valid = made.add("Greater", best, least)
    there = made.add("Unsqueeze", valid, made.integers(2))
    found, found_scores, found_labels, found_number = DETECTION_NAMES
    made.add("Where", there, chosen, zero, name=found)
    made.add("Where", valid, best, zero, name=found_scores)
    made.add("Where", valid, labels, made.integers(-1), name=found_labels)
    whole = made.add("Cast", valid, to=TensorProto.INT64)
    made.add("ReduceSum", whole, made.integers(1), name=found_number, keepdims=0)
    graph.node.extend(made.nodes)
    graph.initializer.extend(made.constants)
    batch = graph.output[0].type.tensor_type.shape.dim[0]
    _replace_outputs(graph, batch.dim_param or batch.dim_value, count)
    onnx.checker.check_model(model, full_check=True)


def check_suppressible(postprocessing: PostProcessing) -> None:
    """Raise UserError if boxes of all classes should suppress each other: ONNX cannot."""
    if not postprocessing.class_aware_nms:
        raise UserError(
            "suppression inside the graph is by class, and this detector's is over all classes; "
            "export it without --nms in-graph"
        )


def _replace_outputs(graph: onnx.GraphProto, batch: str | int, count: int) -> None:
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT64)
    shapes: Sequence[list[str | int]] = ([batch, count, 4], [batch, count], [batch, count], [batch])
    rest = [entry for entry in graph.output if entry.name not in (BOXES_NAME, SCORES_NAME)]
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(*entry)
        for entry in zip(DETECTION_NAMES, kinds, shapes, strict=True)
    )
    graph.output.extend(rest)
