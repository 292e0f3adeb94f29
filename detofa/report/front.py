"""AP against cost: what was evaluated, what is written, and what a budget buys."""

import html
import shlex
from pathlib import Path

import numpy as np

from detofa.profiling.cost import macs_cost, num_params_cost
from detofa.profiling.table import LatencyTable
from detofa.report.page import Axis, Cell, Chart, Explorer, Section, Table
from detofa.report.source import Source, genes_of
from detofa.search import pareto_front
from detofa.space import Genes, SearchSpace

_TITLE = "AP for a budget"
_SHAPES = {"paths": "circle", "subnets": "diamond", "chosen": "circle-open"}


def front_section(source: Source) -> Section:
    """Return the front of AP against latency or MACs, with what exports its detectors."""
    space, run = source.space, run_option(source)
    if space is None or not (len(source.genes) or source.written):
        return Section(
            name="choice-of-detector",
            title=_TITLE,
            text=source.notes,
            missing=f"No path of this run was evaluated yet: `detofa search --pareto{run}` does.",
        )
    found = genes_of(space, [item.subnet.arch for item in source.written])
    path_ap = [path.ap for path in source.figures]
    axes = [_table_axis(table, source, found, path_ap, run) for table in source.tables]
    axes.append(_macs_axis(space, source.genes, found, path_ap, run))
    explorer = Explorer(
        axes=axes,
        path_ap=path_ap,
        names=[item.name for item in source.written],
        ap=[item.ap for item in source.written],
        commands=[f"detofa export {shlex.quote(str(item.path))}" for item in source.written],
    )
    text = [
        "AP is COCO's, from 0 to 1, of the validation split, with weights inherited from the "
        "supernet. Latencies are the tables' predictions, with the interval that should hold "
        "95 % of measurements. A budget is compared with what was measured, and where nothing was "
        "with the upper edge of the interval.",
        *source.notes,
    ]
    if not source.tables:
        text.append(f"There is no latency table of this space: `detofa profile{run}` measures one.")
    if not source.written:
        text.append(f"No detector is written yet: `detofa search --pareto{run}` does.")
    return Section(
        name="choice-of-detector",
        title=_TITLE,
        text=tuple(text),
        explorer=explorer,
        charts=(_chart(explorer, source, space),),
        tables=(_written_table(source, axes),) if source.written else (),
    )


def run_option(source: Source) -> str:
    """Return what names the run on a command line, with a space before it."""
    path = source.run.path
    return f" --run {shlex.quote(path.name if path.parent == Path('runs') else str(path))}"


def device_name(table: LatencyTable) -> str:
    """Return in words what a table is of."""
    batch = "" if table.batch == 1 else f", batch {table.batch}"
    threads = "" if table.threads == 1 else f", {table.threads} threads"
    return f"{table.device.name}, {table.runtime}, {table.precision}{threads}{batch}"


def _table_axis(
    table: LatencyTable, source: Source, found: Genes, path_ap: list[float], run: str
) -> Axis:
    costs = table.predict(source.genes)
    low, high = table.predict_interval(found)
    return Axis(
        name=f"latency: {device_name(table)}",
        title="latency, ms (predicted p50)",
        kind="latency",
        paths=costs.tolist(),
        front=pareto_front(costs, np.array(path_ap)).tolist(),
        subnets=table.predict(found).tolist(),
        low=low.tolist(),
        high=high.tolist(),
        measured=[item.measured_ms(table) for item in source.written],
        search=f"detofa search --latency {{}}{run}{table.options}",
    )


def _macs_axis(
    space: SearchSpace, paths: Genes, found: Genes, path_ap: list[float], run: str
) -> Axis:
    costs, macs = macs_cost(space)(paths), macs_cost(space)(found).tolist()
    return Axis(
        name="MACs",
        title="multiply-accumulates of one image",
        kind="macs",
        paths=costs.tolist(),
        front=pareto_front(costs, np.array(path_ap)).tolist(),
        subnets=macs,
        low=macs,
        high=macs,
        measured=[None] * len(macs),
        search=f"detofa search --macs {{}}{run}",
    )


