"""Time many models in turn on one runtime, pass by pass, so that it can stop and go on.

Nothing here needs more than numpy and the runtime: the same code runs on a device without torch.
"""

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.files import parse_json
from detofa.runtime.runtimes import Runtime, Timed

Floats = NDArray[np.float64]
Progress = Callable[[str, float], None]
"""Called with what is being done and the part of all work that is done, from 0 to 1."""

UNSTABLE = 0.02
"""Relative standard error of a median above which a model is measured again, then flagged."""

_COMPANIONS = 5  # steady models beside the unstable ones, that tell drift from unsteadiness
_RUNS_TO_WARM = 2  # at each visit: the first is 16 % slower, the second 8 %, the third 1 %
_NEIGHBOURS = 5  # visits before, and as many after, that tell how slow the machine was
_ROUNDS = 3  # of telling drift from what models take, and that from drift
_LARGEST_SPREAD = 0.1  # of the runs of a visit on the wall's clock, before it is made again
_TRIES = 4  # of such a visit
_SLOWER = 1.1  # a pass may take so many times as long as the one before it
_SHORTEST, LONGEST = 1e-9, 1e9  # of any time in a file: what is beyond is no measurement


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How models are visited.

    Attributes:
        passes: Visits to each model, if time allows.
        runs_per_visit: Samples of each visit.
        visits_of_a_session: Visits before a session is opened anew. Where it lies in memory bears
            on its speed, so each model should have several.
        extra_passes: Further visits to the models whose times are unstable.
        seed: Decides the order of visits, pass by pass.
    """

    passes: int = 18
    runs_per_visit: int = 3
    visits_of_a_session: int = 9
    extra_passes: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            UserError: one is not a whole number, or too small.
        """
        for name, value in asdict(self).items():
            least = 0 if name in ("extra_passes", "seed") else 1
            if type(value) is not int or value < least:
                raise UserError(f"{name} should be a whole number, at least {least}, got {value!r}")


STANDARD = Schedule()
"""How models are visited to make a table."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One round over models.

    Attributes:
        seconds: What it took.
        ms: Per name, (runs_per_visit,) milliseconds, in the order of the visits.
    """

    seconds: float
    ms: Mapping[str, list[float]]

    @classmethod
    def from_json(cls, record: Any, names: Collection[str], runs: int) -> "Pass":
        """Read what `asdict` made.

        Args:
            record: The JSON value.
            names: Models that may be in it.
            runs: Samples of each.

        Raises:
            UserError: it is not that.
        """
        sound = isinstance(record, dict) and set(record) == {"seconds", "ms"}
        sound = sound and _is_time(record["seconds"]) and isinstance(record["ms"], dict)
        sound = sound and bool(record["ms"]) and set(record["ms"]) <= set(names)
        if not sound or not all(
            isinstance(ms, list) and len(ms) == runs and all(map(_is_time, ms))
            for ms in record["ms"].values()
        ):
            raise UserError(
                f"a pass should hold {runs} times, from {_SHORTEST:g} to {LONGEST:g}, for some of "
                "the models"
            )
        return cls(seconds=record["seconds"], ms=record["ms"])


