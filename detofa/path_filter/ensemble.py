"""An ensemble of small rankers that corrects a linear score, budget by budget."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from detofa.errors import UserError
from detofa.files import is_number
from detofa.path_filter.pairs import Pairs

_LAST_RATE = 0.02  # learning rate of the last step, as a share of the first


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """Settings of a path filter's fit.

    The defaults were chosen on labels made up for the `lite0` space: 60 or 120 of them, with noise
    of 0.3 to 1 times the spread inside a bin.

    Attributes:
        members: Rankers of the ensemble.
        hidden_width: Hidden units of each.
        steps: Full-batch steps of Adam.
        learning_rate: Of the first step; it falls to nearly zero.
        penalty: Weight of the squared parameters, divided by the number of labels.
        tolerance: Archs are also compared with those of bins whose budget is smaller by up to this
            factor; 1 for none.
        one_hot_scale: Size of the one-hot features beside the compact ones. Under the penalty, a
            larger feature is used more readily.
        interaction_scale: Size of the features multiplied by the budget, beside the features.
    """

    members: int = 8
    hidden_width: int = 8
    steps: int = 60
    learning_rate: float = 0.05
    penalty: float = 25.0
    tolerance: float = 1.0
    one_hot_scale: float = 0.3
    interaction_scale: float = 0.6

    def __post_init__(self) -> None:
        """Check kinds and ranges.

        Raises:
            UserError: a field is of the wrong kind or out of range.
        """
        for name in ("members", "hidden_width", "steps"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise UserError(f"{name} should be a whole number, at least 1, got {value!r}")
        for name in ("learning_rate", "penalty", "one_hot_scale", "interaction_scale"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise UserError(f"{name} should be a number, at least 0, got {value!r}")
        if not is_number(self.tolerance) or self.tolerance < 1:
            raise UserError(f"tolerance should be a ratio, at least 1, got {self.tolerance!r}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Rankers that each add a score linear in the features to that of a small network.

    M members, D features, H hidden units; all float64.

    Attributes:
        linear: (M, 2 D, 1) weights of the features, and of the features times the budget.
        hidden: (M, D + 1, H) weights of the features and of the budget.
        hidden_bias: (M, 1, H).
        output: (M, H, 1) weights of the hidden units.
    """

    linear: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    output: Tensor

    def scores(self, features: Tensor, budgets: Tensor, interaction_scale: float) -> Tensor:
        """Return each member's scores: (K, D) features and (K, 1) budgets to (M, K)."""
        products = interaction_scale * budgets * features
        linear = torch.cat([features, products], 1) @ self.linear
        inputs = torch.cat([features, budgets], 1)
        hidden = torch.relu(inputs @ self.hidden + self.hidden_bias)
        return (linear + hidden @ self.output).squeeze(2)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def fit_ensemble(
    features: Tensor,
    budgets: Tensor,
    base: Tensor,
    pairs: Pairs,
    *,
    num_labels: int,
    settings: FilterSettings,
    generator: torch.Generator,
) -> Ensemble:
    """Fit what is to be added to a score, by the logistic loss of pairs' differences.

    The loss is RankNet's (Burges et al., Learning to rank using gradient descent, ICML 2005).
    Members start from hidden weights of their own and count each arch by an exponential draw of
    their own (the Bayesian bootstrap: Rubin, The Annals of Statistics 9, 1981).

    Args:
        features: (K, D) features of the pairs' items.
        budgets: (K, 1) scaled budget that each is seen at.
        base: (K,) the score that is there, as log-odds.
        pairs: Comparisons of the items.
        num_labels: Labelled archs behind them.
        settings: Settings of the fit.
        generator: Source of randomness.
    """
    ensemble = _initial(features.shape[1], settings, generator)
    start = ensemble.hidden.detach().clone()
    parameters = list(ensemble.tensors().values())
    weights = _bootstrapped(pairs, num_labels, settings.members, generator)
    better, worse = torch.from_numpy(pairs.better), torch.from_numpy(pairs.worse)
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, _LAST_RATE, settings.steps)
    for _ in range(settings.steps):
        scores = base + ensemble.scores(features, budgets, settings.interaction_scale)
        loss = (weights * F.softplus(scores[:, worse] - scores[:, better])).sum()
        size = ensemble.linear.square().sum() + ensemble.output.square().sum()
        size = size + (ensemble.hidden - start).square().sum()
        loss = loss + settings.penalty / num_labels * size
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters), strict=True
        ):
            parameter.grad = gradient
        optimiser.step()
        schedule.step()
    return Ensemble(**{name: value.detach() for name, value in ensemble.tensors().items()})


def _initial(num_features: int, settings: FilterSettings, generator: torch.Generator) -> Ensemble:
    """Return members that add nothing yet; only their hidden weights differ."""
    members, width = settings.members, settings.hidden_width
    shape = (members, num_features + 1, width)
    hidden = torch.randn(shape, generator=generator, dtype=torch.float64)
    zeros = [(members, 2 * num_features, 1), (members, 1, width), (members, width, 1)]
    linear, bias, output = (torch.zeros(size, dtype=torch.float64) for size in zeros)
    return Ensemble(
        linear=linear.requires_grad_(),
        hidden=(hidden / math.sqrt(num_features + 1)).requires_grad_(),
        hidden_bias=bias.requires_grad_(),
        output=output.requires_grad_(),
    )


def _bootstrapped(
    pairs: Pairs, num_labels: int, members: int, generator: torch.Generator
) -> Tensor:
    """Return the weight of each pair for each member: (M, P), one in sum for each."""
    uniform = torch.rand((members, num_labels), generator=generator, dtype=torch.float64)
    counts = -torch.log1p(-uniform)
    items = counts[:, torch.from_numpy(pairs.archs)]
    weights = torch.from_numpy(pairs.weights) * items[:, pairs.better] * items[:, pairs.worse]
    return weights / weights.sum(1, keepdim=True)
