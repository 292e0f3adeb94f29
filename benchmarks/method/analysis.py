"""What the arms came to: hypervolume, paired contrasts, compute for equal AP, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from benchmarks.method.judge import JudgedPath, Judgement, mean_ap

Values = NDArray[np.float64]
ARMS = ("detofa", "ofa", "random-pruned")
SAME_STEPS = "ofa-same-steps"
"""The whole space for as many steps as the filtered arm has: cheaper by its labels and fits."""
CONTRASTS = (("detofa", "ofa"), ("detofa", "random-pruned"), ("random-pruned", "ofa"))
"""First less second.

The last is the null contrast: what pruning by chance does, and drawing evenly over the bins, as
both pruned arms do after the warm-up.
"""
FLAT_AP = 1.0
"""Where fronts overlap over fewer points of AP than this, compute for equal AP means nothing."""
_LEVELS = 50
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds with its 95 % interval, by Student's t.

    Attributes:
        mean: The mean.
        low: Lower edge; minus infinity for one seed.
        high: Upper edge; infinity for one seed.
    """

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Return a JSON object; an edge that one seed cannot tell is null."""
        edges = {"low": self.low, "high": self.high}
        known = {name: edge if np.isfinite(edge) else None for name, edge in edges.items()}
        return {"mean": self.mean, **known}

    def __str__(self) -> str:
        """Return, for example, `+0.52 (-0.10 to +1.14)`."""
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"

    @property
    def sign(self) -> str:
        """Return `above` or `below` where zero is outside, else `not resolved`."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "not resolved"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of one value for each seed, with its interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean=mean, low=-np.inf, high=np.inf)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)) * error
    return Interval(mean=mean, low=mean - half, high=mean + half)


def envelope(front: Sequence[JudgedPath], macs: Values) -> Values:
    """Return the test AP, in points, of the path that one would choose at each of (N,) MACs.

    That is the path at or below those MACs with the best AP on validation; 0 where none is.
    """
    chosen = np.zeros(len(macs))
    for index, limit in enumerate(macs):
        fitting = [path for path in front if path.macs <= limit]
        if fitting:
            chosen[index] = _test_ap(max(fitting, key=_validation_ap))
    return chosen


def hypervolume(front: Sequence[JudgedPath], low: float, high: float) -> float:
    """Return the area under a front over log MACs, as a mean AP in points.

    The reference point is no AP at `high` MACs; below its first path a front has none.

    Args:
        front: Paths in any order.
        low: Least MACs of the space.
        high: Greatest MACs of the space.
    """
    corners = np.sort([path.macs for path in front if low <= path.macs <= high])
    starts = np.concatenate([[low], corners])
    ends = np.concatenate([corners, [high]])
    widths = np.log(ends / starts)
    return float((envelope(front, starts) * widths).sum() / np.log(high / low))


def compute_ratio(front: Sequence[JudgedPath], base: Sequence[JudgedPath]) -> float | None:
    """Return the MACs that a front needs for the AP of another, as a share; None where flat.

    Both fronts are lines through test AP over log MACs, of those paths that no cheaper one beats
    on validation (and, so that there is one cost for an AP, on the test). The ratio is a geometric
    mean over the AP that both reach.
    """
    lines = [_line(paths) for paths in (front, base)]
    low = max(line[1][0] for line in lines)
    high = min(line[1][-1] for line in lines)
    if high - low < FLAT_AP:
        return None
    levels = np.linspace(low, high, _LEVELS)
    own, other = (np.interp(levels, aps, costs) for costs, aps in lines)
    return float(np.exp((own - other).mean()))


def _line(front: Sequence[JudgedPath]) -> tuple[Values, Values]:
    """Return log MACs and test AP, in points, ascending in both."""
    kept: list[JudgedPath] = []
    for path in sorted(front, key=lambda path: path.macs):
        figures = _validation_ap, _test_ap
        if all(figure(path) > figure(last) for figure in figures for last in kept[-1:]):
            kept.append(path)
    return np.log([path.macs for path in kept]), np.array([_test_ap(path) for path in kept])


def _test_ap(path: JudgedPath) -> float:
    return 100 * path.ap


def _validation_ap(path: JudgedPath) -> float:
    assert path.validation_ap is not None
    return 100 * path.validation_ap


