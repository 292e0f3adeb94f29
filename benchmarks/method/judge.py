"""Judge an arm: its front on the test split, and paths that all arms have in common."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.method.plans import Plan
from detofa.data.dataset import Category, DetectionDataset, load_dataset
from detofa.files import read_json, write_json
from detofa.path_filter.drawing import draw_per_bin
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.pruned_space import PrunedSpace
from detofa.space import Genes, SearchSpace
from detofa.subnet import PostProcessing
from detofa.supernet.detector import Supernet
from detofa.train.checkpoint import load_supernet
from detofa.train.evaluate import Recalibration, evaluate_paths
from detofa.train.filtering import Budgets
from detofa.train.run import RunFolder

Values = NDArray[np.float64]
_KIND = "method_arm"
_DRAWN_PER_BIN = 300
_CANDIDATES, _WHOLE, _MATCHES = range(3)  # streams of random numbers


@dataclass(frozen=True, kw_only=True)
class JudgedPath:
    """A path of an arm, with inherited weights, recalibrated.

    Attributes:
        bin: Index of its budget bin.
        macs: Of the whole detector.
        validation_ap: AP on the validation split, from 0 to 1, where it was chosen by that.
        ap: AP on the test split, from 0 to 1.
    """

    bin: int
    macs: float
    ap: float
    validation_ap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What an arm came to.

    Attributes:
        candidates: What the front was chosen from, on validation, bin after bin; the filtered
            arm's are those that its filter ranks highest, best first, and every other arm's are
            matched to these in MACs, one to one.
        front: Of each bin the candidate with the best AP on validation.
        whole: Paths of the whole space, the same in every arm and for every seed.
        ranked_highest: Paths that the filter of this seed ranks highest, the same in every arm.
        judged_by: What of the plan it depends on.
    """

    candidates: tuple[JudgedPath, ...]
    front: tuple[JudgedPath, ...]
    whole: tuple[JudgedPath, ...]
    ranked_highest: tuple[JudgedPath, ...]
    judged_by: str

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, _KIND, dataclasses.asdict(self))

    @staticmethod
    def judged_by_of(path: Path) -> str | None:
        """Return what a judgement on disk depended on; None where there is none."""
        if not path.is_file():
            return None
        record = read_json(path, _KIND, remake="python -m benchmarks.method.run")
        return str(record.get("judged_by"))

    @classmethod
    def load(cls, path: Path) -> "Judgement":
        """Read what `save` wrote."""
        record: dict[str, Any] = read_json(path, _KIND, remake="python -m benchmarks.method.run")
        paths = {
            name: tuple(JudgedPath(**item) for item in record[name])
            for name in ("candidates", "front", "whole", "ranked_highest")
        }
        return cls(**paths, judged_by=record["judged_by"])


