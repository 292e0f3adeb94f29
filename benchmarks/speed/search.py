"""Search against once-for-all's evolution: same space, same predictor, same compute table.

    python -m benchmarks.speed.search --seeds 20

The predictor is OFA's own network with random weights, others for each seed. Its finder is the
faster of its two (`ofa.nas`), with its defaults and 500 generations; it looks compute up in a table
of the multiply-accumulates that detofa's search sums. Input sizes are multiples of 32. Distinct
networks are counted with the blocks left out that do not run.
"""

import argparse
import contextlib
import dataclasses
import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed.record import Row, print_rows
from detofa.blocks import Block, NeckHead
from detofa.presets import preset
from detofa.profiling.cost import AdditiveCost, block_macs
from detofa.search import SearchConfig, search
from detofa.space import Genes, SearchSpace

SIDES = (128, 160, 192, 224, 256)
_GENERATIONS = 500
_BLOCKS = [(stage, position) for stage in range(1, 6) for position in range(4)]
Values = NDArray[np.float64]


def classifier_space() -> SearchSpace:
    """Return OFA's space at five input sizes, with nothing to choose in neck and head."""
    sizes = tuple((side, side) for side in SIDES)
    space = preset("ofa-mbv3", num_classes=1000, image_sizes=sizes)
    return dataclasses.replace(space, neck_widths=(64,), head_widths=(64,), head_depths=(1,))


