"""Latency tables: predicted against measured, and where the time of a detector goes."""

import html

import numpy as np

from detofa.profiling.table import LatencyTable
from detofa.report.front import device_name, run_option
from detofa.report.page import Cell, Chart, Section, Table
from detofa.report.source import Source, Written

_ROLES = {"fit": ("--muted", "circle"), "held-out": ("--first", "diamond")}


def latency_section(source: Source) -> Section:
    """Return how good each table is on the detectors that were measured for it."""
    name, title = "latency", "Latency tables"
    if not source.tables:
        return Section(
            name=name,
            title=title,
            missing=f"There is no table of this space: `detofa profile{run_option(source)}` "
            "measures one; name others with --table.",
        )
    return Section(
        name=name,
        title=title,
        text=tuple(_told(table) for table in source.tables),
        charts=tuple(
            chart
            for index, table in enumerate(source.tables)
            for chart in _table_charts(index, table)
        ),
    )


def _told(table: LatencyTable) -> str:
    floor = "unknown" if table.noise_floor is None else f"{table.noise_floor:.1%}"
    words = (
        f"{device_name(table)}: {table.runtime} {table.runtime_version}, {table.clock} clock, "
        f"{table.method['passes']} passes in {table.method['seconds']:.0f} s on {table.date}; "
        f"noise floor {floor}; on {table.held_out['count']:.0f} held-out detectors the error is "
        f"{table.held_out['mape']:.1%} (MAPE) and Kendall's tau "
        f"{table.held_out['kendall_tau']:.3f}; the interval promised is within "
        f"{table.interval:.1%}."
    )
    if table.verification is None:
        return words
    return (
        f"{words} Fresh detectors, measured on {table.verification['date']}: error "
        f"{table.verification['errors']['mape']:.1%}, "
        f"{'passed' if table.verification['passed'] else 'FAILED'}."
    )


def _table_charts(index: int, table: LatencyTable) -> tuple[Chart, Chart]:
    genes = np.array([entry["genes"] for entry in table.detectors], np.int8)
    measured = np.array([float(entry["p50_ms"]) for entry in table.detectors])
    roles = [str(entry["role"]) for entry in table.detectors]
    predicted = table.predict(genes)
    low, high = table.predict_interval(genes)
    residuals = 100 * (predicted / measured - 1)
    rows: list[tuple[Cell, ...]] = [
        (
            number + 1,
            roles[number],
            float(measured[number]),
            float(predicted[number]),
            float(low[number]),
            float(high[number]),
            float(residuals[number]),
            "yes" if low[number] <= measured[number] <= high[number] else "NO",
        )
        for number in np.argsort(measured, kind="stable").tolist()
    ]
    columns = ("detector", "used for", "ms measured", "ms predicted", "from", "to")
    numbers = Table(
        caption=f"Measured detectors, {device_name(table)}",
        columns=(*columns, "residual, %", "in the interval"),
        rows=tuple(rows),
    )
    ends = np.array([measured.min(), measured.max()])
    promised = 100 * table.interval
    return (
        _predicted_chart(index, table, roles, measured, predicted, ends, numbers),
        Chart(
            name=f"residuals-{index}",
            title=f"Residuals: {device_name(table)}",
            description=f"Predicted over measured less 1, of {len(rows)} detectors, in percent.",
            traces=[
                *_by_role(roles, measured, residuals, "%{y:+.2f} % at %{x:.3f} ms"),
                *(_line(ends, np.full(2, side), "interval", side > 0)
                  for side in (promised, -promised)),
            ],
            axes=("measured p50, ms", "residual, %"),
            table=numbers,
        ),
    )  # fmt: skip


