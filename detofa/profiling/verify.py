"""Verify a latency table: measure fresh detectors that it never saw, and compare."""

import datetime
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.profiling.again import measure_again
from detofa.profiling.cost import AdditiveCost, macs_cost
from detofa.profiling.fit import kendall_tau, noise_floor, prediction_errors
from detofa.profiling.measure import choose_detectors, detector_builders
from detofa.profiling.table import LatencyTable
from detofa.runtime.measuring import Progress, Schedule
from detofa.runtime.runtimes import Runtime
from detofa.space import Genes

Floats = NDArray[np.float64]

NOISIEST = 0.02
"""Noise floor above which a machine is too noisy for a verification to count."""
FEWEST_SAMPLES = 30
"""Samples of a quarter of the passes, below which its noise floor says too little."""
SCHEDULE = Schedule(passes=40, visits_of_a_session=10, extra_passes=0)
"""Four times ten visits, each ten with sessions of their own: quarters of 30 samples."""
GPU_SCHEDULE = replace(SCHEDULE, visits_of_a_session=20)
"""The same with two sessions, which take long to open there."""

_THIRDS = 3


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How a table stood against fresh detectors.

    Attributes:
        noise_floor: Mean relative error of a quarter of the passes against the rest.
        slowdown: How many times as long as for the table the anchors take now; taken out of all
            figures below.
        errors: Of the table's predictions; see `fit.prediction_errors`.
        tau_of_thirds: Rank correlation inside each third of the range of latencies; None where
            that has fewer than two detectors.
        coverage: Part of detectors whose latency lies in the interval that was promised.
        naive_mape: Mean relative error of the sum of isolated blocks, with no fit; None where the
            table did not measure them.
        line_mape: Mean relative error of a line in MACs, fitted to the table's own detectors.
        passes: Visits to each detector.
        samples: Of each detector.
        seed: What chose the detectors.
        seconds: What it took.
        date: When, ISO 8601 with time zone.
        is_gpu: Whether the bar for GPUs counts.
    """

    noise_floor: float
    slowdown: float
    errors: Mapping[str, float]
    tau_of_thirds: tuple[float | None, ...]
    coverage: float
    naive_mape: float | None
    line_mape: float
    passes: int
    samples: int
    seed: int
    seconds: float
    date: str
    is_gpu: bool

    @property
    def is_valid(self) -> bool:
        """Return whether the machine was quiet, and measured long, enough for figures to count."""
        return self.noise_floor <= NOISIEST and self.samples >= 4 * FEWEST_SAMPLES

    @property
    def checks(self) -> dict[str, bool]:
        """Return what the bar asks for, in words, and whether it was reached."""
        errors, floor = self.errors, self.noise_floor
        if self.is_gpu:
            return {
                "MAPE at most 3 %": errors["mape"] <= 0.03,
                "within 5 % for at least 85 %": errors["within_5_percent"] >= 0.85,
                "within 10 % for at least 99 %": errors["within_10_percent"] >= 0.99,
            }
        naive = {
            "1.5 times better than the sum of isolated blocks": 1.5 * errors["mape"]
            <= (self.naive_mape or 0.0)
        }
        return {
            "MAPE at most 1.5 F": errors["mape"] <= 1.5 * floor,
            "MAPE at most 2 %": errors["mape"] <= 0.02,
            "within 5 % for at least 95 %": errors["within_5_percent"] >= 0.95,
            "within 10 % for all": errors["within_10_percent"] == 1,
            "Kendall tau at least 0.97": errors["kendall_tau"] >= 0.97,
            **({} if self.naive_mape is None else naive),
            "1.5 times better than a line in MACs": 1.5 * errors["mape"] <= self.line_mape,
            "interval holds at least 95 %": self.coverage >= 0.95,
        }

    @property
    def passed(self) -> bool:
        """Return whether the verification counts and all of the bar was reached."""
        return self.is_valid and all(self.checks.values())

    @property
    def reaches_the_aim(self) -> bool:
        """Return whether the error is at most 1.2 times the noise floor."""
        return self.is_valid and self.errors["mape"] <= 1.2 * self.noise_floor

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, for the table."""
        return asdict(self) | {
            "tau_of_thirds": list(self.tau_of_thirds),
            "valid": self.is_valid,
            "checks": self.checks,
            "passed": self.passed,
        }


