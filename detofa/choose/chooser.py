"""Chooser: from a trained run to the subnet that is best within a budget, or to the front."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detofa.arch import Arch
from detofa.choose.figures import figures_of
from detofa.choose.history import Round, SearchHistory
from detofa.choose.ranking import Ranking, is_outside
from detofa.choose.records import Budget, Choice, Finalist, merit
from detofa.data.dataset import Category, DetectionDataset, load_dataset
from detofa.errors import UserError
from detofa.files import sha256_file, write_json
from detofa.path_filter.bins import Kind
from detofa.predictor import RidgePredictor
from detofa.profiling.again import AGAIN, measure_again
from detofa.profiling.cost import macs_cost, num_params_cost
from detofa.profiling.device import device_here
from detofa.profiling.measure import detector_builders
from detofa.profiling.table import LatencyTable
from detofa.reachable import quantity
from detofa.search import (
    Cap,
    SearchConfig,
    SearchResult,
    finalists,
    pareto_front,
    pareto_search,
    search,
)
from detofa.space import Genes, SearchSpace
from detofa.subnet import PostProcessing, Subnet
from detofa.train.checkpoint import load_supernet, save_subnet_weights
from detofa.train.evaluate import (
    PathFigures,
    Recalibration,
    evaluate_paths,
    extract_recalibrated,
)
from detofa.train.path_evaluations import PathEvaluations
from detofa.train.ranks import ALONE, Ranks
from detofa.train.run import RunFolder

Values = NDArray[np.float64]
Progress = Callable[[str, float], None]
_BYTES_OF_PARAMETER = 4
_SPARE = 0.95  # of a latency budget: some finalist should turn out to fit


class Chooser:
    """Choose from one run, for one device.

    Args:
        run: A trained run.
        table: Latency table of its space; None where only compute counts.
        seed: Decides the paths that are evaluated and the search.
        labels: Paths evaluated to fit the predictor, beside the smallest and the largest.
        data: Folder of the data set, where it is no longer where the run was trained.
        on_progress: Told what is being done, and the share done.
        ranks: The processes that share the evaluation of paths.
        device: Where paths are evaluated; the processor if not given.

    Raises:
        UserError: the run has no supernet, or the table is of another space.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        table: LatencyTable | None = None,
        seed: int = 0,
        labels: int = 20,
        data: Path | None = None,
        on_progress: Progress = lambda doing, share: None,
        ranks: Ranks = ALONE,
        device: torch.device | None = None,
    ) -> None:
        self.ranks = ranks
        self.run, self.table, self.seed, self.labels = run, table, seed, labels
        self.on_progress = on_progress
        self.supernet, self.record = load_supernet(run.supernet)
        self.supernet.to(device or torch.device("cpu"))
        self.space: SearchSpace = self.record.space
        if table is not None:
            table.check(run.path, space=self.space)
        self.data = Path(self.record.data) if data is None else data
        self.postprocessing = PostProcessing()
        self.macs, self.num_params = macs_cost(self.space), num_params_cost(self.space)
        self._slowdown = 1.0  # of this machine, since its table was made
        self._supernet_sha256 = sha256_file(run.supernet)
        self.evaluations = PathEvaluations(
            path=run.path / "path_evaluations.json",
            space=self.space,
            supernet_sha256=self._supernet_sha256,
            recalibration=self.record.recalibration,
            evaluate=self._evaluate_paths,
            saves=ranks.is_first,
        )

    @cached_property
    def ranking(self) -> Ranking:
        """Return what ranks paths; see `Ranking` for what it may refuse."""
        return Ranking(self.run, self.space, self.table)

    @cached_property
    def validation(self) -> DetectionDataset:
        """Return the split that paths are evaluated on."""
        return self._load("val")

    @cached_property
    def recalibration(self) -> Recalibration:
        """Return the fixed recalibration set of the run."""
        return Recalibration.of_run(
            self.run.load_config(), self._load("train"), self.record.preprocessing
        )

    def choose(
        self,
        budget: Budget,
        output: Path,
        *,
        top_k: int = 5,
        max_params: float | None = None,
        max_file_bytes: float | None = None,
        command: str = "",
    ) -> Choice:
        """Find the best subnet within a budget, and write its subnet.json and weights.

        Args:
            budget: The limit; a latency's is compared with the upper edge of the prediction.
            output: The subnet.json to write; weights go beside it.
            top_k: Predicted best paths that are evaluated for real, in two rounds.
            max_params: Largest number of parameters.
            max_file_bytes: Largest size of the fp32 weights.
            command: The command line, for the record.

        Raises:
            UserError: nothing in the space fits (the message gives the reachable range).
        """
        caps = self._caps(max_params, max_file_bytes)
        rng = np.random.default_rng([self.seed, 1])
        cost = self._budget_cost(budget)
        search_for = {"cost": cost, "unit": budget.unit, "caps": caps}
        # Whether the budget can be met at all is answered before anything is evaluated.
        quick = _search(
            self.space, budget.limit, lambda genes: -cost(genes), rng, search_for, quick=True
        )
        if budget.kind == "latency" and budget.limit > quick.reachable.high:
            raise UserError(
                f"every detector of this space is faster than {quantity(budget.limit, 'ms')}: it "
                f"reaches {quick.reachable}; give a budget in that range, its upper end for the "
                "best whatever it takes"
            )
        labels, genes = self._labelled(), np.empty((0, self.space.num_genes), np.int8)
        rounds: list[Round] = []

        def find(count: int) -> tuple[RidgePredictor, SearchResult, Genes]:
            predictor = self._fit_predictor(np.concatenate([labels, genes]))
            self.on_progress("search", 0.0)
            score = self.ranking.score(predictor, budget)
            result = _search(self.space, budget.limit, score, rng, search_for)
            rounds.append(self._round(budget, result))
            best = result.genes[finalists(result, len(genes) + count)]
            return predictor, result, _with_new(genes, best)[: len(genes) + count]

        predictor, result, genes = find(top_k - top_k // 2)
        if top_k > 1:  # what the first round found tells more about paths near the budget
            predictor, result, genes = find(top_k // 2)
        if budget.kind == "latency":
            # The best below a tighter limit, should all others be measured just over theirs.
            genes = _with_new(genes, result.genes[result.costs <= _SPARE * budget.limit][:1])
        genes = self._with_best_evaluated(genes, cost, budget.limit, caps)
        found = self._evaluate_finalists(genes, predictor)
        found.sort(key=partial(merit, budget=budget))
        subnet = self._write(found[0], output, command)
        self._keep_history(budget, rounds, found, command)
        return Choice(
            subnet_path=output,
            subnet=subnet,
            finalists=tuple(found),
            reachable=str(result.reachable),
            notes=self._notes(result, found[0], budget),
            predictor=predictor,
        )

    def front(
        self,
        kind: Kind | None = None,
        *,
        count: int = 8,
        max_params: float | None = None,
        max_file_bytes: float | None = None,
        command: str = "",
    ) -> tuple[Finalist, ...]:
        """Find the best trade-offs of AP against a cost, and write each into the run.

        Subnets go to `subnets/front-N.json`, the list to `pareto.json`.

        Args:
            kind: The cost; if not given, that of the run's path filter, else latency where there is
                a table.
            count: Predicted front points that are evaluated for real.
            max_params: Largest number of parameters.
            max_file_bytes: Largest size of the fp32 weights.
            command: The command line, for the record.

        Returns:
            The evaluated points that no other beats, cheapest first.
        """
        if kind is None:
            kind = self.ranking.kind or ("macs" if self.table is None else "latency")
        budget = Budget(kind=kind, limit=math.inf)
        cost = self._budget_cost(budget)
        predictor = self._fit_predictor(self._labelled())
        self.on_progress("search", 0.0)
        caps = self._caps(max_params, max_file_bytes)
        rounds: list[Round] = []
        genes = self._best_of_bins(predictor, budget, caps, count, rounds)
        if genes is None:
            result = pareto_search(
                self.space,
                score=self.ranking.score(predictor, budget),
                cost=cost,
                unit=budget.unit,
                rng=np.random.default_rng([self.seed, 1]),
                caps=caps,
            )
            rounds.append(self._round(budget, result))
            wanted = np.linspace(result.costs[0], result.costs[-1], count)
            rows = np.unique(np.abs(result.costs[:, None] - wanted).argmin(axis=0))
            genes = result.genes[rows]
        found = self._evaluate_finalists(genes, predictor)
        costs = cost(np.stack([self.space.genes(item.arch) for item in found]))
        front = [found[i] for i in pareto_front(costs, np.array([item.ap for item in found]))]
        for index, item in enumerate(front):
            self._write(item, self.run.subnets / f"front-{index}.json", command)
        self._keep_history(budget, rounds, found, command)
        points = [item.to_json() for item in front]
        write_json(self.run.path / "pareto.json", "pareto", {"cost": kind, "points": points})
        return tuple(front)

    def evaluate(self, genes: Sequence[Genes], doing: str) -> list[PathFigures]:
        """Return the figures of paths on the validation split; each is evaluated only once."""
        return self.evaluations.of(genes, lambda share: self.on_progress(doing, share))

    def _evaluate_paths(self, archs: Sequence[Arch], halves: bool) -> Iterator[PathFigures]:
        return self.ranks.spread(
            lambda some: evaluate_paths(
                self.supernet,
                some,
                self.recalibration,
                self.validation,
                self.postprocessing,
                halves=halves,
            ),
            archs,
        )

    # ---- steps of a choice ----------------------------------------------------------------

    def _budget_cost(self, budget: Budget) -> Callable[[Genes], Values]:
        if budget.kind == "macs":
            return self.macs
        if self.table is None:
            raise UserError(
                "a latency budget needs a latency table of this space; measure one with "
                "`detofa profile`"
            )
        table = self.table
        return lambda genes: table.predict_interval(genes)[1]

    def _caps(self, max_params: float | None, max_file_bytes: float | None) -> list[Cap]:
        caps = []
        if max_params is not None:
            caps.append(
                Cap(
                    name="the cap on parameters",
                    cost=self.num_params,
                    limit=max_params,
                    unit="parameters",
                )
            )
        if max_file_bytes is not None:
            caps.append(
                Cap(
                    name="the cap on file size",
                    cost=lambda genes: self.num_params(genes) * _BYTES_OF_PARAMETER,
                    limit=max_file_bytes,
                    unit="bytes",
                )
            )
        return caps

    def _best_of_bins(
        self,
        predictor: RidgePredictor,
        budget: Budget,
        caps: Sequence[Cap],
        count: int,
        rounds: list[Round],
    ) -> Genes | None:
        """Return the best-ranked paths of every bin of the path filter; None without one.

        What the searches did is added to `rounds`.
        """
        pruned, path_filter = self.ranking.pruned, self.ranking.path_filter(budget)
        if pruned is None or path_filter is None:
            return None
        rng = np.random.default_rng([self.seed, 1])
        per_bin = -(-count // path_filter.bins.count)
        genes = self.space.ends
        for limit in path_filter.bins.edges[1:]:
            within = dataclasses.replace(budget, limit=limit)
            search_for = {"cost": pruned.cost, "unit": budget.unit, "caps": caps}
            result = _search(
                self.space, limit, self.ranking.score(predictor, within), rng, search_for
            )
            rounds.append(self._round(within, result))
            genes = _with_new(genes, result.genes[finalists(result, per_bin)])
        return genes[_fits(genes, caps)]

    def _labelled(self) -> Genes:
        return self.ranking.paths_to_label(self.labels, np.random.default_rng([self.seed, 0]))

    def _fit_predictor(self, genes: Genes) -> RidgePredictor:
        """Evaluate paths, and fit the predictor on them."""
        figures = self.evaluate(list(genes), "evaluate paths for the predictor")
        return self.ranking.fit(genes, figures)

    def _with_best_evaluated(
        self, genes: Genes, cost: Callable[[Genes], Values], limit: float, caps: Sequence[Cap]
    ) -> Genes:
        """Add the best path already evaluated that fits: it costs nothing to consider."""
        rows = self.evaluations.best_first()
        fits = _fits(rows, caps) & (cost(rows) <= limit)
        return _with_new(genes, rows[fits][:1])

    def _evaluate_finalists(self, genes: Genes, predictor: RidgePredictor) -> list[Finalist]:
        figures = self.evaluate(list(genes), "evaluate finalists")
        predicted = predictor.predict(self.ranking.encode(genes))
        macs, num_params = self.macs(genes), self.num_params(genes)
        found = [
            Finalist(
                arch=self.space.arch(row),
                predicted_ap=float(predicted[index]),
                ap=figures[index].ap,
                ap50=figures[index].ap50,
                macs=float(macs[index]),
                num_params=float(num_params[index]),
            )
            for index, row in enumerate(genes)
        ]
        return self._with_latency(found, genes)

    def _with_latency(self, found: list[Finalist], genes: Genes) -> list[Finalist]:
        table = self.table
        if table is None:
            return found
        predicted = table.predict(genes)
        low, high = table.predict_interval(genes)
        measured: Mapping[str, float] = {}
        if device_here(table.device.name) is not None:
            self.on_progress("measure finalists", 0.0)
            named = {str(index): row for index, row in enumerate(genes)}
            builders = detector_builders(self.space, named, table.runtime)
            now = measure_again(
                table, builders, schedule=dataclasses.replace(AGAIN, seed=self.seed)
            )
            measured, self._slowdown = now.p50_ms, now.slowdown
        return [
            replace(
                item,
                predicted_ms=float(predicted[index]),
                low_ms=float(low[index]),
                high_ms=float(high[index]),
                measured_ms=measured.get(str(index)),
            )
            for index, item in enumerate(found)
        ]

    def _notes(self, result: SearchResult, winner: Finalist, budget: Budget) -> tuple[str, ...]:
        notes = [] if result.note is None else [result.note]
        if winner.measured_ms is not None:
            notes.append(
                f"detectors take {self._slowdown:.3f} times as long now as when the latency table "
                "was made; measured figures are at the table's speed"
            )
        if budget.kind == "latency" and (winner.measured_ms or 0.0) > budget.limit:
            notes.append(
                "no finalist was measured within the budget, and the nearest to it is written; "
                "ask for less, or measure a new table with `detofa profile`"
            )
        return tuple(notes)

    def _round(self, budget: Budget, result: SearchResult) -> Round:
        return Round(
            limit=None if math.isinf(budget.limit) else budget.limit,
            ranker="path filter" if self.ranking.ranks_by_filter(budget) else "predicted AP",
            generations=tuple(item for item in result.history if not is_outside(item.best_score)),
        )

    # ---- files ----------------------------------------------------------------------------

    def _keep_history(
        self, budget: Budget, rounds: list[Round], found: list[Finalist], command: str
    ) -> None:
        history = SearchHistory(
            budget=budget, rounds=tuple(rounds), finalists=tuple(found), command=command
        )
        history.save(self.run.searches)

    def _load(self, split: str) -> DetectionDataset:
        categories = tuple(Category(id=i, name=name) for i, name in self.record.categories)
        if not self.data.is_dir():
            raise UserError(
                f"the run {self.run.path} was trained on {self.data}, which does not exist; say "
                "where its data set is now with --data DIR"
            )
        return load_dataset(self.data, split, categories=categories, skip_bad=True)

    def _write(self, winner: Finalist, output: Path, command: str) -> Subnet:
        weights = output.with_suffix(".safetensors")
        detector = extract_recalibrated(self.supernet, winner.arch, self.recalibration)
        save_subnet_weights(weights, detector)
        table = self.table
        subnet = Subnet(
            space=self.space,
            arch=winner.arch,
            preprocessing=self.record.preprocessing,
            postprocessing=self.postprocessing,
            categories=self.record.categories,
            weights_file=weights.name,
            weights_sha256=sha256_file(weights),
            supernet_sha256=self._supernet_sha256,
            recalibration=dict(self.recalibration.to_json()),
            figures=figures_of(winner, self.validation, self.table, self._slowdown),
            device=None if table is None else table.device.name,
            table_sha256=None if table is None else table.sha256,
            command=command,
        )
        subnet.save(output)
        return subnet


def _search(
    space: SearchSpace,
    limit: float,
    score: Callable[[Genes], Values],
    rng: np.random.Generator,
    search_for: dict[str, Any],
    *,
    quick: bool = False,
) -> SearchResult:
    config = SearchConfig(population=16, generations=1, parents=8) if quick else SearchConfig()
    return search(space, score=score, budget=limit, rng=rng, config=config, **search_for)


def _with_new(genes: Genes, rows: Genes) -> Genes:
    """Add the rows that are not there yet: (N, num_genes) and (M, num_genes)."""
    known = {row.tobytes() for row in genes}
    new = [row.tobytes() not in known for row in rows]
    return np.concatenate([genes, rows[np.array(new, bool)]])


def _fits(genes: Genes, caps: Sequence[Cap]) -> NDArray[np.bool_]:
    fits = np.ones(len(genes), bool)
    for cap in caps:
        fits &= cap.cost(genes) <= cap.limit
    return fits
