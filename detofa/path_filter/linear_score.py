"""LinearScore: the part of a path filter's score that is linear, by ridge regression."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from detofa.errors import UserError
from detofa.files import is_number
from detofa.path_filter.bins import Values
from detofa.path_filter.pairs import Pairs
from detofa.path_filter.records import REMAKE, fields_of
from detofa.predictor import RidgePredictor

_FOLDS = 4
_DIVISIONS = 3  # into folds
_FEWEST_LABELS = 10  # to choose by
_MARGINS = {"encoding": 0.0, "budget": 0.01, "products": 0.08}  # of a pair's loss, to be worth it
_LEAST_ERROR = 0.01  # of the ridge, in standard deviations of the labels

Terms = Literal["encoding", "budget", "products"]
"""What a score is linear in: the compact encoding; the budget too; the products of both too."""


@dataclass(frozen=True, kw_only=True)
class LinearScore:
    """A ridge on the compact encoding, with the cost in it, and perhaps more.

    With the encoding alone, differences between bins teach what an option is worth. With the
    budget, they do not, as the budget explains them. With the products, what an option is worth
    changes with the budget.

    Attributes:
        ridge: Predicts the label.
        terms: What it is linear in.
        scale: Turns differences of predictions into log-odds of the labels' order.
    """

    ridge: RidgePredictor
    terms: Terms
    scale: float

    def log_odds(self, compact: Values, budgets: Values) -> Values:
        """Score archs at budgets: (N, C) compact encodings and (N,) scaled budgets to (N,)."""
        return self.ridge.predict(_columns(compact, budgets, self.terms)) * self.scale

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back exactly."""
        return {"ridge": self.ridge.to_json(), "terms": self.terms, "scale": self.scale}

    @classmethod
    def from_json(cls, record: Any) -> "LinearScore":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing, unknown, or of the wrong kind.
        """
        fields = fields_of(record, cls.__dataclass_fields__, "a linear score")
        if fields["terms"] not in get_args(Terms) or not is_number(fields["scale"]):
            raise UserError(
                f"a linear score has terms (one of {', '.join(get_args(Terms))}) and a scale (a "
                f"number), got {fields['terms']!r} and {fields['scale']!r}; make it again with "
                f"{REMAKE}"
            )
        return cls(**fields | {"ridge": RidgePredictor.from_json(fields["ridge"])})


def fit_linear_score(
    compact: Values,
    budgets: Values,
    labels: Values,
    pairs: Pairs,
    item_budgets: Values,
    rng: np.random.Generator,
) -> LinearScore:
    """Fit on labelled archs, linear in what orders unseen archs best.

    All kinds are fitted on parts of the labels and judged on pairs of the rest, by the logistic
    loss of their order. The error of the label would judge what tells bins apart as well.

    Args:
        compact: (N, C) compact encodings of the labelled archs.
        budgets: (N,) scaled budget of each arch's bin.
        labels: (N,) larger is better.
        pairs: Comparisons of items, which are archs seen at a budget.
        item_budgets: (K,) scaled budget of each item.
        rng: Source of randomness of the parts.
    """
    if len(labels) < _FEWEST_LABELS:
        return _fit(compact, budgets, labels, "encoding")
    losses: dict[Terms, float] = {terms: _MARGINS[terms] for terms in get_args(Terms)}
    for _ in range(_DIVISIONS):
        folds = rng.permutation(len(labels)) % _FOLDS
        item_folds = folds[pairs.archs]
        # Scores of two fits have no common scale, so both archs of a pair must be of one fold.
        weights = pairs.weights * (item_folds[pairs.better] == item_folds[pairs.worse])
        weights /= max(float(weights.sum()), 1e-9) * _DIVISIONS
        for terms in losses:
            scores = np.empty(len(item_budgets))
            for fold in range(_FOLDS):
                kept, items = folds != fold, item_folds == fold
                fitted = _fit(compact[kept], budgets[kept], labels[kept], terms)
                scores[items] = fitted.log_odds(compact[pairs.archs[items]], item_budgets[items])
            against = scores[pairs.worse] - scores[pairs.better]
            losses[terms] += float(weights @ np.logaddexp(0, against))
    return _fit(compact, budgets, labels, min(losses, key=losses.__getitem__))


def _fit(compact: Values, budgets: Values, labels: Values, terms: Terms) -> LinearScore:
    """Fit one kind; its scale takes the ridge's leave-one-out errors for normal ones.

    Then the first of two archs is better with probability Phi(difference / (sqrt(2) error)), and a
    logistic function of slope 1.702 is within 0.01 of Phi.
    """
    ridge = RidgePredictor.fit(_columns(compact, budgets, terms), labels)
    error = max(ridge.standard_error, _LEAST_ERROR * float(labels.std()))
    scale = 1.702 / math.sqrt(2) / error if error > 0 else 0.0
    return LinearScore(ridge=ridge, terms=terms, scale=scale)


def _columns(compact: Values, budgets: Values, terms: Terms) -> Values:
    """Return what the ridge is linear in: (N, C) and (N,) to (N, C), C + 1 or 2 C + 1 columns."""
    columns = [compact]
    if terms != "encoding":
        columns.append(budgets[:, None])
    if terms == "products":
        columns.append((compact - 0.5) * budgets[:, None])
    return np.concatenate(columns, axis=1)
