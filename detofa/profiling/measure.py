"""Measure whole detectors and blocks of a search space on a device, and fit a table to them."""

import datetime
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import detofa
from detofa.errors import UserError
from detofa.export.onnx_from_blocks import detector_onnx
from detofa.files import sha256_json
from detofa.profiling.conditions import TELL_OPERATORS, Conditions
from detofa.profiling.cost import AdditiveCost, all_blocks, macs_cost
from detofa.profiling.device import Device, gpu_state, slug, this_cpu
from detofa.profiling.fit import (
    fit_block_costs,
    interval_half_width,
    noise_floor,
    prediction_errors,
)
from detofa.profiling.parts import mean_shares, suppression_ms
from detofa.profiling.priors import TOP_K, Builder, Measured, PriorName, prior_of
from detofa.profiling.table import LatencyTable
from detofa.profiling.torch_cuda import TorchCuda, detector_spec
from detofa.runtime.measuring import (
    STANDARD,
    Progress,
    SampleLog,
    Samples,
    Schedule,
    measure_models,
)
from detofa.runtime.runtimes import OnnxRuntimeCpu, Runtime
from detofa.space import Genes, SearchSpace
from detofa.timer import Timing

Floats = NDArray[np.float64]

_FEWEST_FIT, _FEWEST_HELD_OUT = 4, 5
_POOL = 4000  # archs drawn to choose the measured ones from
_LOOKED_AT = 5  # detectors whose operators are looked at, where the prior does not need all
_SECONDS_TO_FIT = 3.0  # set aside from the time budget
_SECONDS_TO_LOOK = 0.3  # at the operators of a detector, likewise


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfilePlan:
    """What is measured to make a table.

    Attributes:
        space: The search space.
        detectors: By name (`fit N` or `held-out N`), the genes of whole detectors.
        prior: What blocks are thought to cost before detectors are looked at.
    """

    space: SearchSpace
    detectors: Mapping[str, Genes]
    prior: PriorName = "isolated"

    def __post_init__(self) -> None:
        """Check the prior's name, and that there are detectors of both kinds.

        Raises:
            UserError: there is no such prior, or detectors are too few.
        """
        prior_of(self.prior)
        roles = [role_of(name) for name in self.detectors]
        if roles.count("fit") < _FEWEST_FIT or roles.count("held-out") < _FEWEST_HELD_OUT:
            raise UserError(
                f"a plan needs {_FEWEST_FIT} detectors to fit to and {_FEWEST_HELD_OUT} held out, "
                f"this one has {len(roles)}: {', '.join(list(self.detectors)[:3])}"
            )

    @classmethod
    def draw(
        cls,
        space: SearchSpace,
        *,
        num_fit: int = 60,
        num_held_out: int = 20,
        prior: PriorName = "isolated",
        seed: int = 0,
    ) -> "ProfilePlan":
        """Choose the detectors.

        Args:
            space: The search space.
            num_fit: Those that block costs are fitted to, at least 4; both ends are among them.
            num_held_out: Further ones, even over the range of MACs, that say how good the table
                is; at least 5.
            prior: What blocks are thought to cost.
            seed: Decides the detectors.

        Raises:
            UserError: the space has too few archs.
        """
        chosen = choose_detectors(space, num_fit, num_held_out, np.random.default_rng(seed))
        return cls(space=space, detectors=chosen, prior=prior)

    def models(self, runtime: str = OnnxRuntimeCpu.name) -> dict[str, Builder]:
        """Return what makes each model that is timed, by its name, in the form a runtime takes.

        Raises:
            UserError: the prior needs what the runtime does not have.
        """
        if self.prior == "profile" and runtime not in TELL_OPERATORS:
            raise UserError(
                f"{runtime} does not tell what operators take, which the prior {self.prior!r} "
                "needs; use --prior compute"
            )
        blocks = prior_of(self.prior).models(all_blocks(self.space))
        if blocks and runtime == TorchCuda.name:
            raise UserError(
                f"{runtime} times whole detectors only, and the prior {self.prior!r} needs blocks; "
                "use --prior compute"
            )
        return blocks | detector_builders(self.space, self.detectors, runtime)

    @property
    def looked_at(self) -> list[str]:
        """Return the detectors whose operators are looked at: all that are fitted to, or a few."""
        fitted = [name for name in self.detectors if role_of(name) == "fit"]
        if self.prior == "profile":
            return fitted
        rows = np.linspace(0, len(fitted) - 1, min(_LOOKED_AT, len(fitted))).round().astype(int)
        return [fitted[row] for row in rows]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        return {
            "space": self.space.to_json(),
            "detectors": {name: row.tolist() for name, row in self.detectors.items()},
            "prior": self.prior,
        }

    @classmethod
    def from_json(cls, record: Any) -> "ProfilePlan":
        """Read what `to_json` wrote.

        Raises:
            UserError: something is missing, of the wrong kind, or not in the space.
        """
        try:
            space = SearchSpace.from_json(record["space"])
            detectors = {
                str(name): space.genes(space.arch(np.array(row, np.int8)))
                for name, row in record["detectors"].items()
            }
            return cls(space=space, detectors=detectors, prior=record["prior"])
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            raise UserError(f"not a plan of what to measure: {error!r}") from error


