import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detofa.errors import UserError
from detofa.presets import preset
from detofa.reachable import reachable_range
from detofa.search import (
    Cap,
    SearchConfig,
    finalists,
    pareto_front,
    pareto_search,
    search,
)
from detofa.space import ABSENT, SearchSpace

QUICK = SearchConfig(population=32, generations=12, parents=16)


def small_space():
    """Give a space of 2 x 2 x 1 x 2 x (6 + 36) = 336 paths, few enough to list."""
    tiny = preset("tiny", num_classes=3, image_sizes=[(64, 64), (96, 128)])
    stages = [
        dataclasses.replace(stage, depths=(1,), kernel_sizes=(3,), expand_ratios=(2,))
        for stage in tiny.stages
    ]
    stages[2] = tiny.stages[2]
    return dataclasses.replace(tiny, stages=tuple(stages), head_widths=(32,))


def every_path(space: SearchSpace):
    choices = [range(count) for count in space.num_choices]
    complete = np.array(list(itertools.product(*choices)), np.int8)
    return np.unique(space.canonical(complete), axis=0)


def additive(space, seed, low=0.1, high=1.0):
    """Give a sum over blocks of random positive numbers, in each image size its own."""
    rng = np.random.default_rng(seed)
    first_block = space.block_gene(0, 0)
    sizes = len(space.image_sizes)
    globals_ = rng.uniform(low, high, (sizes, *space.num_choices[1:4]))
    blocks = rng.uniform(low, high, (sizes, space.num_genes, 16, 16))

    def cost(genes):
        size = genes[:, 0]
        total = globals_[size, genes[:, 1], genes[:, 2], genes[:, 3]]
        for column in range(first_block, space.num_genes, 2):
            kernel, ratio = genes[:, column], genes[:, column + 1]
            runs = kernel != ABSENT
            total = total + np.where(runs, blocks[size, column, kernel, ratio], 0)
        return total

    return cost


def total(genes):
    """Score that grows with every choice; absent blocks count nothing."""
    return (genes.astype(float) + 1).sum(axis=1)


def counted(measure):
    rows: list[bytes] = []

    def wrapped(genes):
        rows.extend(row.tobytes() for row in genes)
        return measure(genes)

    return wrapped, rows


def run(space, score, cost, budget, seed=0, **others):
    config = others.pop("config", QUICK)
    rng = np.random.default_rng(seed)
    return search(
        space, score=score, cost=cost, budget=budget, unit="ms", rng=rng, config=config, **others
    )


# ---- search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 1.0])
def test_the_best_path_of_a_small_space_is_found_at_any_budget(seed, share):
    space = small_space()
    paths = every_path(space)
    assert len(paths) == space.size
    cost, score = additive(space, seed), additive(space, seed + 100, low=-1)
    costs = cost(paths)
    budget = float(costs.min() + share * np.ptp(costs))
    result = run(space, score, cost, budget, seed)
    assert result.costs.max() <= budget
    assert result.scores[0] == pytest.approx(score(paths)[costs <= budget].max())


@pytest.mark.parametrize("name", ["tiny", "lite0", "ofa-mbv3"])
def test_search_beats_as_many_random_paths(name):
    space = preset(name, num_classes=3)
    cost, score = additive(space, 0), additive(space, 1)
    rng = np.random.default_rng(0)
    drawn = space.sample(rng, 400)
    budget = float(np.median(cost(drawn)))
    result = run(space, score, cost, budget)
    assert result.evaluations <= 416
    assert result.scores[0] > score(drawn)[cost(drawn) <= budget].max()


def test_no_path_is_scored_twice_and_all_are_canonical():
    space = small_space()
    score, rows = counted(total)
    result = run(space, score, additive(space, 0), math.inf)
    assert len(rows) == len(set(rows)) == result.evaluations
    assert np.array_equal(space.canonical(np.maximum(result.genes, 0)), result.genes)
    for genes in result.genes:
        space.check(space.arch(genes))


def test_the_best_is_the_best_of_all_that_were_scored():
    space = preset("tiny", num_classes=3)
    score, rows = counted(additive(space, 1))
    result = run(space, score, additive(space, 0), math.inf)
    assert {row.tobytes() for row in result.genes} == set(rows)
    assert result.scores[0] == additive(space, 1)(result.genes).max()
    assert (np.diff(result.scores) <= 0).all()
    bests = [generation.best_score for generation in result.history]
    assert bests == sorted(bests)
    assert bests[-1] == result.scores[0]
    assert result.history[-1].evaluations == result.evaluations


def test_the_same_seed_gives_the_same_result():
    space = preset("lite0", num_classes=3)
    cost, score = additive(space, 0), additive(space, 1)
    first, second = (run(space, score, cost, 9.0, seed=5) for _ in range(2))
    assert np.array_equal(first.genes, second.genes)
    assert first.history == second.history


def test_of_equal_scores_the_cheapest_comes_first():
    space = small_space()
    cost = additive(space, 0)
    result = run(space, lambda genes: np.zeros(len(genes)), cost, math.inf)
    assert (np.diff(result.costs) >= 0).all()
    assert result.costs[0] == cost(every_path(space)).min()


