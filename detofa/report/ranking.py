"""How candidates were ranked: the search's history, the path filter, the pruned space."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from detofa.choose.history import SearchHistory
from detofa.choose.ranking import Ranking
from detofa.errors import UserError
from detofa.path_filter.agreement import Estimate
from detofa.path_filter.bins import BudgetBins
from detofa.path_filter.histograms import OptionShare, option_shares
from detofa.path_filter.pruned_space import PrunedSpace
from detofa.path_filter.rank_quality import RANKERS
from detofa.report.front import run_option
from detofa.report.page import Cell, Chart, Section, Table
from detofa.report.source import Source
from detofa.train.filtering import FilterReport
from detofa.units import format_count

COLOURS = ("--first", "--second", "--third", "--fourth", "--fifth")
SYMBOLS = ("circle", "diamond", "square", "cross", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


# ---- searches -----------------------------------------------------------------------------


def search_section(source: Source) -> Section:
    """Return what every search of the run did, generation by generation."""
    name, title = "searches", "Searches"
    run = run_option(source)
    found = [SearchHistory.load(path) for path in sorted(source.run.searches.glob("*.json"))]
    if not found:
        return Section(
            name=name,
            title=title,
            missing=f"This run was not searched yet: `detofa search --pareto{run}` does.",
        )
    rankers = sorted({one.ranker for history in found for one in history.rounds})
    charts = [_history_chart(found, ranker) for ranker in rankers]
    return Section(
        name=name,
        title=title,
        text=("Each search scores candidates without evaluating them; the best are evaluated.",),
        charts=(*charts, _finalists_chart(found)),
    )


def _history_chart(found: list[SearchHistory], ranker: str) -> Chart:
    traces: list[Mapping[str, Any]] = []
    rows: list[tuple[Cell, ...]] = []
    for history in found:
        for number, one in enumerate(history.rounds, start=1):
            if one.ranker != ranker:
                continue
            label = _round(history, one.limit, number)
            index = len(traces)
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": label,
                    "x": [item.evaluations for item in one.generations],
                    "y": [item.best_score for item in one.generations],
                    "line": {
                        "shape": "hv",
                        "width": 2,
                        "color": COLOURS[index % len(COLOURS)],
                        "dash": DASHES[index // len(COLOURS) % len(DASHES)],
                    },
                    "hovertemplate": "%{y:.4f} after %{x} paths<extra>%{fullData.name}</extra>",
                }
            )
            rows += [
                (label, generation, item.evaluations, item.best_score, item.best_cost)
                for generation, item in enumerate(one.generations)
            ]
    return Chart(
        name=f"history-{ranker.replace(' ', '-').lower()}",
        title=f"Best score so far, by {ranker}",
        description=f"{len(traces)} searches; the best score rises as more paths are scored.",
        traces=traces,
        axes=("paths scored", f"best score ({ranker})"),
        table=Table(
            caption=f"Generations of the searches by {ranker}",
            columns=("search", "generation", "paths scored", "best score", "its cost"),
            rows=tuple(rows),
        ),
    )


def _finalists_chart(found: list[SearchHistory]) -> Chart:
    rows: list[tuple[Cell, ...]] = []
    traces: list[Mapping[str, Any]] = []
    for index, history in enumerate(found):
        limit = None if np.isinf(history.budget.limit) else history.budget.limit
        label = _budget(history.budget.kind, limit)
        rows += [
            (
                label,
                item.predicted_ap,
                item.ap,
                item.predicted_ms,
                item.low_ms,
                item.high_ms,
                item.measured_ms,
                round(item.macs),
            )
            for item in history.finalists
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [item.predicted_ap for item in history.finalists],
                "y": [item.ap for item in history.finalists],
                "marker": {
                    "size": 9,
                    "color": COLOURS[index % len(COLOURS)],
                    "symbol": SYMBOLS[index % len(SYMBOLS)],
                },
                "hovertemplate": "predicted %{x:.3f}, found %{y:.3f}"
                "<extra>%{fullData.name}</extra>",
            }
        )
    values = [ap for row in rows for ap in row[1:3] if isinstance(ap, float)]
    ends = [min(values, default=0.0), max(values, default=1.0)]
    traces.append(_diagonal(ends, "as predicted"))
    return Chart(
        name="finalists",
        title="Finalists: AP predicted and found",
        description=f"{len(rows)} finalists of {len(found)} searches.",
        traces=traces,
        axes=("AP predicted", "AP found"),
        table=Table(
            caption="Finalists, as each search told them",
            columns=(
                "search",
                "AP predicted",
                "AP found",
                "ms predicted",
                "from",
                "to",
                "ms measured",
                "MACs",
            ),
            rows=tuple(rows),
        ),
    )


def _diagonal(ends: list[float], name: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": ends,
        "y": ends,
        "line": {"color": "--muted", "dash": "dash", "width": 1},
        "hoverinfo": "skip",
    }


def _round(history: SearchHistory, limit: float | None, number: int) -> str:
    kind, asked = history.budget.kind, history.budget.limit
    if limit is None or limit == asked:
        return f"{_budget(kind, limit)}, round {number}"
    return f"{_budget(kind, None)}, {_budget(kind, limit)}"


def _budget(kind: str, limit: float | None) -> str:
    if limit is None:
        return f"front of {'MACs' if kind == 'macs' else kind}"
    return f"at most {format_count(limit)} MACs" if kind == "macs" else f"at most {limit:.4g} ms"


# ---- the path filter ----------------------------------------------------------------------


def filter_section(source: Source) -> Section:
    """Return how well the path filter and the other rankers rank, bin by bin."""
    name, title = "filter", "Path filter"
    if not source.run.filter_report.is_file():
        return Section(
            name=name,
            title=title,
            missing=f"This run has no path filter: `detofa filter{run_option(source)}` fits one.",
        )
    report = FilterReport.load(source.run.filter_report)
    quality, bins = report.quality, report.bins
    advice = quality.advice()
    places = [bins.describe(index) for index in range(bins.count)]
    traces = []
    for index, ranker in enumerate(RANKERS):
        taus = [*quality.per_bin[ranker], quality.taus[ranker]]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": ranker,
                "x": [place + (index - 2) * 0.13 for place in range(len(taus))],
                "y": [tau.value for tau in taus],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [tau.high - tau.value for tau in taus],
                    "arrayminus": [tau.value - tau.low for tau in taus],
                    "color": COLOURS[index],
                    "thickness": 1.5,
                },
                "marker": {"size": 9, "color": COLOURS[index], "symbol": SYMBOLS[index]},
                "hovertemplate": "tau %{y:.2f}<extra>%{fullData.name}</extra>",
            }
        )
    ticks = [*_ticks(bins), "all"]
    rows = [
        (ranker, place, *_estimate(tau))
        for ranker in RANKERS
        for place, tau in zip(
            [*places, "all bins"],
            [*quality.per_bin[ranker], quality.taus[ranker]],
            strict=True,
        )
    ]
    return Section(
        name=name,
        title=title,
        text=(
            f"Rankers fitted on the same {quality.num_labels} labels ({quality.label}) and judged "
            "on others: Kendall tau among paths of one budget bin, 1 for the same order.",
            f"{advice[0].upper()}{advice[1:]}.",
            *(f"Label: {told}." for told in report.agreements()),
        ),
        charts=(
            Chart(
                name="rankers",
                title="In-bin Kendall tau of each ranker",
                description=f"{len(RANKERS)} rankers in {bins.count} bins, with intervals.",
                traces=traces,
                axes=(f"budget bin, {bins.unit}", "Kendall tau"),
                layout={"xaxis": {"tickvals": list(range(len(ticks))), "ticktext": ticks}},
                table=Table(
                    caption="Kendall tau of each ranker in each bin",
                    columns=("ranker", "bin", "tau", "from", "to"),
                    rows=tuple(rows),
                ),
            ),
        ),
    )


def _ticks(bins: BudgetBins) -> list[str]:
    """Return short names of bins, for a phone's screen: `bin 0<br>to 60M`."""
    uppers = (format_count(edge) for edge in bins.edges[1:])
    return [f"bin {index}<br>to {upper}" for index, upper in enumerate(uppers)]


