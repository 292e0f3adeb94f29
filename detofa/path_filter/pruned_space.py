"""PrunedSpace: the archs of a space that a filter scores well among those of their budget."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.files import is_number, read_json, write_json
from detofa.path_filter.bins import BudgetBins, Indices, Values
from detofa.path_filter.drawing import MAX_DRAWS, Cost, draw_per_bin
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.random_filter import RandomFilter
from detofa.path_filter.records import REMAKE, fields_of, tuple_of
from detofa.space import Genes, SearchSpace

KIND = "pruned_space"
FILTER_FOLDER = "path_filter"
_FEWEST_PER_CUT = 100
_SCORE_DECIMALS = 9
_ATTEMPTS = 8  # children tried before a parent stands for its child


@dataclass(frozen=True, kw_only=True, eq=False)
class PrunedSpace:
    """The part of a search space that is worth training and searching.

    An arch is in if its score among archs of its own bin reaches the bin's cut. The smallest and
    the largest arch of the space are always in. Membership is calculated, not listed.

    Attributes:
        space: The whole space.
        path_filter: What scores archs: the path filter, or its random control.
        cost: Maps (N, num_genes) genes to (N,) costs of the bins' kind.
        cuts: Least score of each bin.
        keep: Share of each bin that the cuts were made for.
    """

    space: SearchSpace
    path_filter: PathFilter | RandomFilter
    cost: Cost
    cuts: tuple[float, ...]
    keep: float

    def __post_init__(self) -> None:
        """Check the cuts and the share.

        Raises:
            UserError: not one finite cut for each bin, or a share that is not above 0 and up to 1.
        """
        if not is_number(self.keep) or not 0 < self.keep <= 1:
            raise UserError(f"the share to keep should be above 0 and up to 1, got {self.keep!r}")
        whole = isinstance(self.cuts, tuple) and all(map(is_number, self.cuts))
        if not whole or len(self.cuts) != self.bins.count:
            raise UserError(
                f"a pruned space needs a finite cut for each of {self.bins.count} bins, got "
                f"{self.cuts!r}; make it again with {REMAKE}"
            )

    @property
    def bins(self) -> BudgetBins:
        """Return the budget bins."""
        return self.path_filter.bins

    def contains(self, genes: Genes) -> NDArray[np.bool_]:
        """Tell which archs are in: (N, num_genes) to (N,)."""
        is_end: NDArray[np.bool_] = (genes[:, None] == self.space.ends).all(axis=2).any(axis=1)
        return is_end | self.passes(genes, self.cost(genes))

    def passes(self, genes: Genes, costs: Values) -> NDArray[np.bool_]:
        """Tell which archs reach their bin's cut: (N, num_genes) and (N,) costs to (N,)."""
        cuts = np.array(self.cuts)[self.bins.index(costs)]
        passed: NDArray[np.bool_] = self.path_filter.score_in_bin(genes, costs) >= cuts
        return passed

    def sample_bins(
        self, rng: np.random.Generator, per_bin: int, *, max_draws: int = MAX_DRAWS
    ) -> Genes:
        """Draw the same number of distinct archs from every bin.

        Args:
            rng: Source of randomness.
            per_bin: Archs wanted from each bin.
            max_draws: Give up on what is still missing after this many draws from the space.

        Returns:
            (B * per_bin, num_genes) genes, bin after bin.

        Raises:
            UserError: a bin is starved; names it and how many were found.
        """
        wanted = np.full(self.bins.count, per_bin)
        return np.concatenate(self._draw(rng, wanted, max_draws, distinct=True))

    def sample(self, rng: np.random.Generator, count: int, *, max_draws: int = MAX_DRAWS) -> Genes:
        """Draw archs: first a bin, each equally likely, then an arch in it, every option alike.

        Many at once cost little more than one.

        Args:
            rng: Source of randomness.
            count: Archs wanted.
            max_draws: Give up on what is still missing after this many draws from the space.

        Returns:
            (count, num_genes) genes, in random order of bins.

        Raises:
            UserError: a bin is starved; names it and how many were found.
        """
        bins = rng.integers(self.bins.count, size=count)
        wanted = np.bincount(bins, minlength=self.bins.count)
        drawn = np.empty((count, self.space.num_genes), np.int8)
        for index, rows in enumerate(self._draw(rng, wanted, max_draws, distinct=False)):
            drawn[bins == index] = rows
        return drawn

    def mutate(self, genes: Genes, rng: np.random.Generator, rate: float) -> Genes:
        """Mutate archs as the space does, within this part: (N, num_genes) to the same shape.

        A parent whose children all fall outside stands for its child; parents should be in.
        """
        return self._within(genes, lambda rows: self.space.mutate(genes[rows], rng, rate))

    def crossover(self, first: Genes, second: Genes, rng: np.random.Generator) -> Genes:
        """Cross archs as the space does, within this part: two (N, num_genes) to one.

        The first parent stands for a child whose tries all fall outside; parents should be in.
        """
        return self._within(
            first, lambda rows: self.space.crossover(first[rows], second[rows], rng)
        )

    def save(self, path: Path) -> None:
        """Write the record, and beside it the path filter's folder, each file atomically."""
        scorer = self.path_filter
        if isinstance(scorer, PathFilter):
            scorer.save(path.parent / FILTER_FOLDER)
            source: dict[str, Any] = {
                "kind": "path_filter",
                "folder": FILTER_FOLDER,
                "sha256": scorer.sha256,
            }
        else:
            source = {"kind": "random", "seed": scorer.seed, "bins": scorer.bins.to_json()}
        record = {"space": self.space.name, "space_sha256": self.space.digest, "keep": self.keep}
        write_json(path, KIND, record | {"cuts": list(self.cuts), "filter": source})

    @classmethod
    def load(cls, path: Path, space: SearchSpace, cost: Cost) -> "PrunedSpace":
        """Read what `save` wrote.

        Args:
            path: The record.
            space: The search space.
            cost: The cost that the bins are of.

        Raises:
            UserError: missing, broken, of another space, or the filter beside it is another.
        """
        names = ("schema", "kind", "space", "space_sha256", "keep", "cuts", "filter")
        record = fields_of(read_json(path, KIND, remake=REMAKE), names, str(path))
        if record["space_sha256"] != space.digest:
            raise UserError(
                f"{path} is of space {record['space']} with SHA-256 "
                f"{str(record['space_sha256'])[:12]}, this space is {space.name} with "
                f"{space.digest[:12]}; make one for it with {REMAKE}"
            )
        return cls(
            space=space,
            path_filter=_load_filter(path, record["filter"], space),
            cost=cost,
            cuts=tuple_of(record["cuts"]),
            keep=record["keep"],
        )

    def _draw(
        self, rng: np.random.Generator, wanted: Indices, max_draws: int, *, distinct: bool
    ) -> list[Genes]:
        return draw_per_bin(
            self.space,
            self.cost,
            self.bins,
            rng,
            wanted,
            passes=self.passes,
            distinct=distinct,
            max_draws=max_draws,
        )

    def _within(self, parents: Genes, vary: Callable[[Indices], Genes]) -> Genes:
        children, rows = parents.copy(), np.arange(len(parents))
        for _ in range(_ATTEMPTS):
            tried = vary(rows)
            inside = self.contains(tried)
            children[rows[inside]] = tried[inside]
            rows = rows[~inside]
            if not len(rows):
                break
        return children


