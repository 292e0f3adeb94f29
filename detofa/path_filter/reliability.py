"""How far labels can be trusted: whether two halves of the validation images rank archs alike."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from detofa.errors import UserError
from detofa.path_filter.agreement import Comparisons, Estimate, draw_within_bins, estimate
from detofa.path_filter.bins import Indices


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Agreement of a label with itself on other images.

    Attributes:
        tau: In-bin Kendall tau between the labels of the two halves. The whole set ranks better
            than its halves do (Spearman 1910 and Brown 1910, British Journal of Psychology 3).
        noise: Standard error of the whole set's label, taken as the mean of its halves: half the
            standard deviation of their differences. What the halves differ by on all archs, as
            images of unequal difficulty do, is no noise.
        num_archs: Archs with labels of both halves.
    """

    tau: Estimate
    noise: float
    num_archs: int


def split_half_reliability(
    first: ArrayLike, second: ArrayLike, bins: Indices, rng: np.random.Generator
) -> Reliability:
    """Compare the labels of archs on two halves of the validation images.

    Args:
        first: (N,) labels on one half.
        second: (N,) labels of the same archs on the other half.
        bins: (N,) bin of each arch.
        rng: Source of randomness of the bootstrap, which draws archs within bins.

    Raises:
        UserError: a label is not finite, or no two archs share a bin.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    assert one.shape == other.shape == bins.shape, (one.shape, other.shape, bins.shape)
    finite = np.isfinite(one) & np.isfinite(other)
    if not finite.all():
        raise UserError(
            f"arch {int(np.argmin(finite))} has a label that is not a finite number on one half "
            "of the images; evaluate it again"
        )
    comparisons = Comparisons.of(one, other, bins)
    if not comparisons.made.any():
        raise UserError("no two archs share a budget bin; evaluate more archs or use fewer bins")
    resampled = comparisons.resampled(draw_within_bins(bins, rng))
    return Reliability(
        tau=estimate(comparisons.tau(), resampled),
        noise=float(np.std(one - other, ddof=1) / 2),
        num_archs=len(bins),
    )


def choose_label(candidates: Mapping[str, Reliability]) -> str:
    """Return the name of the most reliable label; the first named wins a tie."""
    assert candidates, "a label to choose"
    return max(candidates, key=lambda name: candidates[name].tau.value)