def measure_table(
    plan: ProfilePlan,
    *,
    runtime: Runtime | None = None,
    device: Device | None = None,
    schedule: Schedule = STANDARD,
    budget_seconds: float | None = None,
    log: SampleLog | None = None,
    on_progress: Progress = lambda doing, done: None,
) -> LatencyTable:
    """Measure a plan on a device of this machine, all models in turn, and fit a latency table.

    Args:
        plan: What is measured.
        runtime: What runs the models; ONNX Runtime on one thread of the CPU if not given.
        device: What it runs them on; the CPU if not given.
        schedule: How models are visited.
        budget_seconds: Wall time to stay within; at least one pass is always made.
        log: Keeps every pass as it is made; see `log_of`. To be removed by the caller once the
            table is saved.
        on_progress: Told how far it is.

    Raises:
        UserError: ONNX Runtime is missing, or a file cannot be written.
    """
    begin = time.monotonic()
    runtime = OnnxRuntimeCpu() if runtime is None else runtime
    models = plan.models(runtime.name)
    device = this_cpu() if device is None else device
    left = None
    if budget_seconds is not None:
        later = _SECONDS_TO_FIT + _SECONDS_TO_LOOK * len(plan.looked_at)
        left = budget_seconds - later - (time.monotonic() - begin)
    samples = measure_models(
        models, runtime, schedule, log, deadline_seconds=left, on_progress=on_progress
    )
    on_progress("fitting", 1.0)
    table = table_of(
        plan,
        samples,
        Conditions.of(device, runtime, schedule),
        state=gpu_state(device),
        operators_ms={name: runtime.operator_ms(models[name]()) for name in plan.looked_at},
    )
    if device.kind != "cpu":
        return table
    after = runtime.batch * suppression_ms(TOP_K, plan.space.num_classes)
    return replace(table, suppression_ms=after)


def log_of(plan: ProfilePlan, conditions: Conditions, folder: Path) -> SampleLog:
    """Return the log of a measurement, in a file of its own: the same measurement goes on with it.

    Raises:
        UserError: the file cannot be read.
    """
    about = conditions.same_measurement() | {
        "plan_sha256": sha256_json(plan.to_json()),
        "detofa_version": detofa.__version__,
    }
    path = folder / f"{slug(plan.space.name)}-{sha256_json(about)[:16]}.jsonl"
    return SampleLog(plan.models(), conditions.schedule.runs_per_visit, path, about)