Results = Mapping[str, Sequence[Judgement]]
"""Of each arm what every seed came to, seeds in one order."""


def measures(low: float, high: float) -> dict[str, Callable[[Judgement], float]]:
    """Return what arms are compared by, all in points of AP; see the report's text."""
    return {
        "front, mean AP": lambda found: mean_ap(found.front),
        "hypervolume": lambda found: hypervolume(found.front, low, high),
        "candidates": lambda found: mean_ap(found.candidates),
        "same paths, whole space": lambda found: mean_ap(found.whole),
        "same paths, ranked highest": lambda found: mean_ap(found.ranked_highest),
    }


def contrasts_of(results: Results) -> tuple[tuple[str, str], ...]:
    """Return the pairs of arms to compare, first less second."""
    return CONTRASTS if SAME_STEPS not in results else (*CONTRASTS, ("detofa", SAME_STEPS))


def contrasts(results: Results, low: float, high: float) -> dict[str, dict[str, Interval]]:
    """Return the paired differences of each measure, first arm less second."""
    return {
        name: {
            f"{first} - {second}": interval(
                [
                    measure(one) - measure(other)
                    for one, other in zip(results[first], results[second], strict=True)
                ]
            )
            for first, second in contrasts_of(results)
        }
        for name, measure in measures(low, high).items()
    }


def choice_alone(found: Judgement) -> float:
    """Return what the filter's choice adds in one arm's weights, in points of AP.

    That is the mean of the paths that the filter ranks highest, less that of the arm's candidates
    matched to the same ones in MACs; zero in the filtered arm, whose candidates they are.
    """
    bins = sorted({path.bin for path in found.ranked_highest})
    of_bin = {place: [p for p in found.candidates if p.bin == place] for place in bins}
    matched = [
        path
        for place in bins
        for path in of_bin[place][: sum(p.bin == place for p in found.ranked_highest)]
    ]
    return mean_ap(found.ranked_highest) - mean_ap(matched)


def macs_mismatch(results: Results) -> float:
    """Return how far candidates of two arms are from each other in MACs at most, as a share."""
    costs = {
        arm: np.log([[path.macs for path in seed.candidates] for seed in found])
        for arm, found in results.items()
    }
    return float(
        max(np.abs(costs[one] - costs[other]).max() for one, other in contrasts_of(results))
    )


def savings(results: Results) -> dict[str, Interval | None]:
    """Return the compute for equal AP of each contrast, in percent less; None where flat."""
    found: dict[str, Interval | None] = {}
    for first, second in contrasts_of(results):
        ratios = [
            compute_ratio(one.front, other.front)
            for one, other in zip(results[first], results[second], strict=True)
        ]
        known = [ratio for ratio in ratios if ratio is not None]
        whole = len(known) == len(ratios)
        found[f"{first} - {second}"] = _percent_less(known) if whole else None
    return found


def _percent_less(ratios: Sequence[float]) -> Interval:
    """Return what is saved, in percent: a geometric mean over seeds."""
    logs = interval(np.log(ratios).tolist())
    mean, high, low = (100 * (1 - np.exp(log)) for log in (logs.mean, logs.low, logs.high))
    return Interval(mean=float(mean), low=float(low), high=float(high))


def plot(results: Results) -> str:
    """Return the fronts as SVG: thin lines for seeds, thick ones for means in each bin."""
    colours = {"detofa": "#0a7d4b", "ofa": "#555555", "random-pruned": "#c46a00"}
    colours[SAME_STEPS] = "#9bb7d4"
    with mpl.rc_context({"svg.hashsalt": "detofa", "font.size": 9}):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for arm, judged in results.items():
            fronts = [found.front for found in judged]
            macs = np.array([[path.macs / 1e6 for path in front] for front in fronts])
            aps = np.array([[_test_ap(path) for path in front] for front in fronts])
            for x, y in zip(macs, aps, strict=True):
                axes.plot(x, y, color=colours[arm], linewidth=0.6, alpha=0.4)
            mean_macs = np.exp(np.log(macs).mean(axis=0))
            axes.plot(mean_macs, aps.mean(axis=0), "o-", color=colours[arm], linewidth=2, label=arm)
        axes.set_xscale("log")
        axes.set_xlabel("MACs of the whole detector, millions")
        axes.set_ylabel("AP on the test split")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
