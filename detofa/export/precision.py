"""Lower precision: a graph rewritten to fp16 or int8, with what suffers most kept in fp32."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from detofa.export.quantize import to_int8
from detofa.export.rewrite import conv_macs, share_of_format, to_fp16
from detofa.export.to_onnx import RAW_OUTPUTS
from detofa.export.verify import run_heads
from detofa.runtime.gates import Precision
from detofa.runtime.session import open_onnx

Inputs = Sequence[NDArray[np.generic]]

_WEIGHT_PARTS = 5  # of a weight's dotted name that say which group a convolution belongs to


@dataclass(frozen=True, kw_only=True, eq=False)
class Lowered:
    """A model in lower precision.

    Attributes:
        model: The model.
        shown: What shows on this processor how it computes where the precision is at hand: the
            model itself, or a simulation.
        kept: Convolutions that stay fp32.
        share: Part of the convolutions' multiply-accumulates that is in the precision.
        convolutions: The multiply-accumulates of each, by its node's name.
    """

    model: onnx.ModelProto
    shown: onnx.ModelProto
    kept: tuple[str, ...]
    share: float
    convolutions: Mapping[str, int]


def lower(
    model: onnx.ModelProto, precision: Precision, images: Inputs, *, keep: Collection[str] = ()
) -> Lowered:
    """Rewrite a model in a precision.

    Args:
        model: An fp32 model with its raw heads as outputs.
        precision: What it is to compute in; fp32 leaves it as it is.
        images: Inputs of the model, on which int8 is calibrated.
        keep: Names of nodes that stay fp32.

    Raises:
        UserError: int8 without images.
    """
    match precision:
        case "fp32":
            lowered = shown = model
        case "fp16":
            lowered = to_fp16(model, RAW_OUTPUTS, keep=keep)
            shown = to_fp16(model, RAW_OUTPUTS, keep=keep, simulate=True)
        case _:
            lowered = shown = to_int8(model, images, keep=keep)
    macs = conv_macs(lowered)
    return Lowered(
        model=lowered,
        shown=shown,
        kept=tuple(sorted(name for name, (kind, _) in macs.items() if kind != precision)),
        share=share_of_format(macs, precision),
        convolutions={name: count for name, (_, count) in macs.items()},
    )


def most_harmed_first(
    model: onnx.ModelProto, precision: Precision, images: Inputs
) -> list[tuple[str, ...]]:
    """Return groups of nodes, first the one whose lower precision changes the heads most.

    Each group (a block, a layer of the head: convolutions and what follows them) is lowered alone,
    and all else stays fp32.

    Args:
        model: An fp32 model with its raw heads as outputs.
        precision: `fp16` or `int8`.
        images: Inputs of the model, on which heads are compared and int8 is calibrated.
    """
    groups: dict[str, list[str]] = {}
    made_by: dict[str, str] = {}  # the group of the convolution that a value comes from
    for node in model.graph.node:
        group = next((made_by[name] for name in node.input if name in made_by), None)
        if node.op_type == "Conv":
            group = ".".join(node.input[1].split(".")[:_WEIGHT_PARTS])
        if group is not None:
            groups.setdefault(group, []).append(node.name)
            made_by.update(dict.fromkeys(node.output, group))
    every = {name for names in groups.values() for name in names}
    wanted = _heads(model, images)
    harm = {
        group: _difference(
            wanted, _heads(lower(model, precision, images, keep=every - set(names)).shown, images)
        )
        for group, names in groups.items()
    }
    return [tuple(groups[group]) for group in sorted(harm, key=lambda group: -harm[group])]


def share_kept(model: onnx.ModelProto, keep: Collection[str]) -> float:
    """Return the part of the convolutions' multiply-accumulates that some nodes do."""
    macs = conv_macs(model)
    kept = sum(count for name, (_, count) in macs.items() if name in set(keep))
    return kept / sum(count for _, count in macs.values())


def _heads(model: onnx.ModelProto, images: Inputs) -> list[list[NDArray[np.float32]]]:
    session = open_onnx(model.SerializeToString())
    return [run_heads(session, image) for image in images]


def _difference(
    wanted: list[list[NDArray[np.float32]]], found: list[list[NDArray[np.float32]]]
) -> float:
    """Return the mean square difference of the heads, over their mean square."""
    total = 0.0
    for head in range(len(RAW_OUTPUTS)):
        first = np.stack([outputs[head] for outputs in wanted])
        second = np.stack([outputs[head] for outputs in found])
        total += float(np.mean((first - second) ** 2) / max(float(np.mean(first**2)), 1e-12))
    return total if np.isfinite(total) else float("inf")
