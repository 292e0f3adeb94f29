"""What the layers of an engine really compute in, by what its inspector says.

Source of the fields: NVIDIA's documentation of the engine inspector and its migration notes, which
say that TensorRT 11 splits the field `Format/Datatype` of a tensor in two; and layers that users
showed in NVIDIA's issues (TensorRT #2418, #3737, #4020, #4397). Not yet run on a GPU.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from detofa.errors import UserError

UNKNOWN = "unknown"
_WORDS = {"fp32": "fp32|float|float32", "fp16": "fp16|half|float16", "int8": "int8"}
"""TensorRT's words for the number formats of a file, in lower case; the widest comes first."""
_TYPE_FIELDS = ("datatype", "format/datatype", "format")
_MOVES_ONLY = {"reformat", "noop", "constant", "shuffle", "cast"}
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\[\]\x1e]+)\]")
_NAME_PARTS = re.compile(r" \+ | \|\| ")


def precision_of_convs(layers_json: str, convs: Mapping[str, int]) -> dict[str, str]:
    """Return the number format that each convolution is computed in.

    Where several layers compute parts of one convolution, the widest format counts.

    Args:
        layers_json: What the inspector of an engine says, built with detailed verbosity.
        convs: The multiply-accumulates of each convolution, by its name in the ONNX file.

    Returns:
        `fp32`, `fp16`, `int8`, or `unknown` where no layer says so.

    Raises:
        UserError: the text is not what an inspector says.
    """
    widest = (*_WORDS, UNKNOWN)
    found = dict.fromkeys(convs, UNKNOWN)
    for layer in _layers(layers_json):
        if _text(layer, "layertype") in _MOVES_ONLY:
            continue
        precision = _precision(layer)
        for name in _onnx_names(layer) & set(convs):
            found[name] = min(found[name], precision, key=widest.index)
    return found


def share_in(precision: str, found: Mapping[str, str], convs: Mapping[str, int]) -> float:
    """Return the part of the convolutions' multiply-accumulates that is in a precision."""
    total = sum(convs.values())
    return sum(convs[name] for name, kind in found.items() if kind == precision) / max(total, 1)


def _layers(layers_json: str) -> Iterator[Mapping[str, Any]]:
    """Yield the layers that say more than their name."""
    try:
        layers = json.loads(layers_json, strict=False)["Layers"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"TensorRT's inspector says what cannot be read ({error}), so the precision of the "
            "engine is not known; report this with the version of TensorRT"
        ) from error
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict):
            yield layer


def _precision(layer: Mapping[str, Any]) -> str:
    """Return the wider one of the first input's format and the weights'."""
    inputs, weights = layer.get("Inputs"), layer.get("Weights")
    said = [_format_of(_type_text(inputs[0]))] if isinstance(inputs, list) and inputs else []
    if isinstance(weights, dict):
        said.append(_format_of(_text(weights, "type")))
    known = [one for one in said if one != UNKNOWN]
    return min(known, key=(*_WORDS,).index) if known else UNKNOWN


def _format_of(text: str) -> str:
    for name, words in _WORDS.items():
        if re.search(rf"\b({words})\b", text):
            return name
    return UNKNOWN


def _type_text(tensor: Any) -> str:
    """Return what is said of a tensor's type."""
    if not isinstance(tensor, dict):
        return ""
    return next((text for field in _TYPE_FIELDS if (text := _text(tensor, field))), "")


def _text(record: Mapping[str, Any], field: str) -> str:
    """Return a field's text in lower case, however its name is spelled; empty if it is none."""
    values = (value for key, value in record.items() if key.lower() == field)
    return next((value.lower() for value in values if isinstance(value, str)), "")


def _onnx_names(layer: Mapping[str, Any]) -> set[str]:
    """Return the names of the ONNX nodes that a layer computes."""
    metadata, name = layer.get("Metadata"), layer.get("Name")
    named = set(_ONNX_LAYER.findall(metadata)) if isinstance(metadata, str) else set()
    return named or (set(_NAME_PARTS.split(name)) if isinstance(name, str) else set())