@dataclass(kw_only=True)
class Samples:
    """What models took, pass by pass.

    Attributes:
        names: All models.
        passes: Those over all models come first, then extra ones over some of them.
    """

    names: tuple[str, ...]
    passes: list[Pass] = field(default_factory=list)

    @property
    def whole_passes(self) -> list[Pass]:
        """Return the passes over all models."""
        return [one for one in self.passes if len(one.ms) == len(self.names)]

    @property
    def count(self) -> int:
        """Return the number of passes over all models."""
        return len(self.whole_passes)

    def whole(self, names: Iterable[str]) -> Floats:
        """Return (names, passes, runs) samples of the passes over all, drift taken out."""
        held = [ms for ms in self.steadied() if len(ms) == len(self.names)]
        return np.array([[ms[name] for ms in held] for name in names], np.float64)

    def raw(self, names: Iterable[str]) -> Floats:
        """Return (names, passes, runs) samples of the passes over all as they were read."""
        held = [one.ms for one in self.whole_passes]
        return np.array([[ms[name] for ms in held] for name in names], np.float64)

    def pooled(self) -> dict[str, Floats]:
        """Return all samples of each model: (N,), drift taken out."""
        steadied = self.steadied()
        return {
            name: np.concatenate([ms[name] for ms in steadied if name in ms]) for name in self.names
        }

    def errors(self) -> dict[str, float]:
        """Return the relative standard error of each model's median, of two passes or more.

        It is that of the medians of its visits; see `median_error`.
        """
        if self.count < 2:
            return {}
        steadied = self.steadied()
        return {
            name: median_error(np.array([np.median(ms[name]) for ms in steadied if name in ms]))
            for name in self.names
        }

    def unstable(self) -> list[str]:
        """Return the models whose median is not known to within `UNSTABLE`."""
        return [name for name, error in self.errors().items() if error > UNSTABLE]

    def steadied(self) -> list[dict[str, Floats]]:
        """Return what models took in each pass at the machine's usual speed: (runs,) by name.

        How slow the machine is at a visit is told by the visits just before and after it: what
        their models took there, over what they take on the whole.
        """
        visits = [
            {name: float(np.median(ms)) for name, ms in one.ms.items()} for one in self.passes
        ]
        drifts = [dict.fromkeys(one, 1.0) for one in visits]
        for _ in range(_ROUNDS):
            levels = self._levels(visits, drifts)
            drifts = [_drift(one, levels) for one in visits]
        whole = [one for one in drifts if len(one) == len(self.names)]
        usual = float(np.median([drift for one in whole for drift in one.values()]))
        return [
            {name: np.array(ms) * (usual / drift[name]) for name, ms in one.ms.items()}
            for one, drift in zip(self.passes, drifts, strict=True)
        ]

    def _levels(
        self, visits: Sequence[Mapping[str, float]], drifts: Sequence[Mapping[str, float]]
    ) -> dict[str, float]:
        """Return what models take on the whole, given how slow the machine was at each visit."""
        both = list(zip(visits, drifts, strict=True))
        return {
            name: float(np.median([ms[name] / drift[name] for ms, drift in both if name in ms]))
            for name in self.names
        }


def _drift(visits: Mapping[str, float], levels: Mapping[str, float]) -> dict[str, float]:
    """Return how slow the machine was at each visit of a pass, by its neighbours in time."""
    slow = np.array([ms / levels[name] for name, ms in visits.items()])
    if len(slow) == 1:
        return dict.fromkeys(visits, 1.0)
    padded = np.pad(slow, _NEIGHBOURS, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1).copy()
    windows[:, _NEIGHBOURS] = np.nan  # a visit does not speak for itself
    return dict(zip(visits, np.nanmedian(windows, axis=1).tolist(), strict=True))


def median_error(values: Floats) -> float:
    """Return the relative standard error of the median of (N,) values, as if they were normal.

    Their spread is told by the median absolute deviation (Hampel, JASA 69, 1974).
    """
    deviation = 1.4826 * np.median(np.abs(values / np.median(values) - 1))
    return float(1.2533 * deviation / np.sqrt(len(values)))


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and _SHORTEST <= value <= LONGEST


