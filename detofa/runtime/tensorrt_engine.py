"""TensorRT engines, strongly typed: built from ONNX, and opened; TensorRT 10.16 and 11.

Precision comes from the types in the ONNX graph: neither version needs a flag for it.
"""

import contextlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.runtime.cuda import Cuda
from detofa.runtime.runtimes import FLUSHED_BYTES, KEPT_ON_GPU, LOOKS, Timed, usual_ms
from detofa.timer import Clock

_LARGEST_ITEM = 8  # bytes of a value, whatever its type


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
    workspace_bytes: int = 1 << 30,
    timings: bytes = b"",
    timings_name: str = "of an earlier build",
) -> Engine:
    """Build an engine for this machine's GPU, in the precision of the ONNX file.

    Args:
        onnx_path: The ONNX file.
        batch_sizes: What the free batch size may be.
        workspace_bytes: Memory that a layer may use for its work.
        timings: The timing cache of an earlier build, so that builds are alike; empty for none.
        timings_name: What messages call it.

    Raises:
        UserError: TensorRT or its GPU is missing, the ONNX file is missing, or TensorRT refuses
            it or the timings; gives every message of its parser.
    """
    trt = import_tensorrt()
    if not onnx_path.is_file():
        raise UserError(f"{onnx_path} does not exist; make it with `detofa export`")
    logger = trt.Logger(trt.Logger.Severity.WARNING)
    builder = _made(trt, trt.Builder, logger)
    network = checked(builder.create_network(_network_flags(trt)), "create a network")
    _parse(trt, network, logger, onnx_path)
    config = checked(builder.create_builder_config(), "create a configuration")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and not what fp32 says
    shapes = _add_profile(builder, network, config, batch_sizes)
    cache = _set_timing_cache(config, timings, timings_name)
    engine = builder.build_serialized_network(network, config)
    checked(engine, f"build an engine from {onnx_path}; its log above says why")
    after = checked(cache.serialize(), "save timings")
    return Engine(
        data=bytes(engine), timings=bytes(after), input_shapes=shapes, tensorrt=trt.__version__
    )


def _made(trt: ModuleType, factory: Any, logger: Any) -> Any:
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
            "CUDA 13, whose libraries pip fetches from NVIDIA's own index. For a driver of CUDA "
            "12, add `pip install tensorrt-cu12`"
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
    profile = checked(builder.create_optimization_profile(), "create a profile")
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


def _set_timing_cache(config: Any, timings: bytes, name: str) -> Any:
    """Start from the timings of an earlier build, if there are any."""
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):
        raise UserError(
            f"the timing cache {name} is of another GPU or another TensorRT; remove it and build "
            "again"
        )
    return cache


def checked(value: Any, what: str) -> Any:
    """Return what TensorRT gave; None is how it says that something failed."""
    if value is None:
        raise UserError(f"TensorRT could not {what}")
    return value


