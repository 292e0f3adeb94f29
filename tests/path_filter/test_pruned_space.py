import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detofa.errors import UserError
from detofa.path_filter.bins import BudgetBins
from detofa.path_filter.drawing import draw_per_bin
from detofa.path_filter.histograms import option_shares
from detofa.path_filter.pruned_space import PrunedSpace, cut_space, random_cut
from detofa.path_filter.random_filter import RandomFilter
from detofa.presets import preset
from tests.path_filter.problems import Problem

PROBLEM = Problem()
SPACE = PROBLEM.space


def pruned_by_filter(keep=0.25):
    rng = np.random.default_rng(0)
    fitted = PROBLEM.fit()
    return cut_space(SPACE, fitted, PROBLEM.cost, rng, keep=keep, archs_per_bin=500)


FILTERED = pruned_by_filter()
RANDOM = random_cut(SPACE, PROBLEM.cost, PROBLEM.bins, seed=7, keep=0.25)
BOTH = pytest.mark.parametrize("pruned", [FILTERED, RANDOM], ids=["filter", "random"])


def whole_bins(per_bin, seed=1):
    wanted = np.full(PROBLEM.bins.count, per_bin)
    return draw_per_bin(SPACE, PROBLEM.cost, PROBLEM.bins, np.random.default_rng(seed), wanted)


def test_inside_a_bin_every_option_is_as_likely_as_in_the_space():
    """Archs of the middle bins drawn evenly over the space are the reference."""
    drawn = SPACE.sample(np.random.default_rng(0), 6000)
    places = PROBLEM.bins.index(PROBLEM.cost(drawn))
    for index, genes in enumerate(whole_bins(600)[1:3], start=1):
        reference = SPACE.encode_compact(drawn[places == index]).mean(axis=0)
        np.testing.assert_allclose(SPACE.encode_compact(genes).mean(axis=0), reference, atol=0.09)


@BOTH
def test_a_quarter_of_each_bin_is_kept(pruned):
    for genes in whole_bins(800):
        assert pruned.contains(genes).mean() == pytest.approx(0.25, abs=0.07)


def test_what_the_filter_keeps_is_better_and_what_chance_keeps_is_not():
    for genes in whole_bins(800):
        truth = PROBLEM.truth(genes)
        spread = truth.std()
        assert truth[FILTERED.contains(genes)].mean() > truth.mean() + 0.8 * spread
        assert truth[RANDOM.contains(genes)].mean() == pytest.approx(
            truth.mean(), abs=0.25 * spread
        )


@BOTH
def test_the_smallest_and_the_largest_arch_are_always_in(pruned):
    assert pruned.contains(SPACE.ends).all()
    strict = PrunedSpace(
        space=SPACE,
        path_filter=pruned.path_filter,
        cost=PROBLEM.cost,
        cuts=(1e9,) * 4,
        keep=0.25,
    )
    assert strict.contains(SPACE.ends).all()
    assert strict.contains(PROBLEM.genes).sum() <= 2


@BOTH
def test_every_arch_sampled_is_in_and_bins_come_evenly(pruned):
    drawn = pruned.sample(np.random.default_rng(2), 400)
    assert drawn.shape == (400, SPACE.num_genes)
    assert pruned.contains(drawn).all()
    counts = np.bincount(PROBLEM.bins.index(PROBLEM.cost(drawn)), minlength=4)
    assert (abs(counts - 100) < 40).all()
    np.testing.assert_array_equal(SPACE.canonical(drawn), drawn)


@BOTH
def test_a_sample_of_bins_holds_distinct_members_of_each(pruned):
    drawn = pruned.sample_bins(np.random.default_rng(3), 15)
    assert pruned.contains(drawn).all()
    assert len(np.unique(drawn, axis=0)) == 60
    assert PROBLEM.bins.index(PROBLEM.cost(drawn)).tolist() == np.repeat(range(4), 15).tolist()


@BOTH
def test_an_arch_is_a_member_whatever_it_is_asked_with(pruned):
    genes = np.concatenate(whole_bins(40))
    alone = [bool(pruned.contains(row[None])[0]) for row in genes]
    assert pruned.contains(genes).tolist() == alone


@BOTH
@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0, 1))
def test_mutants_and_children_of_members_are_members(pruned, seed, rate):
    rng = np.random.default_rng(seed)
    parents = pruned.sample(rng, 20)
    mutants = pruned.mutate(parents, rng, rate)
    children = pruned.crossover(parents, parents[::-1], rng)
    assert pruned.contains(np.concatenate([mutants, children])).all()
    assert mutants.shape == children.shape == parents.shape


def test_mutation_changes_most_archs():
    rng = np.random.default_rng(0)
    parents = FILTERED.sample(rng, 100)
    assert (FILTERED.mutate(parents, rng, 0.2) != parents).any(axis=1).mean() > 0.7


