import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.presets import preset
from detofa.profiling.cost import all_blocks
from detofa.profiling.device import Device, this_cpu
from detofa.profiling.measure import (
    choose_detectors,
    detector_builders,
    measure_again,
    profile_space,
)
from detofa.profiling.table import load_table

SPACE = preset("tiny", num_classes=3, image_sizes=[(64, 64), (256, 256)])


def test_a_space_is_profiled_within_its_budget_and_predicts_in_the_right_order(
    tmp_path: Path,
) -> None:
    told: list[float] = []
    table = profile_space(
        SPACE,
        rng=np.random.default_rng(0),
        budget_seconds=10,
        num_fit=8,
        num_held_out=5,
        passes=2,
        on_progress=lambda doing, done: told.append(done),
    )
    assert load_table(table.save(tmp_path), space=SPACE, device=this_cpu()) == table
    assert set(table.entries) == set(all_blocks(SPACE)) == set(table.block_ms)
    assert [entry["role"] for entry in table.detectors] == ["fit"] * 8 + ["held-out"] * 5
    assert all(0 < entry["p50_ms"] <= entry["p99_ms"] for entry in table.entries.values())
    assert table.held_out["count"] == 5
    assert table.interval > 0
    smallest, largest = table.predict(
        np.stack([SPACE.genes(SPACE.smallest), SPACE.genes(SPACE.largest)])
    )
    assert 2 * smallest < largest
    assert told == sorted(told)
    assert told[-1] == 1


def test_a_machine_of_another_speed_changes_no_comparison_with_the_table() -> None:
    table = profile_space(
        SPACE, rng=np.random.default_rng(0), num_fit=6, num_held_out=5, passes=3, budget_seconds=8
    )
    entries = [{**entry, "p50_ms": entry["p50_ms"] * 3} for entry in table.detectors]
    thrice_as_slow = dataclasses.replace(table, detectors=entries)
    models = detector_builders(SPACE, {"largest": SPACE.genes(SPACE.largest)})
    again = measure_again(thrice_as_slow, models, rng=np.random.default_rng(0), passes=4)
    assert again.slowdown == pytest.approx(1 / 3, rel=0.5)
    slowest = max(float(entry["p50_ms"]) for entry in entries)
    assert again.p50_ms["largest"] == pytest.approx(slowest, rel=0.3)


def test_the_same_seed_measures_the_same_detectors() -> None:
    first = choose_detectors(SPACE, 6, 5, np.random.default_rng(1))
    again = choose_detectors(SPACE, 6, 5, np.random.default_rng(1))
    assert list(first) == list(again)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    rows = {row.tobytes() for row in first.values()}
    assert len(rows) == 11
    assert SPACE.genes(SPACE.smallest).tobytes() in rows
    assert SPACE.genes(SPACE.largest).tobytes() in rows


def test_only_this_machines_cpu_is_measured() -> None:
    gpu = Device(kind="gpu", name="NVIDIA A100-SXM4-80GB", details={})
    other = Device(kind="cpu", name="Some Other CPU", details={})
    for device, message in ((gpu, "is a GPU"), (other, "must be measured on it")):
        with pytest.raises(UserError, match=message):
            profile_space(SPACE, rng=np.random.default_rng(0), device=device)


def test_profiling_needs_no_torch() -> None:
    code = (
        "import sys, detofa.profiling.measure, detofa.profiling.table, detofa.timer; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
