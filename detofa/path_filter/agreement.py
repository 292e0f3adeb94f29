"""Agreement of two rankings inside budget bins: Kendall's tau, with bootstrap intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detofa.path_filter.bins import Indices, Values

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and how well it is known.

    Attributes:
        value: The figure.
        low: Lower end of its interval, of probability `CONFIDENCE`.
        high: Upper end.
        standard_error: Standard deviation over resamples.
    """

    value: float
    low: float
    high: float
    standard_error: float

    def __str__(self) -> str:
        """Return the figure with its interval, for people."""
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparisons:
    """How often pairs of archs were compared, and how often that agreed with their labels.

    Attributes:
        agreed: (N, N) symmetric: comparisons in the order of the labels less those against it; a
            tie on either side counts as neither.
        made: (N, N) symmetric: comparisons; zero between bins and on the diagonal.
        bins: (N,) bin of each arch.
    """

    agreed: Values
    made: Values
    bins: Indices

    @classmethod
    def of(cls, scores: Values, labels: Values, bins: Indices) -> "Comparisons":
        """Compare every pair of the same bin once: three times (N,)."""
        made = (bins[:, None] == bins[None]).astype(np.float64)
        np.fill_diagonal(made, 0)
        return cls(agreed=made * _signs(scores) * _signs(labels), made=made, bins=bins)

    def __add__(self, other: "Comparisons") -> "Comparisons":
        """Return the comparisons of both, of the same archs."""
        agreed, made = self.agreed + other.agreed, self.made + other.made
        return Comparisons(agreed=agreed, made=made, bins=self.bins)

    def tau(self) -> float:
        """Return Kendall's tau over all comparisons, -1 to 1; 0 where there is none."""
        return float(self.agreed.sum() / max(self.made.sum(), 1))

    def in_bin(self, index: int) -> "Comparisons":
        """Return the comparisons of one bin."""
        rows = np.nonzero(self.bins == index)[0]
        pairs = np.ix_(rows, rows)
        return Comparisons(agreed=self.agreed[pairs], made=self.made[pairs], bins=self.bins[rows])

    def resampled(self, draws: NDArray[np.int64]) -> Values:
        """Return tau with archs counted as often as drawn: (R, N) to (R,).

        A pair counts the product of its archs' numbers; an arch is not compared with itself.
        """
        agreed = ((draws @ self.agreed) * draws).sum(axis=1)
        made = ((draws @ self.made) * draws).sum(axis=1)
        taus: Values = agreed / np.maximum(made, 1)
        return taus


def draw_within_bins(
    bins: Indices, rng: np.random.Generator, resamples: int = RESAMPLES
) -> NDArray[np.int64]:
    """Draw as many archs of each bin as it has, with replacement.

    Args:
        bins: (N,) bin of each arch.
        rng: Source of randomness.
        resamples: How many times.

    Returns:
        (resamples, N) how often each arch was drawn.
    """
    draws = np.zeros((resamples, len(bins)), np.int64)
    for index in np.unique(bins):
        (places,) = np.nonzero(bins == index)
        share = np.full(len(places), 1 / len(places))
        draws[:, places] = rng.multinomial(len(places), share, size=resamples)
    return draws


def estimate(value: float, resampled: Values) -> Estimate:
    """Return a figure with its percentile bootstrap interval (Efron, Tibshirani 1993, chapter 13).

    Args:
        value: The figure on the archs themselves.
        resampled: (R,) the figure on resamples of them.
    """
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(
        value=value, low=float(low), high=float(high), standard_error=float(np.std(resampled))
    )


def _signs(values: Values) -> Values:
    signs: Values = np.sign(values[:, None] - values[None])
    return signs
