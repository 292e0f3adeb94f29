"""Measuring in turn: orders, resuming, unsteady models, and a log that survives what happens."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.runtime.measuring import UNSTABLE, SampleLog, Samples, Schedule, measure_models
from detofa.runtime.runtimes import Timed
from detofa.timer import Clock

RUNS = 3


def log_of(path: Path | None, names: str = "ab", what: str = "test") -> SampleLog:
    return SampleLog(names, RUNS, path, {"what": what})


class Scripted:
    """Takes what a script says for a model, whose bytes are its name; notes every visit."""

    name, version, precision = "scripted", "1", "fp32"
    batch = threads = 1
    clock: Clock = "wall"
    kept_bytes = 100

    def __init__(self, took_ms: Callable[[str, int], float], stop_at: int | None = None) -> None:
        self.took_ms, self.stop_at = took_ms, stop_at
        self.visited: list[str] = []
        self.opened: list[str] = []
        self.settings: dict[str, Any] = {}

    def open(self, model: bytes) -> Timed:
        name = model.decode()
        self.opened.append(name)

        def timed(runs: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            if len(self.visited) == self.stop_at:
                raise KeyboardInterrupt
            self.visited.append(name)
            return np.full(runs, self.took_ms(name, self.visited.count(name)))

        return timed

    def operator_ms(self, model: bytes) -> dict[str, float]:
        return {}


def measure(
    runtime: Scripted, names: Iterable[str], log: SampleLog | None = None, **schedule: int
) -> Samples:
    models = {name: name.encode for name in names}
    return measure_models(models, runtime, Schedule(**{"extra_passes": 0} | schedule), log)


def steady(name: str, visit: int) -> float:
    return 1.0 + ord(name)


def test_every_pass_visits_all_in_an_order_of_its_own() -> None:
    runtime = Scripted(steady)
    samples = measure(runtime, "abcdef", passes=4, runs_per_visit=2)
    orders = [runtime.visited[at : at + 6] for at in range(0, 24, 6)]
    assert all(sorted(order) == list("abcdef") for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert samples.whole("abcdef").shape == (6, 4, 2)
    np.testing.assert_array_equal(samples.pooled()["c"], np.full(8, 1.0 + ord("c")))
    again = Scripted(steady)
    measure(again, "abcdef", passes=4)
    assert again.visited == runtime.visited


def test_sessions_are_opened_anew_every_few_visits() -> None:
    runtime = Scripted(steady)
    measure(runtime, "ab", passes=6, visits_of_a_session=3)
    assert sorted(runtime.opened) == ["a", "a", "b", "b"]


def test_what_was_stopped_goes_on_with_the_same_orders(tmp_path: Path) -> None:
    whole = Scripted(steady)
    expected = measure(whole, "abcd", passes=5)
    path = tmp_path / "new" / "log.jsonl"
    stopped = Scripted(steady, stop_at=10)  # in the third pass
    with pytest.raises(KeyboardInterrupt):
        measure(stopped, "abcd", log_of(path, "abcd"), passes=5)
    rest = Scripted(steady)
    samples = measure(rest, "abcd", log_of(path, "abcd"), passes=5)
    assert rest.visited == whole.visited[8:]
    assert [one.ms for one in samples.passes] == [one.ms for one in expected.passes]


@pytest.mark.parametrize("end", ["", "{", '{"seconds": 1.0, "ms": {"a": [1.0'])
def test_a_pass_cut_short_by_a_crash_is_measured_again(tmp_path: Path, end: str) -> None:
    path = tmp_path / "log.jsonl"
    measure(Scripted(steady), "ab", log_of(path), passes=2)
    whole = path.read_text()
    path.write_text(whole + end)
    log = log_of(path)
    assert log.samples.count == 2
    measure(Scripted(steady), "ab", log, passes=3)
    assert path.read_text().startswith(whole)
    assert log_of(path).samples.count == 3


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "{}",
        '{"seconds": 1.0, "ms": {}}',
        '{"seconds": NaN, "ms": {"a": [1.0, 1.0, 1.0]}}',
        '{"seconds": 1.0, "ms": {"a": [1.0, 1.0]}}',
        '{"seconds": 1.0, "ms": {"a": [1.0, 1.0, 0.0]}}',
        '{"seconds": 1.0, "ms": {"a": [1.0, 1.0, NaN]}}',
        '{"seconds": 1.0, "ms": {"a": ["x", "y", "z"]}}',
        '{"seconds": 1.0, "ms": {"another": [1.0, 1.0, 1.0]}}',
    ],
)
def test_a_line_of_nonsense_costs_no_other(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    measure(Scripted(steady), "ab", log_of(path), passes=2)
    about, first, second = path.read_text().splitlines()
    path.write_text("\n".join([about, first, line, second, ""]))
    log = log_of(path)
    assert log.samples.count == len(log.samples.passes) == 2
    measure(Scripted(steady), "ab", log, passes=3)
    assert log_of(path).samples.count == 3


def test_a_log_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    measure(Scripted(steady), "ab", log_of(path), passes=2)
    before = path.read_bytes()
    with pytest.raises(UserError, match="not about this measurement"):
        log_of(path, what="another device")
    assert path.read_bytes() == before
    path.write_text("")  # killed before the first pass was whole
    measure(Scripted(steady), "ab", log_of(path), passes=1)
    assert log_of(path).samples.count == 1


def test_two_processes_that_write_one_log_are_told(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    one, other = log_of(path), log_of(path)
    measure(Scripted(steady), "ab", one, passes=1)
    with pytest.raises(UserError, match="another process measures into"):
        measure(Scripted(steady), "ab", other, passes=1)
    late = log_of(path)
    measure(Scripted(steady), "ab", one, passes=2)
    with pytest.raises(UserError, match="another process measures into"):
        measure(Scripted(steady), "ab", late, passes=2)


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        measure(Scripted(steady), "ab", log_of(tmp_path / "log.jsonl"), passes=1)


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*run\s+the same command again"):
        measure(Scripted(steady), "ab", log_of(tmp_path / "file" / "log"), passes=1)


def test_a_full_disk_loses_no_pass_that_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    log = log_of(path)
    measure(Scripted(steady), "ab", log, passes=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"):
            measure(Scripted(steady), "ab", log, passes=3)
    assert log_of(path).samples.count >= 2


def test_an_unsteady_model_is_measured_again_and_then_named() -> None:
    rng = np.random.default_rng(0)

    def took_ms(name: str, visit: int) -> float:
        return 1.0 + (rng.random() if name == "x" else 0.0)

    runtime = Scripted(took_ms)
    samples = measure(runtime, "abcdefgx", passes=5, extra_passes=3)
    assert runtime.visited.count("x") == 8
    assert runtime.visited.count("a") >= 5
    assert samples.unstable() == ["x"]
    assert samples.errors()["x"] > UNSTABLE
    assert samples.whole("abcdefgx").shape[1] == 5


def test_drift_that_all_share_makes_nothing_unsteady() -> None:
    speeds: Iterator[float] = iter(np.repeat(np.linspace(1, 2, 6), 4).tolist())

    def took_ms(name: str, visit: int) -> float:
        return steady(name, visit) * next(speeds)

    samples = measure(Scripted(took_ms), "abcd", passes=6)
    assert samples.unstable() == []


def test_drift_within_a_pass_is_told_from_the_neighbours_in_time() -> None:
    """A machine that slows down by half and recovers, every three passes or so."""
    names = [chr(ord("A") + index) for index in range(40)]
    visits = itertools.count()

    def took_ms(name: str, visit: int) -> float:
        return float(ord(name) * (1 + 0.5 * np.sin(next(visits) / 20) ** 2))

    samples = measure(Scripted(took_ms), names, passes=30)
    raw = np.array([[np.median(one.ms[name]) for one in samples.passes] for name in names])
    took = np.median(samples.whole(names), axis=2)
    assert np.std(raw / raw.mean(axis=1, keepdims=True), axis=1).mean() > 0.1
    assert np.std(took / took.mean(axis=1, keepdims=True), axis=1).mean() < 0.02
    levels = np.array([np.median(ms) for ms in samples.pooled().values()])
    ratios = levels / [ord(name) for name in names]
    np.testing.assert_allclose(ratios / np.median(ratios), 1, atol=0.01)


def test_a_deadline_stops_after_whole_passes_but_makes_the_first() -> None:
    def slow(name: str, visit: int) -> float:
        time.sleep(0.01)
        return 10.0

    models = {name: name.encode for name in "ab"}
    samples = measure_models(models, Scripted(slow), Schedule(passes=1000), deadline_seconds=0.0)
    assert [set(one.ms) for one in samples.passes] == [{"a", "b"}]


def test_extra_passes_at_another_speed_do_not_change_a_median() -> None:
    rng = np.random.default_rng(0)

    def took_ms(name: str, visit: int) -> float:
        slow = 2.0 if visit > 5 else 1.0  # the machine, from the sixth visit on
        return slow * (10.0 + (5 * rng.random() if name == "x" else 0.0))

    samples = measure(Scripted(took_ms), "abcdefgx", passes=5, extra_passes=6)
    assert len(samples.pooled()["x"]) == 11 * RUNS
    assert np.median(samples.pooled()["x"]) < 15
    np.testing.assert_allclose(samples.pooled()["a"], 10)


def test_extra_passes_are_not_made_twice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def took_ms(name: str, visit: int) -> float:
        return 1.0 + (rng.random() if name == "x" else 0.0)

    path, names = tmp_path / "log.jsonl", "abcdefgx"
    measure(Scripted(took_ms), names, log_of(path, names), passes=4, extra_passes=2)
    again = Scripted(took_ms)
    samples = measure(again, names, log_of(path, names), passes=5, extra_passes=2)
    assert len(again.visited) == len(names)  # the fifth pass only
    assert samples.count == 5
    assert len(samples.passes) == 7


def test_a_visit_that_other_work_disturbed_is_made_again_on_the_walls_clock() -> None:
    class Disturbed(Scripted):
        def open(self, model: bytes) -> Timed:
            plain = super().open(model)

            def timed(runs: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
                ms = plain(runs)
                if len(self.visited) % 3 == 1:
                    ms[-1] *= 4
                return ms

            return timed

    runtime = Disturbed(steady)
    samples = measure(runtime, "abc", passes=6)
    np.testing.assert_array_equal(samples.pooled()["a"], np.full(18, 1.0 + ord("a")))
    assert len(runtime.visited) > 18
    runtime = Disturbed(steady)
    runtime.clock = "thread"
    measure(runtime, "abc", passes=6)
    assert len(runtime.visited) == 18


@pytest.mark.parametrize("changes", [{"passes": 0}, {"runs_per_visit": 1.5}, {"seed": -1}])
def test_a_schedule_of_nonsense_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=next(iter(changes))):
        Schedule(**changes)
