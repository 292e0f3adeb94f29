"""Measure a search space on this machine: its blocks and whole detectors, in the same passes."""

import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import detofa
from detofa.blocks import Block
from detofa.errors import UserError
from detofa.export.onnx_from_blocks import block_onnx, detector_onnx
from detofa.profiling.cost import AdditiveCost, all_blocks, macs_cost
from detofa.profiling.device import Device, runtime_version, this_cpu
from detofa.profiling.fit import (
    Fit,
    fit_block_costs,
    interval_half_width,
    noise_floor,
    prediction_errors,
)
from detofa.profiling.table import LatencyTable
from detofa.runtime.session import BOXES_NAME, SCORES_NAME, open_onnx
from detofa.space import Genes, SearchSpace
from detofa.timer import Clock, Timing, measure_interleaved

Floats = NDArray[np.float64]
Progress = Callable[[str, float], None]
"""Called with what is being done and the part of all work that is done, from 0 to 1."""

_TOP_K = 300  # candidate boxes, as in the export
_POOL = 4000  # archs drawn to choose the measured ones from
_VISITS_OF_A_SESSION = 10  # while a table is measured
_VISITS_AGAIN = 4  # of a session, while detectors are measured again
_ANCHORS = 6  # detectors of a table that tell how fast the machine is now
_RUNS_TO_WARM = 2  # at each visit, beside the discarded one: the first ones are up to 20 % slower
_KEPT_BYTES = 64 * 2**20  # of models whose sessions stay open between visits
_FIT_SECONDS = 1.5  # set aside from the time budget


def profile_space(
    space: SearchSpace,
    *,
    rng: np.random.Generator,
    threads: int = 1,
    budget_seconds: float | None = None,
    num_fit: int = 48,
    num_held_out: int = 20,
    passes: int = 40,
    runs_per_visit: int = 3,
    device: Device | None = None,
    on_progress: Progress = lambda doing, done: None,
) -> LatencyTable:
    """Measure every block of a space and some whole detectors, and fit a latency table.

    All are timed in turn, in the same passes. With one thread the clock is thread CPU time,
    which other work on the machine disturbs least; with more it is wall time.

    Args:
        space: The search space.
        rng: Draws the detectors and the order of visits.
        threads: Threads of ONNX Runtime inside an operator.
        budget_seconds: Wall time to stay within; at least one pass is always made.
        num_fit: Whole detectors the block costs are fitted to, at least 4.
        num_held_out: Further ones, even over the range of MACs, that say how good the table is;
            at least 5.
        passes: Visits to each model, at least 2, if the budget allows.
        runs_per_visit: Samples of each visit.
        device: Where to measure; this machine's CPU if not given.
        on_progress: Told how far it is.

    Raises:
        UserError: the device is not a CPU of this machine, ONNX Runtime is missing, or the
            space has too few archs.
    """
    begin = time.monotonic()
    device = _checked(device)
    version = runtime_version()
    assert num_fit >= 4, num_fit
    assert num_held_out >= 5, num_held_out
    detectors = choose_detectors(space, num_fit, num_held_out, rng)
    blocks = all_blocks(space)
    clock: Clock = "thread" if threads == 1 else "wall"
    samples = _measure(
        {**_block_builders(blocks), **detector_builders(space, detectors)},
        threads=threads,
        clock=clock,
        passes=passes,
        runs_per_visit=runs_per_visit,
        visits_of_a_session=_VISITS_OF_A_SESSION,
        rng=rng,
        deadline=None if budget_seconds is None else begin + budget_seconds - _FIT_SECONDS,
        on_progress=on_progress,
    )
    on_progress("fitting", 1.0)
    timings = {name: Timing.of(values, clock) for name, values in samples.items()}
    fit, held_out, residuals = _fit(space, blocks, detectors, timings)
    return LatencyTable(
        device=device,
        runtime="onnxruntime",
        runtime_version=version,
        precision="fp32",
        batch=1,
        threads=threads,
        method={
            "clock": clock,
            "passes": len(next(iter(samples.values()))) // runs_per_visit,
            "runs_per_visit": runs_per_visit,
            "order": "all models in turn, shuffled in every pass; first runs of a visit discarded",
            "seconds": round(time.monotonic() - begin, 1),
        },
        noise_floor=noise_floor([samples[name] for name in detectors], runs_per_visit),
        entries={key: _entry(timings[key]) for key in blocks},
        detectors=[
            {"role": _role(name), "genes": row.tolist()} | _entry(timings[name])
            for name, row in detectors.items()
        ],
        block_ms=fit.block_ms,
        model={"kind": "ridge toward isolated blocks", **fit.widths},
        held_out=held_out,
        interval=interval_half_width(residuals),
        space=space,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        detofa_version=detofa.__version__,
    )


