"""RidgePredictor: the score of a path, learnt from the paths that were evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detofa.errors import UserError
from detofa.files import is_number
from detofa.space import Genes, SearchSpace

MIN_LABELS = 3
_REGULARISATIONS = np.logspace(4, -4, 33)  # per label, on columns of unit variance
_REMAKE = "evaluate more paths and fit the predictor again"


@dataclass(frozen=True, kw_only=True)
class RidgePredictor:
    """A linear model of a path's label (for example AP) on its encoding.

    Attributes:
        weights: (D,) change of the label per unit of each column of the encoding.
        intercept: Label of an encoding of zeros.
        regularisation: Ridge penalty per label, on columns of unit variance.
        standard_error: Root mean square of the leave-one-out residuals, in units of the label.
        leave_one_out_tau: Kendall's tau between labels and leave-one-out predictions, -1 to 1.
        num_labels: Evaluated paths it was fitted on.
    """

    weights: tuple[float, ...]
    intercept: float
    regularisation: float
    standard_error: float
    leave_one_out_tau: float
    num_labels: int

    @classmethod
    def fit(cls, encoding: ArrayLike, labels: ArrayLike) -> "RidgePredictor":
        """Fit on evaluated paths; leave-one-out in closed form chooses the regularisation.

        The residual of a path left out is its residual divided by (1 - leverage), exactly (Hastie,
        Tibshirani, Friedman: The Elements of Statistical Learning, 7.10). Columns are scaled to
        unit variance once, and the intercept is not penalised.

        Args:
            encoding: (N, D), one row per path.
            labels: (N,), larger is better.

        Raises:
            UserError: fewer than three paths, or a label or encoding that is not finite.
        """
        features, targets = np.asarray(encoding, np.float64), np.asarray(labels, np.float64)
        assert features.ndim == 2 and targets.shape == features.shape[:1], "one label per row"
        if len(targets) < MIN_LABELS:
            raise UserError(
                f"a predictor needs at least {MIN_LABELS} evaluated paths, got {len(targets)}; "
                f"{_REMAKE}"
            )
        if not (np.isfinite(targets).all() and np.isfinite(features).all()):
            broken = int(np.argmin(np.isfinite(targets) & np.isfinite(features).all(axis=1)))
            raise UserError(
                f"path {broken} has the label {targets[broken]}: labels and encodings must be "
                "finite numbers; evaluate it again"
            )
        means, deviations = features.mean(axis=0), features.std(axis=0)
        scales = np.where(deviations > 1e-9, deviations, 1.0)
        left, singular, right = np.linalg.svd((features - means) / scales, full_matrices=False)
        centred = targets - targets.mean()
        regularisation, residuals = _choose(left, singular, centred)
        shrunk = singular / (singular**2 + regularisation * len(targets))
        weights = right.T @ (shrunk * (left.T @ centred)) / scales
        return cls(
            weights=tuple(weights.tolist()),
            intercept=float(targets.mean() - means @ weights),
            regularisation=regularisation,
            standard_error=float(np.sqrt(np.mean(residuals**2))),
            leave_one_out_tau=_kendall_tau(targets, _ranked_part(targets, residuals)),
            num_labels=len(targets),
        )

    def predict(self, encoding: ArrayLike) -> NDArray[np.float64]:
        """Predict labels: (N, D) encodings to (N,).

        Raises:
            UserError: the encoding is of another space.
        """
        features = np.asarray(encoding, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.weights):
            raise UserError(
                f"the predictor was fitted on {len(self.weights)} numbers per path, got an array "
                f"of shape {features.shape}; fit it for this search space"
            )
        predicted: NDArray[np.float64] = features @ np.array(self.weights) + self.intercept
        return predicted

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back exactly."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return record | {"weights": list(self.weights)}

    @classmethod
    def from_json(cls, record: Any) -> "RidgePredictor":
        """Read what `to_json` wrote; `schema` and `kind` of the file are skipped.

        Raises:
            UserError: a field is missing, unknown, or not a finite number.
        """
        found = set(record) - {"schema", "kind"} if isinstance(record, Mapping) else set()
        names = set(cls.__dataclass_fields__)
        if found != names:
            raise UserError(
                f"a predictor has the fields {sorted(names)}; missing {sorted(names - found)}, "
                f"unknown {sorted(found - names)}; {_REMAKE}"
            )
        weights, count = record["weights"], record["num_labels"]
        numbers = [record[name] for name in names - {"weights", "num_labels"}]
        if not isinstance(weights, list) or not all(map(is_number, [*weights, *numbers])):
            raise UserError(f"a predictor is made of finite numbers, got {record!r}; {_REMAKE}")
        if type(count) is not int or count < MIN_LABELS:
            raise UserError(f"num_labels of a predictor is {count!r}; {_REMAKE}")
        fields = {name: float(record[name]) for name in names - {"weights", "num_labels"}}
        return cls(weights=tuple(map(float, weights)), num_labels=count, **fields)


def encode_paths(
    space: SearchSpace, genes: Genes, macs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what a predictor of a path's AP sees: its compact encoding and the log of its MACs.

    Args:
        space: The search space.
        genes: (N, num_genes).
        macs: (N,) multiply-accumulates.

    Returns:
        (N, D).
    """
    return np.concatenate([space.encode_compact(genes), np.log(macs)[:, None]], axis=1)


def _choose(
    left: NDArray[np.float64], singular: NDArray[np.float64], centred: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return the regularisation with the least leave-one-out error, and its residuals (N,)."""
    count = len(centred)
    projected = left.T @ centred
    best: tuple[float, float, NDArray[np.float64]] | None = None
    for regularisation in _REGULARISATIONS.tolist():  # descending: a tie keeps the stronger
        shrinkage = singular**2 / (singular**2 + regularisation * count)
        leverages = 1 / count + (left**2) @ shrinkage
        if leverages.max() > 1 - 1e-6:  # the fit passes through a label: no residual to divide
            continue
        residuals = (centred - left @ (shrinkage * projected)) / (1 - leverages)
        error = float(np.mean(residuals**2))
        if best is None or error < best[0]:
            best = (error, regularisation, residuals)
    assert best is not None, "the strongest regularisation has leverages near 1 / N"
    return best[1], best[2]


def _ranked_part(
    targets: NDArray[np.float64], residuals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each leave-one-out prediction less the mean of the labels it was fitted on.

    That mean falls as the label left out rises: with it, labels without any signal would give a
    tau of -1.
    """
    others: NDArray[np.float64] = (targets.sum() - targets) / (len(targets) - 1)
    return targets - residuals - others


def _kendall_tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return Kendall's tau-b; 0 where one side is constant and nothing can be ranked."""
    from scipy.stats import kendalltau  # slow to import, and needed only when fitting

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(kendalltau(first, second).statistic)
