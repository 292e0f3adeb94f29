"""The front as characters: AP against a cost, for a terminal or a file."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detofa.choose.records import Finalist

_WIDTH, _HEIGHT = 80, 20  # columns, at most, and lines
_IN_ASCII = str.maketrans("┌┐└┘─│┤├┬┴┼·●", "++++-|+++++.*")


def show_front(front: "Sequence[Finalist]") -> None:
    """Print AP against latency, or against MACs where there are no latencies.

    In colour on a terminal, unless NO_COLOR is set; a note alone where plotext is not installed.

    Args:
        front: The detectors, cheapest first.
    """
    from rich.console import Console

    console = Console()
    try:
        text = draw_front(
            front,
            width=min(console.width, _WIDTH) if console.is_terminal else _WIDTH,
            colour=console.is_terminal and not console.no_color,
        )
    except ModuleNotFoundError as error:
        if error.name != "plotext":
            raise
        print("the front is not drawn: pip install 'detofa[train]' gets plotext, which draws it")
        return
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = text.translate(_IN_ASCII)
    print(text)


def draw_front(front: "Sequence[Finalist]", *, width: int, colour: bool) -> str:
    """Return the points of a front as lines of text.

    Args:
        front: One detector at least.
        width: Columns.
        colour: Whether there may be a terminal's codes for colours.

    Raises:
        ModuleNotFoundError: plotext is not installed.
    """
    import plotext

    costs, unit = _costs(front)
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.limit_size(False, False)  # it would go by the terminal, and files have none
    plotext.plotsize(width, _HEIGHT)
    aps = [item.ap for item in front]
    plotext.plot(costs, aps, marker="·", color="gray")
    plotext.scatter(costs, aps, marker="●", color="green")
    plotext.title(f"AP against {unit}")
    text = plotext.build()
    if not colour:
        text = plotext.uncolorize(text)
    return "\n".join(line.rstrip() for line in text.splitlines())


def _costs(front: "Sequence[Finalist]") -> tuple[list[float], str]:
    """Return a cost that all detectors have, and what it is."""
    for name, unit in (("measured_ms", "ms, measured"), ("predicted_ms", "ms, predicted")):
        costs = [getattr(item, name) for item in front]
        if None not in costs:
            return costs, unit
    return [item.macs / 1e6 for item in front], "millions of MACs"
