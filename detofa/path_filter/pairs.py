"""Pairs of labelled archs: what a path filter is fitted on."""

from dataclasses import dataclass

import numpy as np
from scipy.special import erf

from detofa.errors import UserError
from detofa.path_filter.bins import BudgetBins, Indices, Values


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Comparisons of two items each; an item is a labelled arch, seen at a budget.

    Attributes:
        archs: (K,) row of each item's arch.
        bins: (K,) bin whose budget the item is seen at.
        better: (P,) item with the larger label.
        worse: (P,) item with the smaller label.
        weights: (P,) how much each comparison counts; all bins alike, one in sum.
    """

    archs: Indices
    bins: Indices
    better: Indices
    worse: Indices
    weights: Values


def compare_labels(
    labels: Values, index: Indices, bins: BudgetBins, *, noise: float, tolerance: float
) -> Pairs:
    """Compare the archs of each bin with each other, and with those of bins a little below.

    What is below is seen at the larger budget, which it fits too. A pair counts
    2 Phi(difference / (sqrt(2) noise)) - 1, which is erf(difference / (2 noise)): how much likelier
    its order is than the opposite one.

    Args:
        labels: (N,) larger is better.
        index: (N,) bin of each arch.
        bins: The budget bins.
        noise: Standard error of a label; 0 for exact labels.
        tolerance: Largest ratio of the budgets of archs that are compared; 1 for one bin alone.

    Raises:
        UserError: no labels differ within reach of each other.
    """
    archs, items, better, worse, weights = [], [], [], [], []
    num_items = 0
    budgets = bins.upper(index)
    for number in range(bins.count):
        (rows,) = np.nonzero((index <= number) & (budgets * tolerance >= bins.edges[number + 1]))
        first, second = np.triu_indices(len(rows), 1)
        differences = labels[rows[first]] - labels[rows[second]]
        own = (index[rows[first]] == number) | (index[rows[second]] == number)
        compared = own & (differences != 0)
        if not compared.any():
            continue
        ahead = differences[compared] > 0
        first, second = first[compared], second[compared]
        archs.append(rows)
        items.append(np.full(len(rows), number))
        better.append(num_items + np.where(ahead, first, second))
        worse.append(num_items + np.where(ahead, second, first))
        weights.append(_certainty(differences[compared], noise))
        num_items += len(rows)
    if not weights:
        raise UserError("all labels of a bin are equal, in every bin: there is nothing to rank")
    return Pairs(
        archs=np.concatenate(archs),
        bins=np.concatenate(items),
        better=np.concatenate(better),
        worse=np.concatenate(worse),
        weights=np.concatenate(weights) / len(weights),
    )


def _certainty(differences: Values, noise: float) -> Values:
    """Return how much each pair of a bin counts: (P,) to (P,), one in sum."""
    if noise == 0:
        return np.full(len(differences), 1 / len(differences))
    certainty: Values = erf(np.abs(differences) / (2 * noise))
    certainty /= certainty.sum()
    return certainty
