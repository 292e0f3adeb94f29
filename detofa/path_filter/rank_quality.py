"""How well rankers order archs of the same budget: cross-validated in-bin Kendall tau."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.path_filter.agreement import Comparisons, Estimate, draw_within_bins, estimate
from detofa.path_filter.bins import BudgetBins, Indices, Values
from detofa.path_filter.ensemble import FilterSettings
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.regressor import fit_regressor
from detofa.predictor import RidgePredictor, encode_paths
from detofa.space import Genes, SearchSpace

RANKERS = ("filter", "macs", "ridge", "regressor", "random")
_MOST_FOLDS = 5
FEWEST_PER_BIN = 4
"""Labels that a bin needs: two folds of two, as a pair needs both of its archs in one fold."""

_Rows = NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class RankQuality:
    """In-bin Kendall tau of five rankers fitted on the same labels and judged on others.

    Attributes:
        label: Name of the label.
        num_labels: Archs with a label.
        folds: Parts that the labels were divided into; each was scored by fits on the others.
        repeats: Divisions.
        taus: Tau of each of `RANKERS` over all bins.
        per_bin: Tau of each ranker in each bin.
        filter_minus_macs: Difference of two taus, on the same pairs.
        filter_minus_ridge: Difference of two taus, on the same pairs.
    """

    label: str
    num_labels: int
    folds: int
    repeats: int
    taus: Mapping[str, Estimate]
    per_bin: Mapping[str, tuple[Estimate, ...]]
    filter_minus_macs: Estimate
    filter_minus_ridge: Estimate

    @property
    def filter_is_worth_pruning_by(self) -> bool:
        """Tell whether the filter ranks better than chance and than MACs alone, beyond doubt."""
        return self.taus["filter"].low > 0 and self.filter_minus_macs.low > 0

    @property
    def ridge_is_better(self) -> bool:
        """Tell whether the ridge ranks better than the filter by more than a standard error."""
        difference = self.filter_minus_ridge
        return -difference.value > difference.standard_error

    def advice(self) -> str:
        """Return in plain words what the figures say about pruning."""
        taus, difference = self.taus, self.filter_minus_macs
        figures = f"the filter's in-bin tau is {taus['filter']}, that of MACs alone {taus['macs']}"
        if self.filter_is_worth_pruning_by:
            words = [f"{figures}: the filter ranks archs of one budget better; prune by it"]
        elif difference.high < 0:
            words = [f"{figures}: MACs alone rank archs of one budget better; do not prune"]
        elif difference.low <= 0:
            words = [
                f"{figures}: their difference of {difference} does not exclude zero, so on "
                f"{self.num_labels} labels the filter is not known to rank better; do not prune, "
                "or evaluate more labels, or on more images"
            ]
        else:
            words = [
                f"{figures}: the filter is not known to rank better than chance; do not prune, or "
                "evaluate more labels, or on more images"
            ]
        if self.ridge_is_better:
            words.append(
                f"the ridge, with {taus['ridge']}, ranks better than the filter by more than one "
                f"standard error ({self.filter_minus_ridge.standard_error:.2f})"
            )
        return "; ".join(words)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record["taus"] = {name: tau.to_json() for name, tau in self.taus.items()}
        record["per_bin"] = {
            name: [tau.to_json() for tau in taus] for name, taus in self.per_bin.items()
        }
        for name in ("filter_minus_macs", "filter_minus_ridge"):
            record[name] = getattr(self, name).to_json()
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "RankQuality":
        """Read what `to_json` wrote.

        Raises:
            AttributeError, KeyError, TypeError: a field is missing, unknown or of the wrong kind.
        """
        estimates = {
            "taus": {name: Estimate(**tau) for name, tau in record["taus"].items()},
            "per_bin": {
                name: tuple(Estimate(**tau) for tau in taus)
                for name, taus in record["per_bin"].items()
            },
            "filter_minus_macs": Estimate(**record["filter_minus_macs"]),
            "filter_minus_ridge": Estimate(**record["filter_minus_ridge"]),
        }
        return cls(**{**record, **estimates})


def assess_rankers(
    space: SearchSpace,
    genes: Genes,
    labels: Values,
    costs: Values,
    macs: Values,
    bins: BudgetBins,
    *,
    seed: int,
    label: str,
    noise: float = 0.0,
    settings: FilterSettings | None = None,
    repeats: int = 10,
) -> RankQuality:
    """Cross-validate five rankers on the same labels, within budget bins.

    `filter` is the path filter; `macs` holds that more compute is better; `ridge` is linear in
    the compact encoding and the logarithm of MACs; `regressor` is one network over all budgets;
    `random` guesses. Labels are divided into folds that each hold archs of every bin, several
    times over. Only pairs of one bin and one fold are compared, as scores of different fits have
    no common scale. Intervals are of the archs that were compared; they leave out how a fit
    changes with other labels.

    Args:
        space: The search space.
        genes: (N, num_genes) distinct archs.
        labels: (N,) larger is better.
        costs: (N,) of the bins' kind.
        macs: (N,) multiply-accumulates.
        bins: The budget bins.
        seed: Decides folds, fits and bootstrap.
        label: Name of the label.
        noise: Standard error of a label; see `PathFilter.fit`.
        settings: Settings of the filter.
        repeats: Divisions into folds.

    Raises:
        UserError: a bin has fewer than four labels (it is named), or as `PathFilter.fit`.
    """
    problem = _Problem(
        space=space,
        genes=genes,
        labels=labels,
        costs=costs,
        macs=macs,
        bins=bins,
        label=label,
        noise=noise,
        settings=settings,
    )
    index = bins.index(costs)
    num_folds = _num_folds(index, bins)
    rng = np.random.default_rng(seed)
    agreed = {name: np.zeros((len(labels), len(labels))) for name in RANKERS}
    made = np.zeros((len(labels), len(labels)))
    for test in folds(index, num_folds, repeats, rng):
        train = np.setdiff1d(np.arange(len(labels)), test)
        fit_seed = int(rng.integers(2**31))
        fold = np.ix_(test, test)
        made[fold] += Comparisons.of(labels[test], labels[test], index[test]).made
        for name, ranker in _RANKERS.items():
            scores = ranker(problem, train, test, fit_seed)
            agreed[name][fold] += Comparisons.of(scores, labels[test], index[test]).agreed
    comparisons = {
        name: Comparisons(agreed=agreed[name], made=made, bins=index) for name in RANKERS
    }
    return _summary(comparisons, bins, rng, label, num_folds, repeats)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """Labelled archs, and how the path filter is fitted on them."""

    space: SearchSpace
    genes: Genes
    labels: Values
    costs: Values
    macs: Values
    bins: BudgetBins
    label: str
    noise: float
    settings: FilterSettings | None


def _by_filter(problem: _Problem, train: _Rows, test: _Rows, seed: int) -> Values:
    fitted = PathFilter.fit(
        problem.space,
        problem.genes[train],
        problem.labels[train],
        problem.costs[train],
        problem.bins,
        seed=seed,
        label=problem.label,
        noise=problem.noise,
        settings=problem.settings,
    )
    return fitted.score_in_bin(problem.genes[test], problem.costs[test])


def _by_macs(problem: _Problem, train: _Rows, test: _Rows, seed: int) -> Values:
    return problem.macs[test]


def _by_ridge(problem: _Problem, train: _Rows, test: _Rows, seed: int) -> Values:
    encoding = encode_paths(problem.space, problem.genes, problem.macs)
    return RidgePredictor.fit(encoding[train], problem.labels[train]).predict(encoding[test])


def _by_regressor(problem: _Problem, train: _Rows, test: _Rows, seed: int) -> Values:
    encoding = problem.space.encode_one_hot(problem.genes)
    return fit_regressor(encoding[train], problem.labels[train], seed)(encoding[test])


def _by_chance(problem: _Problem, train: _Rows, test: _Rows, seed: int) -> Values:
    return np.random.default_rng(seed).random(len(test))


_RANKERS: dict[str, Callable[[_Problem, _Rows, _Rows, int], Values]] = {
    "filter": _by_filter,
    "macs": _by_macs,
    "ridge": _by_ridge,
    "regressor": _by_regressor,
    "random": _by_chance,
}
"""Each scores the rows tested, after a fit on the rows to train on, decided by a seed."""


def _num_folds(index: Indices, bins: BudgetBins) -> int:
    """Return as many folds as leave two archs of every bin in each, up to five."""
    counts = np.bincount(index, minlength=bins.count)
    fewest = int(np.argmin(counts))
    if counts[fewest] < FEWEST_PER_BIN:
        raise UserError(
            f"{bins.describe(fewest)} has {counts[fewest]} labels, cross-validation needs at least "
            f"{FEWEST_PER_BIN} in every bin; evaluate more archs there, or use fewer bins"
        )
    return min(_MOST_FOLDS, int(counts[fewest]) // 2)


def folds(
    index: Indices, num_folds: int, repeats: int, rng: np.random.Generator
) -> Iterator[_Rows]:
    """Yield the rows of each fold of each division; a fold has at least two of every bin."""
    for _ in range(repeats):
        fold = np.empty(len(index), np.intp)
        for bin_index in np.unique(index):
            places = rng.permutation(np.nonzero(index == bin_index)[0])
            fold[places] = (np.arange(len(places)) + rng.integers(num_folds)) % num_folds
        for number in range(num_folds):
            yield np.nonzero(fold == number)[0]


def _summary(
    comparisons: Mapping[str, Comparisons],
    bins: BudgetBins,
    rng: np.random.Generator,
    label: str,
    folds: int,
    repeats: int,
) -> RankQuality:
    index = comparisons["filter"].bins
    draws = draw_within_bins(index, rng)
    values = {name: item.tau() for name, item in comparisons.items()}
    resampled = {name: item.resampled(draws) for name, item in comparisons.items()}

    def filter_minus(other: str) -> Estimate:
        return estimate(values["filter"] - values[other], resampled["filter"] - resampled[other])

    def of_bin(found: Comparisons, place: int) -> Estimate:
        inside = found.in_bin(place)
        return estimate(inside.tau(), inside.resampled(draws[:, index == place]))

    return RankQuality(
        label=label,
        num_labels=len(index),
        folds=folds,
        repeats=repeats,
        taus={name: estimate(values[name], resampled[name]) for name in RANKERS},
        per_bin={
            name: tuple(of_bin(comparisons[name], place) for place in range(bins.count))
            for name in RANKERS
        },
        filter_minus_macs=filter_minus("macs"),
        filter_minus_ridge=filter_minus("ridge"),
    )
