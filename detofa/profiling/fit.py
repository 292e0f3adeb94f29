"""Fit what blocks cost inside whole detectors, starting from what they are thought to cost.

The cost of block j is its prior cost times 1 + effects: one shared by all blocks, ones shared
by blocks of the same place, kernel or width, and its own. Effects have Gaussian priors at zero, so
a block that no measured detector holds keeps its prior cost times what it shares with others.
The widths of the priors maximise the marginal likelihood of the measured detectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from detofa.blocks import Block, MBConv, NeckHead

Floats = NDArray[np.float64]

_SMALLEST_FACTOR = 0.05  # costs stay positive
_PARTS = 4  # that passes are divided into, to compare one with the others
_START = {"common": 0.2, "shared": 0.1, "own": 0.05, "noise": 0.02}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Fitted costs.

    Attributes:
        block_ms: What each block costs inside a detector, by its key; all above zero.
        residuals: (N,) relative errors, predicted over measured minus 1, of each measured
            detector when it is left out of the fit.
        widths: Standard deviations found for common, shared and own effects and for the noise,
            all relative.
    """

    block_ms: Mapping[str, float]
    residuals: Floats
    widths: Mapping[str, float]


def fit_block_costs(
    blocks: Mapping[str, Block],
    prior_ms: Mapping[str, float],
    detectors: Sequence[Sequence[str]],
    measured_ms: Floats,
    *,
    widths: Mapping[str, float] | None = None,
) -> Fit:
    """Fit the cost of every block to times of whole detectors.

    Args:
        blocks: Every block of a space, by its key.
        prior_ms: What each block is thought to cost, by its key; see `detofa.profiling.priors`.
        detectors: The keys of each measured detector's blocks.
        measured_ms: (N,) time of each.
        widths: As an earlier `Fit.widths`; found from the measurements if not given.
    """
    prior = np.array([prior_ms[key] for key in blocks])
    counts = np.array([[keys.count(key) for key in blocks] for keys in map(list, detectors)])
    shares = counts * prior / measured_ms[:, None]  # of measured times, at prior costs
    target = 1 - shares.sum(axis=1)
    effects = [np.ones((len(blocks), 1)), _shared(blocks), np.eye(len(blocks))]
    covariances = [shares @ effect @ effect.T @ shares.T for effect in effects]
    covariances.append(np.eye(len(target)))  # of the noise
    if widths is None:
        widths = dict(zip(_START, _likely_widths(covariances, target).tolist(), strict=True))
    squares = np.array([widths[name] ** 2 for name in _START])
    inverse = np.linalg.inv(_combine(covariances, squares))
    weights = inverse @ target
    factors = np.ones(len(blocks))
    for square, effect in zip(squares[:-1], effects, strict=True):
        factors += square * (effect @ (effect.T @ (shares.T @ weights)))
    costs = prior * np.maximum(factors, _SMALLEST_FACTOR)
    return Fit(
        block_ms=dict(zip(blocks, costs.tolist(), strict=True)),
        residuals=-weights / np.diag(inverse),  # leave-one-out, in closed form
        widths=widths,
    )


def _likely_widths(covariances: Sequence[Floats], target: Floats) -> Floats:
    """Return the standard deviations that make `target` likeliest, with a weak prior on them."""
    start = np.log(list(_START.values()))

    def cost(log_widths: Floats) -> float:
        covariance = _combine(covariances, np.exp(2 * log_widths))
        prior = np.sum((log_widths - start) ** 2) / 4  # a factor of 4 either way
        log_determinant = np.linalg.slogdet(covariance)[1]
        return float(log_determinant + target @ np.linalg.solve(covariance, target) + prior)

    found = minimize(cost, start, method="Nelder-Mead", bounds=[(np.log(1e-4), 0)] * len(start))
    widths: Floats = np.exp(found.x)
    return widths


def _combine(covariances: Sequence[Floats], squares: Floats) -> Floats:
    return np.tensordot(squares, np.stack(covariances), 1)


def _shared(blocks: Mapping[str, Block]) -> Floats:
    """Return (blocks, effects) ones where a block has an effect in common with others."""
    names = [_shared_names(block) for block in blocks.values()]
    columns = {name: column for column, name in enumerate(sorted(set().union(*names)))}
    shared = np.zeros((len(blocks), len(columns)))
    for row, present in enumerate(names):
        shared[row, [columns[name] for name in present]] = 1
    return shared


def _shared_names(block: Block) -> set[str]:
    size = f"{block.height}x{block.width}"
    if isinstance(block, MBConv):
        place = f"stage {block.stage} residual {block.residual}"
        ratio = round(block.mid_channels / block.in_channels)
        return {place, f"{place} {size}", f"kernel {block.kernel_size}", f"expand {ratio}"}
    if isinstance(block, NeckHead):
        return {
            "neck-head",
            f"neck-head {size}",
            f"neck {block.neck_width}",
            f"head {block.head_width}",
            f"depth {block.head_depth}",
        }
    return {"stem", f"stem {size}"}


def prediction_errors(predicted_ms: Floats, measured_ms: Floats) -> dict[str, float]:
    """Say how good predictions of (N,) detectors are, N at least 2.

    Returns:
        `count`; relative errors `mape` (mean), `bias` (signed mean) and `worst`; the parts of
        detectors `within_5_percent` and `within_10_percent`; and the rank correlation
        `kendall_tau`.
    """
    errors = predicted_ms / measured_ms - 1
    return {
        "count": len(errors),
        "mape": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "worst": float(np.abs(errors).max()),
        "within_5_percent": float((np.abs(errors) <= 0.05).mean()),
        "within_10_percent": float((np.abs(errors) <= 0.10).mean()),
        "kendall_tau": kendall_tau(predicted_ms, measured_ms),
    }


def kendall_tau(first: Floats, second: Floats) -> float:
    """Return the rank correlation of (N,) values, N at least 2; a tie agrees with nothing."""
    rows, columns = np.triu_indices(len(first), 1)
    agree = np.sign(first[rows] - first[columns]) * np.sign(second[rows] - second[columns])
    return float(agree.mean())


def interval_half_width(residuals: Floats) -> float:
    """Return a relative error that at least 95 % of further detectors stay below.

    It is three standard deviations: no unimodal distribution has more than 4/81 of its mass beyond
    (Vysochanskij and Petunin, Theory of Probability and Mathematical Statistics 21, 1980).

    Args:
        residuals: (N,) relative errors of detectors that the fit did not see.
    """
    return float(3 * np.sqrt(np.mean(residuals**2)))


def noise_floor(samples_ms: Floats) -> float | None:
    """Return how far a quarter of the passes is from the others: what no prediction can better.

    Args:
        samples_ms: (models, passes, runs) milliseconds.

    Returns:
        The mean relative error of the medians over a quarter of the passes, one after another,
        against those over all other passes, the drift that all models share removed; None for a
        single pass.
    """
    passes = samples_ms.shape[1]
    if passes < 2:
        return None
    errors = []
    for part in np.array_split(np.arange(passes), min(_PARTS, passes)):
        own = samples_ms[:, part].reshape(len(samples_ms), -1)
        others = np.delete(samples_ms, part, axis=1).reshape(len(samples_ms), -1)
        ratios = np.median(own, axis=1) / np.median(others, axis=1)
        errors.append(np.abs(ratios / np.median(ratios) - 1).mean())
    return float(np.mean(errors))