def _fit(
    space: SearchSpace,
    blocks: Mapping[str, Block],
    detectors: Mapping[str, Genes],
    timings: Mapping[str, Timing],
) -> tuple[Fit, dict[str, float], Floats]:
    """Fit block costs.

    Returns:
        The fit, its errors on the held-out detectors, and the relative errors of all detectors,
        each from a fit that did not see it.
    """
    fitted = {name: row for name, row in detectors.items() if _role(name) == "fit"}
    held_out = {name: row for name, row in detectors.items() if _role(name) == "held-out"}
    fit = fit_block_costs(
        blocks,
        {key: timings[key].p50_ms for key in blocks},
        [[block.key for block in space.blocks(space.arch(row))] for row in fitted.values()],
        np.array([timings[name].p50_ms for name in fitted]),
    )
    measured_ms = np.array([timings[name].p50_ms for name in held_out])
    cost = AdditiveCost(space, lambda block: fit.block_ms[block.key])
    predicted_ms = cost(np.stack(list(held_out.values())))
    residuals = np.concatenate([fit.residuals, predicted_ms / measured_ms - 1])
    return fit, prediction_errors(predicted_ms, measured_ms), residuals


def _block_builders(blocks: Mapping[str, Block]) -> dict[str, Callable[[], bytes]]:
    def build(block: Block) -> bytes:
        return block_onnx(block, top_k=_TOP_K, rng=np.random.default_rng(0))

    return {key: partial(build, block) for key, block in blocks.items()}


def _role(name: str) -> str:
    return name.rsplit(" ", 1)[0]


def _checked(device: Device | None) -> Device:
    here = this_cpu()
    if device is None:
        return here
    if device.kind != "cpu":
        raise UserError(
            f"{device.name} is a GPU; this version measures CPUs only. Use `--device cpu`"
        )
    if device.name != here.name:
        raise UserError(
            f"a table for {device.name} must be measured on it; this machine has {here.name}"
        )
    return device


