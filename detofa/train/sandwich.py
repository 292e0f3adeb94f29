"""The sandwich rule: which paths a step trains."""

from typing import Protocol

import numpy as np

from detofa.arch import Arch
from detofa.space import Genes, SearchSpace

_STEPS_DRAWN_AT_ONCE = 64  # a pruned space draws many paths in little more time than one


class PathSource(Protocol):
    """Where a step's random paths come from: a whole space, or a part of one."""

    def sample(self, rng: np.random.Generator, count: int) -> Genes:
        """Draw paths: (count, num_genes)."""


class Sandwich:
    """The distinct paths of each step: the largest, the smallest, and random ones.

    A pure function of the arguments and the step. Source: arXiv 1903.05134.

    Args:
        space: Gives the largest and the smallest.
        paths: Where random paths come from.
        random_paths: Random paths of a step.
        seed: Decides them.
    """

    def __init__(self, space: SearchSpace, paths: PathSource, random_paths: int, seed: int) -> None:
        self._space, self._paths = space, paths
        self._random_paths, self._seed = random_paths, seed
        self._block, self._drawn = -1, np.empty((0, space.num_genes), np.int8)

    def __call__(self, step: int) -> list[Arch]:
        """Return the paths of a step, the largest first."""
        block, place = divmod(step, _STEPS_DRAWN_AT_ONCE)
        if block != self._block:
            rng = np.random.default_rng([self._seed, block, 1])
            self._block = block
            self._drawn = self._paths.sample(rng, _STEPS_DRAWN_AT_ONCE * self._random_paths)
        first = place * self._random_paths
        drawn = self._drawn[first : first + self._random_paths]
        archs = [self._space.largest, self._space.smallest, *map(self._space.arch, drawn)]
        return list(dict.fromkeys(archs))
