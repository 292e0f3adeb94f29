"""Judge an arm: its front on the test split, and paths that all arms have in common."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.method.plans import Plan
from detofa.data.dataset import Category, DetectionDataset, load_dataset
from detofa.files import read_json, write_json
from detofa.path_filter.drawing import draw_per_bin
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
_DRAWN_PER_BIN = 200
_CANDIDATES, _WHOLE, _KEPT = 0, 1, 2  # streams of random numbers


@dataclass(frozen=True, kw_only=True)
class JudgedPath:
    """A path of an arm, with inherited weights, recalibrated.

    Attributes:
        bin: Index of its budget bin.
        macs: Of the whole detector.
        ap: AP on the test split, from 0 to 1.
    """

    bin: int
    macs: float
    ap: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What an arm came to.

    Attributes:
        front: Of each bin the candidate with the best AP on validation.
        candidates_ap: (B, k) AP on validation of the candidates.
        whole: Paths of the whole space, the same in every arm and for every seed.
        kept: Paths that the filter of this seed kept, the same in every arm.
    """

    front: tuple[JudgedPath, ...]
    candidates_ap: tuple[tuple[float, ...], ...]
    whole: tuple[JudgedPath, ...]
    kept: tuple[JudgedPath, ...]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, _KIND, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Judgement":
        """Read what `save` wrote."""
        record: dict[str, Any] = read_json(path, _KIND, remake="python -m benchmarks.method.run")
        front, whole, kept = (
            tuple(JudgedPath(**item) for item in record[name])
            for name in ("front", "whole", "kept")
        )
        candidates = tuple(tuple(row) for row in record["candidates_ap"])
        return cls(front=front, candidates_ap=candidates, whole=whole, kept=kept)


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
        self.space: SearchSpace = record.space
        config = run.load_config()
        self.seed = config.seed
        self.budgets = Budgets.of(self.space, config.filter.bins)
        categories = tuple(Category(id=i, name=name) for i, name in record.categories)
        splits = [
            load_dataset(Path(config.data), split, categories=categories, skip_bad=True)
            for split in ("train", "val", "test")
        ]
        self.validation, self.test = splits[1:]
        self.recalibration = Recalibration(
            dataset=splits[0],
            preprocessing=record.preprocessing,
            count=config.recalibration_images,
        )
        self.filtered = PrunedSpace.load(filtered.pruned_space, self.space, self.budgets.cost)
        self.own = (
            PrunedSpace.load(run.pruned_space, self.space, self.budgets.cost)
            if run.pruned_space.is_file()
            else None
        )

    def judge(self) -> Judgement:
        """Return what the arm came to; the test split is read for winners and common paths."""
        candidates = self._candidates()
        count = self.plan.candidates_per_bin
        on_validation = self._evaluate(np.concatenate(candidates), self.validation)
        aps = on_validation.reshape(len(candidates), count)
        winners = np.stack(
            [rows[int(best)] for rows, best in zip(candidates, aps.argmax(axis=1), strict=True)]
        )
        return Judgement(
            front=self._judged(winners),
            candidates_ap=tuple(tuple(row) for row in aps.tolist()),
            whole=self._judged(self._draw(None, self.plan.paths_in_common, _WHOLE, seed=0)),
            kept=self._judged(
                self._draw(self.filtered, self.plan.paths_in_common, _KEPT, seed=self.seed)
            ),
        )

    def _candidates(self) -> list[Genes]:
        """Return paths of each bin that the arm trained on, matched in MACs between arms."""
        edges = np.log(self.budgets.bins.edges)
        drawn = self._draw(self.own, _DRAWN_PER_BIN, _CANDIDATES, seed=self.seed)
        chosen = []
        for index, genes in enumerate(np.split(drawn, self.budgets.bins.count)):
            shares = (np.arange(self.plan.candidates_per_bin) + 0.5) / self.plan.candidates_per_bin
            wanted = edges[index] + shares * (edges[index + 1] - edges[index])
            distances = np.abs(np.log(self.budgets.cost(genes))[:, None] - wanted)
            rows: list[int] = []
            for column in range(len(wanted)):
                distances[rows, column] = np.inf  # each path once
                rows.append(int(distances[:, column].argmin()))
            chosen.append(genes[rows])
        return chosen

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