def verify_table(
    table: LatencyTable,
    *,
    runtime: Runtime | None = None,
    count: int = 60,
    schedule: Schedule | None = None,
    seed: int = 0,
    on_progress: Progress = lambda doing, done: None,
) -> Verification:
    """Measure detectors that a table never saw, and compare.

    They are even over the range of MACs. Some of the table's own are timed in the same passes, and
    tell how fast the machine is now.

    Args:
        table: A table of this machine.
        runtime: What runs the models; as for the table if not given.
        count: Fresh detectors.
        schedule: How they are visited; by default `SCHEDULE`, or `GPU_SCHEDULE` where it fits.
        seed: Chooses them, and the order of visits.
        on_progress: Told how far it is.

    Raises:
        UserError: the table's runtime cannot be used here, or the space has too few archs.
    """
    begin = time.monotonic()
    usual = GPU_SCHEDULE if table.device.kind == "gpu" else SCHEDULE
    schedule = replace(schedule or usual, seed=seed)
    fresh = fresh_detectors(table, count, seed)
    now = measure_again(
        table,
        detector_builders(table.space, fresh, table.runtime),
        runtime=runtime,
        schedule=schedule,
        on_progress=on_progress,
    )
    measured_ms = np.array([now.p50_ms[name] for name in fresh])
    genes = np.stack([*fresh.values()])
    predicted_ms = table.predict(genes)
    low, high = table.predict_interval(genes)
    whole = now.samples.whole(fresh)
    floor = noise_floor(whole)
    assert floor is not None, "a verification has several passes"
    return Verification(
        noise_floor=floor,
        slowdown=now.slowdown,
        errors=prediction_errors(predicted_ms, measured_ms),
        tau_of_thirds=_tau_of_thirds(predicted_ms, measured_ms),
        coverage=float(((low <= measured_ms) & (measured_ms <= high)).mean()),
        naive_mape=_naive_mape(table, genes, measured_ms),
        line_mape=_mape(_line_in_macs(table, genes), measured_ms),
        passes=whole.shape[1],
        samples=whole.shape[1] * whole.shape[2],
        seed=seed,
        seconds=round(time.monotonic() - begin, 1),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        is_gpu=table.device.kind == "gpu",
    )


def fresh_detectors(table: LatencyTable, count: int, seed: int) -> dict[str, Genes]:
    """Return detectors, even over the range of MACs, that the table did not measure, by name.

    Raises:
        UserError: the space has too few archs.
    """
    known = {np.array(entry["genes"], np.int8).tobytes() for entry in table.detectors}
    drawn = choose_detectors(table.space, 0, count, np.random.default_rng(seed), known=known)
    return {f"fresh {number}": row for number, row in enumerate(drawn.values())}


def _tau_of_thirds(predicted_ms: Floats, measured_ms: Floats) -> tuple[float | None, ...]:
    edges = np.linspace(measured_ms.min(), measured_ms.max(), _THIRDS + 1)
    third = np.clip(np.searchsorted(edges, measured_ms, side="right") - 1, 0, _THIRDS - 1)
    return tuple(
        kendall_tau(predicted_ms[third == index], measured_ms[third == index])
        if (third == index).sum() > 1
        else None
        for index in range(_THIRDS)
    )


def _naive_mape(table: LatencyTable, genes: Genes, measured_ms: Floats) -> float | None:
    """Return the error of the sum of isolated blocks, where the table measured them."""
    if table.model["prior"] != "isolated":
        return None
    naive = AdditiveCost(table.space, lambda block: table.prior_ms[block.key])
    return _mape(naive(genes), measured_ms)


def _line_in_macs(table: LatencyTable, genes: Genes) -> Floats:
    """Return what a line through the table's own detectors says, by relative least squares."""
    macs = macs_cost(table.space)
    known = np.array([entry["genes"] for entry in table.detectors], np.int8)
    took = np.array([float(entry["p50_ms"]) for entry in table.detectors])
    rows = np.stack([macs(known), np.ones(len(known))], axis=1) / took[:, None]
    weights = np.linalg.lstsq(rows, np.ones(len(known)), rcond=None)[0]
    line: Floats = macs(genes) * weights[0] + weights[1]
    return line


def _mape(predicted_ms: Floats, measured_ms: Floats) -> float:
    return float(np.abs(predicted_ms / measured_ms - 1).mean())
