"""Runtimes: what opens a model to be timed, and how its time is read; one small interface."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from detofa.runtime.session import BOXES_NAME, CPU, SCORES_NAME, open_onnx, runtime_version
from detofa.timer import Clock, sample, thread_clock

Timed = Callable[[int], NDArray[np.float64]]
"""Times so many runs of an opened model, one after another: (runs,) milliseconds."""

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

    def __init__(self, *, threads: int = 1, batch: int = 1, clock: Clock | None = None) -> None:
        self.threads, self.batch = threads, batch
        self.clock: Clock = clock or (thread_clock() if threads == 1 else "wall")
        self.version = runtime_version()
        self.settings: Mapping[str, Any] = {}

    def open(self, model: bytes) -> Timed:
        """Open a model; see `Runtime.open`."""
        session = open_onnx(model, threads=self.threads, provider=CPU)
        rng = np.random.default_rng(0)
        inputs = {
            entry.name: rng.standard_normal((self.batch, *entry.shape[1:]), np.float32)
            for entry in session.get_inputs()
        }
        found = [output.name for output in session.get_outputs()]
        wanted = [BOXES_NAME, SCORES_NAME] if BOXES_NAME in found else found
        call = partial(session.run, wanted, inputs)
        return lambda runs: sample(call, runs=runs, warm_up=0, clock=self.clock)


class OnnxRuntimeCuda:
    """ONNX Runtime on an NVIDIA GPU: inputs and outputs stay there, so copies are not timed.

    Wall time is read, from the call until the GPU has finished. TF32 is off.

    Args:
        index: Which GPU, as its driver counts them.
        batch: Images of one call.
    """

    name = "onnxruntime-cuda"
    precision = "fp32"
    provider, device_type = "CUDAExecutionProvider", "cuda"
    threads = 1
    clock: Clock = "wall"

    def __init__(self, *, index: int = 0, batch: int = 1) -> None:
        self.index, self.batch = index, batch
        self.version = runtime_version()
        self.settings: Mapping[str, Any] = {"cuda_graph": False, "tf32": False}

    def open(self, model: bytes) -> Timed:
        """Open a model; see `Runtime.open`."""
        session = open_onnx(model, provider=self.provider, device_index=self.index)
        binding, rng = session.io_binding(), np.random.default_rng(0)
        for entry in session.get_inputs():
            image = rng.standard_normal((self.batch, *entry.shape[1:]), np.float32)
            binding.bind_cpu_input(entry.name, image)  # copied to the GPU once, here
        for output in session.get_outputs():
            binding.bind_output(output.name, self.device_type, self.index)

        def call() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return lambda runs: sample(call, runs=runs, warm_up=0, clock=self.clock)
