"""TensorRT as a runtime that latency tables are measured with; see `Runtime`."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.runtime.cuda import Cuda
from detofa.runtime.runtimes import FLUSHED_BYTES, KEPT_ON_GPU, LOOKS, Timed, noise, usual_ms
from detofa.runtime.tensorrt.build import BatchSizes, import_tensorrt, serialized_engine
from detofa.runtime.tensorrt.opened import OpenedEngine
from detofa.timer import Clock


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
        self._timer = EngineTimer(self._cuda)
        self._timings = b""

    def open(self, model: bytes) -> Timed:
        """Build an engine and open it; see `Runtime.open`."""
        engine = self._opened(model)
        return lambda runs: self._timer.milliseconds(engine, runs)

    def operator_ms(self, model: bytes) -> dict[str, float]:
        """Return what each layer takes by TensorRT's profiler; see `Runtime.operator_ms`.

        A layer's name holds those of the operators that were fused into it.
        """
        engine = self._opened(model)
        took: dict[str, list[float]] = {}

        class Layers(self._trt.IProfiler):  # type: ignore[name-defined, misc]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                took.setdefault(layer_name, []).append(ms)

        layers = Layers()  # held for as long as the context may call it
        engine.context.profiler = layers
        self._timer.milliseconds(engine, LOOKS)
        engine.close()
        del layers
        return usual_ms(took)

    def _opened(self, model: bytes) -> OpenedEngine:
        """Return the engine of a model, with noise as its input."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(model)
            sizes = BatchSizes(smallest=self.batch, tuned=self.batch, largest=self.batch)
            built = serialized_engine(path, batch_sizes=sizes, timings=self._timings)
        self._timings = built.timings
        return noisy(OpenedEngine(built.data, self._cuda), self.batch)


def noisy(engine: OpenedEngine, batch: int) -> OpenedEngine:
    """Give an engine a batch of noise as its input, and return it."""
    engine.bind(batch)
    engine.fill({port.name: noise(port, batch) for port in engine.inputs})
    return engine


class EngineTimer:
    """Times runs of engines by the GPU's events, its cache overwritten before each.

    Attributes:
        enqueue_ms: What the processor took to queue each run, by the wall's clock. Where that is
            nearly what the GPU takes, the GPU waits for the processor.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.enqueue_ms: list[float] = []
        self._cuda = cuda
        self._begin, self._end = cuda.event(), cuda.event()
        self._flushed = cuda.allocate(FLUSHED_BYTES)

    def milliseconds(self, engine: OpenedEngine, runs: int) -> NDArray[np.float64]:
        """Return what each of so many runs takes, (runs,) milliseconds; inputs must be filled."""
        return np.array([self._run(engine) for _ in range(runs)])

    def close(self) -> None:
        """Give what it holds on the GPU back."""
        self._cuda.free(self._flushed)
        for event in (self._begin, self._end):
            self._cuda.drop_event(event)

    def _run(self, engine: OpenedEngine) -> float:
        cuda, stream = self._cuda, engine.stream
        cuda.clear(self._flushed, FLUSHED_BYTES, stream)
        cuda.record(self._begin, stream)
        queued = time.perf_counter()
        engine.start()
        self.enqueue_ms.append(1000 * (time.perf_counter() - queued))
        cuda.record(self._end, stream)
        cuda.wait(self._end)
        return cuda.elapsed_ms(self._begin, self._end)
