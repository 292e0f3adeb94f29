"""What the demo prints while it goes and when it is done."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from detofa.demo.detectors import COLUMNS, Summary, cells

_WIDTH_OF_A_FILE = 160  # columns of what does not go to a terminal


class Show:
    """Prints what the demo does and what came out."""

    def __init__(self) -> None:
        self.console = Console(
            width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE, highlight=False
        )
        self._number = 0

    def line(self, text: str) -> None:
        """Print one line under the current stage."""
        self.console.print(Text(f"   {text}"))

    @contextmanager
    def stage(self, title: str) -> Iterator[Callable[[str, float], None]]:
        """Announce a step, show its progress on a terminal, and say how long it took."""
        self._number += 1
        begin = time.monotonic()
        self.console.print(Text(f"{self._number}. {title}", style="bold"))
        columns = (TextColumn("   {task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as progress:
            task = progress.add_task(title, total=1.0)
            yield lambda doing, share: progress.update(task, description=doing, completed=share)
        self.line(f"{time.monotonic() - begin:.0f} s")

    def outcome(self, folder: Path, summary: Summary) -> None:
        """Print the detectors, the targets, and what to try next."""
        self._table("The detectors", COLUMNS, [cells(row) for row in summary.rows])
        checks = [
            (check.name, check.target, check.found, "met" if check.passed else "not met")
            for check in summary.checks
        ]
        self._table("The targets", ("figure", "target", "found", ""), checks)
        self.console.print(Text("Times are those of a machine that does nothing else."))
        self.console.print(Text(f"Boxes:  {folder / 'pictures' / 'detections.jpg'}"))
        self.console.print(Text(f"Report: {folder / 'report.html'}, for a browser"))
        activate = Path(sys.executable).with_name("activate")
        if shutil.which("detofa") is None and activate.is_file():
            line = f"To have the command detofa: source {shlex.quote(str(activate))}"
            self.console.print(Text(line), soft_wrap=True)
        self.console.print(Text("Next: your own data, by docs/tutorial.md. Or here:", style="bold"))
        for command in summary.commands:
            self.console.print(Text(f"  {command}"), soft_wrap=True)

    def _table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for index, name in enumerate(columns):
            table.add_column(name, justify="right" if index else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)


class Watcher:
    """Shows a training run inside a stage."""

    def __init__(self, progress: Callable[[str, float], None], show: Show) -> None:
        self._progress, self._show = progress, show

    def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
        """Move the bar."""
        doing = f"step {step} of {steps}, loss {loss:.2f}"
        self._progress(doing, step / steps)
        if not self._show.console.is_terminal and step % max(1, steps // 4) == 0:
            self._show.line(doing)

    def on_evaluation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Print the AP50 of three paths."""
        figures = ", ".join(f"{name} {result['ap50']:.3f}" for name, result in results.items())
        self._show.line(f"AP50 on the validation split at step {step}: {figures}")
