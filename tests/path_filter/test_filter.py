import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detofa.errors import UserError
from detofa.path_filter.agreement import Comparisons
from detofa.path_filter.bins import BudgetBins
from detofa.path_filter.ensemble import Ensemble, FilterSettings
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.pairs import compare_labels
from detofa.presets import preset
from tests.path_filter.problems import QUICK, Problem

PROBLEM = Problem()
UNSEEN = Problem(seed=1, per_bin=60)


def in_bin_tau(scores, problem, labels):
    return Comparisons.of(scores, labels, problem.bins.index(problem.costs)).tau()


def test_a_rule_that_macs_cannot_rank_is_learnt_inside_bins():
    truth = UNSEEN.truth(UNSEEN.genes)
    fitted = PROBLEM.fit()
    assert fitted.linear.terms == "budget"
    assert in_bin_tau(fitted.score_in_bin(UNSEEN.genes, UNSEEN.costs), UNSEEN, truth) > 0.85
    assert abs(in_bin_tau(UNSEEN.costs, UNSEEN, truth)) < 0.25


def test_a_rule_that_turns_round_with_the_budget_is_learnt():
    def turning(problem):
        small = problem.bins.index(problem.costs) < 2
        return np.where(small, 1, -1) * problem.truth(problem.genes)

    fitted = PROBLEM.fit(turning(PROBLEM))
    assert fitted.linear.terms == "products"
    scores = fitted.score_in_bin(UNSEEN.genes, UNSEEN.costs)
    assert in_bin_tau(scores, UNSEEN, turning(UNSEEN)) > 0.5


def test_a_label_that_goes_by_the_cost_is_learnt_from_all_bins():
    fitted = PROBLEM.fit(np.log(PROBLEM.costs))
    assert fitted.linear.terms == "encoding"
    scores = fitted.score_in_bin(UNSEEN.genes, UNSEEN.costs)
    assert in_bin_tau(scores, UNSEEN, UNSEEN.costs) > 0.95


def test_the_ensemble_learns_of_many_labels_what_two_choices_are_worth_together():
    def alike(problem):
        return (problem.genes[:, 1] == problem.genes[:, 2]).astype(float)

    large = Problem(per_bin=60, seed=2)
    fitted = large.fit(alike(large), settings=FilterSettings(penalty=1.0))
    silent = {name: torch.zeros_like(value) for name, value in fitted.ensemble.tensors().items()}
    linear = dataclasses.replace(fitted, ensemble=Ensemble(**silent))
    whole, part, perfect = (
        in_bin_tau(scores, UNSEEN, alike(UNSEEN))
        for scores in (
            fitted.score_in_bin(UNSEEN.genes, UNSEEN.costs),
            linear.score_in_bin(UNSEEN.genes, UNSEEN.costs),
            alike(UNSEEN),
        )
    )
    assert whole > part + 0.2 * perfect


def test_same_seed_gives_the_same_scores_and_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    first, second, third = (
        PROBLEM.fit(seed=seed).score_in_bin(UNSEEN.genes, UNSEEN.costs) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_score_depends_on_the_budget_and_its_own_bin_is_the_default():
    fitted = PROBLEM.fit()
    budgets = PROBLEM.bins.upper(PROBLEM.bins.index(PROBLEM.costs))
    own = fitted.score_in_bin(PROBLEM.genes, PROBLEM.costs)
    np.testing.assert_array_equal(own, fitted.score(PROBLEM.genes, PROBLEM.costs, budgets))
    assert not np.allclose(own, fitted.score(PROBLEM.genes, PROBLEM.costs, PROBLEM.bins.edges[1]))


def test_scores_of_many_archs_equal_those_of_each(monkeypatch):
    fitted = PROBLEM.fit()
    together = fitted.score(UNSEEN.genes, UNSEEN.costs, 1e7)
    monkeypatch.setattr("detofa.path_filter.filter._ROWS_AT_ONCE", 7)
    np.testing.assert_allclose(fitted.score(UNSEEN.genes, UNSEEN.costs, 1e7), together, rtol=1e-12)
    assert fitted.score(UNSEEN.genes[:0], UNSEEN.costs[:0], 1e7).shape == (0,)


def test_labels_of_any_scale_are_ranked_alike():
    scaled = Problem(noise=100 * PROBLEM.noise).fit(100 * PROBLEM.labels - 40)
    np.testing.assert_allclose(
        np.diff(scaled.score(UNSEEN.genes, UNSEEN.costs, 1e7)),
        np.diff(PROBLEM.fit().score(UNSEEN.genes, UNSEEN.costs, 1e7)),
        atol=1e-6,
    )


def test_files_give_the_same_scores_to_the_last_bit(tmp_path):
    fitted = PROBLEM.fit()
    fitted.save(tmp_path)
    again = PathFilter.load(tmp_path, PROBLEM.space)
    np.testing.assert_array_equal(
        again.score_in_bin(UNSEEN.genes, UNSEEN.costs),
        fitted.score_in_bin(UNSEEN.genes, UNSEEN.costs),
    )
    assert again.sha256 == fitted.sha256
    assert (again.bins, again.settings, again.label) == (PROBLEM.bins, QUICK, "made up")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "path_filter.json",
        "path_filter.safetensors",
    ]


