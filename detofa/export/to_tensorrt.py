"""From an ONNX file to a TensorRT engine on disk, with a record of what it was built from."""

from pathlib import Path

from detofa.errors import UserError
from detofa.files import check_companion, read_json, sha256_file, write_bytes, write_json
from detofa.runtime.manifest import Manifest, manifest_path
from detofa.runtime.tensorrt_engine import UP_TO_EIGHT, BatchSizes, serialized_engine

KIND = "tensorrt_engine"
_REMAKE = "`detofa export --to tensorrt`"


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    *,
    batch_sizes: BatchSizes = UP_TO_EIGHT,
    workspace_bytes: int = 1 << 30,
    timing_cache_path: Path | None = None,
) -> Path:
    """Build an engine for this machine's GPU, in the precision of the ONNX file.

    Writes the engine, NAME.engine.json that says what it was built from and with, and the timing
    cache if its path is given.

    Args:
        onnx_path: A file that `detofa export` wrote.
        engine_path: The engine to write.
        batch_sizes: What the free batch size may be.
        workspace_bytes: Memory that a layer may use for its work.
        timing_cache_path: Timings kept from one build to the next, so that builds are alike; made
            if it does not exist.

    Returns:
        The path of the JSON file.

    Raises:
        UserError: TensorRT or its GPU is missing, the ONNX file is missing, or TensorRT refuses
            it; gives every message of its parser.
    """
    timings = b""
    if timing_cache_path is not None and timing_cache_path.is_file():
        timings = timing_cache_path.read_bytes()
    engine = serialized_engine(
        onnx_path,
        batch_sizes=batch_sizes,
        workspace_bytes=workspace_bytes,
        timings=timings,
        timings_name=str(timing_cache_path),
    )
    write_bytes(engine_path, engine.data)
    if timing_cache_path is not None:
        write_bytes(timing_cache_path, engine.timings)
    shapes = {name: [list(shape) for shape in three] for name, three in engine.input_shapes.items()}
    beside_model = manifest_path(onnx_path)
    precision = Manifest.of(onnx_path).precision if beside_model.is_file() else "fp32"
    record = {
        "engine_file": engine_path.name,
        "engine_sha256": sha256_file(engine_path),
        "onnx_sha256": sha256_file(onnx_path),
        "tensorrt": engine.tensorrt,
        "precision": precision,
        "input_shapes": shapes,
        "workspace_bytes": workspace_bytes,
    }
    beside = _record_path(engine_path)
    write_json(beside, KIND, record)
    return beside


def check_engine(engine_path: Path, onnx_sha256: str) -> None:
    """Raise UserError unless an engine is whole and was built from this ONNX file."""
    record = read_json(_record_path(engine_path), KIND, remake=_REMAKE)
    engine_sha256 = str(record.get("engine_sha256"))
    check_companion(_record_path(engine_path), engine_path, engine_sha256, remake=_REMAKE)
    if record.get("onnx_sha256") != onnx_sha256:
        raise UserError(
            f"{engine_path} was built from another ONNX file than the one beside it; build it "
            f"again with {_REMAKE}"
        )


def _record_path(engine_path: Path) -> Path:
    return engine_path.with_name(engine_path.name + ".json")
