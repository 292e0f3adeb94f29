"""Search: the best path within a budget, and the Pareto front, by evolution over genes.

Score and cost are functions of (N, num_genes) genes, so that a predictor, a path filter, a latency
table or a MAC count can take either place.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.reachable import (
    Measure,
    Reachable,
    Values,
    descend,
    measured,
    quantity,
    reachable_range,
    single_changes,
)
from detofa.space import Genes, SearchSpace

_REPAIRS = 4  # crossings of a child that is over a limit with the cheapest path
_ATTEMPTS = 8  # rounds of children tried to fill one generation
_CHILDREN = 2.0  # made for each place in a generation: some are over a limit, or known
_NEW_SHARE = 1 / 32  # of children drawn anew, so that parents alike do not end the search
_NEW_SHARE_AGAIN = 1 / 8  # of those of later attempts, when few paths are left to find
_PROBES = 512  # paths drawn where two limits pull apart


@dataclass(frozen=True, kw_only=True)
class Cap:
    """An upper limit on a cost.

    Attributes:
        name: What is limited, for messages: `latency`, `parameters`, `file size`.
        cost: Gives the cost of paths; above zero.
        limit: Largest cost allowed.
        unit: Unit of cost and limit, such as `ms`, `MACs`, `bytes`.
    """

    name: str
    cost: Measure
    limit: float
    unit: str

    def __post_init__(self) -> None:
        """Check the limit."""
        if not self.limit > 0:
            raise UserError(f"the limit on {self.name} must be above zero, got {self.limit}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of the evolution.

    Attributes:
        population: Paths scored in each generation.
        generations: Most generations after the first.
        parents: Paths that children descend from.
        mutation_rate: Chance of each gene of a mutated child to be drawn again.
        mutated_share: Share of children mutated from one parent; the rest are crossed from two.
        max_evaluations: Most paths scored in all.
    """

    population: int = 64
    generations: int = 100
    parents: int = 32
    mutation_rate: float = 0.1
    mutated_share: float = 0.5
    max_evaluations: int = 6464

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("population", "generations", "parents", "max_evaluations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} should be at least 1, got {getattr(self, name)!r}")
        for name in ("mutation_rate", "mutated_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} should be from 0 to 1, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The state of a search after one generation: paths scored so far, and the best of them."""

    evaluations: int
    best_score: float
    best_cost: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResult:
    """What a search found.

    Attributes:
        genes: (N, num_genes) distinct paths within all limits; best first from `search`, cheapest
            first from `pareto_search`.
        scores: (N,) their scores.
        costs: (N,) their costs.
        evaluations: Paths scored.
        history: One entry per generation, the first included.
        reachable: What the cost can be in this space.
        note: What the user should know about the budget, or None.
    """

    genes: Genes
    scores: Values
    costs: Values
    evaluations: int
    history: tuple[Generation, ...]
    reachable: Reachable
    note: str | None


def search(
    space: SearchSpace,
    *,
    score: Measure,
    cost: Measure,
    budget: float,
    unit: str,
    rng: np.random.Generator,
    caps: Sequence[Cap] = (),
    config: SearchConfig | None = None,
) -> SearchResult:
    """Find the paths with the highest score among those within a budget.

    Parents are the best paths scored so far; children over a limit are crossed with a path within
    all limits; no path is scored twice.

    Args:
        space: Where to search.
        score: What to maximise; called once per generation.
        cost: What the budget limits; should be cheap.
        budget: Largest cost allowed, in `unit`; `math.inf` for none.
        unit: Unit of the cost, for messages: `ms`, `MACs`.
        rng: Source of randomness.
        caps: Further limits.
        config: Settings of the evolution.

    Raises:
        UserError: a budget or cap below what the space can reach (the message says what it can),
            or none found that meets all of them together.
    """
    limits = (Cap(name="the budget", cost=cost, limit=budget, unit=unit), *caps)
    config = config or SearchConfig()
    pool, history, reachable = _evolve(space, score, limits, rng, config, _best_of_each_size)
    order = _best(pool.scores, pool.costs, pool.size)
    return _result(pool, order, history, reachable, limits[0])


def pareto_search(
    space: SearchSpace,
    *,
    score: Measure,
    cost: Measure,
    unit: str,
    rng: np.random.Generator,
    budget: float = math.inf,
    caps: Sequence[Cap] = (),
    config: SearchConfig | None = None,
) -> SearchResult:
    """Find the paths that no other path beats in both cost and score.

    As `search`, but parents are the front found so far, and the fronts behind it where it has
    fewer than `config.parents` paths.

    Returns:
        The front only, cheapest first.

    Raises:
        UserError: as `search`.
    """
    limits = (Cap(name="the budget", cost=cost, limit=budget, unit=unit), *caps)
    config = config or SearchConfig()
    pool, history, reachable = _evolve(space, score, limits, rng, config, _foremost)
    return _result(pool, pareto_front(pool.costs, pool.scores), history, reachable, limits[0])


def pareto_front(costs: Values, scores: Values) -> NDArray[np.intp]:
    """Return the indices of the points that no other point beats, cheapest first.

    A point is beaten by one of no greater cost and no lower score, unless both are equal; of equal
    points the first stays. Takes O(n log n).

    Args:
        costs: (N,) less is better.
        scores: (N,) more is better.
    """
    costs, scores = np.asarray(costs, np.float64), np.asarray(scores, np.float64)
    assert costs.shape == scores.shape, (costs.shape, scores.shape)
    assert not (np.isnan(costs).any() or np.isnan(scores).any()), "a point is not a number"
    order = np.lexsort((-scores, costs))
    before = np.concatenate([[-np.inf], np.maximum.accumulate(scores[order])[:-1]])
    beyond = scores[order] > before[: len(order)]
    beyond[:1] = True  # also where the only score is minus infinity
    return order[beyond]


def finalists(result: SearchResult, top_k: int, *, min_changes: int = 1) -> NDArray[np.intp]:
    """Choose the paths to evaluate for real.

    Args:
        result: What a search found.
        top_k: How many to choose, if there are as many.
        min_changes: Genes in which any two should differ. Where too few paths are left, the best
            of the others fill the places.

    Returns:
        Indices into `result.genes`, best first.
    """
    order = _best(result.scores, result.costs, len(result.scores))
    chosen: list[int] = []
    for index in order.tolist():
        if len(chosen) == top_k:
            break
        changes = (result.genes[chosen] != result.genes[index]).sum(axis=1)
        if (changes >= min_changes).all():
            chosen.append(index)
    rest = [index for index in order.tolist() if index not in set(chosen)]
    chosen += rest[: max(0, top_k - len(chosen))]
    rank = {index: place for place, index in enumerate(order.tolist())}
    return np.array(sorted(chosen, key=rank.__getitem__), np.intp)


# ---- evolution --------------------------------------------------------------------------------


class _Pool:
    """The paths scored so far, all within the limits and distinct.

    Attributes:
        genes: (N, num_genes) those that parents are chosen among.
        scores: (N,) their scores.
        costs: (N,) their costs.
    """

    def __init__(self, space: SearchSpace, score: Measure) -> None:
        self.score = score
        self.genes: Genes = np.empty((0, space.num_genes), np.int8)
        self.scores: Values = np.empty(0)
        self.costs: Values = np.empty(0)
        self._kept: list[tuple[Genes, Values, Values]] = []
        self._seen: set[bytes] = set()

    @property
    def size(self) -> int:
        return len(self._seen)

    def add(self, genes: Genes, costs: Values) -> None:
        found = genes, measured(self.score, genes), costs
        self._kept.append(found)
        self._seen.update(_keys(genes))
        self._hold(
            np.concatenate([self.genes, found[0]]),
            np.concatenate([self.scores, found[1]]),
            np.concatenate([self.costs, found[2]]),
        )

    def hold(self, places: NDArray[np.intp]) -> None:
        """Hold only some paths to choose among from now on."""
        self._hold(self.genes[places], self.scores[places], self.costs[places])

    def hold_all(self) -> None:
        """Hold all paths that were ever scored."""
        self._hold(*(np.concatenate(parts) for parts in zip(*self._kept, strict=True)))

    def fresh(self, genes: Genes) -> Genes:
        """Leave out repeated rows and paths that were scored; keep the order."""
        first: dict[bytes, int] = {}
        for index, key in enumerate(_keys(genes)):
            if key not in self._seen:
                first.setdefault(key, index)
        return genes[list(first.values())]

    def _hold(self, genes: Genes, scores: Values, costs: Values) -> None:
        self.genes, self.scores, self.costs = genes, scores, costs


_Select = Callable[[_Pool, int], Genes]


def _keys(genes: Genes) -> list[bytes]:
    """Return what tells paths apart, one for each row."""
    rows = np.ascontiguousarray(genes)
    keys: list[bytes] = rows.view(f"V{rows.shape[1]}").ravel().tolist()
    return keys


def _evolve(
    space: SearchSpace,
    score: Measure,
    limits: tuple[Cap, ...],
    rng: np.random.Generator,
    config: SearchConfig,
    select: _Select,
) -> tuple[_Pool, tuple[Generation, ...], Reachable]:
    anchors, reachable = _anchors(space, limits, rng)
    pool = _Pool(space, score)
    history: list[Generation] = []
    for generation in range(config.generations + 1):
        gathered = np.empty((0, space.num_genes), np.int8)
        room = min(config.population, config.max_evaluations - pool.size)
        parents = select(pool, config.parents) if generation else anchors
        for attempt in range(_ATTEMPTS):
            if len(gathered) >= room:
                break
            make = _children if generation else _seeds
            children = make(space, parents, rng, config, attempt)
            if attempt:  # the first time what is over a limit is left out, which costs least
                children = _repaired(space, children, limits, anchors[0], rng)
            else:
                children = children[_fits(limits, children)]
            gathered = pool.fresh(np.concatenate([gathered, children]))[:room]
        if not len(gathered):  # every path within reach was scored
            break
        pool.add(gathered, measured(limits[0].cost, gathered))
        best = _best(pool.scores, pool.costs, 1)[0]
        history.append(
            Generation(
                evaluations=pool.size,
                best_score=float(pool.scores[best]),
                best_cost=float(pool.costs[best]),
            )
        )
    pool.hold_all()
    return pool, tuple(history), reachable


def _seeds(
    space: SearchSpace,
    anchors: Genes,
    rng: np.random.Generator,
    config: SearchConfig,
    attempt: int,
) -> Genes:
    """Return paths of all sizes; in later attempts, what lies closer and closer to the anchors."""
    if attempt == 0:
        return np.concatenate([anchors, space.sample_spread(rng, config.population)])
    if attempt == 1:
        return single_changes(space, anchors[0])
    parents = anchors[rng.integers(len(anchors), size=config.population)]
    return space.mutate(parents, rng, config.mutation_rate / 2**attempt)


def _children(
    space: SearchSpace,
    parents: Genes,
    rng: np.random.Generator,
    config: SearchConfig,
    attempt: int,
) -> Genes:
    """Return mutated, crossed and a few new paths, closer to the parents in later attempts."""
    share = _NEW_SHARE_AGAIN if attempt else _NEW_SHARE
    new = space.sample_spread(rng, math.ceil(config.population * share))
    if attempt >= _ATTEMPTS - 2:
        parent = parents[rng.integers(len(parents))]
        return np.concatenate([new, single_changes(space, parent)])
    count = math.ceil(config.population * _CHILDREN) - len(new)
    first, second = parents[rng.integers(len(parents), size=(2, count))]
    mutated = space.mutate(first, rng, config.mutation_rate / 2**attempt)
    crossed = space.mutate(space.crossover(first, second, rng), rng, 1 / space.num_genes)
    take = rng.random(count) < config.mutated_share
    return np.concatenate([new, np.where(take[:, None], mutated, crossed)])


def _repaired(
    space: SearchSpace,
    genes: Genes,
    limits: tuple[Cap, ...],
    anchor: Genes,
    rng: np.random.Generator,
) -> Genes:
    """Cross paths over a limit with one within all; return those within all in the end."""
    fits = _fits(limits, genes)
    for _ in range(_REPAIRS):
        if fits.all():
            break
        over = genes[~fits]
        genes = genes.copy()
        genes[~fits] = space.crossover(over, np.broadcast_to(anchor, over.shape), rng)
        fits = _fits(limits, genes)
    return genes[fits]


def _anchors(
    space: SearchSpace, limits: tuple[Cap, ...], rng: np.random.Generator
) -> tuple[Genes, Reachable]:
    """Return a few paths within all limits (A, num_genes), and the range of the first cost.

    Raises:
        UserError: a limit is below what the space can reach, or no path meets all limits.
    """
    ranges = []
    for limit in limits:
        found = reachable_range(space, limit.cost, rng, unit=limit.unit)
        if found.low > limit.limit:
            raise UserError(
                f"no path of space {space.name} is within {limit.name} of "
                f"{quantity(limit.limit, limit.unit)}: it reaches {found}; allow more, or use "
                "smaller image sizes"
            )
        ranges.append(found)
    ends = [row for found in ranges for row in (found.lowest, found.highest)]
    candidates = np.unique(np.stack([*ends, *space.ends]), axis=0)
    if len(limits) > 1 and not _fits(limits, candidates).any():
        candidates = np.concatenate([candidates, space.sample_spread(rng, _PROBES)])
        start = candidates[np.argmin(_excess(limits, candidates))]
        _, closest = descend(space, lambda genes: _excess(limits, genes), start, fill_largest=False)
        candidates = np.concatenate([candidates, closest[None]])
    anchors = candidates[_fits(limits, candidates)]
    if not len(anchors):
        named = " and ".join(
            f"{limit.name} of {quantity(limit.limit, limit.unit)} (reaches {found})"
            for limit, found in zip(limits, ranges, strict=True)
        )
        raise UserError(f"no path of space {space.name} was found within {named}; allow more")
    return anchors[np.argsort(_excess(limits, anchors), kind="stable")], ranges[0]


def _fits(limits: Sequence[Cap], genes: Genes) -> NDArray[np.bool_]:
    fits = np.ones(len(genes), bool)
    for limit in limits:
        fits &= measured(limit.cost, genes) <= limit.limit
    return fits


def _excess(limits: Sequence[Cap], genes: Genes) -> Values:
    """Return the largest share of a limit that each path uses: (N,); above 1 is too much."""
    shares = [measured(limit.cost, genes) / limit.limit for limit in limits]
    excess: Values = np.max(shares, axis=0)
    return excess


# ---- order -----------------------------------------------------------------------------------


def _best(scores: Values, costs: Values, count: int) -> NDArray[np.intp]:
    """Return the indices of the highest scores, best first; the cheaper first where they tie."""
    return np.lexsort((costs, -scores))[:count]


def _best_of_each_size(pool: _Pool, count: int) -> Genes:
    """Return the best paths, half of them the best of each image size.

    The image size moves the cost more than anything else: without this, the first size that does
    well soon holds all parents, though another with larger blocks may do better. All others can
    never be chosen again, and are let go.
    """
    order = _best(pool.scores, pool.costs, len(pool.scores))
    chosen = [order[:count]]
    sizes = np.unique(pool.genes[:, 0])
    for size in sizes:
        of_size = order[pool.genes[order, 0] == size]
        chosen.append(of_size[: math.ceil(count / len(sizes))])
    parents = np.concatenate(chosen)  # one that is in both is twice as likely a parent
    genes = pool.genes[parents]
    pool.hold(np.unique(parents))
    return genes


def _foremost(pool: _Pool, count: int) -> Genes:
    """Return the front, and the fronts behind it up to at least `count` paths."""
    chosen = np.empty(0, np.intp)
    rest = np.arange(len(pool.scores))
    while len(chosen) < count and len(rest):
        front = pareto_front(pool.costs[rest], pool.scores[rest])
        chosen = np.concatenate([chosen, rest[front]])
        rest = np.delete(rest, front)
    return pool.genes[chosen]


def _result(
    pool: _Pool,
    order: NDArray[np.intp],
    history: tuple[Generation, ...],
    reachable: Reachable,
    budget: Cap,
) -> SearchResult:
    note = None
    if reachable.high <= budget.limit < math.inf:
        note = (
            f"the budget of {quantity(budget.limit, budget.unit)} allows every path of the "
            f"space: the costliest takes {reachable.most}"
        )
    return SearchResult(
        genes=pool.genes[order],
        scores=pool.scores[order],
        costs=pool.costs[order],
        evaluations=pool.size,
        history=history,
        reachable=reachable,
        note=note,
    )
