"""RandomFilter: the control of the path filter, which scores archs by a hash of their genes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detofa.path_filter.bins import BudgetBins, Values
from detofa.space import Genes

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class RandomFilter:
    """Scores without any relation to what an arch is, and the same ones every time.

    A space pruned by them holds the same share of each bin as one pruned by the path filter; what
    it gains in training, it gains from being smaller.

    Attributes:
        bins: The budget bins.
        seed: Another seed gives other scores.
    """

    bins: BudgetBins
    seed: int

    def score_in_bin(self, genes: Genes, costs: Values) -> Values:
        """Return each arch's score, evenly spread over 0 to 1: (N, num_genes) to (N,)."""
        state = np.full(len(genes), (self.seed * _GOLDEN) & _MASK, np.uint64)
        for column in genes.T:
            state = _mixed(state ^ (column.astype(np.int64) + 1).astype(np.uint64))
        scores: Values = (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return scores


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return splitmix64's output for each state (Steele, Lea, Flood, OOPSLA 2014)."""
    state = state + np.uint64(_GOLDEN)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
