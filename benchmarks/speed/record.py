"""What a benchmark found, as rows of a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.speed.timing import exponent


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        work: What was done.
        detofa: Its figure, with its unit.
        peer: The figure of what it is held against, or empty.
        ratio: How many times better detofa is: lower quartile, median, upper quartile; or None.
        target: What was aimed for, as text.
        met: Whether it was reached; None without a target.
    """

    work: str
    detofa: str
    peer: str = ""
    ratio: tuple[float, float, float] | None = None
    target: str = ""
    met: bool | None = None

    @classmethod
    def times(cls, work: str, detofa: str, peer: str, ratio: Sequence[float], aim: float) -> "Row":
        """Return a row whose target is that many times the peer's, at the median."""
        low, middle, high = map(float, ratio)
        return cls(
            work=work,
            detofa=detofa,
            peer=peer,
            ratio=(low, middle, high),
            target=f"{aim:g}x",
            met=middle >= aim,
        )

    @classmethod
    def within(
        cls, work: str, detofa: str, value: float, most: float, unit: str, peer: str = ""
    ) -> "Row":
        """Return a row whose target is that a value is no more than so many units."""
        return cls(
            work=work,
            detofa=detofa,
            peer=peer,
            target=f"{most:g} {unit}",
            met=bool(value <= most),
        )

    @classmethod
    def grown(cls, work: str, spent: Sequence[float], unit: str, digits: int) -> "Row":
        """Return a row of what 1, 4 and 16 times a size took, and the exponent of it."""
        shown = ", ".join(f"{value:.{digits}f}" for value in spent)
        return cls(work=work, detofa=f"{shown} {unit}: exponent {exponent([1, 4, 16], spent):.2f}")


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| work | detofa | peer | ratio (quartiles) | target | met |", "|" + " --- |" * 6]
    for row in rows:
        ratio = ""
        if row.ratio is not None:
            low, middle, high = row.ratio
            ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        met = {None: "", True: "yes", False: "no"}[row.met]
        lines.append(f"| {row.work} | {row.detofa} | {row.peer} | {ratio} | {row.target} | {met} |")
    return "\n".join(lines)


def print_rows(rows: Sequence[Row], *, as_json: bool) -> None:
    """Print rows for a person, or for the suite."""
    print(json.dumps([asdict(row) for row in rows]) if as_json else table(rows), flush=True)
