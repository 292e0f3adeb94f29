"""What a benchmark found, as rows of a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


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