class TensorRt:
    """TensorRT on an NVIDIA GPU: engines are built on it, and timed by the GPU's events.

    Builds start from each other's timings, so that equal layers get equal kernels. Before each run
    the GPU's cache is overwritten. Inputs and outputs stay on the GPU, so copies are not timed.

    Args:
        index: Which GPU, as CUDA counts them.
        batch: Images of one call.
        cuda: The CUDA runtime; loaded if not given.

    Raises:
        UserError: TensorRT, the CUDA runtime or the GPU is not there.
    """

    name = "tensorrt"
    precision = "fp32"
    threads = 1
    clock: Clock = "events"
    kept_bytes = KEPT_ON_GPU

    def __init__(self, *, index: int = 0, batch: int = 1, cuda: Cuda | None = None) -> None:
        self.batch = batch
        self._trt = import_tensorrt()
        self.version: str = self._trt.__version__
        self.settings: Mapping[str, Any] = {
            "cuda_graph": False,
            "tf32": False,
            "cache_flushed": True,
        }
        self._cuda = Cuda(index) if cuda is None else cuda
        self._logger = self._trt.Logger(self._trt.Logger.Severity.WARNING)
        self._runtime = _made(self._trt, self._trt.Runtime, self._logger)
        self._stream = self._cuda.stream()
        self._begin, self._end = self._cuda.event(), self._cuda.event()
        self._flushed = self._cuda.allocate(FLUSHED_BYTES)
        self._timings = b""

    def open(self, model: bytes) -> Timed:
        """Build an engine and open it; see `Runtime.open`."""
        engine, context = self._built(model)
        buffers = _Buffers(self._cuda, self._bind(engine, context))

        def timed(runs: int) -> NDArray[np.float64]:
            assert buffers.pointers, "the engine's memory is still held"
            return np.array([self._run(context) for _ in range(runs)])

        return timed

    def operator_ms(self, model: bytes) -> dict[str, float]:
        """Return what each layer takes by TensorRT's profiler; see `Runtime.operator_ms`.

        A layer's name holds those of the operators that were fused into it.
        """
        engine, context = self._built(model)
        took: dict[str, list[float]] = {}

        class Layers(self._trt.IProfiler):  # type: ignore[name-defined, misc]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                took.setdefault(layer_name, []).append(ms)

        layers = Layers()  # held for as long as the context may call it
        context.profiler = layers
        buffers = _Buffers(self._cuda, self._bind(engine, context))
        for _ in range(LOOKS):
            self._run(context)
        assert buffers.pointers, "the engine's memory is still held"
        del context, layers
        return usual_ms(took)

    def _built(self, model: bytes) -> tuple[Any, Any]:
        """Return the engine of a model and a context that runs it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model)
            sizes = BatchSizes(smallest=self.batch, tuned=self.batch, largest=self.batch)
            built = serialized_engine(path, batch_sizes=sizes, timings=self._timings)
        self._timings = built.timings
        engine = checked(
            self._runtime.deserialize_cuda_engine(built.data), "open the engine that it built"
        )
        return engine, checked(engine.create_execution_context(), "create an execution context")

    def _bind(self, engine: Any, context: Any) -> list[int]:
        """Give every input and output memory of its own, inputs with noise; return what is held."""
        trt, pointers, rng = self._trt, [], np.random.default_rng(0)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in inputs:
            shape = (self.batch, *tuple(engine.get_tensor_shape(name))[1:])
            if not context.set_input_shape(name, shape):
                raise UserError(f"TensorRT refuses the shape {shape} for {name}")
        missing = context.infer_shapes()
        if missing:
            raise UserError(f"TensorRT cannot tell the shapes of {', '.join(missing)}")
        for name in names:
            count = math.prod(context.get_tensor_shape(name))
            pointer = self._cuda.allocate(count * _LARGEST_ITEM)
            pointers.append(pointer)
            if name in inputs:
                self._cuda.upload(pointer, rng.standard_normal(count, np.float32).tobytes())
            if not context.set_tensor_address(name, pointer):
                raise UserError(f"TensorRT refuses the memory for {name}")
        return pointers

    def _run(self, context: Any) -> float:
        cuda, stream = self._cuda, self._stream
        cuda.clear(self._flushed, FLUSHED_BYTES, stream)
        cuda.record(self._begin, stream)
        if not context.execute_async_v3(stream):
            raise UserError("TensorRT could not run the engine; its log above says why")
        cuda.record(self._end, stream)
        cuda.wait(self._end)
        return cuda.elapsed_ms(self._begin, self._end)


class _Buffers:
    """Memory on the GPU that is given back with this object."""

    def __init__(self, cuda: Cuda, pointers: list[int]) -> None:
        self._cuda, self.pointers = cuda, pointers

    def __del__(self) -> None:
        for pointer in self.pointers:
            with contextlib.suppress(UserError):
                self._cuda.free(pointer)
