"""What a cost can be in a space: its least and greatest value, by coordinate descent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from detofa.space import ABSENT, Genes, SearchSpace
from detofa.units import format_count

Values = NDArray[np.float64]
Measure = Callable[[Genes], Values]
"""Maps (N, num_genes) genes to (N,) finite numbers."""

_PROBES = 512  # paths drawn to start a descent
_SWEEPS = 30  # of a coordinate descent, which converges in two to five


@dataclass(frozen=True, kw_only=True, eq=False)
class Reachable:
    """What a cost can be in a space.

    Attributes:
        low: Least cost.
        high: Greatest cost.
        unit: Unit of both.
        lowest: (num_genes,) a path of the least cost.
        highest: (num_genes,) a path of the greatest cost.
    """

    low: float
    high: float
    unit: str
    lowest: Genes
    highest: Genes

    def __str__(self) -> str:
        """Return the range for people; both its ends, when typed, lie inside."""
        low = quantity(_rounded(self.low, math.ceil), self.unit)
        return f"{low} to {self.most}"

    @property
    def most(self) -> str:
        """Return the greatest cost for people, not above what it is."""
        return quantity(_rounded(self.high, math.floor), self.unit)

    @property
    def middle(self) -> str:
        """Return a number inside, near the middle: as few digits as that takes, two or more."""
        exact = math.sqrt(self.low * self.high)
        rounded = (f"{Decimal(f'{exact:.{digits}g}'):f}" for digits in range(2, 18))
        return next(text for text in rounded if self.low <= float(text) <= self.high)


def reachable_range(
    space: SearchSpace, cost: Measure, rng: np.random.Generator, *, unit: str
) -> Reachable:
    """Find the least and the greatest cost in a space.

    The smallest path is not always the fastest, so this descends from it, and from paths drawn at
    random, one block (or the neck and head) at a time. Exact for a cost that is a sum over blocks
    of positive numbers, as latency tables and MACs are; otherwise the best found.

    Args:
        space: The search space.
        cost: Gives the cost of paths.
        rng: Source of randomness for the paths to start from.
        unit: Unit of the cost.
    """
    drawn = space.sample_spread(rng, _PROBES)
    probes = np.concatenate([space.ends, drawn])
    values = measured(cost, probes)
    low, lowest = descend(space, cost, probes[np.argmin(values)], fill_largest=False)
    negative, highest = descend(
        space, lambda genes: -measured(cost, genes), probes[np.argmax(values)], fill_largest=True
    )
    return Reachable(low=low, high=-negative, unit=unit, lowest=lowest, highest=highest)


def descend(
    space: SearchSpace, cost: Measure, start: Genes, *, fill_largest: bool
) -> tuple[float, Genes]:
    """Return the least cost that changing one block at a time reaches, and its path.

    Each image size has its own descent, so that with a size given a sum over blocks is exact.
    """
    fill = (space.num_choices - 1) * int(fill_largest)
    complete = np.where(start == ABSENT, fill, start).astype(np.int8)
    found: list[tuple[float, Genes]] = []
    for size in range(len(space.image_sizes)):
        row = complete.copy()
        row[0] = size
        found.append(_descend_at_size(space, cost, row))
    return min(found, key=lambda pair: pair[0])


def _descend_at_size(space: SearchSpace, cost: Measure, row: Genes) -> tuple[float, Genes]:
    value = float(measured(cost, space.canonical(row[None]))[0])
    groups = _groups(space)
    bounds = np.cumsum([0, *(len(options) for _, options in groups)])
    for _ in range(_SWEEPS):
        moves = _changed(row, groups)
        prices = measured(cost, space.canonical(moves))
        together = row.copy()
        for (columns, _), start, stop in zip(groups, bounds[:-1], bounds[1:], strict=True):
            best = start + int(np.argmin(prices[start:stop]))
            if prices[best] < value:
                together[columns] = moves[best, columns]
        candidates = np.stack([together, moves[np.argmin(prices)]])
        values = measured(cost, space.canonical(candidates))
        if values.min() >= value:
            break
        row, value = candidates[np.argmin(values)], float(values.min())
    return value, space.canonical(row[None])[0]


def single_changes(space: SearchSpace, row: Genes) -> Genes:
    """Return the canonical paths that differ from one, (num_genes,), in one group of genes.

    A group is what a cost prices together: neck and head, a stage's depth, a block. The image size
    stays.
    """
    return space.canonical(_changed(row, _groups(space)))


_Group = tuple[list[int], NDArray[np.int8]]  # columns, and all choices of them (K, len(columns))


def _groups(space: SearchSpace) -> list[_Group]:
    """Return the genes priced together: neck and head, each depth, each block; no image size."""
    num_stages = len(space.stages)
    first_block = space.block_gene(0, 0)
    columns = [list(range(1, first_block - num_stages))]
    columns += [[column] for column in range(first_block - num_stages, first_block)]
    columns += [[kernel, kernel + 1] for kernel in range(first_block, space.num_genes, 2)]
    groups = []
    for group in columns:
        counts = tuple(space.num_choices[group].tolist())
        groups.append((group, np.indices(counts).reshape(len(group), -1).T.astype(np.int8)))
    return groups


def _changed(row: Genes, groups: Sequence[_Group]) -> Genes:
    """Return `row` with every choice of one group after another: (sum of K, num_genes)."""
    complete = np.maximum(row, 0)
    moves = np.repeat(complete[None], sum(len(options) for _, options in groups), axis=0)
    start = 0
    for columns, options in groups:
        moves[start : start + len(options), columns] = options
        start += len(options)
    return moves


def measured(measure: Measure, genes: Genes) -> Values:
    """Return what a measure gives, checked: (N,) finite numbers."""
    values = np.asarray(measure(genes), np.float64)
    assert values.shape == (len(genes),), f"one number per path, got {values.shape}"
    assert np.isfinite(values).all(), "scores and costs must be finite"
    return values


def quantity(value: float, unit: str) -> str:
    """Return a cost for people, as they can type it: `9.58 ms`, `1250 ms`, `120M MACs`."""
    if unit == "ms":
        return f"{Decimal(f'{value:.4g}'):f} ms"
    return f"{value:.4g} {unit}" if abs(value) < 1000 else f"{format_count(value)} {unit}"


def _rounded(value: float, towards: Callable[[float], int]) -> float:
    """Round to four digits, up or down."""
    if value <= 0:
        return value
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return towards(value / step) * step