def test_other_labels_make_another_hash():
    hashes = {Problem(seed=seed).fit().sha256 for seed in (0, 1)} | {PROBLEM.fit(seed=5).sha256}
    assert len(hashes) == 3


def test_a_filter_of_another_space_is_refused_with_both_digests(tmp_path):
    PROBLEM.fit().save(tmp_path)
    other = preset("tiny", num_classes=4)
    with pytest.raises(UserError) as caught:
        PathFilter.load(tmp_path, other)
    assert PROBLEM.space.digest[:12] in str(caught.value)
    assert other.digest[:12] in str(caught.value)


def test_changed_and_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist; make it with `detofa filter`"):
        PathFilter.load(tmp_path, PROBLEM.space)
    PROBLEM.fit().save(tmp_path)
    weights = tmp_path / "path_filter.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    with pytest.raises(UserError, match="was written for"):
        PathFilter.load(tmp_path, PROBLEM.space)
    weights.unlink()
    with pytest.raises(UserError, match=r"needs .*path_filter.safetensors"):
        PathFilter.load(tmp_path, PROBLEM.space)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1.5),
        ("num_labels", "48"),
        ("noise", None),
        ("label", 3),
        ("weights_sha256", None),
        ("settings", {"members": 8}),
        ("bins", None),
    ],
)
def test_a_broken_record_is_refused(name, value, tmp_path):
    PROBLEM.fit().save(tmp_path)
    path = tmp_path / "path_filter.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {name: value}))
    with pytest.raises(UserError):
        PathFilter.load(tmp_path, PROBLEM.space)
    del record[name]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=name):
        PathFilter.load(tmp_path, PROBLEM.space)


def test_fewer_labels_than_bins_are_refused():
    with pytest.raises(UserError, match="3 labels are too few for 4 bins; evaluate at least 8"):
        PROBLEM.fit(rows=slice(3))


def test_an_empty_bin_is_named():
    with pytest.raises(UserError, match=r"bin 3 \(.* MACs\) has no labels; evaluate archs of it"):
        PROBLEM.fit(rows=slice(36))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_label_that_is_not_finite_is_named_with_its_bin(broken):
    labels = PROBLEM.labels.copy()
    labels[13] = broken
    with pytest.raises(UserError, match=r"arch 13, in bin 1 .*evaluate it again"):
        PROBLEM.fit(labels)


def test_equal_labels_are_refused():
    with pytest.raises(UserError, match="nothing to rank"):
        PROBLEM.fit(np.ones(48))


@pytest.mark.parametrize(
    ("name", "value"),
    [("members", 0), ("steps", 1.5), ("penalty", -1.0), ("tolerance", 0.5), ("noise", 1)],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises((UserError, TypeError), match=name):
        FilterSettings(**{name: value})


# ---- pairs ------------------------------------------------------------------------------------

BINS = BudgetBins(kind="macs", edges=(1.0, 2.0, 4.0, 8.0))


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 2)), min_size=2, max_size=12),
    st.sampled_from([1.0, 2.0, 100.0]),
    st.sampled_from([0.0, 0.5]),
)
def test_pairs_are_each_of_two_labels_in_order_at_the_larger_budget(archs, tolerance, noise):
    labels = np.array([label for label, _ in archs])
    index = np.array([place for _, place in archs])
    try:
        pairs = compare_labels(labels, index, BINS, noise=noise, tolerance=tolerance)
    except UserError:
        assert all(len(set(labels[index == place])) <= 1 for place in range(3))
        return
    better, worse = pairs.archs[pairs.better], pairs.archs[pairs.worse]
    assert (labels[better] > labels[worse]).all()
    np.testing.assert_array_equal(pairs.bins[pairs.better], pairs.bins[pairs.worse])
    np.testing.assert_array_equal(pairs.bins[pairs.better], np.maximum(index[better], index[worse]))
    ratios = 2.0 ** np.abs(index[better] - index[worse])
    assert (ratios <= tolerance).all()
    assert len({frozenset(pair) for pair in zip(better, worse, strict=True)}) == len(better)
    assert pairs.weights.sum() == pytest.approx(1)


def test_pairs_within_the_noise_of_labels_count_little():
    labels, index = np.array([0.0, 0.1, 5.0]), np.zeros(3, int)
    one_bin = BudgetBins(kind="macs", edges=(1.0, 2.0))
    pairs = compare_labels(labels, index, one_bin, noise=1.0, tolerance=1.0)
    found = {
        (int(pairs.archs[better]), int(pairs.archs[worse])): weight
        for better, worse, weight in zip(pairs.better, pairs.worse, pairs.weights, strict=True)
    }
    assert found[1, 0] / found[2, 0] == pytest.approx(0.0564, abs=0.001)  # 2 Phi(0.0707) - 1
    exact = compare_labels(labels, index, one_bin, noise=0.0, tolerance=1.0)
    np.testing.assert_allclose(exact.weights, 1 / 3)
