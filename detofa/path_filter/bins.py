"""BudgetBins: ranges of a cost, within which archs are compared with each other."""

import itertools
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.files import is_number
from detofa.path_filter.records import fields_of, tuple_of
from detofa.units import format_count

Kind = Literal["macs", "latency"]
Values = NDArray[np.float64]
Indices = NDArray[np.intp]
_UNITS = {"macs": "MACs", "latency": "ms"}


@dataclass(frozen=True, kw_only=True)
class BudgetBins:
    """Ranges of a cost, each named by its upper edge: the budget that its archs fit.

    Attributes:
        kind: The cost: `macs` of the whole detector, or `latency` in milliseconds.
        edges: (B + 1) ascending, above zero; bin b holds edges[b] < cost <= edges[b + 1].
        device: Name of the device whose latency it is; None for MACs.
        table_sha256: Hash of the latency table; None for MACs.
    """

    kind: Kind
    edges: tuple[float, ...]
    device: str | None = None
    table_sha256: str | None = None

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UserError: a field is of the wrong kind or out of range.
        """
        if self.kind not in get_args(Kind):
            raise UserError(f"bins are of macs or latency, got {self.kind!r}")
        numbers = isinstance(self.edges, tuple) and all(map(is_number, self.edges))
        if not numbers or len(self.edges) < 2 or self.edges[0] <= 0:
            raise UserError(f"edges of bins should be two or more positive numbers: {self.edges!r}")
        if not all(low < high for low, high in itertools.pairwise(self.edges)):
            raise UserError(f"edges of bins should ascend, got {self.edges}; use fewer bins")
        source = (self.device, self.table_sha256)
        if not all(isinstance(value, str) for value in source if value is not None):
            raise UserError(f"device and table_sha256 of bins should be text or null: {source}")
        if self.kind == "latency" and None in source:
            raise UserError("bins of latency need the device and the SHA-256 of its latency table")

    @classmethod
    def between(
        cls,
        low: float,
        high: float,
        count: int,
        *,
        kind: Kind,
        device: str | None = None,
        table_sha256: str | None = None,
    ) -> "BudgetBins":
        """Return bins whose edges have equal ratios.

        Args:
            low: Least cost, above zero.
            high: Greatest cost.
            count: Number of bins.
            kind: The cost.
            device: Device of a latency.
            table_sha256: Hash of a latency's table.

        Raises:
            UserError: no bins, or no range to divide.
        """
        if count < 1 or not 0 < low < high:
            raise UserError(
                f"bins need a count of at least 1 and 0 < low < high; got {count} between "
                f"{low:.4g} and {high:.4g}"
            )
        inner = np.geomspace(low, high, count + 1)[1:-1].tolist()
        edges = (float(low), *inner, float(high))  # geomspace may miss its ends by a rounding
        return cls(kind=kind, edges=edges, device=device, table_sha256=table_sha256)

    @property
    def count(self) -> int:
        """Return the number of bins."""
        return len(self.edges) - 1

    @property
    def unit(self) -> str:
        """Return the unit of the edges."""
        return _UNITS[self.kind]

    def index(self, costs: Values) -> Indices:
        """Return each cost's bin: (N,) to (N,), from 0 to count - 1.

        The ends hold what lies beyond them, so that the lowest edge itself is in bin 0.
        """
        places = np.searchsorted(self.edges, costs, side="left") - 1
        return np.clip(places, 0, self.count - 1)

    def upper(self, index: Indices) -> Values:
        """Return the upper edge of bins, their budget: (N,) to (N,)."""
        return np.array(self.edges)[index + 1]

    def describe(self, index: int) -> str:
        """Return a bin for people: `bin 1 (112.5M to 187M MACs)`."""
        low, high = (self._number(edge) for edge in self.edges[index : index + 2])
        return f"bin {index} ({low} to {high} {self.unit})"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back exactly."""
        return {
            "kind": self.kind,
            "unit": self.unit,
            "edges": list(self.edges),
            "device": self.device,
            "table_sha256": self.table_sha256,
        }

    @classmethod
    def from_json(cls, record: Any) -> "BudgetBins":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing, unknown, or of the wrong kind.
        """
        fields = fields_of(record, (*cls.__dataclass_fields__, "unit"), "a record of budget bins")
        unit = fields.pop("unit")
        bins = cls(**fields | {"edges": tuple_of(fields["edges"])})
        if unit != bins.unit:
            raise UserError(f"bins of {bins.kind} are in {bins.unit}, the record says {unit!r}")
        return bins

    def _number(self, edge: float) -> str:
        return format_count(edge) if self.kind == "macs" else f"{edge:.4g}"
