"""Rewrites of an exported ONNX graph: batch norms folded, convolutions in half precision."""

import math
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_FULL_INPUTS = {"Resize": (1, 2)}  # inputs that stay fp32: ONNX has no other for them
_LARGEST_HALF = float(np.finfo(np.float16).max)


def fold_batch_norms(model: onnx.ModelProto) -> None:
    """Fold each BatchNormalization into the convolution before it, in place.

    A convolution whose weights serve several levels, each with a norm of its own, gets weights for
    each.
    """
    graph = model.graph
    constants = {entry.name: entry for entry in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    uses = _uses(graph)
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or uses[norm.input[0]] > 1:
            continue
        scale, shift, mean, variance = (
            numpy_helper.to_array(constants[name]).astype(np.float64) for name in norm.input[1:5]
        )
        factor = scale / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
        weight = numpy_helper.to_array(constants[conv.input[1]])
        bias = numpy_helper.to_array(constants[conv.input[2]]) if len(conv.input) > 2 else 0.0
        folded = {
            "weight": weight * factor[:, None, None, None],
            "bias": (bias - mean) * factor + shift,
        }
        names = [f"{conv.input[1]}/{norm.output[0]}/{what}" for what in folded]
        for name, value in zip(names, folded.values(), strict=True):
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
        conv.input[1:] = names
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    _drop_unused(graph)


def to_fp16(
    model: onnx.ModelProto,
    heads: Collection[str],
    *,
    keep: Collection[str] = (),
    simulate: bool = False,
) -> onnx.ModelProto:
    """Return a model whose network computes in half precision, and all after its heads in full.

    The network is what lies between the first convolutions and `heads`, these included; what
    follows them (boxes, scores, the choice of candidates) and inputs and outputs stay fp32.

    Args:
        model: An fp32 model.
        heads: Names of the network's outputs.
        keep: Names of nodes that stay fp32 too.
        simulate: Compute in fp32 and round every value to half precision: what a processor without
            half precision needs, to show what others would give. ONNX Runtime runs a half-precision
            model there without rounding what passes from one operator to the next.
    """
    half = onnx.ModelProto()
    half.CopyFrom(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    rewriter = _Halves(half.graph, simulate)
    low = _network(half.graph, heads) - set(keep)
    for node in list(half.graph.node):
        rewriter.add(node, heads, is_low=node.name in low)
    del half.graph.node[:]
    half.graph.node.extend(rewriter.nodes)
    del half.graph.value_info[:]
    _drop_unused(half.graph)
    half.CopyFrom(onnx.shape_inference.infer_shapes(half, strict_mode=True))
    onnx.checker.check_model(half, full_check=True)
    return half


class _Halves:
    """Rewrites nodes one after another to half precision, or to a simulation of it."""

    def __init__(self, graph: onnx.GraphProto, simulate: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph, self._simulate = graph, simulate
        self._floats = {name for name, kind in _types(graph).items() if kind == TensorProto.FLOAT}
        self._constants = {entry.name: entry for entry in graph.initializer}
        self._halves: set[str] = set()  # values in half precision under their own name
        self._made: set[str] = set()

    def add(self, node: onnx.NodeProto, heads: Collection[str], *, is_low: bool) -> None:
        """Add a node, its inputs in the format that it takes."""
        full = _FULL_INPUTS.get(node.op_type, ())
        node.input[:] = [
            self._half(name) if is_low and place not in full else self._full(name)
            for place, name in enumerate(node.input)
        ]
        self.nodes.append(node)
        for place, name in enumerate(node.output):
            if not is_low or name not in self._floats:
                continue
            if self._simulate:
                node.output[place] = f"{name}/exact"
                self._round(node.output[place], name)
                self._halves.add(name)
            elif name in heads:  # what follows finds it in full precision
                node.output[place] = f"{name}/fp16"
                self._cast(node.output[place], name, TensorProto.FLOAT)
            else:
                self._halves.add(name)

    def _half(self, name: str) -> str:
        """Return the name of a value in half precision, made from what there is."""
        other = f"{name}/fp16"
        if name not in self._floats or name in self._halves or other in self._made:
            return name if name not in self._floats or name in self._halves else other
        self._made.add(other)
        if name in self._constants:
            value = numpy_helper.to_array(self._constants[name])
            value = value.clip(-_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
            value = value.astype(np.float32) if self._simulate else value
            self._graph.initializer.append(numpy_helper.from_array(value, other))
        elif self._simulate:
            self._round(name, other)
        else:
            self._cast(name, other, TensorProto.FLOAT16)
        return other

    def _full(self, name: str) -> str:
        """Return the name of a value in full precision; in a simulation all values are."""
        if name not in self._halves or self._simulate:
            return name
        other = f"{name}/fp32"
        if other not in self._made:
            self._made.add(other)
            self._cast(name, other, TensorProto.FLOAT)
        return other

    def _round(self, source: str, target: str) -> None:
        self._cast(source, f"{target}/rounded", TensorProto.FLOAT16)
        self._cast(f"{target}/rounded", target, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=target, to=kind))


def conv_macs(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Return the format and the multiply-accumulates (of one image) of each convolution, by name.

    The format is `fp32`, `fp16`, or `int8` where both the input and the weights come out of
    DequantizeLinear.
    """
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types, producers = _types(graph), {name: node for node in graph.node for name in node.output}
    constants = {entry.name: entry for entry in graph.initializer}
    shapes = {
        entry.name: [size.dim_value for size in entry.type.tensor_type.shape.dim]
        for entry in (*graph.value_info, *graph.output)
    }
    found = {}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        before = [producers.get(name) for name in node.input[:2]]
        scaled = [
            None if one is None or one.op_type != "DequantizeLinear" else one for one in before
        ]
        quantised, source = None not in scaled, scaled[1]
        weight = node.input[1] if source is None else source.input[0]
        is_half = types.get(node.input[1]) == TensorProto.FLOAT16
        kind = "int8" if quantised else "fp16" if is_half else "fp32"
        height, width = shapes[node.output[0]][2:]
        found[node.name] = (kind, math.prod(constants[weight].dims) * height * width)
    return found


def share_of_format(macs: Mapping[str, tuple[str, int]], kind: str) -> float:
    """Return the part of all convolutions' multiply-accumulates that is in a format."""
    return sum(count for found, count in macs.values() if found == kind) / sum(
        count for _, count in macs.values()
    )


def _network(graph: onnx.GraphProto, heads: Collection[str]) -> set[str]:
    """Return the names of the nodes from the first convolutions to the heads."""
    after: set[str] = set()  # values that a convolution leads to
    for node in graph.node:
        if node.op_type == "Conv" or after & set(node.input):
            after.update(node.output)
    wanted, network = set(heads), set()
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted.update(node.input)
            if after & set(node.output):
                network.add(node.name)
    return network


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {entry.name: entry.type.tensor_type.elem_type for entry in values}
    return types | {entry.name: entry.data_type for entry in graph.initializer}


def _uses(graph: onnx.GraphProto) -> dict[str, int]:
    counts: dict[str, int] = {}
    outputs = [entry.name for entry in graph.output]
    for name in (*outputs, *(name for node in graph.node for name in node.input)):
        counts[name] = counts.get(name, 0) + 1
    return counts


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    return next((one.f for one in node.attribute if one.name == name), default)


def _drop_unused(graph: onnx.GraphProto) -> None:
    uses = _uses(graph)
    kept = [entry for entry in graph.initializer if entry.name in uses]
    del graph.initializer[:]
    graph.initializer.extend(kept)
