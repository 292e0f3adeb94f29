"""Building: from an ONNX file to a serialised engine, in the precision of the file's own types."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from detofa.errors import UserError

WORKSPACE_BYTES = 1 << 30
"""Memory that a layer may use for its work, if nothing else is said."""


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

    @classmethod
    def parse(cls, text: str) -> "BatchSizes":
        """Read `1,1,8`: the least, the one it is tuned for, and the most; or one for all three.

        Raises:
            UserError: it is not that.
        """
        parts = text.split(",")
        if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
            raise UserError(f"batch sizes should be written as 1,1,8 or 4, got {text!r}")
        smallest, tuned, largest = (int(part) for part in (parts * 3)[:3])
        return cls(smallest=smallest, tuned=tuned, largest=largest)

    def of_shape(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the least, tuned and largest shape of an input; equal if its batch is fixed."""
        if shape[0] > 0:
            return (shape,) * 3
        sizes = (self.smallest, self.tuned, self.largest)
        return tuple((size, *shape[1:]) for size in sizes)


UP_TO_EIGHT = BatchSizes()
"""Tuned for one image, and fit for up to eight."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A built engine, not yet on disk.

    Attributes:
        data: What TensorRT deserialises.
        timings: Its timing cache after the build.
        input_shapes: Of each input the least, the tuned and the largest shape.
        tensorrt: The version that built it.
    """

    data: bytes
    timings: bytes
    input_shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    tensorrt: str


def serialized_engine(
    onnx_path: Path,
    *,
    batch_sizes: BatchSizes,
    workspace_bytes: int = WORKSPACE_BYTES,
    timings: bytes = b"",
) -> Engine:
    """Build an engine for this machine's GPU, in the precision of the ONNX file.

    Neither version needs a flag for precision: networks are strongly typed. The engine says what
    its layers compute in (see `tensorrt.layers`).

    Args:
        onnx_path: The ONNX file.
        batch_sizes: What the free batch size may be.
        workspace_bytes: Memory that a layer may use for its work.
        timings: The timing cache of an earlier build, so that builds are alike; empty for none.
            One that TensorRT refuses is not used.

    Raises:
        UserError: TensorRT or its GPU is missing, the ONNX file is missing, or TensorRT refuses
            it; gives every message of its parser.
    """
    trt = import_tensorrt()
    if not onnx_path.is_file():
        raise UserError(f"{onnx_path} does not exist; make it with `detofa export`")
    logger = logger_of(trt)
    builder = made(trt, trt.Builder, logger)
    network = checked(builder.create_network(_network_flags(trt)), "create a network")
    _parse(trt, network, logger, onnx_path)
    config = checked(builder.create_builder_config(), "create a configuration")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and not what fp32 says
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers say their precision
    shapes = _add_profile(builder, network, config, batch_sizes)
    cache = _set_timing_cache(config, timings)
    engine = builder.build_serialized_network(network, config)
    checked(engine, f"build an engine from {onnx_path}; its log above says why")
    after = checked(cache.serialize(), "save timings")
    return Engine(
        data=bytes(engine), timings=bytes(after), input_shapes=shapes, tensorrt=trt.__version__
    )


@functools.cache
def logger_of(trt: ModuleType) -> Any:
    """Return the one logger of this process: TensorRT keeps the first that it is given."""
    return trt.Logger(trt.Logger.Severity.WARNING)


def made(trt: ModuleType, factory: Any, logger: Any) -> Any:
    """Return what a factory of the bindings makes; it returns null where there is no GPU."""
    try:
        return factory(logger)
    except TypeError as error:
        raise UserError(
            f"TensorRT {trt.__version__} finds no GPU that it can use ({error}); check the driver "
            "with `nvidia-smi`, and run this on the machine that has the GPU"
        ) from error


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
            "CUDA 13, whose libraries pip fetches from NVIDIA's own index; for a driver of CUDA 12 "
            "it is 'detofa[tensorrt-cu12]' instead"
        ) from error
    return tensorrt  # type: ignore[no-any-return]


def checked(value: Any, what: str) -> Any:
    """Return what TensorRT gave; None is how it says that something failed."""
    if value is None:
        raise UserError(f"TensorRT could not {what}")
    return value


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
    profile = checked(builder.create_optimization_profile(), "create a profile")
    shapes = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if any(size < 0 for size in shape[1:]):
            raise UserError(
                f"input {tensor.name} has shape {shape}, but only the batch size may be free; "
                "export it again with `detofa export`"
            )
        shapes[tensor.name] = batch_sizes.of_shape(shape)
        profile.set_shape(tensor.name, *shapes[tensor.name])
    if config.add_optimization_profile(profile) < 0:
        raise UserError(f"TensorRT refuses the shapes {shapes}; give other batch sizes")
    return shapes


def _set_timing_cache(config: Any, timings: bytes) -> Any:
    """Start from the timings of an earlier build; from none where they are damaged or foreign."""
    for data in dict.fromkeys((timings, b"")):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    raise UserError("TensorRT could not make a timing cache; its log above says why")