def _estimate(tau: Estimate) -> tuple[float, float, float]:
    return tau.value, tau.low, tau.high


# ---- the pruned space ---------------------------------------------------------------------


def pruned_section(source: Source) -> Section:
    """Return how often each option is taken by what the pruned space kept, and by the whole."""
    name, title = "kept", "What the pruned space kept"
    run = run_option(source)
    if source.space is None or not source.run.pruned_space.is_file():
        return Section(
            name=name,
            title=title,
            missing="This run's space is not pruned: `detofa train --method detofa` prunes it "
            f"where the filter is worth it, or later `detofa filter{run}`.",
        )
    pruned = _pruned_space(source)
    if isinstance(pruned, UserError):
        return Section(name=name, title=title, missing=f"{pruned}.")
    shares = option_shares(pruned, np.random.default_rng([source.config.seed, 5]))
    kept_by = "the path filter" if source.run.filter_report.is_file() else "chance"
    return Section(
        name=name,
        title=title,
        text=(
            f"Training went on with the share of {pruned.keep:.0%} of every bin that {kept_by} "
            "kept. The figure shows how much more often an option is taken by paths kept than by "
            "all of their bin, in percentage points.",
        ),
        charts=(_shares_chart(shares, pruned),),
    )


def _pruned_space(source: Source) -> PrunedSpace | UserError:
    """Return the pruned space, or why none of the tables at hand tells what is in it."""
    assert source.space is not None
    refused = UserError("the pruned space is missing")
    for table in (None, *source.tables):
        try:
            pruned = Ranking(source.run, source.space, table).pruned
        except UserError as error:
            refused = error
        else:
            assert pruned is not None
            return pruned
    return refused


