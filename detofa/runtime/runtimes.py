"""Runtimes: what opens a model to be timed, and how its time is read; one small interface."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.runtime.session import (
    BOXES_NAME,
    CPU,
    SCORES_NAME,
    Port,
    onnx_ports,
    open_onnx,
    runtime_version,
)
from detofa.timer import Clock, sample, thread_clock

Timed = Callable[[int], NDArray[np.float64]]
"""Times so many runs of an opened model, one after another: (runs,) milliseconds."""

LOOKS, _LOOKS_TO_WARM = 15, 3  # runs in which operators are looked at; first ones do not count
KEPT_ON_CPU = 256 * 2**20
"""Bytes of models that may stay open on a processor, where they take three times as much."""
KEPT_ON_GPU = 8 * 2**30
"""Bytes of models that may stay open on a GPU: all, since opening one there takes seconds."""
MOST_ELSEWHERE = 0.01
"""Share of the bytes that nodes take and give which may be those of nodes on another provider.

ONNX Runtime itself keeps on the processor what computes shapes: many nodes maybe, few numbers.
"""
FLUSHED_BYTES = 256 * 2**20
"""Written on a GPU between runs: more than any GPU's cache holds."""


class Runtime(Protocol):
    """What runs models on one device."""

    @property
    def name(self) -> str:
        """Return its name, such as `onnxruntime-cpu`."""
        ...

    @property
    def version(self) -> str:
        """Return its version."""
        ...

    @property
    def precision(self) -> str:
        """Return the number format that it computes in."""
        ...

    @property
    def batch(self) -> int:
        """Return the images of one call."""
        ...

    @property
    def threads(self) -> int:
        """Return the processor threads inside an operator."""
        ...

    @property
    def clock(self) -> Clock:
        """Return what its time is read from."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Return how many bytes of models may stay open between visits."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return what else bears on speed, to be kept with the figures."""
        ...

    def open(self, model: bytes) -> Timed:
        """Open a model; return a function that times so many runs of it on noise.

        Args:
            model: An ONNX model; for `torch-cuda`, a `detector_spec`.

        Raises:
            UserError: it cannot be run, or something else than this runtime would run it.
        """
        ...

    def operator_ms(self, model: bytes) -> dict[str, float]:
        """Return how long each operator of a model takes, by its name, in the order they run.

        Operators take longer when they are looked at: only their shares count. Empty where the
        runtime does not tell.
        """
        ...


class OnnxRuntimeCpu:
    """ONNX Runtime on the processor.

    Args:
        threads: Threads inside an operator. With one, thread CPU time is read, which other work
            on the machine disturbs least; with more, wall time.
        batch: Images of one call.
        clock: What is read instead.
    """

    name = "onnxruntime-cpu"
    precision = "fp32"
    kept_bytes = KEPT_ON_CPU

    def __init__(self, *, threads: int = 1, batch: int = 1, clock: Clock | None = None) -> None:
        self.threads, self.batch = threads, batch
        self.clock: Clock = clock or (thread_clock() if threads == 1 else "wall")
        self.version = runtime_version()
        self.settings: Mapping[str, Any] = {}

    def open(self, model: bytes) -> Timed:
        """Open a model; see `Runtime.open`."""
        session = open_onnx(model, threads=self.threads, provider=CPU)
        call = partial(session.run, _wanted(session), _noises(session, self.batch))
        return lambda runs: sampled(call, runs, self.clock)

    def operator_ms(self, model: bytes) -> dict[str, float]:
        """Return what ONNX Runtime's own profile says; see `Runtime.operator_ms`."""
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder) / "profile"
            session = open_onnx(model, threads=self.threads, provider=CPU, profile_prefix=prefix)
            call = partial(session.run, _wanted(session), _noises(session, self.batch))
            sampled(call, LOOKS, self.clock)
            events = node_events(session)
        took: dict[str, list[float]] = {}
        for event in events:
            took.setdefault(event["name"], []).append(event["dur"] / 1000)
        return usual_ms(took)


