"""A model repository for Triton Inference Server: configuration, labels, warm-up, the model.

Source of the layout and fields: Triton's model repository and model configuration documentation;
tests read the configuration with the protobuf schema that NVIDIA publishes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import detofa
from detofa.errors import UserError
from detofa.files import write_bytes
from detofa.runtime.manifest import Manifest
from detofa.runtime.session import DETECTION_NAMES, PIXELS_NAME, SCORES_NAME
from detofa.runtime.tensorrt.record import REBUILD, EngineRecord

LABELS, README = "labels.txt", "README.txt"
_TYPES = {
    PIXELS_NAME: "TYPE_UINT8",
    DETECTION_NAMES[2]: "TYPE_INT64",
    DETECTION_NAMES[3]: "TYPE_INT64",
}
_LABELLED = (SCORES_NAME, DETECTION_NAMES[2])
_DELAY_MICROSECONDS = 100


_README = """\
{name}: a detector of {classes}, in {precision}.
Made by detofa {version} for Triton's {backend} backend.

    tritonserver --model-repository {folder}

A request holds {inputs}:
an RGB image, scaled with its proportions kept so that it fits {height}x{width} (height x width),
placed in the middle and padded with {fill}{normalised}.
The answer holds {outputs}.
Boxes are x1, y1, x2, y2 in pixels of the input. {after}
"""
_AFTER_CANDIDATES = """\
They are candidates: for each class drop scores below
{score}, then suppress those that overlap a better one of their class by an IoU above {iou}."""
_AFTER_DETECTIONS = """\
They are final: num_detected says how many of them count, labels.txt names the classes."""


class _Word(str):
    """A text that stands without quotation marks, such as a name of an enumeration."""


def write_triton(
    model_path: Path, folder: Path, *, name: str | None = None, max_batch: int = 8
) -> Path:
    """Write a model repository that serves an exported detector.

    Args:
        model_path: An .onnx file that `detofa export` wrote, its manifest beside it; or a TensorRT
            engine that was built from it, beside both.
        folder: The repository; other models in it stay.
        name: The model's name there; that of the file if not given.
        max_batch: Images that Triton may put together, where the file takes any number.

    Returns:
        The folder of the model.

    Raises:
        UserError: the model or its manifest is missing or changed, or the name is none for Triton.
    """
    name = check_name(name or model_path.stem)
    if max_batch < 1:
        raise UserError(f"the largest batch should be at least 1, got {max_batch}")
    is_engine = model_path.suffix == ".engine"
    manifest = Manifest.of(model_path.with_suffix(".onnx") if is_engine else model_path)
    if is_engine:
        max_batch = _largest_batch(model_path, manifest, max_batch)
    place = folder / name
    file_name = "model.plan" if is_engine else "model.onnx"
    config = _config(manifest, name, "tensorrt" if is_engine else "onnxruntime", max_batch)
    labels = "".join(f"{label}\n" for _, label in manifest.subnet.categories)
    write_bytes(place / "1" / file_name, model_path.read_bytes())
    write_bytes(place / LABELS, labels.encode())
    write_bytes(place / "config.pbtxt", text_format(config).encode())
    write_bytes(place / README, _readme(manifest, name, config["backend"], folder).encode())
    return place


def _largest_batch(engine: Path, manifest: Manifest, wanted: int) -> int:
    """Return the largest batch that Triton may make for an engine.

    Raises:
        UserError: it is not whole, was built from another ONNX file, or does not take one image.
    """
    record = EngineRecord.load(engine)
    if record.onnx_sha256 != manifest.model_sha256:
        raise UserError(
            f"{engine} was built from another ONNX file than the one beside it; build it again "
            f"with {REBUILD}"
        )
    smallest, _, largest = next(iter(record.input_shapes.values()))
    is_free = isinstance(next(iter(manifest.inputs.values()))[0], str)
    if is_free and smallest[0] > 1:
        raise UserError(
            f"{engine} takes at least {smallest[0]} images at once, but Triton may have only one; "
            "build it with --batches 1,..."
        )
    return min(wanted, largest[0])


def check_name(name: str) -> str:
    """Return a name that Triton takes for a model.

    Raises:
        UserError: it does not take this one.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise UserError(
            "a model of Triton should have a name of letters, digits, '_', '-' and '.', got "
            f"{name!r}; export to a file of another name with --output"
        )
    return name


