"""What a choice is about: a budget, the paths evaluated for it, and the outcome."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detofa.arch import Arch
from detofa.predictor import RidgePredictor
from detofa.subnet import Subnet

_MEASURING_ERROR = 0.02  # of one measurement, so that the next one is within the budget too


@dataclass(frozen=True, kw_only=True)
class Budget:
    """An upper limit on a cost.

    Attributes:
        kind: `latency` (in milliseconds, of a table's device) or `macs`.
        limit: The limit, in the kind's unit.
    """

    kind: Literal["latency", "macs"]
    limit: float

    @property
    def unit(self) -> str:
        """Return the unit of the limit."""
        return "ms" if self.kind == "latency" else "MACs"


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A path that was evaluated for real.

    Attributes:
        arch: The path.
        predicted_ap: What the predictor said.
        ap: AP on the validation split, with inherited weights, recalibrated.
        ap50: AP at IoU 0.50.
        macs: Multiply-accumulates of the whole detector.
        num_params: Parameters of the whole detector.
        predicted_ms: Latency by the table, or None without one.
        low_ms: Lower edge of its interval.
        high_ms: Upper edge of its interval, which is compared with the budget.
        measured_ms: p50 measured on this machine, at the speed it had for the table; None where
            the table is of another device.
    """

    arch: Arch
    predicted_ap: float
    ap: float
    ap50: float
    macs: float
    num_params: float
    predicted_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    measured_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return record | {"arch": self.arch.to_json()}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The outcome of a search.

    Attributes:
        subnet_path: The subnet.json written.
        subnet: Its content.
        finalists: Best first; the first is the winner.
        reachable: Range of the cost in this space, for people.
        notes: What the user should know.
        predictor: The predictor that ranked the candidates.
    """

    subnet_path: Path
    subnet: Subnet
    finalists: tuple[Finalist, ...]
    reachable: str
    notes: tuple[str, ...]
    predictor: RidgePredictor


def merit(item: Finalist, budget: Budget) -> tuple[bool, float]:
    """Return what orders finalists: those within the budget by AP, then the nearest to it."""
    if budget.kind == "macs":
        cost, limit = item.macs, budget.limit
    elif item.measured_ms is not None:
        cost, limit = item.measured_ms, budget.limit * (1 - _MEASURING_ERROR)
    else:
        assert item.high_ms is not None
        cost, limit = item.high_ms, budget.limit
    return cost > limit, cost if cost > limit else -item.ap