class OnnxRuntimeCuda:
    """ONNX Runtime on an NVIDIA GPU: inputs and outputs stay there, so copies are not timed.

    Wall time is read, from the call until the GPU has finished. TF32 is off, and convolutions are
    chosen by cuDNN's heuristics.

    Args:
        index: Which GPU, as its driver counts them.
        batch: Images of one call.
    """

    name = "onnxruntime-cuda"
    precision = "fp32"
    provider, device_type = "CUDAExecutionProvider", "cuda"
    threads = 1
    clock: Clock = "wall"
    kept_bytes = KEPT_ON_GPU

    def __init__(self, *, index: int = 0, batch: int = 1) -> None:
        self.index, self.batch = index, batch
        self.version = runtime_version()
        self.settings: Mapping[str, Any] = {
            "cuda_graph": False,
            "tf32": False,
            "cudnn_conv_algo_search": "HEURISTIC",
        }

    def open(self, model: bytes) -> Timed:
        """Open a model and run it once, to see that this provider runs it; see `Runtime.open`."""
        with tempfile.TemporaryDirectory() as folder:
            session = open_onnx(
                model,
                provider=self.provider,
                device_index=self.index,
                profile_prefix=Path(folder) / "profile",
            )
            binding = session.io_binding()
            for name, image in _noises(session, self.batch).items():
                binding.bind_cpu_input(name, image)  # copied to the GPU once, here
            for output in session.get_outputs():
                binding.bind_output(output.name, self.device_type, self.index)

            def call() -> None:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()

            sampled(call, 1, self.clock)
            events = node_events(session)  # what runs from here on is not profiled
        check_placement(events, self.provider)
        return lambda runs: sampled(call, runs, self.clock)

    def operator_ms(self, model: bytes) -> dict[str, float]:
        """Return nothing: its profile has when the GPU was asked, not how long it took."""
        return {}


def node_events(session: Any) -> list[dict[str, Any]]:
    """End the profile of an `onnxruntime.InferenceSession`; return each run of each node."""
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]


def check_placement(events: Sequence[Mapping[str, Any]], provider: str) -> None:
    """Check that the provider asked for ran a model, but for what handles hardly any data.

    Args:
        events: See `node_events`.
        provider: ONNX Runtime's name of it.

    Raises:
        UserError: nodes on other providers take and give more than `MOST_ELSEWHERE` of the bytes.
    """
    bytes_on, elsewhere = Counter[str](), Counter[str]()
    for event in events:
        about = event["args"]
        bytes_on[about["provider"]] += int(about["activation_size"]) + int(about["output_size"])
        if about["provider"] != provider:
            elsewhere[about["op_name"]] += 1
    share = 1 - bytes_on[provider] / max(bytes_on.total(), 1)
    if elsewhere and share > MOST_ELSEWHERE:
        others = ", ".join(sorted(set(bytes_on) - {provider}))
        kinds = ", ".join(f"{count} {kind}" for kind, count in elsewhere.most_common(5))
        raise UserError(
            f"{provider} left {elsewhere.total()} of {len(events)} nodes of the model, with "
            f"{share:.1%} of the data, to {others} ({kinds}): its time would not be that of the "
            f"device. Up to {MOST_ELSEWHERE:.0%} is let through. Install a newer onnxruntime, "
            "whose provider may know these operators, or measure in another runtime"
        )


def usual_ms(took: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of what each operator took in `LOOKS` runs, the first left out, by name."""
    return {name: float(np.median(ms[_LOOKS_TO_WARM:])) for name, ms in took.items()}


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def noise(port: Port, batch: int) -> NDArray[Any]:
    """Return a batch for an input: normal numbers, or pixels."""
    rng = np.random.default_rng(0)
    shape = (batch, *(size or 1 for size in port.shape[1:]))
    if port.kind == "uint8":
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape, np.float32)


def wanted_outputs(found: Sequence[str]) -> list[str]:
    """Return the outputs that a detector is run for, or all of another model."""
    return [BOXES_NAME, SCORES_NAME] if BOXES_NAME in found else list(found)


def _wanted(session: Any) -> list[str]:
    return wanted_outputs([output.name for output in session.get_outputs()])


def _noises(session: Any, batch: int) -> dict[str, NDArray[Any]]:
    return {port.name: noise(port, batch) for port in onnx_ports(session)}


def sampled(call: Callable[[], object], runs: int, clock: Clock) -> NDArray[np.float64]:
    """Time a call so many times; what the runtime raises becomes a UserError."""
    try:
        return sample(call, runs=runs, warm_up=0, clock=clock)
    except Exception as error:  # runtimes have types of their own
        raise UserError(
            f"the runtime failed while a model ran: {first_line(error)}; see that the "
            "device is still there, and run the same command again: whole passes are kept"
        ) from error
