"""Labels that a path filter is fitted on."""

import numpy as np
import pytest

from detofa.train.evaluate import HalfFigures, PathFigures
from detofa.train.filtering import Budgets, draw_paths_to_label, fit_filter
from tests.path_filter.problems import TINY


def figures_of(aps: list[float], rng: np.random.Generator) -> list[PathFigures]:
    """Return figures whose halves have the same AP, and losses that contradict each other."""
    figures = []
    for ap in aps:
        loss = float(rng.normal())
        halves = (HalfFigures(ap=ap, loss=3 + loss), HalfFigures(ap=ap, loss=3 - 0.9 * loss))
        figures.append(PathFigures(ap=ap, ap50=ap, seconds=0.1, halves=halves))
    return figures


@pytest.mark.parametrize(
    ("aps", "label"),
    [
        ([0.0] * 8, "loss"),  # nothing is found yet
        ([0.2] + [0.0] * 7, "loss"),  # by one path of one bin alone
        ([0.1, 0.2, 0.3, 0.4, 0.0, 0.0, 0.0, 0.0], "ap"),
        ([0.1, 0.2, 0.3, 0.4, 0.1, 0.3, 0.2, 0.4], "ap"),
    ],
)
def test_a_label_that_most_paths_share_is_not_fitted_on(aps: list[float], label: str) -> None:
    budgets = Budgets.of(TINY, 2)
    genes = draw_paths_to_label(TINY, budgets, 4, seed=0)
    order = np.argsort(budgets.bins.index(budgets.cost(genes)), kind="stable")
    figures = figures_of(aps, np.random.default_rng(0))
    path_filter, report = fit_filter(TINY, genes[order], figures, budgets, seed=0)
    assert report.quality.label == path_filter.label == label