def _chart(explorer: Explorer, source: Source, space: SearchSpace) -> Chart:
    """Return the chart as it is before a cost is chosen; the page's script goes on from there."""
    axis = explorer.axes[0]
    rows = list(axis.front)
    names = [html.escape(name) for name in explorer.names]
    error = {
        "type": "data",
        "symmetric": False,
        "array": (np.array(axis.high) - np.array(axis.subnets)).tolist(),
        "arrayminus": (np.array(axis.subnets) - np.array(axis.low)).tolist(),
        "color": "--second",
        "thickness": 1,
    }
    point = "AP %{y:.3f} at %{x:.4s}<extra></extra>"
    return Chart(
        name="front",
        title="AP against cost",
        description=(
            f"{len(explorer.path_ap)} evaluated paths and {len(names)} written detectors; the "
            "numbers are in the tables below."
        ),
        traces=(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "evaluated paths",
                "x": axis.paths,
                "y": explorer.path_ap,
                "marker": {"color": "--muted", "size": 6, "symbol": _SHAPES["paths"]},
                "hovertemplate": f"path: {point}",
            },
            {
                "type": "scatter",
                "mode": "lines",
                "name": "their front",
                "x": [axis.paths[row] for row in rows],
                "y": [explorer.path_ap[row] for row in rows],
                "line": {"color": "--first", "width": 2, "shape": "hv"},
                "hoverinfo": "skip",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "written detectors",
                "x": axis.subnets,
                "y": explorer.ap,
                "text": names,
                "error_x": error,
                "marker": {"color": "--second", "size": 11, "symbol": _SHAPES["subnets"]},
                "hovertemplate": f"<b>%{{text}}</b>: {point}",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "chosen",
                "x": [],
                "y": [],
                "text": [],
                "marker": {
                    "color": "--ink",
                    "size": 20,
                    "symbol": _SHAPES["chosen"],
                    "line": {"width": 2, "color": "--ink"},
                },
                "hoverinfo": "skip",
            },
        ),
        axes=(axis.title, "AP"),
        table=_path_table(source, space, explorer),
    )


def _path_table(source: Source, space: SearchSpace, explorer: Explorer) -> Table:
    macs, params = macs_cost(space)(source.genes), num_params_cost(space)(source.genes)
    tables = explorer.axes[:-1]
    rows: list[tuple[Cell, ...]] = []
    for index, figures in enumerate(source.figures):
        arch = space.arch(source.genes[index])
        height, width = arch.image_size
        rows.append(
            (
                index + 1,
                figures.ap,
                figures.ap50,
                *(axis.paths[index] for axis in tables),
                round(float(macs[index])),
                round(float(params[index])),
                f"{height}x{width}",
                "".join(str(depth) for depth in arch.depths),
            )
        )
    return Table(
        caption=f"The {len(rows)} evaluated paths, best first",
        columns=(
            "path",
            "AP",
            "AP50",
            *(f"ms predicted, {axis.name.removeprefix('latency: ')}" for axis in tables),
            "MACs",
            "parameters",
            "input",
            "depths of stages",
        ),
        rows=tuple(rows),
    )


def _written_table(source: Source, axes: list[Axis]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for index, item in enumerate(source.written):
        figures = item.subnet.figures
        measured = figures.get("latency")
        height, width = item.subnet.arch.image_size
        parts: list[Cell] = []
        for axis in axes[:-1]:
            low, high = axis.low[index], axis.high[index]
            parts.append(f"{axis.subnets[index]:.2f} ({low:.2f} to {high:.2f})")
        rows.append(
            (
                item.name,
                item.ap,
                figures["ap50"].value if "ap50" in figures else None,
                *parts,
                None if measured is None else measured.value,
                None if measured is None else str(measured.conditions.get("device", "")),
                round(figures["macs"].value) if "macs" in figures else None,
                round(figures["num_params"].value) if "num_params" in figures else None,
                f"{height}x{width}",
                f"detofa export {shlex.quote(str(item.path))}",
            )
        )
    return Table(
        caption="Detectors that are written, cheapest first",
        columns=(
            "detector",
            "AP",
            "AP50",
            *(f"ms predicted, {axis.name.removeprefix('latency: ')}" for axis in axes[:-1]),
            "ms measured",
            "measured on",
            "MACs",
            "parameters",
            "input",
            "exported by",
        ),
        rows=tuple(rows),
    )
