"""The one clock: time callables, one alone or many in turn, and give percentiles.

Thread CPU time is the steadier clock on a machine shared with others, and right for work that
stays on the calling thread (one-thread inference); anything else needs wall time.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError

Clock = Literal["thread", "wall"]
"""`thread`: CPU time of the calling thread; `wall`: elapsed time."""

_READ_NS: dict[Clock, Callable[[], int]] = {
    "thread": time.thread_time_ns,
    "wall": time.perf_counter_ns,
}


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


def measure_interleaved(
    calls: Mapping[str, Callable[[], Any]],
    *,
    passes: int,
    runs_per_visit: int,
    rng: np.random.Generator,
    clock: Clock,
    deadline_seconds: float | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Time many callables in turn, so that drift of the machine hits all of them alike.

    Every pass visits all of them in a fresh random order; a visit makes one call that is
    discarded and `runs_per_visit` that count.

    Args:
        calls: What is timed, by name.
        passes: Visits to each, at least 1.
        runs_per_visit: Samples of each visit, at least 1.
        rng: Draws the orders.
        clock: What is read.
        deadline_seconds: Start no further pass once this much wall time has gone by or the next
            pass, taking as long as the longest so far, would go past it; the first is always
            made.

    Returns:
        Per name, (passes made * runs_per_visit,) durations in milliseconds, in order of time.
    """
    assert passes >= 1, passes
    assert runs_per_visit >= 1, runs_per_visit
    visits: dict[str, list[NDArray[np.float64]]] = {name: [] for name in calls}
    names = list(calls)
    begin, longest = time.monotonic(), 0.0
    for _ in range(passes):
        start = time.monotonic()
        if longest and deadline_seconds is not None and start - begin + longest > deadline_seconds:
            break
        for index in rng.permutation(len(names)):
            name = names[index]
            visits[name].append(sample(calls[name], runs=runs_per_visit, warm_up=1, clock=clock))
        longest = max(longest, time.monotonic() - start)
    return {name: np.concatenate(parts) for name, parts in visits.items()}
