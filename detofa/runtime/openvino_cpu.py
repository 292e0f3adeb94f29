"""OpenVINO on the processor: another runtime for the same ONNX files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.runtime.runtimes import (
    KEPT_ON_CPU,
    LOOKS,
    Timed,
    noise,
    sampled,
    usual_ms,
    wanted_outputs,
)
from detofa.runtime.session import FileSession, Port, model_name
from detofa.timer import Clock, thread_clock

_DEVICE = "CPU"


class OpenVinoSession(FileSession):
    """An exported detector in OpenVINO; see `FileSession`.

    Args:
        model: An .onnx file that `detofa export` wrote, or its bytes.
        threads: Threads used inside an operator.

    Raises:
        UserError: see `open_openvino`; or the model's inputs and outputs are not a detector's.
    """

    def __init__(self, model: Path | bytes, *, threads: int = 1) -> None:
        self.threads = threads
        self._model, self._compiled = open_openvino(model, threads=threads)
        inputs = [_port(entry) for entry in self._compiled.inputs]
        self._outputs = [output.any_name for output in self._compiled.outputs]
        super().__init__(model_name(model), inputs, self._outputs)
        self._request: Any = self._compiled.create_infer_request()

    @property
    def metadata(self) -> dict[str, str]:
        """Return the texts that are stored inside the file."""
        held = dict(self._model.get_rt_info().items())
        stored = held.get("framework", {})
        return {name: str(entry.value) for name, entry in stored.items()}

    def _run_batch(self, names: Sequence[str], images: NDArray[Any]) -> list[NDArray[Any]]:
        assert self._request is not None, "this session is closed"
        self._request.infer({0: images})
        places = [self._outputs.index(name) for name in names]
        return [self._request.get_output_tensor(place).data.copy() for place in places]

    def close(self) -> None:
        """Free the model; running it afterwards is an error."""
        self._request = self._compiled = self._model = None


class OpenVinoCpu:
    """OpenVINO on the processor, in fp32 and for latency; see `detofa.runtime.runtimes.Runtime`.

    Args:
        threads: Threads inside an operator. With one, thread CPU time is read: OpenVINO then works
            on the calling thread.
        batch: Images of one call.
        clock: What is read instead.
    """

    name = "openvino-cpu"
    precision = "fp32"
    kept_bytes = KEPT_ON_CPU

    def __init__(self, *, threads: int = 1, batch: int = 1, clock: Clock | None = None) -> None:
        self.threads, self.batch = threads, batch
        self.clock: Clock = clock or (thread_clock() if threads == 1 else "wall")
        self.version: str = _openvino().__version__
        self.settings: Mapping[str, Any] = {"performance_hint": "LATENCY"}

    def open(self, model: bytes) -> Timed:
        """Open a model; see `Runtime.open`."""
        request = self._request(model, look=False)
        return lambda runs: sampled(request.infer, runs, self.clock)

    def operator_ms(self, model: bytes) -> dict[str, float]:
        """Return what OpenVINO's own profile says; see `Runtime.operator_ms`."""
        request = self._request(model, look=True)
        took: dict[str, list[float]] = {}
        for _ in range(LOOKS):
            request.infer()
            for entry in request.get_profiling_info():
                ms = entry.real_time.total_seconds() * 1000
                took.setdefault(entry.node_name, []).append(ms)
        return usual_ms(took)

    def _request(self, model: bytes, *, look: bool) -> Any:
        """Return a request for noise, of which only what a detector is run for is computed."""
        _, compiled = open_openvino(model, threads=self.threads, batch=self.batch, look=look)
        request = compiled.create_infer_request()
        for place, entry in enumerate(compiled.inputs):
            tensor = request.get_input_tensor(place)
            tensor.data[:] = noise(_port(entry), self.batch)
        return request


def open_openvino(
    model: Path | bytes, *, threads: int = 1, batch: int | None = None, look: bool = False
) -> tuple[Any, Any]:
    """Open any ONNX model in OpenVINO, with settings that make timings comparable.

    Args:
        model: A file, or the bytes of one.
        threads: Threads used inside an operator.
        batch: Fix a free batch size to this, and leave out outputs that a detector is not run for.
        look: Whether operators are timed.

    Returns:
        An `openvino.Model` and the `openvino.CompiledModel` of it.

    Raises:
        UserError: OpenVINO is not installed, the file does not exist or cannot be run, or
            something else than the processor would run it.
    """
    openvino = _openvino()
    name = model_name(model)
    if threads < 1:
        raise UserError(f"threads should be at least 1, got {threads}")
    if isinstance(model, Path) and not model.is_file():
        raise UserError(f"{name} does not exist; make it with `detofa export`")
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # bf16 is the default where the processor has it
        "PERF_COUNT": look,
    }
    try:
        core = openvino.Core()
        read = core.read_model(model if isinstance(model, bytes) else str(model))
        if batch is not None:
            read = _for_timing(openvino, read, batch)
        compiled = core.compile_model(read, _DEVICE, settings)
    except Exception as error:  # OpenVINO raises RuntimeError and types of its own
        raise UserError(
            f"{name} is not a model that OpenVINO can open; it may be damaged or of another kind: "
            f"export it again with `detofa export`. OpenVINO says: {str(error).strip()[-300:]}"
        ) from error
    used = compiled.get_property("EXECUTION_DEVICES")
    if used != [_DEVICE]:
        raise UserError(f"{_DEVICE} is wanted for {name}, and OpenVINO runs it on {used}")
    return read, compiled


def _for_timing(openvino: ModuleType, model: Any, batch: int) -> Any:
    """Return a model of a fixed batch with no outputs but those that it is run for."""
    model.reshape(
        {
            entry: [batch, *(size.get_length() for size in list(entry.partial_shape)[1:])]
            for entry in model.inputs
        }
    )
    names = wanted_outputs([output.any_name for output in model.outputs])
    kept = [model.output(name) for name in names]
    return openvino.Model([output.node for output in kept], model.get_parameters(), "timed")


def _port(entry: Any) -> Port:
    return Port(
        name=entry.any_name,
        kind=entry.element_type.to_dtype().name,
        shape=tuple(size.get_length() if size.is_static else None for size in entry.partial_shape),
    )


def _openvino() -> ModuleType:
    try:
        import openvino
    except ImportError as error:
        raise UserError(
            f"OpenVINO is not here ({error}); install it with `pip install 'detofa[openvino]'`"
        ) from error
    return openvino  # type: ignore[no-any-return]
