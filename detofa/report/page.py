"""What a report is made of, and the page it becomes: one HTML file that needs no network."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detofa.files import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

Cell = str | int | float | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers with their names.

    Attributes:
        caption: What the table holds.
        columns: Heads of its columns.
        rows: One cell for each column; None where there is no figure.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        """Check that every row has a cell for each column."""
        assert all(len(row) == len(self.columns) for row in self.rows), self.caption


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure, and the numbers that it shows.

    Attributes:
        name: Its id in the page, of letters and dashes.
        title: Its heading.
        description: What it shows, for those who cannot see it.
        traces: Plotly's traces; a colour such as `--first` is a variable of the page's style.
        axes: Titles of the x and the y axis.
        table: The numbers.
        height: Pixels.
        layout: What is added to Plotly's layout.
    """

    name: str
    title: str
    description: str
    traces: Sequence[Mapping[str, Any]]
    axes: tuple[str, str]
    table: Table
    height: int = 400
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture and what is on it in words.

    Attributes:
        title: A short name.
        description: What it shows, for those who cannot see it.
        jpeg: The file.
        width: Pixels.
        height: Pixels.
    """

    title: str
    description: str
    jpeg: bytes
    width: int
    height: int

    @property
    def url(self) -> str:
        """Return the picture as a data URL."""
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A cost that a budget can be set for, and what it is of every detector shown.

    Attributes:
        name: What is offered to choose.
        title: Title of the chart's axis.
        kind: `latency`, in milliseconds, or `macs`.
        paths: Cost of each evaluated path.
        front: Indices of the paths that no other beats, cheapest first.
        subnets: Cost of each subnet.
        low: Lower edge of the interval of each.
        high: Upper edge.
        measured: What was measured of each for this table, or None; a budget is compared with it,
            and where there is none with the upper edge.
        search: The command that looks for a detector within a budget, which stands for `{}`.
    """

    name: str
    title: str
    kind: str
    paths: Sequence[float]
    front: Sequence[int]
    subnets: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    measured: Sequence[float | None]
    search: str


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """What the budget's slider chooses from.

    Attributes:
        axes: The costs to choose between.
        path_ap: AP of each evaluated path, from 0 to 1.
        names: Name of each subnet.
        ap: AP of each subnet, from 0 to 1.
        commands: What exports each.
    """

    axes: Sequence[Axis]
    path_ap: Sequence[float]
    names: Sequence[str]
    ap: Sequence[float]
    commands: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report.

    Attributes:
        name: Its id in the page, of letters and dashes.
        title: Its heading.
        text: Paragraphs before its figures.
        missing: Where the run lacks what it needs: which command makes that.
        explorer: What the slider chooses from; for one section at most.
        charts: Its figures.
        tables: Tables without a figure.
        pictures: Its pictures.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    missing: str | None = None
    explorer: Explorer | None = None
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page shows.

    Attributes:
        title: Its heading.
        facts: What it is about, as (name, value).
        sections: Its parts.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    def to_json(self) -> dict[str, Any]:
        """Return its texts and numbers as a JSON object, without charts' looks and pictures."""
        return {
            "title": self.title,
            "facts": dict(self.facts),
            "sections": [
                {
                    "name": section.name,
                    "title": section.title,
                    "text": list(section.text),
                    "missing": section.missing,
                    "tables": [
                        {"caption": table.caption, "columns": table.columns, "rows": table.rows}
                        for table in (*(chart.table for chart in section.charts), *section.tables)
                    ],
                    "pictures": [picture.description for picture in section.pictures],
                }
                for section in self.sections
            ],
        }


def write_page(path: Path, report: Report) -> None:
    """Write the page.

    Raises:
        ModuleNotFoundError: Jinja or Plotly is not installed.
        UserError: the file cannot be written.
    """
    write_text(path, page_of(report))


def page_of(report: Report) -> str:
    """Return the page as HTML.

    All text is escaped, and the page's own policy lets no other script run than the two that are
    written into it, and no address be asked for anything.

    Raises:
        ModuleNotFoundError: Jinja or Plotly is not installed.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    files = resources.files("detofa.report") / "page"
    scripts = [get_plotlyjs(), (files / "page.js").read_text(encoding="utf-8")]
    environment = Environment(
        loader=PackageLoader("detofa.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"asdict": asdict, "cell": cell_text, "prose": _prose}
    return environment.get_template("page.html").render(
        report=report,
        charts={
            chart.name: {
                "traces": chart.traces,
                "axes": chart.axes,
                "layout": chart.layout,
            }
            for section in report.sections
            for chart in section.charts
        },
        style=(files / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=[_script_hash(script) for script in scripts],
    )


def cell_text(value: Cell) -> str:
    """Return a cell as the page shows it: floats to four digits, counts in groups, None a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.4g}" if abs(value) < 1e4 else cell_text(round(value))


def _prose(text: str) -> "Markup":
    """Return a paragraph as HTML: escaped, and what is between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _script_hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
