"""Measure detectors again beside those of a table, so that both compare."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from detofa.errors import UserError
from detofa.profiling.conditions import runtime_named
from detofa.profiling.device import device_here, devices_here
from detofa.profiling.measure import detector_builders
from detofa.profiling.table import LatencyTable
from detofa.runtime.measuring import Progress, Samples, Schedule, measure_models
from detofa.runtime.runtimes import Runtime
from detofa.space import Genes

AGAIN = Schedule(passes=12, visits_of_a_session=4, extra_passes=0)
"""How detectors are visited when they are measured beside those of a table."""

_ANCHORS = 10  # detectors of a table that tell how fast the machine is now
# What may be set otherwise on the same device, and bears on speed.
_SETTINGS = {
    "governor": "the governor",
    "usable_cores": "the number of usable cores",
    "power_limit_watts": "a power limit in watts of",
}


@dataclass(frozen=True, kw_only=True)
class Remeasured:
    """Models timed beside detectors that a table holds.

    Attributes:
        p50_ms: By name, what the model takes at the speed the machine had for the table.
        slowdown: How many times as long as for the table everything takes now.
        samples: Of all, anchors too.
    """

    p50_ms: Mapping[str, float]
    slowdown: float
    samples: Samples


def measure_again(
    table: LatencyTable,
    models: Mapping[str, Callable[[], bytes]],
    *,
    runtime: Runtime | None = None,
    anchors: int = _ANCHORS,
    schedule: Schedule = AGAIN,
    on_progress: Progress = lambda doing, done: None,
) -> Remeasured:
    """Time detectors on this machine so that they compare with a table made before.

    A machine is faster at one time than at another. Some detectors of the table are timed in the
    same passes, and what they take now and took then says how fast the machine is now.

    Args:
        table: A table of this machine.
        models: Per name, what makes the model, in the form that the table's runtime takes.
        runtime: What runs them; as for the table if not given.
        anchors: Detectors of the table, even over its range.
        schedule: How they are visited.
        on_progress: Told how far it is.

    Raises:
        UserError: the table is of another device, or its runtime cannot be used here.
    """
    genes, then = _anchors(table, anchors)
    samples = measure_models(
        {**detector_builders(table.space, genes, table.runtime), **models},
        _runtime_of(table) if runtime is None else runtime,
        schedule,
        on_progress=on_progress,
    )
    now = {name: float(np.median(ms)) for name, ms in samples.pooled().items()}
    slowdown = float(np.exp(np.mean([np.log(now[name] / ms) for name, ms in then.items()])))
    return Remeasured(
        p50_ms={name: now[name] / slowdown for name in models}, slowdown=slowdown, samples=samples
    )


def _anchors(table: LatencyTable, count: int) -> tuple[dict[str, Genes], dict[str, float]]:
    """Return detectors of a table, even over its range: their genes and times, by name."""
    entries = sorted(table.detectors, key=lambda entry: float(entry["p50_ms"]))
    rows = np.unique(np.linspace(0, len(entries) - 1, count).round().astype(int))
    chosen = {f"anchor {row}": entries[row] for row in rows}
    genes = {name: np.array(entry["genes"], np.int8) for name, entry in chosen.items()}
    return genes, {name: float(entry["p50_ms"]) for name, entry in chosen.items()}


def _runtime_of(table: LatencyTable) -> Runtime:
    """Return the runtime that a table was measured with, on this machine."""
    device = device_here(table.device.name)
    if device is None:
        names = ", ".join(here.name for here in devices_here())
        raise UserError(
            f"{table.file_name} is of {table.device.name}, and this machine has {names}; measure "
            "on that device"
        )
    return runtime_named(
        table.runtime,
        device,
        threads=table.threads,
        batch=table.batch,
        precision=table.precision,
    )


def difference_here(table: LatencyTable) -> str | None:
    """Return in words how this machine differs from what a table was measured with, or None.

    Of a device that is not here nothing is known, so nothing is said.
    """
    device = device_here(table.device.name)
    if device is None:
        return None
    version, then = _runtime_of(table).version, table.device.details
    pairs = {table.runtime: (table.runtime_version, version)}
    pairs |= {
        words: (then[detail], device.details[detail])
        for detail, words in _SETTINGS.items()
        if then.get(detail) is not None and device.details.get(detail) is not None
    }
    differences = [
        f"{what} {was}, and here is {now}" for what, (was, now) in pairs.items() if was != now
    ]
    if not differences:
        return None
    return (
        f"the latency table was measured with {'; '.join(differences)}; `detofa profile` measures "
        "again"
    )
