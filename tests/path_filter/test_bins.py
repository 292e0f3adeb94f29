import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detofa.errors import UserError
from detofa.path_filter.bins import BudgetBins
from tests.path_filter.problems import Problem

EDGES = (1.0, 2.0, 4.0, 8.0)
BINS = BudgetBins(kind="macs", edges=EDGES)
LATENCY = BudgetBins(kind="latency", edges=EDGES, device="this machine", table_sha256="ab" * 32)


@given(st.lists(st.floats(1.0, 8.0), min_size=1))
def test_a_cost_is_above_the_lower_edge_of_its_bin_and_up_to_the_upper_one(costs):
    index = BINS.index(np.array(costs))
    for cost, place in zip(costs, index, strict=True):
        assert EDGES[place] < cost <= EDGES[place + 1] or (place == 0 and cost == EDGES[0])


def test_an_edge_belongs_to_the_bin_below_and_the_ends_hold_what_lies_beyond():
    costs = np.array([0.5, 1.0, 2.0, 2.0001, 4.0, 8.0, 9.0])
    assert BINS.index(costs).tolist() == [0, 0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(BINS.upper(np.array([0, 2, 1])), [2.0, 8.0, 4.0])


@given(st.floats(0.01, 1e9), st.floats(1.01, 1e3), st.integers(1, 12))
def test_bins_between_two_costs_have_equal_ratios_and_their_exact_ends(low, factor, count):
    bins = BudgetBins.between(low, low * factor, count, kind="macs")
    assert bins.count == count
    assert (bins.edges[0], bins.edges[-1]) == (low, low * factor)
    ratios = np.array(bins.edges[1:]) / np.array(bins.edges[:-1])
    np.testing.assert_allclose(ratios, factor ** (1 / count), rtol=1e-6)


def test_every_arch_has_one_bin_and_the_ends_are_in_the_first_and_the_last():
    problem = Problem()
    index = problem.bins.index(problem.cost(problem.space.ends))
    assert index.tolist() == [0, problem.bins_count - 1]
    drawn = problem.space.sample_spread(np.random.default_rng(0), 500)
    assert set(problem.bins.index(problem.cost(drawn))) <= set(range(problem.bins_count))


@pytest.mark.parametrize("bins", [BINS, LATENCY])
def test_a_json_file_gives_the_same_bins(bins):
    assert BudgetBins.from_json(json.loads(json.dumps(bins.to_json()))) == bins


def test_bins_are_described_with_their_unit():
    bins = BudgetBins.between(100e6, 400e6, 2, kind="macs")
    assert bins.describe(1) == "bin 1 (200M to 400M MACs)"
    assert LATENCY.describe(0) == "bin 0 (1 to 2 ms)"
    assert (LATENCY.unit, bins.unit) == ("ms", "MACs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "flops"}, "macs or latency"),
        ({"edges": [2.0, 1.0]}, "ascend"),
        ({"edges": [1.0]}, "two or more"),
        ({"edges": [0.0, 1.0]}, "two or more positive"),
        ({"edges": [1.0, math.nan]}, "positive numbers"),
        ({"edges": "12"}, "positive numbers"),
        ({"device": 3}, "should be text"),
        ({"unit": "GFLOPs"}, "'GFLOPs'"),
        ({"kind": "latency", "unit": "ms"}, "SHA-256 of its latency table"),
        ({"more": 1}, "unknown ..more"),
    ],
)
def test_a_broken_record_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        BudgetBins.from_json(BINS.to_json() | changes)


@pytest.mark.parametrize(("low", "high", "count"), [(2, 1, 3), (0, 1, 3), (1, 2, 0), (1, 1, 2)])
def test_no_range_to_divide_is_refused(low, high, count):
    with pytest.raises(UserError, match="at least 1 and 0 < low < high"):
        BudgetBins.between(low, high, count, kind="macs")
