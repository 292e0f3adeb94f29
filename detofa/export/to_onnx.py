"""From a PyTorch module to ONNX, by torch's dynamo exporter."""

import contextlib
import copy
import gc
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from detofa.errors import UserError
from detofa.export.rewrite import fold_batch_norms
from detofa.files import write_bytes
from detofa.runtime.session import BOXES_NAME, SCORES_NAME

RAW_OUTPUTS = ("class_logits", "side_logits")
OUTPUT_NAMES = (BOXES_NAME, SCORES_NAME, *RAW_OUTPUTS)
Shape = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """What one export gave.

    Attributes:
        opset: The opset read back from the graph: the exporter may not give what it is asked for.
        inputs: Shape of each input; a text stands for a size that is free.
        outputs: Shape of each output of the written file.
        checked_model: The same graph as the written file with every output kept, for parity checks.
    """

    opset: int
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    checked_model: bytes


def export_onnx(
    module: nn.Module,
    path: Path,
    *,
    image_size: tuple[int, int],
    batch: int | None = None,
    input_name: str = "images",
    output_names: Sequence[str] = OUTPUT_NAMES,
    drop_outputs: Sequence[str] = RAW_OUTPUTS,
    metadata: Mapping[str, str],
) -> OnnxExport:
    """Write a detector as one ONNX file.

    Args:
        module: Maps images (B, 3, H, W) float32 to as many tensors as `output_names`; on any
            device, in any mode: a copy in evaluation mode is exported.
        path: The file to write; written whole or not at all.
        image_size: (height, width) of the input.
        batch: Images of one call; any number if not given.
        input_name: Name of the input.
        output_names: Names of the outputs in order.
        drop_outputs: Outputs that are left out of the file, though not of `checked_model`.
        metadata: Texts stored inside the file.

    Raises:
        UserError: the exporter is not installed, or cannot export this module.
    """
    assert set(drop_outputs) < set(output_names), (drop_outputs, output_names)
    example = torch.zeros(batch or 2, 3, *image_size)  # one image might be taken for a constant
    model = onnx_model(
        module,
        (example,),
        input_names=[input_name],
        output_names=output_names,
        dynamic_batch=batch is None,
    )
    fold_batch_norms(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return write_onnx(model, path, drop_outputs=drop_outputs)


def write_onnx(
    model: onnx.ModelProto, path: Path, *, drop_outputs: Sequence[str] = RAW_OUTPUTS
) -> OnnxExport:
    """Write a model without some of its outputs; see `export_onnx`."""
    checked_model = model.SerializeToString()
    written = onnx.ModelProto()
    written.CopyFrom(model)
    kept = [output for output in model.graph.output if output.name not in set(drop_outputs)]
    del written.graph.output[:]
    written.graph.output.extend(kept)
    onnx.checker.check_model(written, full_check=True)
    write_bytes(path, written.SerializeToString())
    return OnnxExport(
        opset=_opset(written),
        inputs={entry.name: _shape(entry) for entry in written.graph.input},
        outputs={entry.name: _shape(entry) for entry in written.graph.output},
        checked_model=checked_model,
    )


def onnx_model(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_batch: bool = True,
) -> onnx.ModelProto:
    """Return any module as an ONNX model.

    Args:
        module: On any device and in any mode; a copy in evaluation mode is exported.
        example_inputs: One tensor for each argument of `forward`; with a batch of at least 2 if
            that is to stay free.
        input_names: Names of the inputs in order.
        output_names: Names of the outputs in order.
        dynamic_batch: Whether the first size of every input and output is free.

    Raises:
        UserError: onnx or onnxscript is not installed, or the module cannot be exported.
    """
    copied = copy.deepcopy(module).cpu().eval()
    for layer in copied.modules():  # in-place operations are taken apart one by one in tracing
        if getattr(layer, "inplace", False):
            layer.inplace = False  # type: ignore[assignment]
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in example_inputs) if dynamic_batch else None
    with _quiet(), _no_collection():
        try:
            program = torch.onnx.export(
                copied,
                tuple(example_inputs),
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=shapes,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except ImportError as error:
            raise UserError(
                f"exporting needs onnx and onnxscript ({error}); install them with "
                "`pip install 'detofa[onnx]'`"
            ) from error
        except torch.onnx.errors.OnnxExporterError as error:
            raise UserError(f"torch cannot export this module to ONNX: {error}") from error
    assert program is not None
    model = program.model_proto
    _strip_traces(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Leave garbage alone: tracing makes many objects that live, and little of it is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and advice to itself; its errors still come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the source: it holds paths of this machine."""
    graph = model.graph
    del model.metadata_props[:]
    del graph.metadata_props[:]
    for entries in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
        for entry in entries:
            del entry.metadata_props[:]
            entry.doc_string = ""


def _opset(model: onnx.ModelProto) -> int:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    return int(versions[""])


def _shape(entry: onnx.ValueInfoProto) -> Shape:
    sizes = entry.type.tensor_type.shape.dim
    return tuple(size.dim_param or size.dim_value for size in sizes)