def cut_space(
    space: SearchSpace,
    path_filter: PathFilter,
    cost: Cost,
    rng: np.random.Generator,
    *,
    keep: float = 0.25,
    archs_per_bin: int = 2000,
) -> PrunedSpace:
    """Prune a space by a path filter: keep the best-scored share of each bin.

    Args:
        space: The search space.
        path_filter: Scores its archs.
        cost: The cost that the filter's bins are of.
        rng: Source of randomness of the archs that each bin's cut is estimated from.
        keep: Share to keep, above 0 and up to 1.
        archs_per_bin: Archs drawn from each bin; with 2000 the share kept is known to 1 %.

    Raises:
        UserError: a bin is starved (it is named), or the share is out of range.
    """
    if not 0 < keep <= 1:
        raise UserError(f"the share to keep should be above 0 and up to 1, got {keep!r}")
    bins = path_filter.bins
    wanted = np.full(bins.count, archs_per_bin)
    drawn = draw_per_bin(space, cost, bins, rng, wanted, fewest=_FEWEST_PER_CUT)
    cuts = [_cut(path_filter.score_in_bin(genes, cost(genes)), keep) for genes in drawn]
    return PrunedSpace(space=space, path_filter=path_filter, cost=cost, cuts=tuple(cuts), keep=keep)


def random_cut(
    space: SearchSpace, cost: Cost, bins: BudgetBins, *, seed: int, keep: float = 0.25
) -> PrunedSpace:
    """Prune a space by chance: the control that a path filter has to beat.

    Args:
        space: The search space.
        cost: The cost that the bins are of.
        bins: The budget bins.
        seed: Decides which archs are in.
        keep: Share to keep of each bin, above 0 and up to 1.
    """
    control = RandomFilter(bins=bins, seed=seed)
    cuts = (1.0 - keep,) * bins.count
    return PrunedSpace(space=space, path_filter=control, cost=cost, cuts=cuts, keep=keep)


def _cut(scores: Values, keep: float) -> float:
    """Return a cut that the best `keep` of the scores pass, halfway between two scores.

    On a score itself, the last bit of an arch scored again in another batch would decide.
    """
    ordered = np.unique(scores.round(_SCORE_DECIMALS))
    quantile = np.quantile(scores, 1 - keep, method="lower").round(_SCORE_DECIMALS)
    place = int(np.searchsorted(ordered, quantile))
    below = ordered[place - 1] if place else ordered[0] - 1.0
    return float((below + ordered[place]) / 2)


def _load_filter(path: Path, record: Any, space: SearchSpace) -> PathFilter | RandomFilter:
    kind = record.get("kind") if isinstance(record, dict) else None
    if kind == "random":
        fields = fields_of(record, ("kind", "seed", "bins"), "a random filter")
        if type(fields["seed"]) is not int:
            raise UserError(f"the seed of a random filter is a whole number: {fields['seed']!r}")
        return RandomFilter(bins=BudgetBins.from_json(fields["bins"]), seed=fields["seed"])
    fields = fields_of(record, ("kind", "folder", "sha256"), f"the filter of {path}")
    if kind != "path_filter" or not isinstance(fields["folder"], str):
        raise UserError(f"{path} names an unknown filter {record!r}; make it again with {REMAKE}")
    loaded = PathFilter.load(path.parent / fields["folder"], space)
    if loaded.sha256 != fields["sha256"]:
        raise UserError(
            f"{path} was made with a path filter of SHA-256 {str(fields['sha256'])[:12]}, but "
            f"{path.parent / fields['folder']} holds {loaded.sha256[:12]}; make both again with "
            f"{REMAKE}"
        )
    return loaded
