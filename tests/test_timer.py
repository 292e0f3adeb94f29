import time

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.timer import Timing, measure, measure_interleaved


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


def test_interleaved_visits_all_in_every_pass_and_discards_the_first_run() -> None:
    made: list[str] = []
    calls = {name: (lambda name=name: made.append(name)) for name in "abc"}
    samples = measure_interleaved(
        calls, passes=4, runs_per_visit=2, rng=np.random.default_rng(0), clock="thread"
    )
    assert {name: len(values) for name, values in samples.items()} == {"a": 8, "b": 8, "c": 8}
    assert len(made) == 4 * 3 * 3
    for index in range(4):
        visited = made[index * 9 : (index + 1) * 9]
        assert {tuple(visited[at : at + 3]) for at in (0, 3, 6)} == {
            ("a",) * 3,
            ("b",) * 3,
            ("c",) * 3,
        }


def test_orders_are_shuffled_and_the_same_seed_gives_the_same_order() -> None:
    def orders(seed: int) -> list[str]:
        made: list[str] = []
        calls = {name: (lambda name=name: made.append(name)) for name in "abcdef"}
        measure_interleaved(
            calls, passes=3, runs_per_visit=1, rng=np.random.default_rng(seed), clock="thread"
        )
        return made

    assert orders(1) == orders(1)
    assert orders(1)[:12] != orders(1)[12:24]


def test_deadline_stops_after_whole_passes_but_makes_the_first() -> None:
    samples = measure_interleaved(
        {"slow": lambda: time.sleep(0.01)},
        passes=1000,
        runs_per_visit=1,
        rng=np.random.default_rng(0),
        clock="wall",
        deadline_seconds=0.0,
    )
    assert len(samples["slow"]) == 1