def test_same_seed_gives_the_same_samples():
    first, again, other = (FILTERED.sample(np.random.default_rng(seed), 8) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_is_kept_where_that_is_asked():
    genes = np.concatenate(whole_bins(100))
    assert random_cut(SPACE, PROBLEM.cost, PROBLEM.bins, seed=0, keep=1.0).contains(genes).all()
    assert pruned_by_filter(keep=1.0).contains(genes).mean() > 0.98


# ---- the random control -------------------------------------------------------------------------


def test_random_scores_are_even_and_the_same_every_time():
    genes = SPACE.sample(np.random.default_rng(0), 4000)
    scores = RandomFilter(bins=PROBLEM.bins, seed=3).score_in_bin(genes, PROBLEM.cost(genes))
    again = RandomFilter(bins=PROBLEM.bins, seed=3).score_in_bin(genes[::-1], PROBLEM.cost(genes))
    np.testing.assert_array_equal(scores, again[::-1])
    counts = np.histogram(scores, bins=10, range=(0, 1))[0]
    assert counts.sum() == 4000
    assert (abs(counts - 400) < 100).all()


def test_random_scores_have_nothing_to_do_with_genes_seeds_or_neighbours():
    genes = np.unique(SPACE.sample(np.random.default_rng(0), 4000), axis=0)
    costs = PROBLEM.cost(genes)
    scores = RandomFilter(bins=PROBLEM.bins, seed=3).score_in_bin(genes, costs)
    neighbours = genes.copy()
    neighbours[:, 1] = 1 - neighbours[:, 1]
    others = [
        RandomFilter(bins=PROBLEM.bins, seed=4).score_in_bin(genes, costs),
        RandomFilter(bins=PROBLEM.bins, seed=3).score_in_bin(neighbours, costs),
        costs,
        *SPACE.encode_compact(genes)[:, :4].T,
    ]
    for other in others:
        assert abs(np.corrcoef(scores, other)[0, 1]) < 0.06


# ---- bins that are starved ----------------------------------------------------------------------

BEYOND = BudgetBins(kind="macs", edges=(*PROBLEM.bins.edges, 10 * PROBLEM.bins.edges[-1]))


def test_a_bin_without_archs_is_named_when_a_space_is_cut():
    filtered = PROBLEM.fit()
    object.__setattr__(filtered, "bins", BEYOND)
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"bin 4 \(.*\) is starved: 0 of 200 archs"):
        cut_space(SPACE, filtered, PROBLEM.cost, rng, archs_per_bin=200)


def test_a_bin_without_members_is_named_when_sampled():
    pruned = random_cut(SPACE, PROBLEM.cost, BEYOND, seed=0)
    for draw in (pruned.sample, pruned.sample_bins):
        with pytest.raises(UserError, match=r"bin 4 .* use fewer or wider bins"):
            draw(np.random.default_rng(0), 30, max_draws=5000)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(keep):
    with pytest.raises(UserError, match="above 0 and up to 1"):
        random_cut(SPACE, PROBLEM.cost, PROBLEM.bins, seed=0, keep=keep)
    with pytest.raises(UserError, match="above 0 and up to 1"):
        pruned_by_filter(keep=keep)


# ---- files --------------------------------------------------------------------------------------


@BOTH
def test_a_file_gives_the_same_members(pruned, tmp_path):
    path = tmp_path / "pruned_space.json"
    pruned.save(path)
    again = PrunedSpace.load(path, SPACE, PROBLEM.cost)
    genes = np.concatenate(whole_bins(200))
    np.testing.assert_array_equal(again.contains(genes), pruned.contains(genes))
    assert (again.cuts, again.keep, again.bins) == (pruned.cuts, pruned.keep, pruned.bins)
    np.testing.assert_array_equal(
        again.sample(np.random.default_rng(0), 10), pruned.sample(np.random.default_rng(0), 10)
    )


def test_another_filter_beside_the_record_is_refused(tmp_path):
    path = tmp_path / "pruned_space.json"
    FILTERED.save(path)
    PROBLEM.fit(seed=1).save(tmp_path / "path_filter")
    with pytest.raises(UserError, match=r"was made with a path filter of SHA-256"):
        PrunedSpace.load(path, SPACE, PROBLEM.cost)


@BOTH
def test_another_space_is_refused_with_both_digests(pruned, tmp_path):
    path = tmp_path / "pruned_space.json"
    pruned.save(path)
    other = preset("tiny", num_classes=5)
    with pytest.raises(UserError) as caught:
        PrunedSpace.load(path, other, PROBLEM.cost)
    assert SPACE.digest[:12] in str(caught.value)
    assert other.digest[:12] in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cuts", [0.5]),
        ("cuts", None),
        ("keep", "0.25"),
        ("filter", None),
        ("filter", {"kind": "best"}),
        ("filter", {"kind": "random", "seed": "1", "bins": None}),
        ("filter", {"kind": "path_filter", "folder": "elsewhere", "sha256": ""}),
    ],
)
def test_a_broken_record_is_refused(name, value, tmp_path):
    path = tmp_path / "pruned_space.json"
    RANDOM.save(path)
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {name: value}))
    with pytest.raises(UserError):
        PrunedSpace.load(path, SPACE, PROBLEM.cost)
    del record[name]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=name):
        PrunedSpace.load(path, SPACE, PROBLEM.cost)


# ---- what it prefers ----------------------------------------------------------------------------


def test_shares_show_what_a_pruned_space_prefers():
    shares = option_shares(FILTERED, np.random.default_rng(0), per_bin=300)
    by_choice: dict[tuple[int, str], list[float]] = {}
    for share in shares:
        by_choice.setdefault((share.bin, share.choice), []).append(share.members)
    assert all(sum(members) == pytest.approx(1) for members in by_choice.values())
    assert {choice for _, choice in by_choice} >= {"image size", "neck width", "stage 1 depth"}
    assert not any(choice.startswith("stage 0") for _, choice in by_choice)
    # The rule wants small kernels early and large ones late.
    early, late = (
        np.mean([s.members - s.whole for s in shares if (s.choice, s.option) == wanted])
        for wanted in (("stage 1 kernel size", "3"), ("stage 4 kernel size", "5"))
    )
    assert early > 0.1
    assert late > 0.1


def test_shares_of_a_space_pruned_by_chance_are_those_of_the_whole():
    shares = option_shares(RANDOM, np.random.default_rng(0), per_bin=600)
    differences = [share.members - share.whole for share in shares]
    assert np.abs(differences).max() < 0.15
    assert np.abs(differences).mean() < 0.03
