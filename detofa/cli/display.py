"""What commands show: tables, progress, ages."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from detofa.files import SCHEMA

if TYPE_CHECKING:
    from rich.console import Console

_SECONDS_BETWEEN_LINES = 10.0
_WIDTH_OF_A_FILE = 240  # columns of a table that goes to a file or a pipe
_records: ContextVar[TextIO | None] = ContextVar("records", default=None)


@contextlib.contextmanager
def records_only() -> Iterator[None]:
    """Leave the output to what `print_record` prints; all else goes to the error stream."""
    before = _records.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _records.reset(before)


def print_record(kind: str, record: Mapping[str, Any]) -> None:
    """Print the result of a command as JSON where `--json` asks for it, else nothing.

    Args:
        kind: What it is; docs/json.md lists all kinds and their fields.
        record: The fields. Paths are written as text.
    """
    output = _records.get()
    if output is not None:
        content = {"schema": SCHEMA, "kind": kind, **record}
        text = json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False, default=str)
        print(text, file=output, flush=True)


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text, the others are aligned right."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(Text(name), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE)
    widest = console.options.update(width=10_000)
    if Measurement.get(console, widest, table).maximum > console.width:
        _show_rows(console, title, columns, rows)
    else:
        console.print(table)


def _show_rows(
    console: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table that is wider than the terminal: each row as a few lines."""
    from rich.padding import Padding
    from rich.text import Text

    if title:
        console.print(Text(title, style="italic"))
    for first, *cells in rows:
        told = [f"{name} {cell}" for name, cell in zip(columns[1:], cells, strict=True) if cell]
        console.print(Text(first or "-", style="bold"))
        console.print(Padding(Text(", ".join(told)), (0, 0, 0, 2)))


@contextlib.contextmanager
def shown_progress() -> Iterator[Callable[[str, float], None]]:
    """Yield a function that is told what is being done and the share done, 0 to 1.

    A bar on a terminal, else a line every few seconds; both on the error stream, so that a
    command's output holds its result only.
    """
    if not sys.stderr.isatty():
        yield _Lines().update
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=1.0)
        yield lambda doing, share: progress.update(task, description=doing, completed=share)


class _Lines:
    """Prints progress as lines: at every new thing, and now and then in between."""

    def __init__(self) -> None:
        self._doing, self._last = "", 0.0

    def update(self, doing: str, share: float) -> None:
        now = time.monotonic()
        if doing != self._doing or now - self._last >= _SECONDS_BETWEEN_LINES:
            print(f"{doing}: {share:.0%}", file=sys.stderr, flush=True)
            self._doing, self._last = doing, now


@contextlib.contextmanager
def kept_when_stopped(what: str) -> Iterator[None]:
    """Say what is kept when Ctrl-C ends the work."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"stopped; {what}", file=sys.stderr, flush=True)
        raise


def duration(seconds: float) -> str:
    """Write a time for people: `45 s`, `12 min`, `3.5 h`, `12 days`."""
    for limit, factor, unit in ((100, 1, "s"), (6000, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / factor:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def disk_size(num_bytes: float) -> str:
    """Write a size for people: `12 kB`, `3.4 MB`, `1.2 GB`."""
    for limit, factor, unit in ((1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
        if num_bytes < limit:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes / 1e9:.1f} GB"


def age(date: str) -> str:
    """Write how long ago an ISO 8601 date with time zone was."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(date)).total_seconds()
    return duration(max(seconds, 0.0))


def average_precision(value: float | None) -> str:
    """Write an AP from 0 to 1; a dash where there is none."""
    return "-" if value is None else f"{value:.3f}"
