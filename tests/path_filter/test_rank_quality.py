import dataclasses
import json

import numpy as np
import pytest

from detofa.errors import UserError
from detofa.path_filter.agreement import Estimate
from detofa.path_filter.rank_quality import RANKERS, RankQuality, assess_rankers
from tests.path_filter.problems import QUICK, Problem


def assess(problem, *, labels=None, rows=slice(None), repeats=2, seed=0):
    costs = problem.costs[rows]
    return assess_rankers(
        problem.space,
        problem.genes[rows],
        problem.labels[rows] if labels is None else labels,
        costs,
        costs,
        problem.bins,
        seed=seed,
        label="made up",
        noise=problem.noise,
        settings=QUICK,
        repeats=repeats,
    )


@pytest.fixture(scope="module")
def of_a_rule():
    return assess(Problem(noise=1.0, per_bin=15))


@pytest.fixture(scope="module")
def of_noise():
    problem = Problem(noise=1.0, per_bin=15)
    return assess(problem, labels=np.random.default_rng(0).normal(size=60))


def test_a_rule_that_macs_cannot_rank_is_worth_pruning_by(of_a_rule):
    taus = {name: tau.value for name, tau in of_a_rule.taus.items()}
    assert taus["filter"] > 0.4
    assert abs(taus["macs"]) < 0.2
    assert abs(taus["random"]) < 0.25
    assert of_a_rule.filter_minus_macs.low > 0
    assert of_a_rule.filter_is_worth_pruning_by
    assert "prune by it" in of_a_rule.advice()
    assert "do not prune" not in of_a_rule.advice()


def test_the_filter_is_not_below_the_ridge_by_more_than_noise(of_a_rule):
    difference = of_a_rule.filter_minus_ridge
    assert difference.value > -2 * difference.standard_error
    assert set(of_a_rule.taus) == set(of_a_rule.per_bin) == set(RANKERS)


def test_labels_of_noise_alone_give_zero_and_the_advice_not_to_prune(of_noise):
    tau = of_noise.taus["filter"]
    assert tau.low < 0 < tau.high
    assert not of_noise.filter_is_worth_pruning_by
    assert "do not prune" in of_noise.advice()


def test_labels_are_divided_into_folds_with_archs_of_every_bin(of_a_rule):
    assert (of_a_rule.num_labels, of_a_rule.folds, of_a_rule.repeats) == (60, 5, 2)
    small = assess(Problem(per_bin=4), repeats=1)
    assert small.folds == 2


def test_the_tau_over_bins_is_the_mean_of_bins_of_one_size(of_a_rule):
    for name in RANKERS:
        assert len(of_a_rule.per_bin[name]) == 4
        mean = np.mean([tau.value for tau in of_a_rule.per_bin[name]])
        assert of_a_rule.taus[name].value == pytest.approx(mean, abs=0.02)


def test_same_seed_gives_the_same_figures():
    problem = Problem(per_bin=4)
    first, again, other = (assess(problem, repeats=1, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_json_record_holds_every_figure(of_a_rule):
    record = json.loads(json.dumps(of_a_rule.to_json(), allow_nan=False))
    assert set(record) == set(RankQuality.__dataclass_fields__)
    assert record["taus"]["filter"]["value"] == of_a_rule.taus["filter"].value
    for told, tau in zip(record["per_bin"]["ridge"], of_a_rule.per_bin["ridge"], strict=True):
        assert told["value"] == tau.value
        assert -1 <= told["low"] <= tau.value <= told["high"] <= 1
    assert record["filter_minus_macs"]["low"] == of_a_rule.filter_minus_macs.low


def test_a_bin_with_too_few_labels_is_named():
    problem = Problem()
    with pytest.raises(UserError, match=r"bin 3 \(.*\) has 3 labels, .* at least 4 in every bin"):
        assess(problem, rows=slice(39))


def figure(value, error=0.05):
    return Estimate(
        value=value, low=value - 2 * error, high=value + 2 * error, standard_error=error
    )


def quality(*, tau, over_macs, over_ridge):
    return RankQuality(
        label="ap",
        num_labels=60,
        folds=5,
        repeats=10,
        taus={
            "filter": figure(tau),
            "macs": figure(tau - over_macs),
            "ridge": figure(tau - over_ridge),
            "regressor": figure(0.1),
            "random": figure(0.0),
        },
        per_bin=dict.fromkeys(RANKERS, (figure(0.0),)),
        filter_minus_macs=figure(over_macs),
        filter_minus_ridge=figure(over_ridge),
    )


def test_a_difference_to_macs_within_the_interval_is_no_reason_to_prune():
    close = quality(tau=0.5, over_macs=0.08, over_ridge=0.0)
    assert not close.filter_is_worth_pruning_by
    assert "0.08 (-0.02 to 0.18) does not exclude zero" in close.advice()
    assert quality(tau=0.5, over_macs=0.11, over_ridge=0.0).filter_is_worth_pruning_by


def test_macs_that_rank_better_than_the_filter_are_told():
    worse = quality(tau=0.3, over_macs=-0.2, over_ridge=0.0)
    assert not worse.filter_is_worth_pruning_by
    assert "MACs alone rank archs of one budget better; do not prune" in worse.advice()


def test_to_beat_macs_that_rank_backwards_is_no_reason_to_prune():
    backwards = quality(tau=0.05, over_macs=0.4, over_ridge=0.0)
    assert not backwards.filter_is_worth_pruning_by
    assert "not known to rank better than chance; do not prune" in backwards.advice()


def test_a_ridge_better_by_more_than_one_standard_error_is_told():
    assert not quality(tau=0.5, over_macs=0.3, over_ridge=-0.04).ridge_is_better
    better = quality(tau=0.5, over_macs=0.3, over_ridge=-0.06)
    assert better.ridge_is_better
    assert "the ridge, with 0.56 (0.46 to 0.66), ranks better" in better.advice()


def test_a_quality_is_a_record_that_cannot_be_changed(of_a_rule):
    with pytest.raises(dataclasses.FrozenInstanceError):
        of_a_rule.label = "loss"