def choose_detectors(
    space: SearchSpace, num_fit: int, num_held_out: int, rng: np.random.Generator
) -> dict[str, Genes]:
    """Choose the archs to measure: both ends, and others even over the range of MACs."""
    drawn = [space.sample(rng, _POOL // 2), space.sample_spread(rng, _POOL // 2)]
    pool = np.unique(np.concatenate([space.ends, *drawn]), axis=0)
    if len(pool) < num_fit + num_held_out:
        raise UserError(
            f"the space has about {len(pool)} detectors, but profiling measures "
            f"{num_fit + num_held_out}; measure fewer, or use a larger space"
        )
    rng.shuffle(pool)
    costs = macs_cost(space)(pool)
    free = np.ones(len(pool), bool)

    def take_even(count: int) -> list[Genes]:
        targets = np.linspace(costs.min(), costs.max(), count)
        taken = []
        for target in targets:
            nearest = int(np.argmin(np.where(free, np.abs(costs - target), np.inf)))
            free[nearest] = False
            taken.append(pool[nearest])
        return taken

    fitted = take_even(num_fit)  # first, so that both ends are in it: never extrapolate
    named = {f"fit {number}": row for number, row in enumerate(fitted)}
    held_out = take_even(num_held_out)
    return named | {f"held-out {number}": row for number, row in enumerate(held_out)}


@dataclass(frozen=True, kw_only=True)
class Remeasured:
    """Models timed beside detectors that a table holds.

    Attributes:
        p50_ms: By name, what the model takes at the speed the machine had for the table.
        slowdown: How many times as long as for the table everything takes now.
    """

    p50_ms: Mapping[str, float]
    slowdown: float


def detector_builders(
    space: SearchSpace, detectors: Mapping[str, Genes]
) -> dict[str, Callable[[], bytes]]:
    """Return what makes the ONNX model of each detector, by its name.

    The graphs are those that are exported; their weights are random, which time does not tell.
    """

    def build(row: Genes) -> bytes:
        chosen = space.blocks(space.arch(row))
        return detector_onnx(chosen, top_k=_TOP_K, rng=np.random.default_rng(0))

    return {name: partial(build, row) for name, row in detectors.items()}


def measure_again(
    table: LatencyTable,
    models: Mapping[str, Callable[[], bytes]],
    *,
    rng: np.random.Generator,
    passes: int = 12,
    runs_per_visit: int = 3,
) -> Remeasured:
    """Time detectors on this machine's CPU so that they compare with a table made before.

    A machine is faster at one time than at another, by the hour and by the second. Some detectors
    of the table are timed in the same passes, and what they take now and took then says how fast
    the machine is in each pass.

    Args:
        table: A table of this machine.
        models: Per name, what makes the ONNX model.
        rng: Decides the order of visits.
        passes: Visits to each model.
        runs_per_visit: Samples of each visit.
    """
    entries = sorted(table.detectors, key=lambda entry: float(entry["p50_ms"]))
    rows = np.linspace(0, len(entries) - 1, _ANCHORS).round().astype(int)
    anchors = {f"anchor {row}": entries[row] for row in rows}
    genes = {name: np.array(entry["genes"], np.int8) for name, entry in anchors.items()}
    samples = _measure(
        {**detector_builders(table.space, genes), **models},
        threads=table.threads,
        clock=table.clock,
        passes=passes,
        runs_per_visit=runs_per_visit,
        visits_of_a_session=_VISITS_AGAIN,
        rng=rng,
    )
    visits = {
        name: np.median(values.reshape(-1, runs_per_visit), axis=1)
        for name, values in samples.items()
    }
    then = {name: float(entry["p50_ms"]) for name, entry in anchors.items()}
    slowdowns = np.exp(np.mean([np.log(visits[name] / then[name]) for name in anchors], axis=0))
    return Remeasured(
        p50_ms={name: float(np.median(visits[name] / slowdowns)) for name in models},
        slowdown=float(np.median(slowdowns)),
    )


def _measure(
    build: Mapping[str, Callable[[], bytes]],
    *,
    threads: int,
    clock: Clock,
    passes: int,
    runs_per_visit: int,
    visits_of_a_session: int,
    rng: np.random.Generator,
    deadline: float | None = None,
    on_progress: Progress = lambda doing, done: None,
) -> dict[str, Floats]:
    """Return the samples of each model, by its name."""
    begin = time.monotonic()
    seconds = None if deadline is None else max(deadline - begin, 0.0)

    def on_visit(count: int) -> None:
        done = count / (passes * len(build))
        if seconds:
            done = max(done, min((time.monotonic() - begin) / seconds, 1.0))
        on_progress("measuring", done)

    visits = _Visits(build, threads, visits_of_a_session, on_visit)
    return measure_interleaved(
        {name: partial(visits.call, name) for name in build},
        passes=passes,
        runs_per_visit=runs_per_visit,
        rng=rng,
        clock=clock,
        deadline_seconds=seconds,
    )


class _Visits:
    """Runs models by name; opens them at a visit, again every few visits, and not all at once.

    Where a session lies in memory bears on its speed, so each model should have several; and
    the sessions of a whole space might not fit the memory.
    """

    def __init__(
        self,
        build: Mapping[str, Callable[[], bytes]],
        threads: int,
        visits_of_a_session: int,
        on_visit: Callable[[int], None],
    ) -> None:
        self._build = build
        self._threads = threads
        self._visits_of_a_session = visits_of_a_session
        self._on_visit = on_visit
        self._kept: dict[str, tuple[Callable[[], Any], int]] = {}
        self._visits = dict.fromkeys(build, 0)
        self._kept_bytes = 0
        self._name = ""
        self._run: Callable[[], Any] = lambda: None

    def call(self, name: str) -> None:
        """Run a model once; the first call of a visit opens it if need be, and warms it."""
        if name != self._name:
            self._name = name
            self._run = self._opened(name)
            self._visits[name] += 1
            self._on_visit(sum(self._visits.values()))
            for _ in range(_RUNS_TO_WARM):
                self._run()
        self._run()

    def _opened(self, name: str) -> Callable[[], Any]:
        if self._visits[name] % self._visits_of_a_session == 0 and name in self._kept:
            self._kept_bytes -= self._kept.pop(name)[1]
        if name in self._kept:
            return self._kept[name][0]
        model = self._build[name]()
        run = _runner(model, self._threads)
        if self._kept_bytes + len(model) <= _KEPT_BYTES:
            self._kept[name] = run, len(model)
            self._kept_bytes += len(model)
        return run


def _runner(model: bytes, threads: int) -> Callable[[], Any]:
    """Open a model; return a function that runs it on one random input."""
    session = open_onnx(model, threads=threads)
    rng = np.random.default_rng(0)
    inputs = {
        entry.name: rng.standard_normal((1, *entry.shape[1:]), np.float32)
        for entry in session.get_inputs()
    }
    found = [output.name for output in session.get_outputs()]
    wanted = [BOXES_NAME, SCORES_NAME] if BOXES_NAME in found else found
    return partial(session.run, wanted, inputs)


def _entry(timing: Timing) -> dict[str, float]:
    return {
        "p50_ms": timing.p50_ms,
        "p90_ms": timing.p90_ms,
        "p99_ms": timing.p99_ms,
        "count": timing.count,
    }