class Judge:
    """Evaluates paths of a finished run.

    Args:
        run: The run.
        plan: The experiment.
        filtered: The run of the same seed whose filter pruned the space; perhaps `run` itself.
    """

    def __init__(self, run: RunFolder, plan: Plan, filtered: RunFolder) -> None:
        self.plan, self.run = plan, run
        self.supernet: Supernet
        self.supernet, record = load_supernet(run.supernet)
        self.supernet.to("cuda" if torch.cuda.is_available() else "cpu")
        self.space: SearchSpace = record.space
        config = run.load_config()
        self.seed = config.seed
        self.budgets = Budgets.of(self.space, config.filter.bins)
        categories = tuple(Category(id=i, name=name) for i, name in record.categories)
        train, self.validation, self.test = (
            load_dataset(folder, split, categories=categories, skip_bad=True)
            for folder, split in (
                (Path(config.data), "train"),
                (Path(config.data), "val"),
                (plan.test_data or Path(config.data), "test"),
            )
        )
        self.recalibration = Recalibration.of_run(config, train, record.preprocessing)
        self.filtered = PrunedSpace.load(filtered.pruned_space, self.space, self.budgets.cost)
        self.own = (
            PrunedSpace.load(run.pruned_space, self.space, self.budgets.cost)
            if run.pruned_space.is_file()
            else None
        )

    def judge(self) -> Judgement:
        """Return what the arm came to; nothing is chosen on the test split."""
        highest = self._ranked_highest()
        candidates = self._candidates(highest)
        macs = self.budgets.cost(candidates)
        bins = self.budgets.bins.index(macs)
        aps = self._evaluate(candidates, self.validation)
        best = [
            int(np.flatnonzero(bins == index)[aps[bins == index].argmax()])
            for index in range(self.budgets.bins.count)
        ]
        judged = tuple(
            dataclasses.replace(path, validation_ap=float(ap))
            for path, ap in zip(self._judged(candidates), aps, strict=True)
        )
        common = self.plan.paths_in_common
        of_a_bin = np.arange(len(highest)) % self.plan.candidates_per_bin
        return Judgement(
            candidates=judged,
            front=tuple(judged[row] for row in best),
            whole=self._judged(self._draw(None, common, _WHOLE, seed=0)),
            ranked_highest=self._judged(highest[of_a_bin < common]),
            judged_by=self.plan.judged_by,
        )

    def _candidates(self, wanted: Genes) -> Genes:
        """Return paths of each bin that the arm trained on, matched in MACs between arms.

        The filtered arm's are those that its filter ranks highest, `wanted`; any other arm's are
        those of its own space that are nearest to these in MACs.
        """
        if self.own is not None and isinstance(self.own.path_filter, PathFilter):
            return wanted
        drawn = self._draw(self.own, _DRAWN_PER_BIN, _MATCHES, seed=self.seed)
        bins = self.budgets.bins
        places, targets = bins.index(self.budgets.cost(drawn)), self.budgets.cost(wanted)
        distances = np.abs(np.log(self.budgets.cost(drawn))[:, None] - np.log(targets))
        distances[places[:, None] != bins.index(targets)] = np.inf
        rows: list[int] = []
        for column in range(len(targets)):
            distances[rows, column] = np.inf  # each path once
            rows.append(int(distances[:, column].argmin()))
        return drawn[rows]

    def _ranked_highest(self) -> Genes:
        """Return (B * candidates_per_bin, num_genes) of many kept paths, a bin's best first."""
        drawn = self._draw(self.filtered, _DRAWN_PER_BIN, _CANDIDATES, seed=self.seed)
        costs = self.budgets.cost(drawn)
        bins = self.budgets.bins.index(costs)
        scores = self.filtered.path_filter.score_in_bin(drawn, costs)
        order = np.argsort(-scores)
        best_of_bins = [
            drawn[order[bins[order] == index][: self.plan.candidates_per_bin]]
            for index in range(self.budgets.bins.count)
        ]
        return np.concatenate(best_of_bins)

    def _draw(self, source: PrunedSpace | None, per_bin: int, stream: int, *, seed: int) -> Genes:
        """Return (B * per_bin, num_genes) paths, drawn evenly over the bins."""
        rng = np.random.default_rng([seed, 6, stream])
        if source is not None:
            return source.sample_bins(rng, per_bin)
        wanted = np.full(self.budgets.bins.count, per_bin)
        bins, cost = self.budgets.bins, self.budgets.cost
        return np.concatenate(draw_per_bin(self.space, cost, bins, rng, wanted, distinct=True))

    def _judged(self, genes: Genes) -> tuple[JudgedPath, ...]:
        macs = self.budgets.cost(genes)
        aps = self._evaluate(genes, self.test)
        places = self.budgets.bins.index(macs)
        return tuple(
            JudgedPath(bin=int(place), macs=float(cost), ap=float(ap))
            for place, cost, ap in zip(places, macs, aps, strict=True)
        )

    def _evaluate(self, genes: Genes, dataset: DetectionDataset) -> Values:
        archs = [self.space.arch(row) for row in genes]
        found = evaluate_paths(self.supernet, archs, self.recalibration, dataset, PostProcessing())
        return np.array([figures.ap for figures in found])


def mean_ap(paths: Sequence[JudgedPath]) -> float:
    """Return the mean AP of paths, in points (0 to 100)."""
    return 100 * float(np.mean([path.ap for path in paths]))
