"""Drawing archs of given budget bins, with a bound on the draws."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.path_filter.bins import BudgetBins, Indices, Values
from detofa.space import Genes, SearchSpace

Cost = Callable[[Genes], Values]
"""Maps (N, num_genes) genes to (N,) costs."""
Passes = Callable[[Genes, Values], NDArray[np.bool_]]
"""Tells which archs count, from (N, num_genes) genes and their (N,) costs."""
MAX_DRAWS = 100_000
_BATCH = 512
_SPARE = 8  # candidates beyond and times those missing: some do not pass
_CYCLES = 8
_FEW_GENES = 4


def all_pass(genes: Genes, costs: Values) -> NDArray[np.bool_]:
    """Let every arch count: (N, num_genes) and (N,) to (N,)."""
    return np.ones(len(genes), bool)


def draw_per_bin(
    space: SearchSpace,
    cost: Cost,
    bins: BudgetBins,
    rng: np.random.Generator,
    wanted: Indices,
    *,
    passes: Passes = all_pass,
    fewest: int | None = None,
    distinct: bool = False,
    max_draws: int = MAX_DRAWS,
) -> list[Genes]:
    """Draw archs until every bin has as many as wanted.

    Inside a bin every option is equally likely, as in `SearchSpace.sample`, which would hardly ever
    reach the bins at the ends. So archs are drawn with `sample_spread`, and then walk inside their
    bin, to where they would be had they been drawn evenly.

    Args:
        space: The search space.
        cost: The cost that the bins are of.
        bins: The budget bins.
        rng: Source of randomness.
        wanted: (B,) archs wanted of each bin.
        passes: Which archs count.
        fewest: Archs of a bin that are enough when the draws have run out; all wanted if not given.
        distinct: Whether an arch may come only once.
        max_draws: Give up on what is still missing after this many draws.

    Returns:
        Of each bin, (wanted, num_genes) genes.

    Raises:
        UserError: a bin is starved; names it and how many were found.
    """
    found: list[dict[bytes | int, Genes]] = [{} for _ in range(bins.count)]
    missing = wanted.copy()
    for _ in range(math.ceil(max_draws / _BATCH)):
        if not missing.any():
            break
        genes = _candidates(space, cost, bins, rng, missing)
        costs = cost(genes)
        passed = passes(genes, costs)
        places = bins.index(costs[passed]).tolist()
        for row, index in zip(genes[passed], places, strict=True):
            rows = found[index]
            if len(rows) < wanted[index]:
                rows.setdefault(row.tobytes() if distinct else len(rows), row)
                missing[index] = wanted[index] - len(rows)
    enough = wanted if fewest is None else np.minimum(wanted, fewest)
    for index, rows in enumerate(found):
        if len(rows) < enough[index]:
            raise UserError(
                f"{bins.describe(index)} is starved: {len(rows)} of {wanted[index]} archs found "
                f"in {max_draws} draws; use fewer or wider bins, or keep a larger share"
            )
    empty = np.empty((0, space.num_genes), np.int8)
    return [np.stack(list(rows.values())) if rows else empty for rows in found]


def _candidates(
    space: SearchSpace,
    cost: Cost,
    bins: BudgetBins,
    rng: np.random.Generator,
    missing: Indices,
) -> Genes:
    """Draw a batch, and of each bin that misses archs return some, walked: (N, num_genes)."""
    drawn = space.sample_spread(rng, _BATCH)
    places = bins.index(cost(drawn))
    limits = np.where(missing > 0, _SPARE * (missing + 1), 0)
    chosen = [np.nonzero(places == index)[0][:limit] for index, limit in enumerate(limits)]
    rows = np.concatenate(chosen)
    return _walked(space, cost, bins, rng, drawn[rows], places[rows])


def _walked(
    space: SearchSpace,
    cost: Cost,
    bins: BudgetBins,
    rng: np.random.Generator,
    genes: Genes,
    places: Indices,
) -> Genes:
    """Walk inside bins until every option is about equally likely: (N, num_genes) to the same.

    To draw genes again is a symmetric proposal, so keeping what stays in the bin is Metropolis's
    rule (Metropolis et al., The Journal of Chemical Physics 21, 1953) for the even distribution.
    A few genes are accepted most often; all of them change the image size, which moves the cost
    more than the rest can make up for one by one.
    """
    for _ in range(_CYCLES):
        for rate in (_FEW_GENES / space.num_genes, 0.3, 1.0):
            proposed = space.mutate(genes, rng, rate)
            stays = bins.index(cost(proposed)) == places
            genes = np.where(stays[:, None], proposed, genes)
    return genes
