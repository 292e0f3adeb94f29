"""The one clock: time a callable, and give percentiles.

Thread CPU time is the steadier clock on a machine shared with others, and right for work that
stays on the calling thread (one-thread inference); anything else needs wall time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError

Clock = Literal["thread", "wall", "events"]
"""`thread`: CPU time of the calling thread; `wall`: elapsed time; `events`: a GPU's own."""

_READ_NS: dict[str, Callable[[], int]] = {
    "thread": time.thread_time_ns,
    "wall": time.perf_counter_ns,
}


_COARSEST_SECONDS = 1e-5


def thread_clock() -> Clock:
    """Return `thread` where that clock is fine enough to time an inference, else `wall`."""
    fine = time.get_clock_info("thread_time").resolution <= _COARSEST_SECONDS
    return "thread" if fine else "wall"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one call takes.

    Attributes:
        p50_ms: Median, in milliseconds.
        p90_ms: 90th percentile, in milliseconds.
        p99_ms: 99th percentile, in milliseconds.
        count: Number of samples.
        clock: What was read.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    count: int
    clock: Clock

    @classmethod
    def of(cls, samples_ms: NDArray[np.float64], clock: Clock) -> "Timing":
        """Summarise (N,) samples in milliseconds; N is at least 1."""
        assert samples_ms.ndim == 1, samples_ms.shape
        assert len(samples_ms) > 0, "no samples"
        p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
        return cls(
            p50_ms=float(p50),
            p90_ms=float(p90),
            p99_ms=float(p99),
            count=len(samples_ms),
            clock=clock,
        )


def measure(
    call: Callable[[], Any], *, runs: int, warm_up: int = 3, clock: Clock = "wall"
) -> Timing:
    """Time one callable.

    Args:
        call: What is timed.
        runs: Samples taken.
        warm_up: Calls made before, not counted.
        clock: What is read.

    Raises:
        UserError: `runs` is below 1 or `warm_up` below 0.
    """
    if runs < 1 or warm_up < 0:
        raise UserError(
            f"timing needs at least 1 run and no negative warm-up, got {runs}, {warm_up}"
        )
    return Timing.of(sample(call, runs=runs, warm_up=warm_up, clock=clock), clock)


def sample(
    call: Callable[[], Any], *, runs: int, warm_up: int, clock: Clock
) -> NDArray[np.float64]:
    """Return (runs,) durations of `call` in milliseconds, after `warm_up` calls not counted."""
    read_ns = _READ_NS[clock]
    for _ in range(warm_up):
        call()
    samples_ns = np.empty(runs, np.int64)
    for index in range(runs):
        start_ns = read_ns()
        call()
        samples_ns[index] = read_ns() - start_ns
    return samples_ns / 1e6
