import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.presets import preset
from detofa.profiling.again import AGAIN, measure_again
from detofa.profiling.conditions import Conditions
from detofa.profiling.cost import all_blocks
from detofa.profiling.device import this_cpu
from detofa.profiling.measure import (
    ProfilePlan,
    choose_detectors,
    detector_builders,
    log_of,
    measure_table,
)
from detofa.profiling.priors import PRIORS, PriorName
from detofa.profiling.table import LatencyTable, load_table
from detofa.profiling.verify import fresh_detectors, verify_table
from detofa.runtime.measuring import SampleLog, Schedule
from detofa.runtime.runtimes import OnnxRuntimeCpu, Timed
from tests.profiling.clockwork import Clockwork

SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 64), (256, 256)])
QUICK = Schedule(passes=2, extra_passes=1)


def plan_of(num_fit: int = 8, prior: PriorName = "isolated") -> ProfilePlan:
    return ProfilePlan.draw(SPACE, num_fit=num_fit, num_held_out=5, prior=prior)


def profile(
    num_fit: int = 8, prior: PriorName = "isolated", schedule: Schedule = QUICK, **how: Any
) -> LatencyTable:
    return measure_table(plan_of(num_fit, prior), schedule=schedule, **how)


def test_a_space_is_profiled_within_its_budget_and_predicts_in_the_right_order(
    tmp_path: Path,
) -> None:
    told: list[float] = []
    table = profile(budget_seconds=10, on_progress=lambda doing, done: told.append(done))
    assert load_table(table.save(tmp_path), space=SPACE, device=this_cpu()) == table
    assert set(table.entries) == set(all_blocks(SPACE)) == set(table.block_ms)
    assert [entry["role"] for entry in table.detectors] == ["fit"] * 8 + ["held-out"] * 5
    assert all(0 < entry["p50_ms"] <= entry["p99_ms"] for entry in table.entries.values())
    assert table.held_out["count"] == 5
    assert table.interval > 0
    smallest, largest = table.predict(SPACE.ends)
    assert 2 * smallest < largest
    assert told[-1] == 1
    assert table.shares is not None
    assert table.suppression_ms is not None
    assert sum(table.shares.values()) == pytest.approx(1)
    assert table.shares["head"] > table.shares["decoding"] > 0
    assert 0 < table.suppression_ms < 20


@pytest.mark.parametrize("prior", list(PRIORS))
def test_every_prior_finds_costs_that_add_up(prior: PriorName) -> None:
    """On a machine whose detectors take exactly the sum of their blocks."""
    clockwork = Clockwork()
    table = profile(runtime=clockwork, prior=prior, num_fit=30, schedule=Schedule(passes=3))
    assert table.model["prior"] == prior
    assert table.held_out["mape"] < (0.002 if prior != "compute" else 0.05)
    assert table.held_out["kendall_tau"] == 1
    assert min(table.prior_ms.values()) > 0
    assert table.unstable == []
    assert table.noise_floor == pytest.approx(0, abs=1e-9)


def test_larger_batches_and_more_threads_have_tables_of_their_own(tmp_path: Path) -> None:
    one = profile(budget_seconds=6)
    eight = profile(runtime=OnnxRuntimeCpu(batch=8), budget_seconds=20)
    two = profile(runtime=OnnxRuntimeCpu(threads=2), budget_seconds=6)
    assert (eight.batch, two.threads) == (8, 2)
    assert two.method["clock"] == "wall"
    assert (eight.predict(SPACE.ends) > 3 * one.predict(SPACE.ends)).all()
    assert len({table.save(tmp_path) for table in (one, eight, two)}) == 3


def test_a_profile_that_was_stopped_goes_on_and_comes_to_the_same(tmp_path: Path) -> None:
    whole = profile(runtime=Clockwork(), schedule=Schedule(passes=4))
    models = len(whole.entries) + len(whole.detectors)

    class Interrupt(Clockwork):
        def open(self, model: bytes) -> Timed:
            if self.opened == models + 5:
                raise KeyboardInterrupt
            return super().open(model)

    schedule = Schedule(passes=4, visits_of_a_session=1)

    def log(seed: int = 0) -> SampleLog:
        settings = dataclasses.replace(schedule, seed=seed)
        conditions = Conditions.of(this_cpu(), Clockwork(), settings)
        return log_of(plan_of(), conditions, tmp_path / "unfinished")

    with pytest.raises(KeyboardInterrupt):
        profile(runtime=Interrupt(), schedule=schedule, log=log())
    (kept,) = (tmp_path / "unfinished").iterdir()
    assert len(kept.read_text().splitlines()) == 2  # what it is, and one whole pass
    assert log(seed=1).samples.passes == []  # another measurement has a file of its own
    rest = Clockwork()
    finished = log()
    table = profile(runtime=rest, schedule=schedule, log=finished)
    finished.remove()
    assert list((tmp_path / "unfinished").iterdir()) == []
    assert rest.opened == 3 * models
    assert table.method["passes"] == 4
    assert table.block_ms == pytest.approx(whole.block_ms)