def _predicted_chart(
    index: int,
    table: LatencyTable,
    roles: list[str],
    measured: np.ndarray,
    predicted: np.ndarray,
    ends: np.ndarray,
    numbers: Table,
) -> Chart:
    return Chart(
        name=f"predicted-{index}",
        title=f"Predicted against measured: {device_name(table)}",
        description=(
            f"{len(measured)} detectors of {ends[0]:.2f} to {ends[1]:.2f} ms, with the line of "
            "equality and the interval promised."
        ),
        traces=[
            *_by_role(roles, measured, predicted, "measured %{x:.3f}, predicted %{y:.3f} ms"),
            _line(ends, ends, "equal", True, dash="solid"),
            _line(ends, ends * (1 + table.interval), "interval", True),
            _line(ends, ends * (1 - min(table.interval, 0.9)), "interval", False),
        ],
        axes=("measured p50, ms", "predicted, ms"),
        table=numbers,
    )


def _by_role(roles: list[str], x: np.ndarray, y: np.ndarray, told: str) -> list[dict[str, object]]:
    traces: list[dict[str, object]] = []
    for role in sorted(set(roles)):
        colour, symbol = _ROLES.get(role, ("--third", "square"))
        rows = [index for index, other in enumerate(roles) if other == role]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(role),
                "x": x[rows].tolist(),
                "y": y[rows].tolist(),
                "marker": {"color": colour, "symbol": symbol, "size": 7},
                "hovertemplate": f"{told}<extra></extra>",
            }
        )
    return traces


def _line(
    x: np.ndarray, y: np.ndarray, name: str, shown: bool, dash: str = "dash"
) -> dict[str, object]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "legendgroup": name,
        "showlegend": shown,
        "x": x.tolist(),
        "y": y.tolist(),
        "line": {"color": "--second", "dash": dash, "width": 1},
        "hoverinfo": "skip",
    }


# ---- where the time goes ------------------------------------------------------------------


def _budget(source: Source) -> str:
    """Return a budget that can be met; without a table, none in particular."""
    if not source.tables:
        return "--pareto"
    return f"--latency {source.tables[0].reach.middle}ms"


def time_section(source: Source) -> Section:
    """Return where the time of the chosen detector goes, as each table has it."""
    name, title, run = "time", "Where the time goes", run_option(source)
    chosen = source.chosen
    if chosen is None:
        return Section(
            name=name,
            title=title,
            missing=f"No detector is chosen yet: `detofa search {_budget(source)}{run}` chooses "
            "one.",
        )
    if not source.tables:
        return Section(
            name=name,
            title=title,
            missing=f"That needs a latency table: `detofa profile{run}` measures one.",
        )
    return Section(
        name=name,
        title=title,
        text=(
            f"The chosen detector is {chosen.path}, the best in AP of those searched for a "
            "budget, or of the front where there are none. Parts are what the table's fit gives "
            "them; suppression runs after the network and is not in its latency.",
        ),
        charts=tuple(
            _parts_chart(index, table, chosen) for index, table in enumerate(source.tables)
        ),
    )


def _parts_chart(index: int, table: LatencyTable, chosen: Written) -> Chart:
    genes = table.space.genes(chosen.subnet.arch)[None]
    parts = {
        part.replace("_", " and "): float(took[0]) for part, took in table.columns(genes).items()
    }
    total = sum(took for part, took in parts.items() if part != "suppression")
    return Chart(
        name=f"parts-{index}",
        title=f"Parts of {chosen.name}: {device_name(table)}",
        description=f"{total:.2f} ms in {len(parts)} parts.",
        traces=(
            {
                "type": "bar",
                "orientation": "h",
                "x": list(parts.values()),
                "y": list(parts),
                "marker": {
                    "color": ["--muted" if part == "suppression" else "--first" for part in parts]
                },
                "text": [f"{took:.2f}" for took in parts.values()],
                "textposition": "auto",
                "hovertemplate": "%{y}: %{x:.3f} ms<extra></extra>",
                "showlegend": False,
            },
        ),
        axes=("ms", ""),
        height=90 + 30 * len(parts),
        layout={"yaxis": {"autorange": "reversed"}},
        table=Table(
            caption=f"Parts of {chosen.name} on {device_name(table)}; {total:.3f} ms in all",
            columns=("part", "ms", "share of the network, %"),
            rows=tuple(
                (part, took, None if part == "suppression" else 100 * took / total)
                for part, took in parts.items()
            ),
        ),
    )
