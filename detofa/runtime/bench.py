"""How long one inference takes: of an opened session, or of a file as latency tables measure."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detofa import timer
from detofa.errors import UserError
from detofa.runtime.detector import open_session
from detofa.runtime.measuring import Schedule, measure_models, median_error
from detofa.runtime.openvino_cpu import OpenVinoCpu
from detofa.runtime.runtimes import OnnxRuntimeCpu, OnnxRuntimeCuda, Runtime, noise
from detofa.runtime.session import RuntimeName, Session
from detofa.runtime.tensorrt.session import open_engine

_WALL: timer.Clock = "wall"
_WARM_RUNS = 10


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The latency of one call, on its two clocks.

    Attributes:
        batch: Images of one call.
        wall: By the clock on the wall: what a user waits.
        thread: Processor time of the calling thread, which a busy machine disturbs far less; None
            where more than one thread works, since it would count only one of them.
        p50_error: Relative standard error of the median that a table would go by; None where it
            is not known.
        gpu: By the GPU's own events, without copies to it and back; None on a processor.
    """

    batch: int
    wall: timer.Timing
    thread: timer.Timing | None
    p50_error: float | None = None
    gpu: timer.Timing | None = None


def measure_file(
    path: Path,
    *,
    runs: int = 100,
    batch: int | None = None,
    threads: int = 1,
    runtime: RuntimeName = "onnxruntime",
) -> Latency:
    """Measure an ONNX file as latency tables are: visits with warm-up, and several sessions.

    Args:
        path: The file.
        runs: Calls timed, on each clock, rounded up to whole visits.
        batch: Images of one call; if not given, what the file takes, or one.
        threads: Threads inside an operator.
        runtime: What runs it.

    Raises:
        UserError: it is not a detector that the runtime can open, or takes no such batch.
    """
    with open_session(path, threads=threads, runtime=runtime) as session:
        fixed = session.batch
    if batch is None:
        batch = fixed or 1
    if batch < 1 or fixed not in (None, batch):
        raise UserError(f"{path} takes batches of {fixed or 'at least 1'}, not of {batch}")
    passes = -(-runs // Schedule().runs_per_visit)
    schedule = Schedule(passes=passes, extra_passes=0)
    timings: dict[timer.Clock, timer.Timing] = {}
    errors: list[float] = []
    usual = _runtime(runtime, threads, batch, None).clock
    for clock in dict.fromkeys((usual, _WALL)):
        opened = _runtime(runtime, threads, batch, clock)
        samples = measure_models({path.name: path.read_bytes}, opened, schedule)
        timings[clock] = timer.Timing.of(samples.pooled()[path.name], clock)
        errors.append(median_error(np.median(samples.whole([path.name])[0], axis=1)))
    return Latency(
        batch=batch,
        wall=timings[_WALL],
        thread=timings.get("thread"),
        p50_error=errors[0] if passes > 1 else None,
    )


def _runtime(name: RuntimeName, threads: int, batch: int, clock: timer.Clock | None) -> Runtime:
    """Return what runs models, and reads a clock or, without one, that which tables go by."""
    match name:
        case "onnxruntime":
            return OnnxRuntimeCpu(threads=threads, batch=batch, clock=clock)
        case "openvino":
            return OpenVinoCpu(threads=threads, batch=batch, clock=clock)
        case _:
            return OnnxRuntimeCuda(batch=batch)  # wall time in any case


def measure_engine(path: Path, *, runs: int = 100, batch: int | None = None) -> Latency:
    """Measure a TensorRT engine: on the GPU alone, and with copies by the clock on the wall.

    Args:
        path: The engine.
        runs: Calls timed, on each clock.
        batch: Images of one call; if not given, the fewest that it takes.

    Raises:
        UserError: it cannot be opened here, or takes no such batch.
    """
    session, _ = open_engine(path)
    with session:
        smallest, largest = session.batch_sizes
        batch = smallest if batch is None else batch
        if not smallest <= batch <= largest:
            raise UserError(f"{path} takes batches of {smallest} to {largest}, not of {batch}")
        images = noise(session.input, batch)
        run = session.run_suppressed if session.suppresses else session.run
        gpu = session.milliseconds(images, runs + _WARM_RUNS)[_WARM_RUNS:]
        wall = timer.measure(lambda: run(images), runs=runs, warm_up=_WARM_RUNS, clock=_WALL)
    return Latency(batch=batch, wall=wall, thread=None, gpu=timer.Timing.of(gpu, "events"))


def measure_latency(
    session: Session,
    *,
    rng: np.random.Generator,
    runs: int = 100,
    warm_up: int = 10,
    batch: int = 1,
    threads: int = 1,
) -> Latency:
    """Measure a session on noise: the network alone, without reading images or suppression.

    Args:
        session: An opened model.
        rng: Source of the noise.
        runs: Calls timed, on each clock.
        warm_up: Calls before them that are not counted.
        batch: Images of one call.
        threads: Threads the session was opened with.
    """
    assert not session.takes_pixels, "files are measured by `measure_file`"
    images = rng.standard_normal((batch, 3, *session.image_size), dtype=np.float32)

    def call() -> object:
        return session.run(images)

    wall = timer.measure(call, runs=runs, warm_up=warm_up, clock="wall")
    thread = None
    if threads == 1:
        thread = timer.measure(call, runs=runs, warm_up=warm_up, clock="thread")
    return Latency(batch=batch, wall=wall, thread=thread)
