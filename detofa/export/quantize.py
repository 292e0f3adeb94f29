"""INT8: convolutions quantised by ONNX Runtime's tools, from images that say what values occur."""

import contextlib
import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from detofa.errors import UserError


def to_int8(
    model: onnx.ModelProto,
    images: Sequence[NDArray[np.generic]],
    *,
    keep: Collection[str] = (),
) -> onnx.ModelProto:
    """Return a model whose convolutions take int8 inputs and weights, as QuantizeLinear pairs.

    Symmetric, so that all zero points are 0, weights by channel, activations by tensor, biases in
    fp32: what TensorRT reads too. What follows a convolution stays fp32 up to the next one's
    input, and so does all that is no convolution.

    Args:
        model: An fp32 model with one input.
        images: Inputs, as the model takes them, that say which values occur.
        keep: Names of convolutions that stay fp32; names of other nodes mean nothing.

    Raises:
        UserError: there are no images.
    """
    if not images:
        raise UserError(
            "int8 needs images to calibrate on, and there are none; name a data set with --data"
        )
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        quantize_static(
            str(source),
            str(target),
            _Inputs(model.graph.input[0].name, images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=list(keep),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "OpTypesToExcludeOutputQuantization": ["Conv"],
            },
        )
        quantised = onnx.load(str(target))
    _full_elsewhere(quantised.graph, keep)
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


def _full_elsewhere(graph: onnx.GraphProto, keep: Collection[str]) -> None:
    """Give all but the quantised convolutions the values that were there before rounding.

    The tools let every reader of an activation have the rounded one, residual sums too.
    """
    producers = {name: node for node in graph.node for name in node.output}
    exact = {}
    for node in graph.node:
        source = producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if source is not None and source.op_type == "QuantizeLinear":
            exact[node.output[0]] = source.input[0]
    for node in graph.node:
        is_quantised = node.op_type == "Conv" and node.name not in keep
        for place, name in enumerate(node.input):
            if name in exact and not (is_quantised and place == 0):
                node.input[place] = exact[name]
    used = {name for node in graph.node for name in node.input}
    used |= {entry.name for entry in graph.output}
    unread = [node for node in graph.node if not used & set(node.output)]
    for node in unread:  # pairs around kept convolutions
        graph.node.remove(node)


class _Inputs:
    """Gives one input after another to ONNX Runtime's calibration."""

    def __init__(self, name: str, images: Sequence[NDArray[np.generic]]) -> None:
        self._feeds = iter([{name: image} for image in images])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next input, or None."""
        return next(self._feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools' advice to itself."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