def test_evaluations_are_bounded():
    space = preset("lite0", num_classes=3)
    config = SearchConfig(population=16, generations=100, parents=4, max_evaluations=50)
    assert run(space, total, additive(space, 0), math.inf, config=config).evaluations == 50
    config = SearchConfig(population=16, generations=2, parents=4)
    assert run(space, total, additive(space, 0), math.inf, config=config).evaluations <= 48


def test_a_space_of_one_path_ends_at_once():
    space = small_space()
    single = dataclasses.replace(
        space,
        image_sizes=((64, 64),),
        stages=tuple(
            dataclasses.replace(stage, depths=(1,), kernel_sizes=(3,), expand_ratios=(2,))
            for stage in space.stages
        ),
        neck_widths=(32,),
        head_depths=(1,),
    )
    assert single.size == 1
    assert run(single, total, lambda genes: np.ones(len(genes)), 1.0).evaluations == 1


@pytest.mark.parametrize("name", ["tiny", "lite0", "ofa-mbv3"])
def test_the_tightest_budget_gives_the_cheapest_path(name):
    space = preset(name, num_classes=3)
    cost = additive(space, 3)
    low = reachable_range(space, cost, np.random.default_rng(0), unit="ms").low
    result = run(space, total, cost, low)
    assert result.costs[0] == low


@pytest.mark.parametrize("name", ["tiny", "lite0", "ofa-mbv3"])
def test_a_budget_just_above_the_least_gives_several_paths(name):
    space = preset(name, num_classes=3)
    cost = additive(space, 3)
    found = reachable_range(space, cost, np.random.default_rng(0), unit="ms")
    result = run(space, total, cost, found.low + 0.03 * (found.high - found.low))
    assert result.evaluations > 10
    assert result.scores[0] > total(found.lowest[None])[0]


def test_an_impossible_budget_is_answered_with_the_range_before_anything_is_scored():
    space = small_space()
    cost = additive(space, 0)
    costs = cost(every_path(space))
    score, rows = counted(total)
    with pytest.raises(UserError) as caught:
        run(space, score, cost, 0.9 * costs.min())
    high = float(str(caught.value).split(" to ")[1].split(" ms")[0])
    assert costs.max() / 1.001 <= high <= costs.max()
    assert "no path of space tiny is within the budget of" in str(caught.value)
    assert rows == []


def test_the_least_budget_in_the_message_is_reachable_as_typed():
    for seed in range(20):
        space = small_space()
        cost = additive(space, seed)
        with pytest.raises(UserError) as caught:
            run(space, total, cost, 0.01)
        low = float(str(caught.value).split("it reaches ")[1].split(" ms")[0])
        least = cost(every_path(space)).min()
        assert least <= low <= least * 1.001
        assert run(space, total, cost, low).costs[0] <= low


def test_macs_are_written_as_people_write_them():
    space = small_space()
    rng = np.random.default_rng(0)

    def cost(genes):
        return additive(space, 0)(genes) * 1e8

    with pytest.raises(UserError, match=r"of 1M MACs: it reaches [\d.]+M MACs to [\d.]+M MACs"):
        search(space, score=total, cost=cost, budget=1e6, unit="MACs", rng=rng)


def test_a_budget_above_the_largest_is_allowed_and_noted():
    space = small_space()
    cost = additive(space, 0)
    high = cost(every_path(space)).max()
    result = run(space, total, cost, high * 2)
    assert result.note is not None
    assert f"{high:.4g} ms" in result.note
    assert result.scores[0] == total(every_path(space)).max()
    assert run(space, total, cost, high * 0.9).note is None
    assert run(space, total, cost, math.inf).note is None


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_budget_that_is_not_above_zero_is_refused(budget):
    space = small_space()
    with pytest.raises(UserError, match="must be above zero"):
        run(space, total, additive(space, 0), budget)


# ---- caps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_caps_hold_beside_the_budget(seed):
    space = small_space()
    paths = every_path(space)
    cost, size = additive(space, seed), additive(space, seed + 50)
    budget, limit = np.quantile(cost(paths), 0.3), np.quantile(size(paths), 0.1)
    cap = Cap(name="file size", cost=size, limit=float(limit), unit="MB")
    result = run(space, total, cost, float(budget), caps=[cap])
    allowed = (cost(paths) <= budget) & (size(paths) <= limit)
    assert (size(result.genes) <= limit).all()
    assert (result.costs <= budget).all()
    assert result.scores[0] == total(paths)[allowed].max()


def test_a_cap_out_of_reach_is_named_with_its_range():
    space = small_space()
    cap = Cap(name="file size", cost=additive(space, 1), limit=0.01, unit="MB")
    with pytest.raises(UserError, match=r"within file size of 0\.01 MB: it reaches .* MB"):
        run(space, total, additive(space, 0), math.inf, caps=[cap])


