"""How far labels can be trusted: whether two halves of the validation images rank archs alike."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from detofa.errors import UserError
from detofa.path_filter.agreement import Comparisons, Estimate, draw_within_bins, estimate
from detofa.path_filter.bins import Indices

_LEAST_SUM = 0.1  # below which a label that contradicts itself is not made worth more


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Agreement of a label with itself, and with AP, on other images.

    Attributes:
        tau: In-bin Kendall tau between the labels of the two halves. The whole set ranks better
            than its halves do (Spearman 1910 and Brown 1910, British Journal of Psychology 3).
        tau_with_ap: In-bin Kendall tau between the label on one half and AP on the other, both
            ways round: what the label is worth to someone who wants AP. A label can agree with
            itself and yet rank by something else.
        noise: Standard error of the whole set's label, taken as the mean of its halves: half the
            standard deviation of their differences. What the halves differ by on all archs, as
            images of unequal difficulty do, is no noise.
        num_archs: Archs with labels of both halves.
    """

    tau: Estimate
    tau_with_ap: Estimate
    noise: float
    num_archs: int

    @property
    def worth(self) -> float:
        """Return how well the label of all images may rank AP on others.

        Twice the images leave a label less noise, and the noisier label gains more by it: this is
        the factor by which correlations grow (Spearman 1910 and Brown 1910).
        """
        return self.tau_with_ap.value * math.sqrt(2 / max(1 + self.tau.value, _LEAST_SUM))


def split_half_reliability(
    halves: ArrayLike, ap_halves: ArrayLike, bins: Indices, rng: np.random.Generator
) -> Reliability:
    """Compare the labels of archs on two halves of the validation images.

    Args:
        halves: (2, N) labels of the same archs on each half.
        ap_halves: (2, N) AP of them on each half.
        bins: (N,) bin of each arch.
        rng: Source of randomness of the bootstrap, which draws archs within bins.

    Raises:
        UserError: a label is not finite, or no two archs share a bin.
    """
    labels, aps = np.asarray(halves, np.float64), np.asarray(ap_halves, np.float64)
    assert labels.shape == aps.shape == (2, *bins.shape), (labels.shape, aps.shape, bins.shape)
    finite = np.isfinite([labels, aps]).all(axis=(0, 1))
    if not finite.all():
        raise UserError(
            f"arch {int(np.argmin(finite))} has a label that is not a finite number on one half "
            "of the images; evaluate it again"
        )
    own = Comparisons.of(labels[0], labels[1], bins)
    if not own.made.any():
        raise UserError("no two archs share a budget bin; evaluate more archs or use fewer bins")
    with_ap = Comparisons.of(labels[0], aps[1], bins) + Comparisons.of(labels[1], aps[0], bins)
    draws = draw_within_bins(bins, rng)
    return Reliability(
        tau=estimate(own.tau(), own.resampled(draws)),
        tau_with_ap=estimate(with_ap.tau(), with_ap.resampled(draws)),
        noise=float(np.std(labels[0] - labels[1], ddof=1) / 2),
        num_archs=len(bins),
    )


def choose_label(candidates: Mapping[str, Reliability]) -> str:
    """Return the name of the label that may rank AP on other images best; see its `worth`.

    Where AP tells nothing yet, as it is zero for all, the most reliable label is chosen.
    """
    assert candidates, "a label to choose"

    def worth(name: str) -> tuple[float, float]:
        return candidates[name].worth, candidates[name].tau.value

    return max(candidates, key=worth)
