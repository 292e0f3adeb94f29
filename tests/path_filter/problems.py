"""Labels made up for small spaces, which the tests of the path filter share."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detofa.path_filter.bins import BudgetBins
from detofa.path_filter.ensemble import FilterSettings
from detofa.path_filter.filter import PathFilter
from detofa.presets import preset
from detofa.profiling.cost import macs_cost
from detofa.space import SearchSpace

QUICK = FilterSettings(members=2, hidden_width=4, steps=40)
TINY = preset("tiny", num_classes=3, image_sizes=[(96, 128), (128, 160)])


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Archs of a space with labels: a rule that MACs cannot rank, a trend with the budget, noise.

    The rule prefers small kernels and wide blocks in the early stages, and the opposite in the
    late ones.
    """

    space: SearchSpace = TINY
    per_bin: int = 12
    noise: float = 0.1
    rule: float = 1.0
    seed: int = 0
    bins_count: int = 4

    @cached_property
    def cost(self):
        return macs_cost(self.space)

    @cached_property
    def bins(self):
        low, high = self.cost(self.space.ends)
        return BudgetBins.between(low, high, self.bins_count, kind="macs")

    @cached_property
    def genes(self):
        rng = np.random.default_rng([self.seed, 0])
        return self.space.sample_bins(rng, self.cost, np.array(self.bins.edges), self.per_bin)

    @property
    def costs(self):
        return self.cost(self.genes)

    @cached_property
    def labels(self):
        rng = np.random.default_rng([self.seed, 1])
        trend = 2 * np.log(self.bins.upper(self.bins.index(self.costs)))
        return trend + self.truth(self.genes) + rng.normal(0, self.noise, len(self.genes))

    def truth(self, genes):
        """Return the rule alone: (N, num_genes) to (N,), standard deviation about 1."""
        stages = len(self.space.stages)
        encoded = self.space.encode_compact(genes)
        kernels, ratios = encoded[:, 4 + stages :: 2], encoded[:, 5 + stages :: 2]
        signs = np.where(np.arange(stages) < (stages + 1) / 2, -1.0, 1.0)
        return 2 * self.rule * ((kernels - 0.5) - (ratios - 0.5)) @ signs

    def fit(self, labels=None, *, rows=slice(None), seed=0, settings=QUICK):
        """Fit a filter on some rows, with the problem's labels unless others are given."""
        return PathFilter.fit(
            self.space,
            self.genes[rows],
            self.labels[rows] if labels is None else labels,
            self.costs[rows],
            self.bins,
            seed=seed,
            label="made up",
            noise=self.noise,
            settings=settings,
        )
