import numpy as np
import pytest
from scipy.stats import kendalltau

from detofa.errors import UserError
from detofa.path_filter.agreement import Comparisons, Estimate, draw_within_bins, estimate
from detofa.path_filter.reliability import choose_label, split_half_reliability

BINS = np.repeat([0, 1, 2], 20)


def two_rankings(noise, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=60) + 10 * BINS
    return truth + rng.normal(0, noise, 60), truth + rng.normal(0, noise, 60)


def test_tau_in_one_bin_is_kendalls_tau():
    first, second = two_rankings(0.7)
    one_bin = np.zeros(60, int)
    tau = Comparisons.of(first, second, one_bin).tau()
    assert tau == pytest.approx(kendalltau(first, second).statistic)


def test_only_archs_of_one_bin_are_compared():
    first, second = two_rankings(0.7)
    thirds = zip(np.split(first, 3), np.split(second, 3), strict=True)
    expected = [kendalltau(one, other).statistic for one, other in thirds]
    comparisons = Comparisons.of(first, second, BINS)
    np.testing.assert_allclose([comparisons.in_bin(i).tau() for i in range(3)], expected)
    assert comparisons.tau() == pytest.approx(np.mean(expected))


def test_a_tie_counts_as_neither_agreement_nor_the_opposite():
    scores, labels = np.array([1.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0])
    assert Comparisons.of(scores, labels, np.zeros(3, int)).tau() == pytest.approx(2 / 3)
    assert Comparisons.of(np.zeros(3), labels, np.zeros(3, int)).tau() == 0


def test_a_resample_draws_as_many_archs_of_each_bin_as_it_has():
    draws = draw_within_bins(BINS, np.random.default_rng(0), 50)
    assert draws.shape == (50, 60)
    assert (draws.reshape(50, 3, 20).sum(axis=2) == 20).all()


def test_every_arch_drawn_once_gives_tau_itself():
    first, second = two_rankings(0.7)
    comparisons = Comparisons.of(first, second, BINS)
    resampled = comparisons.resampled(np.ones((1, 60), np.int64))
    np.testing.assert_allclose(resampled, comparisons.tau())


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Of unrelated rankings tau is zero: 95 % of the intervals should hold it."""
    held = 0
    for seed in range(100):
        rng = np.random.default_rng([seed, 1])
        comparisons = Comparisons.of(rng.normal(size=60), rng.normal(size=60), BINS)
        resampled = comparisons.resampled(draw_within_bins(BINS, rng, 200))
        found = estimate(comparisons.tau(), resampled)
        held += found.low <= 0 <= found.high
    assert 88 <= held <= 100


def test_an_estimate_is_shown_with_its_interval():
    found = Estimate(value=0.5, low=0.25, high=0.75, standard_error=0.1)
    assert str(found) == "0.50 (0.25 to 0.75)"


def test_the_label_is_chosen_that_ranks_ap_on_other_images():
    """Noise speaks against AP; a rank of its own, however steady, against the loss."""
    rng = np.random.default_rng(0)
    truth, own_way = rng.normal(size=(2, 60))
    noise = rng.normal(size=(2, 60))

    def chosen(ap_noise, strangeness):
        ap = truth + ap_noise * noise
        loss = truth + strangeness * own_way + 0.1 * rng.normal(size=(2, 60))
        candidates = {
            name: split_half_reliability(halves, ap, BINS, np.random.default_rng(0))
            for name, halves in (("ap", ap), ("loss", loss))
        }
        assert candidates["loss"].tau.low > candidates["ap"].tau.high
        assert candidates["ap"].tau_with_ap.value == candidates["ap"].tau.value
        return choose_label(candidates)

    assert chosen(ap_noise=2.0, strangeness=0.1) == "loss"
    assert chosen(ap_noise=0.5, strangeness=2.0) == "ap"


def test_while_ap_is_zero_everywhere_the_reliable_label_is_chosen():
    zeros, halves = np.zeros((2, 60)), np.stack(two_rankings(0.5))
    candidates = {
        name: split_half_reliability(labels, zeros, BINS, np.random.default_rng(0))
        for name, labels in (("ap", zeros), ("loss", halves))
    }
    assert choose_label(candidates) == "loss"


def test_the_noise_of_a_label_is_that_of_the_mean_of_its_halves():
    first, second = two_rankings(0.5)
    halves = np.stack([first, second + 7])
    found = split_half_reliability(halves, halves, BINS, np.random.default_rng(0))
    assert found.noise == pytest.approx(0.5 / np.sqrt(2), rel=0.2)
    assert found.num_archs == 60


def test_halves_that_cannot_be_compared_are_refused():
    halves = np.stack(two_rankings(0.5))
    broken = halves.copy()
    broken[0, 3] = np.nan
    rng = np.random.default_rng(0)
    for labels, aps in ((broken, halves), (halves, broken)):
        with pytest.raises(UserError, match="arch 3 has a label that is not a finite number"):
            split_half_reliability(labels, aps, BINS, rng)
    pair = [[1.0, 2.0], [1.0, 2.0]]
    with pytest.raises(UserError, match="no two archs share a budget bin"):
        split_half_reliability(pair, pair, np.array([0, 1]), rng)
