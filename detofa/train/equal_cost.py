"""Equal cost: what a run spent, and how many steps another method may take for as much."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from detofa.errors import UserError
from detofa.train.config import TrainConfig
from detofa.train.filtering import saved_seconds
from detofa.train.run import RunFolder

_MAY_DIFFER = ("method", "steps", "seed")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a finished run cost, in seconds: of all processor threads on a CPU, of a GPU on a GPU.

    Attributes:
        training: Of all steps.
        filtering: Of labels and fit, and of the comparison with other rankers if that decides
            whether to prune; 0 for a method without a path filter.
    """

    training: float
    filtering: float

    @property
    def total(self) -> float:
        """Return all of it."""
        return self.training + self.filtering


def seconds_spent(run: RunFolder) -> Spent:
    """Return what a finished run cost; progress evaluations are not counted.

    Raises:
        UserError: not finished, or no run.
    """
    config = run.load_config()
    seconds = _step_seconds(run, config)
    has_filter = config.method == "detofa"  # that of any other run came later, for its search
    filtering = 0.0
    if has_filter:  # to compare rankers is part of it where that decides whether to prune
        filtering = saved_seconds(run.filter_report, assessed=config.filter.prune != "always")
    return Spent(training=sum(seconds), filtering=filtering)


def steps_of_equal_cost(config: TrainConfig, reference: RunFolder) -> int:
    """Return the steps that a run may take for what a run by `detofa` cost, labels included.

    Rates are the reference's own: of the steps that train the largest path alone, that draw from
    the whole space, and that draw from what the filter left of it.

    Args:
        config: Settings of the run to come, by another method; its steps do not count.
        reference: A finished run by `detofa` with the same settings otherwise.

    Raises:
        UserError: either is of the wrong method, the reference is not finished, or has other
            settings.
    """
    theirs = reference.load_config()
    if theirs.method != "detofa" or config.method == "detofa":
        raise UserError(
            f"{reference.path} was trained by {theirs.method}, and this run is by {config.method}; "
            "equal cost is told from a run by detofa, whose labels a run by another method makes "
            "up for with steps"
        )
    first, second = config.to_json(), theirs.to_json()
    differing = [name for name in first if first[name] != second[name] and name not in _MAY_DIFFER]
    if differing:
        raise UserError(
            f"{reference.path} differs in {', '.join(differing)}; arms of equal cost should differ "
            f"in nothing but {', '.join(_MAY_DIFFER)}"
        )
    seconds = _step_seconds(reference, theirs)
    alone_until = math.ceil(theirs.largest_first * theirs.steps)
    warm_up_end = round(theirs.filter.warm_up * theirs.steps)
    alone = _mean(seconds[:alone_until])
    whole = _mean(seconds[alone_until:warm_up_end])
    late = _mean(seconds[warm_up_end:]) if config.method == "random-pruned" else whole
    alone_share, warm_up = config.largest_first, config.filter.warm_up
    rate = alone_share * alone + (warm_up - alone_share) * whole + (1 - warm_up) * late
    return max(1, round(seconds_spent(reference).total / rate))


def _mean(seconds: Sequence[float]) -> float:
    return fmean(seconds) if seconds else 0.0


def _step_seconds(run: RunFolder, config: TrainConfig) -> list[float]:
    seconds = [record["seconds"] for record in run.read_metrics() if "seconds" in record]
    if len(seconds) != config.steps:
        raise UserError(
            f"{run.path} has {len(seconds)} of {config.steps} steps; finish it first, with the "
            "command that began it"
        )
    return seconds
