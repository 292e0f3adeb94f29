"""A runtime whose models take exactly what their convolutions come to, for tests of the rest."""

import functools
import math
from typing import Any

import numpy as np
import onnx

from detofa.runtime.runtimes import Timed
from detofa.timer import Clock


class Clockwork:
    """Runs nothing: a convolution costs a power of its multiply-accumulates, and nothing else does.

    Attributes:
        speed: Factor of every time.
        opened: Models opened so far.
    """

    name, version, precision = "onnxruntime-cpu", "clockwork", "fp32"
    batch = threads = 1
    clock: Clock = "thread"
    kept_bytes = 2**20

    def __init__(self) -> None:
        self.speed, self.opened = 1.0, 0
        self.settings: dict[str, Any] = {}

    def open(self, model: bytes) -> Timed:
        self.opened += 1
        return lambda runs: np.full(runs, self.speed * _cost_ms(model))

    def operator_ms(self, model: bytes) -> dict[str, float]:
        return _convolutions_ms(model)


@functools.cache
def _cost_ms(model: bytes) -> float:
    return sum(_convolutions_ms(model).values())


def _convolutions_ms(model: bytes) -> dict[str, float]:
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    weights = {constant.name: math.prod(constant.dims) for constant in graph.initializer}
    costs = {}
    for node in graph.node:
        if node.op_type == "Conv":
            height, width = shapes[node.output[0]][2:]
            assert height * width > 0, node
            costs[node.name] = (weights[node.input[1]] * height * width / 1e6) ** 0.9
    return costs