def _shares_chart(shares: tuple[OptionShare, ...], pruned: PrunedSpace) -> Chart:
    bins = pruned.bins
    options = list(dict.fromkeys((share.choice, share.option) for share in shares))
    change = np.zeros((len(options), bins.count))
    for share in shares:
        row = options.index((share.choice, share.option))
        change[row, share.bin] = 100 * (share.members - share.whole)
    places = [bins.describe(index) for index in range(bins.count)]
    most = max(float(np.abs(change).max()), 1.0)
    return Chart(
        name="shares",
        title="Options preferred (above 0) and avoided (below 0)",
        description=f"{len(options)} options in {bins.count} budget bins.",
        traces=(
            {
                "type": "heatmap",
                "z": change.round(2).tolist(),
                "x": _ticks(bins),
                "y": [f"{choice}: {option}" for choice, option in options],
                "zmin": -most,
                "zmax": most,
                "colorscale": [[0, "--cold"], [0.5, "--neutral"], [1, "--warm"]],
                "colorbar": {"title": {"text": "points"}, "thickness": 12},
                "hovertemplate": "%{y}<br>%{x}<br>%{z:+.1f} points<extra></extra>",
            },
        ),
        axes=(f"budget bin, {bins.unit}", ""),
        height=130 + 18 * len(options),
        layout={"yaxis": {"autorange": "reversed", "dtick": 1}},
        table=Table(
            caption="Share of paths that take an option, percent",
            columns=("choice", "option", "bin", "of those kept", "of the whole bin"),
            rows=tuple(
                (
                    share.choice,
                    share.option,
                    places[share.bin],
                    100 * share.members,
                    100 * share.whole,
                )
                for share in shares
            ),
        ),
    )
