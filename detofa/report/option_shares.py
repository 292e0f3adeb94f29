"""A picture of what a pruned space prefers."""

from collections.abc import Sequence
from io import StringIO

import numpy as np

from detofa.errors import UserError
from detofa.path_filter.bins import BudgetBins
from detofa.path_filter.histograms import OptionShare


def option_shares_svg(shares: Sequence[OptionShare], bins: BudgetBins) -> str:
    """Return a map of how much more often each option is taken than in the whole bin, as SVG.

    Args:
        shares: Of every option of every choice, in every bin.
        bins: The budget bins.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError(
            "the picture needs matplotlib; install it with pip install 'detofa[demo]'"
        ) from None
    rows = list(dict.fromkeys((share.choice, share.option) for share in shares))
    change = np.zeros((len(rows), bins.count))
    for share in shares:
        row = rows.index((share.choice, share.option))
        change[row, share.bin] = share.members - share.whole
    with mpl.rc_context({"svg.hashsalt": "detofa", "font.size": 8}):
        figure = Figure(figsize=(7.2, 1.2 + 0.19 * len(rows)), layout="constrained")
        axes = figure.subplots()
        drawn = axes.imshow(change, cmap="RdBu", vmin=-0.5, vmax=0.5, aspect="auto")
        axes.set_yticks(range(len(rows)), [f"{choice}: {option}" for choice, option in rows])
        ticks = [bins.describe(index).replace(" (", "\n(") for index in range(bins.count)]
        axes.set_xticks(range(bins.count), ticks)
        figure.colorbar(drawn, label="share among the paths kept, less that in the whole bin")
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
