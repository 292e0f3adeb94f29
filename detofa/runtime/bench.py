"""How long one inference of a session takes."""

from dataclasses import dataclass

import numpy as np

from detofa import timer
from detofa.runtime.session import Session


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The latency of one call of a session, on its two clocks.

    Attributes:
        batch: Images of one call.
        wall: By the clock on the wall: what a user waits.
        thread: Processor time of the calling thread, which a busy machine disturbs far less; None
            where the session uses more than one thread, since it would count only one of them.
    """

    batch: int
    wall: timer.Timing
    thread: timer.Timing | None


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
    images = rng.standard_normal((batch, 3, *session.image_size), dtype=np.float32)

    def call() -> object:
        return session.run(images)

    wall = timer.measure(call, runs=runs, warm_up=warm_up, clock="wall")
    thread = None
    if threads == 1:
        thread = timer.measure(call, runs=runs, warm_up=warm_up, clock="thread")
    return Latency(batch=batch, wall=wall, thread=thread)
