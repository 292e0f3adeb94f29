"""The experiment on the method: what its figures mean, and that all of it runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.method.analysis import (
    _line,
    choice_alone,
    compute_ratio,
    contrasts,
    envelope,
    hypervolume,
    interval,
    macs_mismatch,
    savings,
)
from benchmarks.method.judge import JudgedPath, Judgement
from benchmarks.method.plans import SIZES, TASKS, plan_of
from detofa.errors import UserError

REPOSITORY = Path(__file__).parents[2]


def front_of(*points: tuple[float, float]) -> tuple[JudgedPath, ...]:
    """Return a front of (MACs, AP in points), the same on validation and test."""
    return tuple(
        JudgedPath(bin=index, macs=macs, validation_ap=ap / 100, ap=ap / 100)
        for index, (macs, ap) in enumerate(points)
    )


def judgement_of(*points: tuple[float, float]) -> Judgement:
    front = front_of(*points)
    return Judgement(candidates=front, front=front, whole=front, ranked_highest=front, judged_by="")


def test_a_hypervolume_is_the_mean_ap_over_log_macs() -> None:
    # From 1 to 10 nothing, from 10 to 100 an AP of 20, from 100 to 1000 one of 50.
    front = front_of((10, 20), (100, 50))
    assert hypervolume(front, 1, 1000) == pytest.approx((0 + 20 + 50) / 3)
    # A path that another beats, and the order, change nothing.
    worse = (*front[::-1], JudgedPath(bin=2, macs=500, validation_ap=0.4, ap=0.4))
    assert hypervolume(worse, 1, 1000) == pytest.approx(70 / 3)
    assert hypervolume(front_of((1, 30)), 1, 1000) == pytest.approx(30)


def test_an_envelope_is_the_best_ap_that_fits() -> None:
    front = front_of((10, 20), (20, 15), (40, 30))
    assert envelope(front, np.array([5.0, 10.0, 25.0, 40.0])).tolist() == [0.0, 20.0, 20.0, 30.0]


def test_the_filters_choice_alone_is_told_from_paths_of_the_same_macs() -> None:
    def path(place: int, ap: float) -> JudgedPath:
        return JudgedPath(bin=place, macs=place + 1.0, ap=ap)

    # Two candidates a bin; only the first of each is matched to a path ranked highest.
    candidates = (path(0, 0.1), path(0, 0.9), path(1, 0.3), path(1, 0.0))
    found = Judgement(
        candidates=candidates,
        front=(),
        whole=(),
        ranked_highest=(path(0, 0.2), path(1, 0.5)),
        judged_by="",
    )
    assert choice_alone(found) == pytest.approx(15)


def test_what_is_chosen_at_a_cost_is_chosen_on_validation() -> None:
    lucky = JudgedPath(bin=0, macs=10, validation_ap=0.1, ap=0.9)
    better = JudgedPath(bin=1, macs=20, validation_ap=0.5, ap=0.3)
    assert envelope([lucky, better], np.array([15.0, 25.0])).tolist() == [90.0, 30.0]
    costs, aps = _line([lucky, better])
    assert np.exp(costs).tolist() == pytest.approx([10.0])
    assert aps.tolist() == [90.0]


def test_half_the_macs_for_the_same_ap_are_a_ratio_of_one_half() -> None:
    base = front_of((100, 10), (200, 20), (400, 30))
    half = front_of((50, 10), (100, 20), (200, 30))
    assert compute_ratio(half, base) == pytest.approx(0.5)
    assert compute_ratio(base, half) == pytest.approx(2.0)
    assert compute_ratio(base, base) == pytest.approx(1.0)


def test_compute_for_equal_ap_means_nothing_where_fronts_are_flat_or_apart() -> None:
    flat = front_of((100, 10.0), (200, 10.4))
    assert compute_ratio(flat, flat) is None
    assert compute_ratio(front_of((100, 10), (200, 20)), front_of((100, 30), (200, 40))) is None


def test_an_interval_is_students() -> None:
    values = [0.2, 0.9, 0.4, 0.6]
    found = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.sign == "above"
    assert interval([-0.2, -0.3, -0.25]).sign == "below"
    assert interval([-1.0, 1.0]).sign == "not resolved"
    assert interval([5.0]).sign == "not resolved"  # one seed resolves nothing


def test_contrasts_are_paired_by_seed() -> None:
    points = ((10.0, 20.0), (100.0, 50.0))
    better = [judgement_of(*((macs, ap + 1) for macs, ap in points)), judgement_of((10, 71))]
    plain = [judgement_of(*points), judgement_of((10, 70))]
    results = {"detofa": better, "ofa": plain, "random-pruned": plain}
    found = contrasts(results, 10, 1000)["front, mean AP"]
    # Seeds differ by 35 points and arms by one: only pairs see that.
    assert found["detofa - ofa"].mean == pytest.approx(1.0)
    assert found["detofa - ofa"].sign == "above"
    assert found["random-pruned - ofa"].mean == 0.0
    assert savings(results)["detofa - ofa"] is None  # one of the pairs is flat


def test_a_mismatch_is_the_largest_difference_in_macs() -> None:
    arm, other = judgement_of((100, 1), (200, 2)), judgement_of((110, 1), (200, 2))
    results = {"detofa": [arm], "ofa": [other], "random-pruned": [arm]}
    assert macs_mismatch(results) == pytest.approx(np.log(1.1))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", TASKS)
def test_every_plan_can_be_made_or_is_refused(task: str, size: str) -> None:
    if (task, size) in (("bccd", "gpu"), ("voc", "desk"), ("coco", "desk")):
        with pytest.raises(UserError, match=f"task {task} has no size {size}"):
            plan_of(task, size, "data")
        return
    plan = plan_of(task, size, "data")
    assert len(plan.seeds) == len(set(plan.seeds)) > 0
    assert plan.train.filter.prune == "always"  # the experiment is about what pruning does
    assert (plan.glyphs is not None) == (task == "glyphs")


@pytest.mark.slow
def test_the_smoke_run_goes_through_and_again_only_reports(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.method.run", "glyphs", "--same-steps"]
    command += ["--work", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    printed = []
    for _ in range(2):
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.split("# glyphs")[0])
    other = subprocess.run(
        [*command, "--size", "desk"],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert other.returncode == 1
    assert "of another plan; use another --work" in other.stderr
    assert "train detofa-0" in printed[0]
    assert "train" not in printed[1]  # all was there
    report = json.loads((tmp_path / "report.json").read_text())
    for pairs in report["differences"].values():
        assert set(pairs) == {
            "detofa - ofa",
            "detofa - random-pruned",
            "random-pruned - ofa",
            "detofa - ofa-same-steps",
        }
    arms = report["arms"]
    for arm in ("ofa", "random-pruned"):  # which have no labels to pay for
        pairs = zip(arms[arm]["steps"], arms["detofa"]["steps"], strict=True)
        assert all(more > steps for more, steps in pairs)
    assert arms["ofa-same-steps"]["steps"] == arms["detofa"]["steps"]
    assert "not resolved" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.svg").read_text().startswith("<?xml")