def price(block: Block) -> int:
    """Return the multiply-accumulates of a block; neck and head are a classifier's end."""
    if isinstance(block, NeckHead):
        places = (block.height // 32) * (block.width // 32)
        return 160 * 960 * places + 960 * 1280 + 1280 * 1000
    return block_macs(block)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one finder did.

    Attributes:
        score: Best score.
        evaluations: Networks scored.
        distinct: How many of them were distinct.
        seconds: Process time.
    """

    score: float
    evaluations: int
    distinct: int
    seconds: float


class Compute:
    """OFA's interface to the compute of a network, looked up block by block."""

    def __init__(self, cost: AdditiveCost) -> None:
        space = cost.space
        self._prices: dict[Any, float] = {}
        for size, side in enumerate(SIDES):
            genes = space.genes(space.largest)[None]
            genes[:, 0] = size
            parts = cost.per_part(genes)
            self._prices[side] = float((parts["stem"] + parts["stage 0"] + parts["neck_head"])[0])
            for index, (stage, position) in enumerate(_BLOCKS):
                for k, kernel in enumerate((3, 5, 7)):
                    for e, ratio in enumerate((3, 4, 6)):
                        slot = cost._stages[stage][position]
                        self._prices[side, index, kernel, ratio] = float(slot[size, k, e])

    def get_efficiency(self, config: dict[str, Any]) -> float:
        """Return the multiply-accumulates of a network."""
        side, depths = config["image_size"], config["d"]
        total = self._prices[side]
        for index, (kernel, ratio) in enumerate(zip(config["ks"], config["e"], strict=True)):
            if index % 4 < depths[index // 4]:
                total += self._prices[side, index, kernel, ratio]
        return total


def predictor(seed: int) -> Any:
    """Return OFA's predictor of accuracy, with random weights."""
    from ofa.nas.accuracy_predictor import AccuracyPredictor, MobileNetArchEncoder

    torch.manual_seed(seed)
    encoder = MobileNetArchEncoder(image_size_list=list(SIDES))
    return AccuracyPredictor(encoder, device="cpu").requires_grad_(False)


def score_of(space: SearchSpace, network: Any) -> Callable[[Genes], Values]:
    """Return the same predictor as a function of genes."""
    encoder = network.arch_encoder
    starts = np.cumsum(space.num_choices) - space.num_choices
    source = np.empty(encoder.n_dim, np.intp)
    for choice, side in enumerate(SIDES):
        source[encoder.r_info["val2id"][side]] = starts[0] + choice
    for index, (stage, position) in enumerate(_BLOCKS):
        gene = space.block_gene(stage, position)
        for choice, kernel in enumerate((3, 5, 7)):
            source[encoder.k_info["val2id"][index][kernel]] = starts[gene] + choice
        for choice, ratio in enumerate((3, 4, 6)):
            source[encoder.e_info["val2id"][index][ratio]] = starts[gene + 1] + choice

    def score(genes: Genes) -> Values:
        features = torch.from_numpy(space.encode_one_hot(genes)[:, source])
        values: Values = network(features).double().numpy().reshape(-1)
        return values

    return score


def of_ofa(network: Any, compute: Compute, budget: float, seed: int) -> Outcome:
    """Run OFA's finder."""
    from ofa.nas.search_algorithm import EvolutionFinder

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (OFA draws from it)
    scored: list[dict[str, Any]] = []
    plain = network.predict_acc

    def counted(configs: list[dict[str, Any]]) -> torch.Tensor:
        scored.extend(configs)
        found: torch.Tensor = plain(configs)
        return found

    network.predict_acc = counted
    finder = EvolutionFinder(compute, network, max_time_budget=_GENERATIONS)
    begin = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        _, best = finder.run_evolution_search(budget)
    seconds = time.process_time() - begin
    network.predict_acc = plain
    return Outcome(
        score=float(best[0]),
        evaluations=len(scored),
        distinct=len({_canonical(config) for config in scored}),
        seconds=seconds,
    )


def _canonical(config: dict[str, Any]) -> tuple[Any, ...]:
    blocks = zip(config["ks"], config["e"], strict=True)
    depths = config["d"]
    used = tuple(b if i % 4 < depths[i // 4] else None for i, b in enumerate(blocks))
    return (config["image_size"], *used)


def of_detofa(
    space: SearchSpace,
    score: Callable[[Genes], Values],
    cost: AdditiveCost,
    budget: float,
    seed: int,
    evaluations: int,
    until: float = np.inf,
    early: int = 0,
) -> tuple[Outcome, float, float]:
    """Run detofa's search.

    Returns:
        What it found; when it first reached a score; its best score after so many evaluations.
    """
    reached = np.inf
    begin = time.process_time()

    def watched(genes: Genes) -> Values:
        nonlocal reached
        values = score(genes)
        if reached == np.inf and values.max() >= until:
            reached = time.process_time() - begin
        return values

    found = search(
        space,
        score=watched,
        cost=cost,
        budget=budget,
        unit="MACs",
        rng=np.random.default_rng(seed),
        config=SearchConfig(
            population=400, parents=100, generations=evaluations, max_evaluations=evaluations
        ),
    )
    outcome = Outcome(
        score=float(found.scores[0]),
        evaluations=found.evaluations,
        distinct=found.evaluations,
        seconds=time.process_time() - begin,
    )
    before = [entry.best_score for entry in found.history if entry.evaluations <= early]
    return outcome, reached, before[-1] if before else -np.inf


def growth(evaluations: int, seed: int = 0) -> Row:
    """Time searches of 1, 4 and 16 times as many evaluations."""
    space = classifier_space()
    cost = AdditiveCost(space, price)
    score = score_of(space, predictor(seed))
    sizes = [evaluations * factor for factor in (1, 4, 16)]
    return Row.grown(
        f"search, 300 M: {sizes[0]:,}, {sizes[1]:,} and {sizes[2]:,} networks",
        [of_detofa(space, score, cost, 300e6, seed, size)[0].seconds for size in sizes],
        "s",
        2,
    )


def measure(budget: float, seeds: int) -> list[Row]:
    """Compare both finders over seeds, each with a predictor of its own."""
    space = classifier_space()
    cost = AdditiveCost(space, price)
    compute = Compute(cost)
    theirs, ours, times, early = [], [], [], []
    for seed in range(seeds):
        network = predictor(seed)
        score = score_of(space, network)
        other = of_ofa(network, compute, budget, seed)
        own, reached, before = of_detofa(
            space, score, cost, budget, seed, other.evaluations, other.score, other.distinct
        )
        theirs.append(other)
        ours.append(own)
        times.append(reached)
        early.append(before)
    rate = [one.distinct / one.seconds for one in theirs], [o.distinct / o.seconds for o in ours]
    faster = np.percentile(np.array(rate[1]) / np.array(rate[0]), [25, 50, 75]).tolist()
    waits = [other.seconds / own for other, own in zip(theirs, times, strict=True)]
    sooner = np.percentile(waits, [25, 50, 75]).tolist()
    goals = np.array([other.score for other in theirs])
    gain = np.array([own.score for own in ours]) - goals
    gain_early = np.array(early) - goals
    name = f"search, {budget / 1e6:.0f} M"
    return [
        Row.times(
            f"{name}: distinct networks scored",
            f"{np.median(rate[1]):,.0f}/s",
            f"{np.median(rate[0]):,.0f}/s (OFA)",
            faster,
            10,
        ),
        Row.times(
            f"{name}: time to OFA's last score",
            f"{np.median(times):.3f} s",
            f"{np.median([o.seconds for o in theirs]):.2f} s (OFA)",
            sooner,
            10,
        ),
        Row(
            work=f"{name}: best score, as many evaluations ({theirs[0].evaluations:,})",
            detofa=f"higher for {(gain > 0).sum()} of {seeds} seeds, {gain.mean():+.4f} on average",
            peer=f"{goals.mean():.4f} (OFA)",
            target="9 of 10 seeds",
            met=bool((gain > 0).sum() >= 0.9 * seeds and gain.mean() > 0),
        ),
        Row(
            work=f"{name}: best score, as many as OFA's distinct networks "
            f"({np.median([other.distinct for other in theirs]):,.0f})",
            detofa=f"higher for {(gain_early > 0).sum()} of {seeds} seeds, "
            f"{gain_early.mean():+.4f} on average",
            peer=f"{goals.mean():.4f} (OFA)",
        ),
    ]


def main() -> None:
    """Measure both budgets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budgets", type=float, nargs="+", default=[300e6, 150e6])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for budget in options.budgets:
        rows += measure(budget, options.seeds)
    rows.append(growth(5000))
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