class SampleLog:
    """Samples kept in a file as they come: a line for what is measured, then one for each pass.

    Args:
        names: The models.
        runs: Samples of each visit.
        path: The file; None to keep nothing.
        about: What is measured, how and on what; a file about something else is left alone.

    Raises:
        UserError: the file cannot be read, or is about something else.
    """

    def __init__(
        self,
        names: Iterable[str],
        runs: int,
        path: Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.samples = Samples(names=tuple(names))
        self._runs, self._path, self._size = runs, path, 0
        self._about = json.dumps(dict(about or {}), sort_keys=True).encode()
        if path is not None and path.is_file():
            self._read(path)

    def add(self, one: Pass) -> None:
        """Keep a pass.

        Raises:
            UserError: the file cannot be written, or another process writes it too.
        """
        if self._path is not None:
            self._append(self._path, json.dumps(asdict(one)).encode())
        self.samples.passes.append(one)

    def remove(self) -> None:
        """Remove the file: what it held is elsewhere now."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _append(self, path: Path, line: bytes) -> None:
        data = line + b"\n" if self._size else self._about + b"\n" + line + b"\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                if file.tell() != self._size:
                    raise UserError(f"another process measures into {path}; let one finish")
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror or error}; what was measured up to here "
                "stays there. Free some space or make the folder writable, and run the same "
                "command again: it goes on"
            ) from error
        self._size += len(data)

    def _read(self, path: Path) -> None:
        """Take over the passes of a file; lines that are not whole are left out."""
        try:
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]  # a kill cuts the last line short
            if not whole:
                path.unlink()
                return
            about, *lines = whole.split(b"\n")[:-1]
            if about == self._about and len(whole) < len(data):
                os.truncate(path, len(whole))
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror or error}; remove it, and run again"
            ) from error
        if about != self._about:
            raise UserError(f"{path} is not about this measurement; move it away, and run again")
        self._size = len(whole)
        found = [_pass_of(line, self.samples.names, self._runs) for line in lines]
        passes = [one for one in found if one is not None]
        # Extra passes belong behind the whole ones, whenever they were made.
        self.samples.passes = sorted(passes, key=lambda one: -len(one.ms))


def _pass_of(line: bytes, names: Collection[str], runs: int) -> Pass | None:
    try:
        return Pass.from_json(parse_json(line), names, runs)
    except ValueError:  # a UserError too
        return None


def measure_models(
    models: Mapping[str, Callable[[], bytes]],
    runtime: Runtime,
    schedule: Schedule,
    log: SampleLog | None = None,
    *,
    deadline_seconds: float | None = None,
    on_progress: Progress = lambda doing, done: None,
) -> Samples:
    """Time models in turn, so that drift of the machine hits all of them alike.

    Every pass visits all of them in an order of its own. What the log already holds is not
    measured again. Models whose median is uncertain are visited some more at the end.

    Args:
        models: Per name, what makes the model.
        runtime: What runs them.
        schedule: How they are visited.
        log: Keeps each pass when it is made.
        deadline_seconds: Start no further pass that would end later than this, in wall time from
            now, if it took a little longer than the last one; the first is always made.
        on_progress: Told how far it is.
    """
    names = list(models)
    log = SampleLog(names, schedule.runs_per_visit) if log is None else log
    samples, visits = log.samples, _Visits(models, runtime, schedule)
    begin = time.monotonic()

    def fits(share: float) -> bool:
        """Return whether a pass over a share of the models would end in time."""
        if deadline_seconds is None or not samples.count:
            return True
        last = samples.whole_passes[-1].seconds
        return time.monotonic() - begin + _SLOWER * share * last <= deadline_seconds

    def make(some: list[str], number: int, doing: str, done: float, step: float) -> None:
        start, ms = time.monotonic(), {}
        order = np.random.default_rng([schedule.seed, number]).permutation(len(some))
        for count, place in enumerate(order):
            share = done + step * count / len(some)
            if deadline_seconds:
                share = max(share, (time.monotonic() - begin) / deadline_seconds)
            on_progress(doing, min(share, 1.0))
            ms[some[place]] = visits.visit(some[place]).tolist()
        log.add(Pass(seconds=time.monotonic() - start, ms=ms))

    for number in range(samples.count, schedule.passes):
        if not fits(1.0):
            break
        make(names, number, "measuring", number / schedule.passes, 1 / schedule.passes)
    for extra in range(len(samples.passes) - samples.count, schedule.extra_passes):
        shaky = samples.unstable()
        steady = [name for name in names if name not in shaky]
        again = shaky + steady[:: max(1, len(steady) // _COMPANIONS)][:_COMPANIONS]
        again = again[: len(names) - 1]  # all of them would be a whole pass
        if not shaky or not steady or not fits(len(again) / len(names)):
            break
        make(again, schedule.passes + extra, "measuring unsteady models again", 1.0, 0.0)
    return samples


class _Visits:
    """Runs models by name; opens them at a visit, again every few visits, and not all at once.

    The sessions of a whole space might not fit the memory.
    """

    def __init__(
        self, models: Mapping[str, Callable[[], bytes]], runtime: Runtime, schedule: Schedule
    ) -> None:
        self._models, self._runtime, self._schedule = models, runtime, schedule
        self._kept: dict[str, tuple[Timed, int]] = {}
        self._visits = dict.fromkeys(models, 0)
        self._kept_bytes = 0

    def visit(self, name: str) -> Floats:
        """Return (runs_per_visit,) milliseconds.

        On the wall's clock other work shows as spread: such a visit is made again a few times,
        and the tightest one counts.
        """
        timed = self._opened(name)
        self._visits[name] += 1
        best = self._timed(timed)
        if self._runtime.clock == "wall":
            for _ in range(_TRIES - 1):
                if _spread(best) <= _LARGEST_SPREAD:
                    break
                best = min(best, self._timed(timed), key=_spread)
        return best

    def _timed(self, timed: Timed) -> Floats:
        return timed(_RUNS_TO_WARM + self._schedule.runs_per_visit)[_RUNS_TO_WARM:]

    def _opened(self, name: str) -> Timed:
        if self._visits[name] % self._schedule.visits_of_a_session == 0 and name in self._kept:
            self._kept_bytes -= self._kept.pop(name)[1]
        if name in self._kept:
            return self._kept[name][0]
        model = self._models[name]()
        timed = self._runtime.open(model)
        if self._kept_bytes + len(model) <= self._runtime.kept_bytes:
            self._kept[name] = timed, len(model)
            self._kept_bytes += len(model)
        return timed


def _spread(ms: Floats) -> float:
    return float((ms.max() - ms.min()) / np.median(ms))
