"""What ranks the paths of a run before they are evaluated: a ridge, or the run's path filter."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from detofa.choose.records import Budget
from detofa.errors import UserError
from detofa.path_filter.bins import Kind, Values
from detofa.path_filter.drawing import Cost
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.pruned_space import PrunedSpace
from detofa.predictor import RidgePredictor, encode_paths
from detofa.profiling.cost import macs_cost
from detofa.profiling.table import LatencyTable
from detofa.space import Genes, SearchSpace
from detofa.train.evaluate import PathFigures
from detofa.train.run import RunFolder

_LABEL_BINS = 4
_OUTSIDE = 1e6  # taken from the score of what should not be chosen


def is_outside(score: float) -> bool:
    """Return whether a score of `Ranking.score` is of a path that should not be chosen."""
    return score < -_OUTSIDE / 2


class Ranking:
    """Ranks the paths of one run.

    Args:
        run: A trained run; its pruned space is what may be chosen from.
        space: Its search space.
        table: Latency table of the space, or None.

    Raises:
        UserError: the run was pruned by the latency of another table.
    """

    def __init__(self, run: RunFolder, space: SearchSpace, table: LatencyTable | None) -> None:
        self.space, self.macs = space, macs_cost(space)
        self.pruned = _pruned_space(run, space, self.macs, table)

    def paths_to_label(self, count: int, rng: np.random.Generator) -> Genes:
        """Return both ends and `count` more paths, spread evenly over compute."""
        ends = self.space.ends
        if count == 0:
            return ends
        if self.pruned is not None:
            drawn = self.pruned.sample(rng, count)
            return np.unique(np.concatenate([ends, drawn]), axis=0)
        low, high = self.macs(ends)
        edges = np.geomspace(low, high, _LABEL_BINS + 1)
        per_bin = -(-count // _LABEL_BINS)
        drawn = self.space.sample_bins(rng, self.macs, edges, per_bin)
        return np.concatenate([ends, rng.permutation(drawn)[:count]])

    def fit(self, genes: Genes, figures: list[PathFigures]) -> RidgePredictor:
        """Fit the predictor of AP on evaluated paths."""
        return RidgePredictor.fit(self.encode(genes), [path.ap for path in figures])

    def encode(self, genes: Genes) -> Values:
        """Return what the predictor sees of paths: (N, D)."""
        return encode_paths(self.space, genes, self.macs(genes))

    def score(self, predictor: RidgePredictor, budget: Budget) -> Callable[[Genes], Values]:
        """Return what ranks candidates: the path filter if it is of this kind of budget.

        The path filter ranks archs of one bin, so what is far below the budget counts as outside;
        so does what the run did not train on.
        """
        pruned, path_filter = self.pruned, self.path_filter(budget)

        def score(genes: Genes) -> Values:
            outside = np.zeros(len(genes), bool) if pruned is None else ~pruned.contains(genes)
            if pruned is None or path_filter is None or not self.ranks_by_filter(budget):
                scores = predictor.predict(self.encode(genes))
            else:
                costs = pruned.cost(genes)
                edges = path_filter.bins.edges
                limit = min(budget.limit, edges[-1])  # above it the filter knows nothing
                scores = path_filter.score(genes, costs, limit)
                outside |= costs <= limit * edges[0] / edges[1]
            return scores - _OUTSIDE * outside

        return score

    def ranks_by_filter(self, budget: Budget) -> bool:
        """Return whether `score` goes by the path filter, and not by the predictor of AP."""
        return self.path_filter(budget) is not None and not math.isinf(budget.limit)

    @property
    def kind(self) -> Kind | None:
        """Return the kind of budget that the run's path filter ranks by, if it has one."""
        return None if self._filter is None else self._filter.bins.kind

    def path_filter(self, budget: Budget) -> PathFilter | None:
        """Return the path filter of the run, where its bins are of the budget's kind."""
        return self._filter if self.kind == budget.kind else None

    @property
    def _filter(self) -> PathFilter | None:
        scorer = None if self.pruned is None else self.pruned.path_filter
        return scorer if isinstance(scorer, PathFilter) else None


def _pruned_space(
    run: RunFolder, space: SearchSpace, macs: Cost, table: LatencyTable | None
) -> PrunedSpace | None:
    """Return the pruned space of a run, if it has one.

    Raises:
        UserError: it was pruned by the latency of another table, so nobody can tell what is in.
    """
    if not run.pruned_space.is_file():
        return None
    pruned = PrunedSpace.load(run.pruned_space, space, macs)
    if pruned.bins.kind == "macs":
        return pruned
    if table is None or table.sha256 != pruned.bins.table_sha256:
        raise UserError(
            f"{run.pruned_space} divides budgets by the latency of {pruned.bins.device}, and that "
            "table is not the one at hand; give its --device, or make another with `detofa filter`"
        )
    return dataclasses.replace(pruned, cost=table.predict)
