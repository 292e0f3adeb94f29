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
        images: Inputs of one image each, (1, ...) as the model takes them, that say which values
            occur.
        keep: Names of convolutions that stay fp32.

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
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(quantised, full_check=True)
    return quantised


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
