"""The demo's detectors: tables, the plot of AP against latency, their part of the page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detofa.errors import UserError
from detofa.report.page import Section, Table
from detofa.units import format_count


@dataclass(frozen=True, kw_only=True)
class DetectorRow:
    """One exported detector and its figures.

    Attributes:
        name: What it is called.
        budget_ms: The budget that it was chosen for.
        measured_ms: p50 of the exported file, measured.
        predicted_ms: What the latency table said.
        low_ms: Lower edge of that prediction's interval.
        high_ms: Upper edge.
        ap: COCO AP of the exported file, from 0 to 1.
        ap50: The same at IoU 0.50.
        macs: Multiply-accumulates.
        num_params: Parameters.
        file_bytes: Size of the exported file.
        image_size: (height, width) of its input, pixels.
        path: The exported file.
    """

    name: str
    budget_ms: float
    measured_ms: float
    predicted_ms: float
    low_ms: float
    high_ms: float
    ap: float
    ap50: float
    macs: float
    num_params: float
    file_bytes: int
    image_size: tuple[int, int]
    path: str


@dataclass(frozen=True, kw_only=True)
class Check:
    """A target, what was found, and whether it was met."""

    name: str
    target: str
    found: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the demo found.

    Attributes:
        facts: What was done where, as (name, value).
        rows: The detectors, by rising budget.
        evaluated: (predicted latency in ms, AP on the validation split) of paths evaluated on
            the way.
        sheet: Picture of true and found boxes, (H, W, 3) uint8.
        checks: Targets and whether they were met.
        commands: Commands to try next.
    """

    facts: tuple[tuple[str, str], ...]
    rows: tuple[DetectorRow, ...]
    evaluated: tuple[tuple[float, float], ...]
    sheet: NDArray[np.uint8]
    checks: tuple[Check, ...]
    commands: tuple[str, ...]


COLUMNS = (
    "detector", "budget ms", "measured ms", "predicted ms", "AP", "AP50", "MACs", "parameters",
    "file", "input",
)  # fmt: skip


def cells(row: DetectorRow) -> tuple[str, ...]:
    """Return a detector's figures as text, in the order of `COLUMNS`."""
    return (
        row.name,
        f"{row.budget_ms:.2f}",
        f"{row.measured_ms:.2f}",
        f"{row.predicted_ms:.2f} ({row.low_ms:.2f} to {row.high_ms:.2f})",
        f"{row.ap:.3f}",
        f"{row.ap50:.3f}",
        format_count(row.macs),
        format_count(row.num_params),
        f"{row.file_bytes / 1e6:.1f} MB",
        "x".join(str(side) for side in row.image_size),
    )


def markdown_table(rows: Sequence[DetectorRow]) -> str:
    """Return the detectors as a table in Markdown."""
    lines = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *(cells(row) for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def demo_section(summary: Summary) -> Section:
    """Return what the report of a demo says before its other parts."""
    targets = tuple(
        (check.name, check.target, check.found, "met" if check.passed else "missed")
        for check in summary.checks
    )
    return Section(
        name="demo",
        title="The demo",
        text=(
            "AP is of the exported files on the test split. ms are p50 of one image, one thread; "
            "predicted by the latency table before the detector was made, with the interval that "
            "should hold 95 % of measurements.",
            f"To try next: {'; '.join(summary.commands)}.",
        ),
        tables=(
            Table(
                caption="The exported detectors",
                columns=COLUMNS,
                rows=tuple(cells(row) for row in summary.rows),
            ),
            Table(caption="Targets", columns=("figure", "target", "found", ""), rows=targets),
            Table(caption="What was done where", columns=("what", "value"), rows=summary.facts),
        ),
    )


def trade_off_svg(rows: Sequence[DetectorRow], evaluated: Sequence[tuple[float, float]]) -> str:
    """Return the plot of AP against latency as an SVG element.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "the plot needs matplotlib; install it with pip install 'detofa[demo]'"
        ) from None
    with mpl.rc_context({"svg.hashsalt": "detofa", "font.size": 10}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        if evaluated:
            points = np.array(evaluated)
            axes.scatter(
                points[:, 0],
                points[:, 1],
                s=18,
                color="0.65",
                label="paths evaluated on the way (validation AP, predicted ms)",
            )
        measured = [row.measured_ms for row in rows]
        axes.plot(
            measured,
            [row.ap for row in rows],
            "o-",
            color="#1f5fbf",
            label="exported detectors (test AP, measured ms)",
        )
        for index, row in enumerate(rows):
            axes.axvline(
                row.budget_ms,
                color="#c0392b",
                linestyle=":",
                linewidth=1,
                label=None if index else "budgets",
            )
            axes.annotate(
                f"{row.name}: AP50 {row.ap50:.2f}",
                (row.measured_ms, row.ap),
                xytext=(6, -13),
                textcoords="offset points",
            )
        axes.set_xlabel("latency of one image, ms (p50, one thread)")
        axes.set_ylabel("AP (IoU 0.50 to 0.95)")
        latencies = [*measured, *(latency_ms for latency_ms, _ in evaluated)]
        axes.set_xlim(0, 1.2 * max(latencies, default=1.0))
        axes.set_ylim(0, 1)
        axes.grid(visible=True, color="0.9")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", fontsize=9)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]
