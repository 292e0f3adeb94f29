"""The benchmarks of speed hold like against like."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.speed import ofa
from benchmarks.speed.record import Row, table
from benchmarks.speed.search import SIDES, Compute, classifier_space, predictor, price, score_of
from benchmarks.speed.timing import Compared, compare, exponent
from detofa.arch import Arch
from detofa.profiling.cost import AdditiveCost
from detofa.space import SearchSpace


def drawn(space: SearchSpace, count: int) -> list[tuple[ofa.Config, Arch]]:
    """Return networks in both spellings, at sizes in turn."""
    rng = random.Random(1)
    configs = [ofa.LARGEST, ofa.SMALLEST, *(ofa.draw(rng) for _ in range(count))]
    pairs = []
    for index, config in enumerate(configs):
        size = space.image_sizes[index % len(SIDES)]
        arch = replace(ofa.arch_of(space, config), image_size=size)
        pairs.append((config, arch))
    return pairs


def test_both_searches_see_the_same_scores_and_costs() -> None:
    space = classifier_space()
    cost = AdditiveCost(space, price)
    compute, network = Compute(cost), predictor(3)
    pairs = drawn(space, 20)
    genes = np.stack([space.genes(arch) for _, arch in pairs])
    spelt = [dict(config) | {"image_size": arch.image_size[0]} for config, arch in pairs]
    assert [compute.get_efficiency(config) for config in spelt] == cost(genes).tolist()
    theirs = network.predict_acc(spelt).numpy()
    np.testing.assert_allclose(score_of(space, network)(genes), theirs, rtol=1e-4, atol=1e-6)


def test_costs_are_those_that_once_for_all_counts() -> None:
    from ofa.nas.efficiency_predictor import Mbv3FLOPsModel

    space = classifier_space()
    cost, model = AdditiveCost(space, price), Mbv3FLOPsModel(ofa.supernet())
    for config, arch in drawn(space, 3):
        counted = model.get_efficiency(dict(config) | {"image_size": arch.image_size[0]})
        assert cost.of(arch) / 1e6 == pytest.approx(counted, rel=0.01)  # it leaves out some of SE


def test_a_ratio_pairs_the_rounds() -> None:
    found = Compared(seconds={"slow": (4.0, 9.0, 2.0), "fast": (2.0, 3.0, 2.0)})
    assert found.ratio("slow", "fast") == (1.5, 2.0, 2.5)
    assert found.median("slow") == 4.0


def test_works_are_timed_in_turn_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    ticks = iter(range(100))
    works = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    found = compare(works, rounds=2, clock=lambda: float(next(ticks)))
    assert calls == list("ababab")
    assert found.seconds == {"a": (1.0, 1.0), "b": (1.0, 1.0)}


def test_the_exponent_is_the_slope_of_the_logarithms() -> None:
    assert exponent([1, 4, 16], [3, 6, 12]) == pytest.approx(0.5)
    assert exponent([1, 4, 16], [0.1, 1.6, 25.6]) == pytest.approx(2)


def test_a_table_shows_what_was_missed() -> None:
    rows = [
        Row(work="a", detofa="1 s", peer="2 s", ratio=(1.9, 2.0, 2.1), target="3x", met=False),
        Row(work="b", detofa="5"),
    ]
    lines = table(rows).splitlines()
    assert lines[2] == "| a | 1 s | 2 s | 2.00 (1.90 to 2.10) | 3x | no |"
    assert lines[3] == "| b | 5 |  |  |  |  |"


def test_a_step_of_both_sides_trains_the_same_networks() -> None:
    from benchmarks.speed.train_step import measure

    rows = measure(64, 2, torch.device("cpu"), rounds=1)
    assert [row.peer for row in rows] == [rows[0].peer] * 2
    assert all(row.ratio is not None and row.ratio[1] > 0 for row in rows)
