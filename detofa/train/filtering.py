"""Fit a path filter on the paths of a supernet: evaluate labels, choose one, judge the rankers."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detofa.errors import UserError
from detofa.files import read_json, write_json
from detofa.path_filter.agreement import Estimate
from detofa.path_filter.bins import BudgetBins, Indices, Values
from detofa.path_filter.drawing import Cost, draw_per_bin
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.rank_quality import FEWEST_PER_BIN, RankQuality, assess_rankers
from detofa.path_filter.reliability import Reliability, choose_label, split_half_reliability
from detofa.profiling.cost import macs_cost
from detofa.profiling.table import LatencyTable
from detofa.space import Genes, SearchSpace
from detofa.train.evaluate import PathFigures
from detofa.train.path_evaluations import PathEvaluations

_KIND = "filter_report"
_TRAIN = "`detofa train --method detofa`"


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """A cost, and the bins that divide it.

    Attributes:
        cost: Maps (N, num_genes) genes to (N,) costs.
        bins: Ranges of it.
    """

    cost: Cost
    bins: BudgetBins

    @classmethod
    def of(cls, space: SearchSpace, count: int, table: LatencyTable | None = None) -> "Budgets":
        """Divide the whole range of a space by MACs, or by the latency of a table.

        Raises:
            UserError: no bins, or a table of another space.
        """
        if table is None:
            cost: Cost = macs_cost(space)
            low, high = cost(space.ends)
            bins = BudgetBins.between(low, high, count, kind="macs")
            return cls(cost=cost, bins=bins)
        table.check(Path(table.file_name), space=space)
        low, high = table.predict(space.ends)
        bins = BudgetBins.between(
            low,
            high,
            count,
            kind="latency",
            device=table.device.name,
            table_sha256=table.sha256,
        )
        return cls(cost=table.predict, bins=bins)


@dataclass(frozen=True, kw_only=True)
class FilterReport:
    """How a path filter came about, and what it is worth.

    Attributes:
        quality: In-bin tau of the filter and of four others, for the label chosen.
        reliability: Split-half reliability of each candidate label.
        label_seconds: What the labels' evaluation took: processor time, or on a GPU the wall's.
        fit_seconds: What fitting the filter took, and in a run drawing and pruning too.
        assess_seconds: What the comparison with other rankers took.
        bins: The budget bins.
    """

    quality: RankQuality
    reliability: Mapping[str, Reliability]
    label_seconds: float
    fit_seconds: float
    assess_seconds: float
    bins: BudgetBins

    def agreements(self) -> list[str]:
        """Return in words how well each label that could be chosen ranks AP on other images."""
        return [
            f"{name} on one half of the images ranks AP on the other with tau "
            f"{found.tau_with_ap}, itself with {found.tau}"
            for name, found in self.reliability.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        reliability = {name: asdict(found) for name, found in self.reliability.items()}
        return {
            "quality": self.quality.to_json(),
            "reliability": reliability,
            "label_seconds": self.label_seconds,
            "fit_seconds": self.fit_seconds,
            "assess_seconds": self.assess_seconds,
            "bins": self.bins.to_json(),
            "advice": self.quality.advice(),
        }

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        write_json(path, _KIND, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "FilterReport":
        """Read what `save` wrote.

        Raises:
            UserError: missing, broken, or changed by hand.
        """
        record = read_json(path, _KIND, remake=_TRAIN)
        try:
            return cls(
                quality=RankQuality.from_json(record["quality"]),
                reliability={
                    name: Reliability(
                        tau=Estimate(**found["tau"]),
                        tau_with_ap=Estimate(**found["tau_with_ap"]),
                        noise=found["noise"],
                        num_archs=found["num_archs"],
                    )
                    for name, found in record["reliability"].items()
                },
                label_seconds=float(record["label_seconds"]),
                fit_seconds=float(record["fit_seconds"]),
                assess_seconds=float(record["assess_seconds"]),
                bins=BudgetBins.from_json(record["bins"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} was changed ({error}); make it again with {_TRAIN}") from error


def saved_seconds(path: Path, *, assessed: bool) -> float:
    """Return what a saved report's labels and fit took, in seconds.

    Args:
        path: The report.
        assessed: Whether the comparison with other rankers counts.

    Raises:
        UserError: missing or broken.
    """
    record: dict[str, Any] = read_json(path, _KIND, remake=_TRAIN)
    names = ["label_seconds", "fit_seconds", *(["assess_seconds"] if assessed else [])]
    seconds = [value for name in names if isinstance(value := record.get(name), float)]
    if len(seconds) != len(names):
        raise UserError(f"{path} lacks one of {', '.join(names)}; make it again with {_TRAIN}")
    return math.fsum(seconds)


def draw_paths_to_label(space: SearchSpace, budgets: Budgets, per_bin: int, seed: int) -> Genes:
    """Draw distinct paths evenly over the bins: (B * per_bin, num_genes).

    Raises:
        UserError: fewer than the cross-validation needs, or a bin is starved.
    """
    if per_bin < FEWEST_PER_BIN:
        raise UserError(
            f"a path filter needs at least {FEWEST_PER_BIN} labels in every bin, got {per_bin}; "
            "evaluate more, or use fewer bins"
        )
    rng = np.random.default_rng([seed, 2])
    wanted = np.full(budgets.bins.count, per_bin)
    drawn = draw_per_bin(space, budgets.cost, budgets.bins, rng, wanted, distinct=True)
    return np.concatenate(drawn)


def evaluate_labels(
    genes: Genes,
    evaluations: PathEvaluations,
    on_progress: Callable[[str, float], None] = lambda doing, share: None,
) -> list[PathFigures]:
    """Return the figures of (N, num_genes) paths with those of both halves of the images."""
    return evaluations.of(
        list(genes), lambda share: on_progress("evaluate labels", share), halves=True
    )


def fit_filter(
    space: SearchSpace,
    genes: Genes,
    figures: Sequence[PathFigures],
    budgets: Budgets,
    *,
    seed: int,
) -> tuple[PathFilter, FilterReport]:
    """Fit a path filter on labels, and judge it.

    Of AP and loss that one is the label which, on one half of the images, ranks AP on the other
    half best; but not AP while it is the same for many, as zero is early in a training.

    Args:
        space: The search space.
        genes: (N, num_genes) distinct paths.
        figures: Of each path, with those of both halves of the images; see `evaluate_labels`.
        budgets: The cost and its bins.
        seed: Decides folds, fits and bootstrap.

    Raises:
        UserError: fewer labels than a bin needs, or labels that are all alike.
    """
    with ThreadPoolExecutor(1, "fit") as pool:
        fitted = pool.submit(_fit_on_one_thread, space, genes, figures, budgets, seed)
        return fitted.result()


def _fit_on_one_thread(
    space: SearchSpace,
    genes: Genes,
    figures: Sequence[PathFigures],
    budgets: Budgets,
    seed: int,
) -> tuple[PathFilter, FilterReport]:
    torch.set_num_threads(1)  # of this thread: sharing such small tensors costs more than it gains
    begin = time.thread_time()
    costs = budgets.cost(genes)
    index = budgets.bins.index(costs)
    rng = np.random.default_rng([seed, 3])
    halves = {name: half_labels(figures, name) for name in ("ap", "loss")}
    reliability = {
        name: split_half_reliability(labels, halves["ap"], index, rng)
        for name, labels in halves.items()
    }
    told = [name for name in reliability if _tells_apart(labels_of(figures, name), index)]
    label = choose_label({name: reliability[name] for name in told or reliability})
    labels, noise = labels_of(figures, label), reliability[label].noise
    path_filter = PathFilter.fit(
        space, genes, labels, costs, budgets.bins, seed=seed, label=label, noise=noise
    )
    fitted = time.thread_time()
    quality = assess_rankers(
        space,
        genes,
        labels,
        costs,
        macs_cost(space)(genes),
        budgets.bins,
        seed=seed,
        label=label,
        noise=noise,
    )
    report = FilterReport(
        quality=quality,
        reliability=reliability,
        label_seconds=sum(path.seconds for path in figures),
        fit_seconds=fitted - begin,
        assess_seconds=time.thread_time() - fitted,
        bins=budgets.bins,
    )
    return path_filter, report


def _tells_apart(labels: Values, bins: Indices) -> bool:
    """Return whether in some bin no half of the paths, (N,), share one value of a label.

    Then every fold of a cross-validation has paths to compare.
    """
    of_bins = (labels[bins == number] for number in np.unique(bins))
    return any(2 * max(Counter(own.tolist()).values()) < len(own) - 1 for own in of_bins)


def labels_of(figures: Sequence[PathFigures], label: str) -> Values:
    """Return a label, `ap` or `loss`, of each of N paths: (N,), larger is better."""
    if label == "ap":
        return np.array([path.ap for path in figures])
    labels: Values = half_labels(figures, label).mean(axis=0)
    return labels


def half_labels(figures: Sequence[PathFigures], label: str) -> Values:
    """Return a label of N paths on each half of the images: (2, N), larger is better."""
    sign = 1.0 if label == "ap" else -1.0
    rows = []
    for path in figures:
        assert path.halves is not None
        rows.append([sign * float(getattr(half, label)) for half in path.halves])
    return np.array(rows).T
