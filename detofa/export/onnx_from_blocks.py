"""ONNX graphs of blocks and whole detectors, straight from their shapes, with random weights.

The exporter needs seconds and a trained network for each graph; timing a search space needs
hundreds. These graphs take milliseconds and have the structure, and so the speed, of the real
export: a test compares the two.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from detofa.blocks import STRIDES, Block, MBConv, NeckHead, Stem

_OPSET = 20
_IR_VERSION = 10
_FLOAT = TensorProto.FLOAT
_DRAWN = 4093  # a prime, so that rows of weights differ


def detector_onnx(blocks: Sequence[Block], *, top_k: int, rng: np.random.Generator) -> bytes:
    """Return the ONNX model of a whole detector, box decoding included.

    Args:
        blocks: All blocks of an arch, as `SearchSpace.blocks` lists them.
        top_k: Candidates kept, as in the real export.
        rng: Draws the weights.

    Returns:
        A model from images (batch, 3, H, W) to boxes_xyxy (batch, K, 4), scores (batch, K, C),
        class_logits (batch, A, C) and side_logits (batch, A, 4, bins); batch is free.
    """
    stem, *stages, neck_head = blocks
    assert isinstance(stem, Stem)
    assert isinstance(neck_head, NeckHead)
    graph = _Graph(rng)
    graph.part = "backbone/0"
    x = graph.input("images", (3, stem.height, stem.width))
    x = _add_stem(graph, stem, x)
    features: dict[int, str] = {}
    for index, block in enumerate(stages, start=1):
        assert isinstance(block, MBConv)
        graph.part = f"backbone/{index}"
        x = _add_mbconv(graph, block, x)
        features[block.height // block.stride] = x  # the last of each resolution
    pyramid = [features[height] for height, _ in neck_head.level_sizes[:3]]
    _add_neck_head(graph, neck_head, pyramid, top_k)
    return graph.to_bytes()


def block_onnx(block: Block, *, top_k: int, rng: np.random.Generator, repeats: int = 1) -> bytes:
    """Return the ONNX model of one block alone, or of several like it one after another.

    Args:
        block: The block; a `NeckHead` takes C3, C4, C5 and includes box decoding.
        top_k: Candidates kept by box decoding.
        rng: Draws the weights.
        repeats: How many follow each other; more than one only where a block's output can be its
            input.
    """
    assert repeats == 1 or (isinstance(block, MBConv) and block.residual), block
    graph = _Graph(rng)
    match block:
        case Stem():
            x = graph.input("images", (3, block.height, block.width))
            graph.output(_add_stem(graph, block, x), 4)
        case MBConv():
            x = graph.input("x", (block.in_channels, block.height, block.width))
            for _ in range(repeats):
                x = _add_mbconv(graph, block, x)
            graph.output(x, 4)
        case NeckHead():
            sizes = zip(block.in_channels, block.level_sizes[:3], strict=True)
            pyramid = [
                graph.input(f"c{level}", (channels, *size))
                for level, (channels, size) in enumerate(sizes, start=3)
            ]
            _add_neck_head(graph, block, pyramid, top_k)
    return graph.to_bytes()


class _Graph:
    """A graph under construction; methods add nodes and return the name of what they compute."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shapes: list[onnx.ValueInfoProto] = []
        # What the nodes to come belong to: `backbone/` and the place of the block, or neck, head
        # or decoding. It begins their names and those of what they compute, since ONNX Runtime
        # names what it fuses or rewrites by either.
        self.part = ""

    def input(self, name: str, shape: tuple[int, ...]) -> str:
        """Declare an input of (batch, *shape)."""
        self._inputs.append(helper.make_tensor_value_info(name, _FLOAT, ["batch", *shape]))
        return name

    def output(self, name: str, rank: int) -> None:
        """Declare an output."""
        shape = ["batch", *[None] * (rank - 1)]
        self._outputs.append(helper.make_tensor_value_info(name, _FLOAT, shape))

    def shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Declare that `name` is (batch, *shape), where ONNX Runtime cannot infer it.

        The exporter declares all shapes, and ONNX Runtime fuses additions only if it knows that
        both terms have the same.
        """
        self._shapes.append(helper.make_tensor_value_info(name, _FLOAT, ["batch", *shape]))

    def node(
        self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
    ) -> str:
        """Add a node; with several outputs, return the last one's name."""
        last = name or f"{self.part}/{op.lower()}_{len(self._nodes)}"
        names = [*(f"{last}_{index}" for index in range(outputs - 1)), last]
        self._nodes.append(
            helper.make_node(
                op, inputs, names, name=f"{self.part}/{op.lower()}_{len(self._nodes)}", **attributes
            )
        )
        return last

    def constant(self, value: NDArray[np.generic]) -> str:
        """Add a constant."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant of whole numbers: (len(values),) int64."""
        return self.constant(np.array(values, np.int64))

    def weights(self, *shape: int) -> str:
        """Add random weights that never enlarge what passes through; long ones repeat, for speed.

        Values matter to time in one way: large logits make the softmax underflow to denormal
        numbers, which are many times slower. Those of a trained detector do not.
        """
        count = math.prod(shape)
        scale = math.sqrt(1 / math.prod(shape[1:]))
        drawn = self._rng.standard_normal(min(count, _DRAWN), np.float32) * np.float32(scale)
        return self.constant(np.resize(drawn, shape))

    def bias(self, channels: int) -> str:
        """Add a small random bias."""
        return self.constant(self._rng.standard_normal(channels, np.float32) * np.float32(0.1))

    def conv(
        self,
        x: str,
        weight: str,
        bias: str,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        same_padding: bool = False,
    ) -> str:
        """Add a convolution whose output has the input's size over `stride`."""
        near = far = kernel_size // 2
        if same_padding and stride == 2:
            near = (kernel_size - 2) // 2
            far = kernel_size - 2 - near
        return self.node(
            "Conv",
            x,
            weight,
            bias,
            kernel_shape=[kernel_size] * 2,
            strides=[stride] * 2,
            pads=[near, near, far, far],
            group=groups,
        )

    def dense(self, x: str, in_channels: int, out_channels: int) -> str:
        """Add a 1x1 convolution with weights of its own."""
        return self.conv(x, self.weights(out_channels, in_channels, 1, 1), self.bias(out_channels))

    def depthwise(
        self,
        x: str,
        channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        same_padding: bool = False,
    ) -> str:
        """Add a depthwise convolution with weights of its own."""
        return self.conv(
            x,
            self.weights(channels, 1, kernel_size, kernel_size),
            self.bias(channels),
            kernel_size=kernel_size,
            stride=stride,
            groups=channels,
            same_padding=same_padding,
        )

    def activation(self, x: str, name: str) -> str:
        """Add an activation as the exporter writes it."""
        match name:
            case "relu":
                return self.node("Relu", x)
            case "relu6":
                bounds = [self.constant(np.array(value, np.float32)) for value in (0, 6)]
                return self.node("Clip", x, *bounds)
            case "hardswish":
                return self.node("HardSwish", x)
        raise AssertionError(name)

    def to_bytes(self) -> bytes:
        """Return the finished model."""
        graph = helper.make_graph(
            self._nodes,
            "detofa",
            self._inputs,
            self._outputs,
            self._constants,
            value_info=self._shapes,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
        data: bytes = model.SerializeToString()
        return data


def _add_stem(graph: _Graph, block: Stem, x: str) -> str:
    x = graph.conv(
        x,
        graph.weights(block.out_channels, 3, 3, 3),
        graph.bias(block.out_channels),
        kernel_size=3,
        stride=2,
        same_padding=block.same_padding,
    )
    return graph.activation(x, block.activation)


def _add_mbconv(graph: _Graph, block: MBConv, x: str) -> str:
    begin = x
    middle = block.mid_channels
    if block.has_expand:
        x = graph.activation(graph.dense(x, block.in_channels, middle), block.activation)
    x = graph.depthwise(
        x,
        middle,
        kernel_size=block.kernel_size,
        stride=block.stride,
        same_padding=block.same_padding,
    )
    x = graph.activation(x, block.activation)
    if block.squeeze_channels:
        gate = graph.node("ReduceMean", x, graph.integers(2, 3), keepdims=1)
        gate = graph.node("Relu", graph.dense(gate, middle, block.squeeze_channels))
        gate = graph.dense(gate, block.squeeze_channels, middle)
        x = graph.node("Mul", x, graph.node("HardSigmoid", gate, alpha=1 / 6, beta=0.5))
    x = graph.dense(x, middle, block.out_channels)
    return graph.node("Add", begin, x) if block.residual else x


def _add_neck_head(graph: _Graph, block: NeckHead, pyramid: Sequence[str], top_k: int) -> None:
    graph.part = "neck"
    levels = _add_neck(graph, block, pyramid)
    graph.part = "head"
    sides = _add_tower(graph, block, levels, 4 * block.box_bins)
    classes = _add_tower(graph, block, levels, block.num_classes)
    class_logits = graph.node("Transpose", classes, perm=[0, 2, 1], name="class_logits")
    anchors = sum(height * width for height, width in block.level_sizes)
    sides = graph.node("Transpose", sides, perm=[0, 2, 1])
    shape = graph.integers(-1, anchors, 4, block.box_bins)
    side_logits = graph.node("Reshape", sides, shape, allowzero=1, name="side_logits")
    graph.part = "decoding"
    boxes, scores = _add_decoding(graph, block, class_logits, side_logits, top_k)
    for name, rank in ((boxes, 3), (scores, 3), (class_logits, 3), (side_logits, 4)):
        graph.output(name, rank)


def _add_neck(graph: _Graph, block: NeckHead, pyramid: Sequence[str]) -> list[str]:
    width = block.neck_width

    def separable(x: str, stride: int = 1) -> str:
        x = graph.depthwise(x, width, stride=stride)
        return graph.node("Relu", graph.dense(x, width, width))

    sums = [
        graph.dense(x, channels, width)
        for x, channels in zip(pyramid, block.in_channels, strict=True)
    ]
    scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
    for level in (1, 0):
        larger = graph.node(
            "Resize",
            sums[level + 1],
            "",
            scales,
            mode="nearest",
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
        graph.shape(larger, (width, *block.level_sizes[level]))
        sums[level] = graph.node("Add", sums[level], larger)
    levels = [separable(x) for x in sums]
    return [*levels, separable(levels[-1], stride=2)]


def _add_tower(graph: _Graph, block: NeckHead, levels: Sequence[str], out_channels: int) -> str:
    """Add one branch of the head; only the output convolution's weights are shared by levels.

    The others were shared before each level's batch normalisation was folded into them.
    """
    output = graph.weights(out_channels, block.head_width, 1, 1), graph.bias(out_channels)
    outputs = []
    for x, (height, width) in zip(levels, block.level_sizes, strict=True):
        channels = block.neck_width
        for _ in range(block.head_depth):
            x = graph.depthwise(x, channels)
            x = graph.node("Relu", graph.dense(x, channels, block.head_width))
            channels = block.head_width
        x = graph.conv(x, *output)
        shape = graph.integers(-1, out_channels, height * width)
        outputs.append(graph.node("Reshape", x, shape, allowzero=1))
    return graph.node("Concat", *outputs, axis=2)


def _add_decoding(
    graph: _Graph, block: NeckHead, class_logits: str, side_logits: str, top_k: int
) -> tuple[str, str]:
    """Add what `detofa.supernet.decode` does, node for node as the exporter writes it."""
    points_xy, strides = _anchor_points(block)
    minus_one, one, two = graph.integers(-1), graph.integers(1), graph.integers(2)
    kept = graph.integers(min(top_k, len(strides)))
    best = graph.node("ReduceMax", class_logits, two, keepdims=0)
    index = graph.node("TopK", best, kept, outputs=2, axis=1, largest=1, sorted=1)
    rows = graph.node("Unsqueeze", index, two)
    across = graph.node("Expand", rows, graph.integers(1, 1, block.num_classes))
    chosen = graph.node("GatherElements", class_logits, across, axis=1)
    scores = graph.node("Sigmoid", chosen, name="scores")
    rows = graph.node("Unsqueeze", rows, graph.integers(3))
    across = graph.node("Expand", rows, graph.integers(1, 1, 4, block.box_bins))
    chosen = graph.node("GatherElements", side_logits, across, axis=1)
    bins = graph.constant(np.arange(block.box_bins, dtype=np.float32))
    mean = graph.node("Mul", graph.node("Softmax", chosen, axis=-1), bins)
    sides = graph.node("ReduceSum", mean, minus_one, keepdims=0)
    at = graph.node("Unsqueeze", index, minus_one)
    stride = graph.node("Unsqueeze", graph.node("GatherND", graph.constant(strides), at), two)
    sides = graph.node("Mul", sides, stride)
    points = graph.node("GatherND", graph.constant(points_xy), at)
    ends = graph.integers(np.iinfo(np.int64).max)
    near = graph.node("Slice", sides, graph.integers(0), two, two, one)
    far = graph.node("Slice", sides, two, ends, two, one)
    corners = graph.node("Sub", points, near), graph.node("Add", points, far)
    return graph.node("Concat", *corners, axis=-1, name="boxes_xyxy"), scores


def _anchor_points(block: NeckHead) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return centres (A, 2), x then y, and strides (A,) of all anchors, in pixels."""
    points, strides = [], []
    for (height, width), stride in zip(block.level_sizes, STRIDES, strict=True):
        ys, xs = np.mgrid[:height, :width].reshape(2, -1)
        points.append((np.stack([xs, ys], axis=1) + 0.5) * stride)
        strides.append(np.full(height * width, stride))
    return np.concatenate(points).astype(np.float32), np.concatenate(strides).astype(np.float32)