def test_limits_that_exclude_each_other_are_told_together():
    space = small_space()

    def size(genes):
        return 20.0 - additive(space, 0)(genes)

    least = additive(space, 0)(every_path(space)).min()
    cap = Cap(name="parameters", cost=size, limit=20.0 - 1.3 * least, unit="MB")
    with pytest.raises(UserError, match=r"within the budget of .* ms .* and parameters of .* MB"):
        run(space, total, additive(space, 0), least * 1.1, caps=[cap])


# ---- reachable range --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_range_of_a_sum_over_blocks_is_exact(seed):
    space = small_space()
    cost = additive(space, seed)
    costs = cost(every_path(space))
    found = reachable_range(space, cost, np.random.default_rng(0), unit="ms")
    assert (found.low, found.high) == (costs.min(), costs.max())
    assert cost(found.lowest[None])[0] == found.low
    assert cost(found.highest[None])[0] == found.high


@pytest.mark.parametrize("name", ["tiny", "lite0", "ofa-mbv3"])
def test_the_range_holds_every_path_drawn_even_where_the_smallest_is_not_the_fastest(name):
    space = preset(name, num_classes=3)
    cost = additive(space, 4)
    found = reachable_range(space, cost, np.random.default_rng(0), unit="ms")
    drawn = cost(space.sample_spread(np.random.default_rng(1), 5000))
    assert found.low <= drawn.min()
    assert found.high >= drawn.max()
    assert found.low < cost(space.genes(space.smallest)[None])[0]


# ---- front ------------------------------------------------------------------------------------


def front_by_definition(costs, scores):
    def beaten(i):
        return any(
            costs[j] <= costs[i]
            and scores[j] >= scores[i]
            and ((costs[j], scores[j]) != (costs[i], scores[i]) or j < i)
            for j in range(len(costs))
            if j != i
        )

    return {i for i in range(len(costs)) if not beaten(i)}


POINTS = st.lists(
    st.tuples(
        st.integers(0, 5) | st.floats(allow_nan=False),
        st.integers(0, 5) | st.floats(allow_nan=False),
    ),
    max_size=30,
)


@given(POINTS)
def test_the_front_is_what_its_definition_says(points):
    costs = np.array([cost for cost, _ in points], float)
    scores = np.array([score for _, score in points], float)
    front = pareto_front(costs, scores)
    assert set(front.tolist()) == front_by_definition(costs, scores)
    assert (np.diff(costs[front]) > 0).all()
    assert (np.diff(scores[front]) > 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_front_of_a_small_space_is_found(seed):
    space = small_space()
    cost, score = additive(space, seed), additive(space, seed + 100)
    paths = every_path(space)
    true = pareto_front(cost(paths), score(paths))
    rng = np.random.default_rng(seed)
    found = pareto_search(space, score=score, cost=cost, unit="ms", rng=rng, config=QUICK)
    np.testing.assert_allclose(found.costs, cost(paths)[true])
    np.testing.assert_allclose(found.scores, score(paths)[true])


def test_the_front_reaches_from_the_cheapest_path_up_to_the_budget():
    space = preset("lite0", num_classes=3)
    cost = additive(space, 0)
    reach = reachable_range(space, cost, np.random.default_rng(0), unit="ms")
    budget = 0.5 * (reach.low + reach.high)
    rng = np.random.default_rng(0)
    front = pareto_search(
        space, score=cost, cost=cost, unit="ms", rng=rng, budget=budget, config=QUICK
    )
    assert front.costs[0] == reach.low
    assert 0.98 * budget < front.costs[-1] <= budget
    assert len(pareto_front(front.costs, front.scores)) == len(front.costs)


# ---- finalists --------------------------------------------------------------------------------


def test_finalists_are_the_best_distinct_paths():
    space = small_space()
    result = run(space, total, additive(space, 0), math.inf)
    assert finalists(result, 5).tolist() == [0, 1, 2, 3, 4]
    assert len(finalists(result, 10_000)) == len(result.scores)
    assert finalists(result, 0).tolist() == []


def test_finalists_can_be_asked_to_differ():
    space = preset("lite0", num_classes=3)
    result = run(space, additive(space, 1), additive(space, 0), math.inf)
    chosen = finalists(result, 5, min_changes=4)
    assert chosen[0] == 0
    assert (np.diff(chosen) > 0).all()
    for first, second in itertools.combinations(chosen, 2):
        assert (result.genes[first] != result.genes[second]).sum() >= 4
    assert len(finalists(result, 5, min_changes=1000)) == 5


def test_finalists_of_a_front_are_by_score_too():
    space = small_space()
    rng = np.random.default_rng(0)
    front = pareto_search(space, score=total, cost=total, unit="x", rng=rng, config=QUICK)
    assert finalists(front, 1).tolist() == [len(front.scores) - 1]


@pytest.mark.parametrize(
    "broken", [{"population": 0}, {"generations": 0}, {"parents": 0}, {"mutation_rate": 1.5}]
)
def test_settings_out_of_range_are_named(broken):
    with pytest.raises(UserError, match=next(iter(broken))):
        SearchConfig(**broken)