def _config(manifest: Manifest, name: str, backend: str, max_batch: int) -> dict[str, Any]:
    """Return the fields of Triton's ModelConfig."""
    (_, first), *_ = manifest.inputs.items()
    is_free = isinstance(first[0], str)
    limit = max_batch if is_free else 0  # 0: Triton adds no batch size of its own to the shapes

    def port(key: str, shape: Sequence[int | str]) -> dict[str, Any]:
        kind = _Word(_TYPES.get(key, "TYPE_FP32"))
        # A number for each image has no size left once the batch is taken away: Triton wants [1].
        return {
            "name": key,
            "data_type": kind,
            "dims": list(shape[1:] if is_free else shape) or [1],
        }

    inputs = [port(key, shape) for key, shape in manifest.inputs.items()]
    outputs = []
    for key, shape in manifest.outputs.items():
        entry = port(key, shape)
        if len(shape) == 1 and is_free:
            entry["reshape"] = {"shape": []}
        if key in _LABELLED:
            entry["label_filename"] = LABELS
        outputs.append(entry)
    config: dict[str, Any] = {
        "name": name,
        "backend": backend,
        "max_batch_size": limit,
        "input": inputs,
        "output": outputs,
        "instance_group": [{"count": 1, "kind": _Word("KIND_AUTO")}],
    }
    if limit > 1:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": _DELAY_MICROSECONDS}
    warm_ups = sorted({1, limit or 1})  # without batches of its own Triton counts a request as 1
    config["model_warmup"] = [
        {
            "name": f"zeros_{size}",
            "batch_size": size,
            "inputs": [
                {
                    "key": entry["name"],
                    "value": {
                        "data_type": entry["data_type"],
                        "dims": entry["dims"],
                        "zero_data": True,
                    },
                }
                for entry in inputs
            ],
        }
        for size in warm_ups
    ]
    config["parameters"] = [
        {"key": key, "value": {"string_value": text}}
        for key, text in {
            "detofa_model_sha256": manifest.model_sha256,
            "detofa_precision": manifest.precision,
            "detofa_preprocessing": json.dumps(manifest.subnet.preprocessing.to_json()),
        }.items()
    ]
    return config


def _readme(manifest: Manifest, name: str, backend: str, folder: Path) -> str:
    """Return what someone needs to know who sends requests."""
    subnet, prepared = manifest.subnet, manifest.subnet.preprocessing
    height, width = subnet.arch.image_size
    takes_pixels, suppresses = PIXELS_NAME in manifest.inputs, SCORES_NAME not in manifest.outputs
    mean, std = list(prepared.mean), list(prepared.std)
    after = _AFTER_DETECTIONS if suppresses else _AFTER_CANDIDATES
    return _README.format(
        name=name,
        classes=", ".join(label for _, label in subnet.categories),
        precision=manifest.precision,
        backend=backend,
        version=detofa.__version__,
        folder=folder,
        inputs=_ports(manifest.inputs),
        outputs=_ports(manifest.outputs),
        height=height,
        width=width,
        fill=prepared.fill,
        normalised="" if takes_pixels else f";\nthen (pixel - {mean}) / {std}, channels first",
        after=after.format(
            score=f"{subnet.postprocessing.score_threshold:g}",
            iou=f"{subnet.postprocessing.nms_threshold:g}",
        ),
    )


def _ports(shapes: Mapping[str, Sequence[int | str]]) -> str:
    """Return names, types and shapes as a list in words."""
    texts = [
        f"{key} ({', '.join(map(str, shape))}) {_TYPES.get(key, 'TYPE_FP32')[5:].lower()}"
        for key, shape in shapes.items()
    ]
    return ", ".join(texts)


def text_format(fields: Mapping[str, Any], indent: str = "") -> str:
    """Return a message in protobuf's text format."""
    lines = []
    for key, value in fields.items():
        entries = value if isinstance(value, list) else [value]
        if entries and all(type(entry) is int for entry in entries) and isinstance(value, list):
            lines.append(f"{indent}{key}: [{', '.join(map(str, entries))}]")
            continue
        for entry in entries:
            if isinstance(entry, Mapping):
                inside = text_format(entry, indent + "  ")
                lines.append(f"{indent}{key} {{\n{inside}{indent}}}")
            else:
                lines.append(f"{indent}{key}: {_scalar(entry)}")
    return "".join(f"{line}\n" for line in lines)


def _scalar(value: Any) -> str:
    if isinstance(value, _Word):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False)
