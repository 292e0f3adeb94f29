"""A small self-contained HTML page: detectors, the plot of AP against latency, pictures, checks."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detofa.errors import UserError
from detofa.files import write_text
from detofa.units import format_count


@dataclass(frozen=True, kw_only=True)
class DetectorRow:
    """One exported detector and its figures.

    Attributes:
        name: What it is called in the report.
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
    """What the page shows.

    Attributes:
        title: Its heading.
        facts: What was done where, as (name, value).
        rows: The detectors, by rising budget.
        evaluated: (predicted latency in ms, AP on the validation split) of paths evaluated on
            the way.
        sheet: Picture of true and found boxes, (H, W, 3) uint8.
        checks: Targets and whether they were met.
        commands: Commands to try next.
    """

    title: str
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


def write_summary(path: Path, summary: Summary) -> None:
    """Write the page; it needs no other file and no network.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    write_text(path, summary_html(summary))


def summary_html(summary: Summary) -> str:
    """Return the page.

    Raises:
        UserError: matplotlib is not installed.
    """
    title = html.escape(summary.title)
    facts = "".join(f"<dt>{html.escape(n)}</dt><dd>{html.escape(v)}</dd>" for n, v in summary.facts)
    checks = [
        (check.name, check.target, check.found, "met" if check.passed else "missed")
        for check in summary.checks
    ]
    commands = html.escape("\n".join(summary.commands))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<dl>{facts}</dl>
<h2>Detectors</h2>
{_table(COLUMNS, [cells(row) for row in summary.rows])}
<p>AP: the exported file on the test split. ms: p50 of one image, one thread; predicted by the
latency table before the detector was made, with the interval that should hold 95 % of them.</p>
<figure>{trade_off_svg(summary.rows, summary.evaluated)}</figure>
<h2>What they see</h2>
<figure><img alt="true boxes, and the boxes of each detector" src="{_data_url(summary.sheet)}">
</figure>
<h2>Targets</h2>
{_table(("figure", "target", "found", ""), checks)}
<h2>To try next</h2>
<pre>{commands}</pre>
</body></html>
"""


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


def jpeg_bytes(pixels: NDArray[np.uint8], quality: int = 62) -> bytes:
    """Return (H, W, 3) uint8 pixels as a JPEG file."""
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG", quality=quality, optimize=True)
    return written.getvalue()


def _data_url(pixels: NDArray[np.uint8]) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_bytes(pixels)).decode("ascii")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; }
dt { color: #666; } dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img, svg { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: .8rem 1rem; overflow-x: auto; }
"""
