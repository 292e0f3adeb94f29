import time

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.timer import Timing, measure


def test_percentiles_of_known_samples() -> None:
    timing = Timing.of(np.arange(101, dtype=np.float64), "wall")
    assert (timing.p50_ms, timing.p90_ms, timing.p99_ms) == (50.0, 90.0, 99.0)
    assert timing.count == 101


def test_measure_makes_the_calls_it_was_asked_for() -> None:
    made: list[int] = []
    timing = measure(lambda: made.append(1), runs=7, warm_up=2, clock="thread")
    assert len(made) == 9
    assert timing.count == 7
    assert timing.clock == "thread"


def test_thread_time_does_not_count_sleep_and_wall_time_does() -> None:
    thread = measure(lambda: time.sleep(0.02), runs=3, warm_up=0, clock="thread")
    wall = measure(lambda: time.sleep(0.02), runs=3, warm_up=0, clock="wall")
    assert thread.p50_ms < 10 < 20 <= wall.p50_ms


def test_no_runs_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match="at least 1 run"):
        measure(lambda: None, runs=0, warm_up=0)