def table_of(
    plan: ProfilePlan,
    samples: Samples,
    conditions: Conditions,
    *,
    state: Mapping[str, Any],
    operators_ms: Mapping[str, Mapping[str, float]],
) -> LatencyTable:
    """Fit a latency table to what a plan's models took.

    Args:
        plan: What was measured.
        samples: What the models took.
        conditions: What they ran on and with.
        state: Of the device at the end; see `gpu_state`.
        operators_ms: Of the detectors `plan.looked_at`, what their operators take; see
            `Runtime.operator_ms`.
    """
    names = samples.names
    pooled = samples.pooled()
    timings = {name: Timing.of(pooled[name], conditions.clock) for name in names}
    errors = samples.errors()
    blocks = all_blocks(plan.space)
    fitted, held_out = (
        [name for name in plan.detectors if role_of(name) == role] for role in ("fit", "held-out")
    )
    keys = [
        [block.key for block in plan.space.blocks(plan.space.arch(plan.detectors[name]))]
        for name in fitted
    ]
    measured = np.array([timings[name].p50_ms for name in fitted])
    prior_ms = prior_of(plan.prior).prices(
        Measured(
            blocks=blocks,
            p50_ms={name: timing.p50_ms for name, timing in timings.items()},
            detectors=keys,
            detectors_ms=measured,
            operators_ms=[operators_ms.get(name, {}) for name in fitted],
        )
    )
    fit = fit_block_costs(blocks, prior_ms, keys, measured)
    held_out_ms = np.array([timings[name].p50_ms for name in held_out])
    cost = AdditiveCost(plan.space, lambda block: fit.block_ms[block.key])
    predicted_ms = cost(np.stack([plan.detectors[name] for name in held_out]))
    residuals = np.concatenate([fit.residuals, predicted_ms / held_out_ms - 1])
    schedule = conditions.schedule
    return LatencyTable(
        device=conditions.device,
        runtime=conditions.runtime,
        runtime_version=conditions.runtime_version,
        precision=conditions.precision,
        batch=conditions.batch,
        threads=conditions.threads,
        method={
            "clock": conditions.clock,
            "passes": samples.count,
            "runs_per_visit": schedule.runs_per_visit,
            "order": "all models in turn, shuffled in every pass; first runs of a visit discarded",
            "drift": "taken out of each visit by those just before and after it",
            "noise_floor_with_drift": noise_floor(samples.raw(plan.detectors)),
            "seed": schedule.seed,
            "settings": dict(conditions.settings),
            "state": dict(state),
            "seconds": round(sum(one.seconds for one in samples.passes), 1),
        },
        noise_floor=noise_floor(samples.whole(plan.detectors)),
        unstable=samples.unstable(),
        entries={
            name: _entry(timings[name], errors.get(name))
            for name in names
            if name not in plan.detectors
        },
        detectors=[
            {"role": role_of(name), "genes": row.tolist()} | _entry(timings[name], errors.get(name))
            for name, row in plan.detectors.items()
        ],
        prior_ms=prior_ms,
        block_ms=fit.block_ms,
        model={"kind": "ridge", "prior": plan.prior, **fit.widths},
        shares=mean_shares(list(operators_ms.values())),
        suppression_ms=None,
        held_out=prediction_errors(predicted_ms, held_out_ms),
        interval=interval_half_width(residuals),
        verification=None,
        space=plan.space,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        detofa_version=detofa.__version__,
    )


def role_of(name: str) -> str:
    """Return `fit` or `held-out`, for the name of a detector."""
    return name.rsplit(" ", 1)[0]


def choose_detectors(
    space: SearchSpace,
    num_fit: int,
    num_held_out: int,
    rng: np.random.Generator,
    *,
    known: Collection[bytes] = (),
) -> dict[str, Genes]:
    """Choose archs to measure: both ends, and others even over the range of MACs.

    Args:
        space: The search space.
        num_fit: Those called `fit N`; the ends are among them.
        num_held_out: Those called `held-out N`.
        rng: Draws what to choose from.
        known: Genes, as bytes, of archs to leave out.

    Raises:
        UserError: the space has too few archs.
    """
    drawn = [space.sample(rng, _POOL // 2), space.sample_spread(rng, _POOL // 2)]
    pool = np.unique(np.concatenate([space.ends, *drawn]), axis=0)
    pool = pool[[row.tobytes() not in known for row in pool]]
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


def detector_builders(
    space: SearchSpace, detectors: Mapping[str, Genes], runtime: str = OnnxRuntimeCpu.name
) -> dict[str, Builder]:
    """Return what makes the model of each detector, by its name, in the form a runtime takes.

    The graphs are those that are exported; their weights are random, which time does not tell.
    """

    def builder(row: Genes) -> Builder:
        if runtime == TorchCuda.name:
            return lambda: detector_spec(space, row, top_k=TOP_K)
        chosen = space.blocks(space.arch(row))
        return lambda: detector_onnx(chosen, top_k=TOP_K, rng=np.random.default_rng(0))

    return {name: builder(row) for name, row in detectors.items()}


def _entry(timing: Timing, error: float | None) -> dict[str, float]:
    return {
        "p50_ms": timing.p50_ms,
        "p90_ms": timing.p90_ms,
        "p99_ms": timing.p99_ms,
        "count": timing.count,
    } | ({} if error is None else {"p50_error": error})