def test_a_machine_of_another_speed_changes_no_comparison_with_the_table() -> None:
    table = profile(schedule=Schedule(passes=3), budget_seconds=8)
    entries = [{**entry, "p50_ms": entry["p50_ms"] * 3} for entry in table.detectors]
    thrice_as_slow = dataclasses.replace(table, detectors=entries)
    models = detector_builders(SPACE, {"largest": SPACE.genes(SPACE.largest)})
    schedule = dataclasses.replace(AGAIN, passes=4)
    again = measure_again(thrice_as_slow, models, schedule=schedule)
    # Within a factor of two: the speed of a shared machine wanders between the two measurements.
    assert 1 / 6 < again.slowdown < 2 / 3
    slowest = max(float(entry["p50_ms"]) for entry in entries)
    assert slowest / 1.5 < again.p50_ms["largest"] < slowest * 1.5


def test_the_same_seed_measures_the_same_detectors() -> None:
    first = choose_detectors(SPACE, 6, 5, np.random.default_rng(1))
    again = choose_detectors(SPACE, 6, 5, np.random.default_rng(1))
    assert list(first) == list(again)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    rows = {row.tobytes() for row in first.values()}
    assert len(rows) == 11
    assert SPACE.genes(SPACE.smallest).tobytes() in rows
    assert SPACE.genes(SPACE.largest).tobytes() in rows


def test_a_plan_survives_json_and_one_of_nonsense_is_refused() -> None:
    plan = ProfilePlan.draw(SPACE, num_fit=4, num_held_out=5, prior="chain")
    record = json.loads(json.dumps(plan.to_json()))
    again = ProfilePlan.from_json(record)
    assert again.to_json() == plan.to_json()
    assert [build() for build in again.models().values()] == [
        build() for build in plan.models().values()
    ]
    nonsense: list[dict[str, Any]] = [
        {"prior": "guess"},
        {"detectors": {"fit 0": [99]}},
        {"detectors": {"fit 0": [300]}},
        {"detectors": {}},
        {"space": None},
    ]
    for changes in nonsense:
        with pytest.raises(UserError):
            ProfilePlan.from_json(record | changes)


# ---- verification -------------------------------------------------------------------------


def test_a_true_table_is_verified_on_detectors_it_never_saw() -> None:
    clockwork = Clockwork()
    table = profile(runtime=clockwork, num_fit=30, schedule=Schedule(passes=3))
    clockwork.speed = 1.25  # the machine is slower by now
    found = verify_table(table, runtime=clockwork, count=20, schedule=Schedule(passes=40), seed=7)
    assert found.slowdown == pytest.approx(1.25)
    assert found.errors["count"] == 20
    assert found.errors["mape"] < 0.002
    assert found.tau_of_thirds == (1, 1, 1)
    assert found.is_valid
    assert not dataclasses.replace(found, samples=60).is_valid
    assert found.checks["MAPE at most 2 %"]
    assert found.seed == 7
    verified = dataclasses.replace(table, verification=found.to_json())
    assert verified.sha256 == table.sha256  # what was pruned or chosen by it stays so
    known = {np.array(entry["genes"], np.int8).tobytes() for entry in table.detectors}
    fresh = fresh_detectors(table, 20, 7)
    assert not known & {row.tobytes() for row in fresh.values()}


def test_a_wrong_table_fails_its_verification() -> None:
    clockwork = Clockwork()
    table = profile(runtime=clockwork, num_fit=30, schedule=Schedule(passes=3))
    keys = list(table.block_ms)
    wrong = {key: ms * (3 if keys.index(key) % 2 else 1) for key, ms in table.block_ms.items()}
    found = verify_table(
        dataclasses.replace(table, block_ms=wrong),
        runtime=clockwork,
        count=10,
        schedule=Schedule(passes=4, seed=7),
    )
    assert not found.passed
    assert not found.checks["MAPE at most 2 %"]
    assert found.coverage < 0.95
    assert json.loads(json.dumps(found.to_json()))["passed"] is False


def test_profiling_needs_no_torch() -> None:
    code = (
        "import sys, detofa.profiling.measure, detofa.profiling.table, detofa.timer, "
        "detofa.profiling.verify, detofa.profiling.kit; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
