"""Equal cost: steps of another method for what a run by detofa cost, labels included."""

import dataclasses
from pathlib import Path

import pytest

from detofa.errors import UserError
from detofa.files import write_json
from detofa.train.config import FilterPlan, TrainConfig
from detofa.train.equal_cost import seconds_spent, steps_of_equal_cost
from detofa.train.run import RunFolder

STEPS = 100


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(
        data="x", method="detofa", steps=STEPS, largest_first=0.2, filter=FilterPlan(warm_up=0.5)
    )


@pytest.fixture
def run(config: TrainConfig, tmp_path: Path) -> RunFolder:
    """Return a finished run: 20 steps of 1 s, 30 of 3 s, 50 of 2 s, and 60 s for the filter."""
    run = RunFolder(path=tmp_path)
    config.save(run.config)
    seconds = [1.0] * 20 + [3.0] * 30 + [2.0] * 50
    for step, value in enumerate(seconds, start=1):
        run.log({"step": step, "loss": 1.0, "seconds": value})
    run.log({"step": STEPS, "ap": {"largest": 0.5}})
    spent = {"label_seconds": 50.0, "fit_seconds": 4.0, "assess_seconds": 6.0}
    write_json(run.filter_report, "filter_report", spent)
    return run


def test_what_a_run_spent_is_its_steps_and_its_filter(run: RunFolder) -> None:
    spent = seconds_spent(run)
    assert (spent.training, spent.filtering, spent.total) == (210.0, 60.0, 270.0)


def test_to_compare_rankers_costs_nothing_where_it_decides_nothing(
    config: TrainConfig, run: RunFolder
) -> None:
    always = dataclasses.replace(config.filter, prune="always")
    dataclasses.replace(config, filter=always).save(run.config)
    assert seconds_spent(run).filtering == 54.0


def test_steps_make_up_for_labels_and_for_cheaper_paths(
    config: TrainConfig, run: RunFolder
) -> None:
    plain = dataclasses.replace(config, method="ofa", seed=7)
    # A fifth of its steps cost 1 s, the rest 3 s: 2.6 s a step.
    assert steps_of_equal_cost(plain, run) == round(270 / 2.6)
    control = dataclasses.replace(config, method="random-pruned")
    # Half of its steps cost what those after the filter did: 2.1 s a step.
    assert steps_of_equal_cost(control, run) == round(270 / 2.1)


def test_a_filter_fitted_later_is_no_cost_of_training(config: TrainConfig, run: RunFolder) -> None:
    dataclasses.replace(config, method="ofa").save(run.config)
    assert seconds_spent(run).filtering == 0.0


def test_what_cannot_be_compared_is_refused(config: TrainConfig, run: RunFolder) -> None:
    plain = dataclasses.replace(config, method="ofa")
    with pytest.raises(UserError, match="this run is by detofa"):
        steps_of_equal_cost(config, run)
    with pytest.raises(UserError, match="differs in batch_size, filter"):
        steps_of_equal_cost(
            dataclasses.replace(config, method="ofa", batch_size=2, filter=FilterPlan(keep=0.5)),
            run,
        )
    run.forget_after(99)
    with pytest.raises(UserError, match="99 of 100 steps; finish it first"):
        steps_of_equal_cost(plain, run)
    plain.save(run.config)
    with pytest.raises(UserError, match="was trained by ofa"):
        steps_of_equal_cost(plain, run)


def test_a_filter_before_paths_share_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"warm_up of the filter \(0.2\) should be above"):
        TrainConfig(data="x", method="detofa", largest_first=0.3, filter=FilterPlan(warm_up=0.2))
