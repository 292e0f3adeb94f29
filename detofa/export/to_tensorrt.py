"""From an ONNX file to a TensorRT engine, strongly typed; TensorRT 10.16 and 11.

Precision comes from the types in the ONNX graph: neither version needs a flag for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from detofa.errors import UserError
from detofa.files import sha256_file, write_bytes, write_json

KIND = "tensorrt_engine"


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """Batch sizes of an engine: the least, the one it is tuned for, and the most."""

    smallest: int = 1
    tuned: int = 1
    largest: int = 8

    def __post_init__(self) -> None:
        """Check the order."""
        if not 1 <= self.smallest <= self.tuned <= self.largest:
            raise UserError(
                "batch sizes should be at least 1 and ascend, got "
                f"{self.smallest}, {self.tuned}, {self.largest}"
            )


def build_engine(
    onnx_path: Path,
    engine_path: Path,
    *,
    batch_sizes: BatchSizes = BatchSizes(),
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
    trt = import_tensorrt()
    if not onnx_path.is_file():
        raise UserError(f"{onnx_path} does not exist; make it with `detofa export`")
    logger = trt.Logger(trt.Logger.Severity.WARNING)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # a factory of the bindings that returned null
        raise UserError(
            f"TensorRT {trt.__version__} finds no GPU that it can use ({error}); check the driver "
            "with `nvidia-smi`, and build the engine on the machine that will run it"
        ) from error
    network = _checked(builder.create_network(_network_flags(trt)), "create a network")
    _parse(trt, network, logger, onnx_path)
    config = _checked(builder.create_builder_config(), "create a configuration")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and not what fp32 says
    shapes = _add_profile(builder, network, config, batch_sizes)
    cache = _set_timing_cache(config, timing_cache_path)
    engine = builder.build_serialized_network(network, config)
    _checked(engine, f"build an engine from {onnx_path}; its log above says why")
    timings = _checked(cache.serialize(), "save timings")
    write_bytes(engine_path, bytes(engine))
    if timing_cache_path is not None:
        write_bytes(timing_cache_path, bytes(timings))
    record = {
        "engine_file": engine_path.name,
        "engine_sha256": sha256_file(engine_path),
        "onnx_sha256": sha256_file(onnx_path),
        "tensorrt": trt.__version__,
        "precision": "fp32",
        "input_shapes": {name: [list(shape) for shape in three] for name, three in shapes.items()},
        "workspace_bytes": workspace_bytes,
    }
    beside = engine_path.with_name(engine_path.name + ".json")
    write_json(beside, KIND, record)
    return beside


def import_tensorrt() -> ModuleType:
    """Return the tensorrt module.

    Raises:
        UserError: it is not installed, or a library that it needs is not; says what to install.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise UserError(
            f"TensorRT cannot be used here ({error}). It needs an NVIDIA GPU with its driver, on "
            "Linux or Windows; then `pip install 'detofa[tensorrt]'` installs TensorRT 11 for "
            "CUDA 13, whose libraries pip fetches from https://pypi.nvidia.com. For a driver of "
            "CUDA 12, add `pip install tensorrt-cu12`"
        ) from error
    return tensorrt  # type: ignore[no-any-return]


def _network_flags(trt: ModuleType) -> int:
    """Return the flag of strong typing by its name: its bit moved from 10 to 11."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(trt: ModuleType, network: Any, logger: Any, onnx_path: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(onnx_path)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors]
    raise UserError(
        f"TensorRT {trt.__version__} cannot read {onnx_path}: "
        + ("; ".join(lines) or "it does not say why")
        + ". Export it again with `detofa export`, or try TensorRT 11"
    )


def _add_profile(
    builder: Any, network: Any, config: Any, batch_sizes: BatchSizes
) -> Mapping[str, tuple[tuple[int, ...], ...]]:
    """Say which batch sizes the free first size of every input may take."""
    profile = _checked(builder.create_optimization_profile(), "create a profile")
    shapes = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        rest = tuple(tensor.shape)[1:]
        if any(size < 0 for size in rest):
            raise UserError(
                f"input {tensor.name} has shape {tuple(tensor.shape)}, but only the batch size may "
                "be free; export it again with `detofa export`"
            )
        sizes = (batch_sizes.smallest, batch_sizes.tuned, batch_sizes.largest)
        shapes[tensor.name] = tuple((size, *rest) for size in sizes)
        profile.set_shape(tensor.name, *shapes[tensor.name])
    if config.add_optimization_profile(profile) < 0:
        raise UserError(f"TensorRT refuses the shapes {shapes}; give other batch sizes")
    return shapes


def _set_timing_cache(config: Any, path: Path | None) -> Any:
    """Start from the timings of an earlier build, if there are any."""
    stored = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        raise UserError(
            f"the timing cache {path} is of another GPU or another TensorRT; remove it and build "
            "again"
        )
    return cache


def _checked(value: Any, what: str) -> Any:
    """Return what TensorRT gave; None is how it says that something failed."""
    if value is None:
        raise UserError(f"TensorRT could not {what}")
    return value
