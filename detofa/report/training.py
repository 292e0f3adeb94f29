"""Training curves: the loss, and the figures of the largest, the smallest and a random path."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detofa.report.page import Cell, Chart, Section, Table
from detofa.report.ranking import COLOURS, DASHES, SYMBOLS
from detofa.report.source import Source

_MOST_POINTS = 300  # of the loss: a mean over steps is shown where there are more
_NAMES = {"ap": "AP", "ap50": "AP50", "top1": "top-1 accuracy", "top5": "top-5 accuracy"}


def training_section(source: Source) -> Section:
    """Return the curves of the run's metrics."""
    name, title = "training", "Training"
    records = source.run.read_metrics()
    if not records:
        return Section(
            name=name,
            title=title,
            missing="This run has no metrics: `detofa train` writes them.",
        )
    figures = list(dict.fromkeys(key for one in records for key in one if _is_paths(one[key])))
    charts = [_paths_chart(records, figure) for figure in figures]
    steps = [(one["step"], one["loss"]) for one in records if isinstance(one.get("loss"), float)]
    if steps:
        charts.append(_loss_chart(steps))
    return Section(name=name, title=title, charts=tuple(charts))


def _is_paths(value: Any) -> bool:
    return isinstance(value, dict) and all(type(item) in (int, float) for item in value.values())


def _paths_chart(records: Sequence[dict[str, Any]], figure: str) -> Chart:
    found = [one for one in records if _is_paths(one.get(figure))]
    paths = list(dict.fromkeys(path for one in found for path in one[figure]))
    title = _NAMES.get(figure, figure)
    rows: list[tuple[Cell, ...]] = [
        (one["step"], *(one[figure].get(path) for path in paths)) for one in found
    ]
    return Chart(
        name=f"training-{figure}",
        title=f"{title} of {', '.join(paths)} path on the validation split",
        description=f"{len(paths)} paths at {len(found)} steps.",
        traces=[
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": path,
                "x": [one["step"] for one in found if path in one[figure]],
                "y": [one[figure][path] for one in found if path in one[figure]],
                "line": {
                    "color": COLOURS[index % len(COLOURS)],
                    "dash": DASHES[index % len(DASHES)],
                },
                "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 8},
                "hovertemplate": "%{y:.3f} at step %{x}<extra>%{fullData.name}</extra>",
            }
            for index, path in enumerate(paths)
        ],
        axes=("step", title),
        layout={"yaxis": {"rangemode": "tozero"}},
        table=Table(
            caption=f"{title} at each evaluation", columns=("step", *paths), rows=tuple(rows)
        ),
    )


def _loss_chart(steps: Sequence[tuple[int, float]]) -> Chart:
    width = -(-len(steps) // _MOST_POINTS)
    parts = [steps[start : start + width] for start in range(0, len(steps), width)]
    points = [(part[-1][0], float(np.mean([loss for _, loss in part]))) for part in parts]
    each = "at each step" if width == 1 else f"mean of {width} steps"
    return Chart(
        name="loss",
        title=f"Loss, {each}",
        description=f"The loss of {len(steps)} steps.",
        traces=(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "loss",
                "x": [step for step, _ in points],
                "y": [loss for _, loss in points],
                "line": {"color": COLOURS[0], "width": 1.5},
                "hovertemplate": "%{y:.3f} at step %{x}<extra></extra>",
            },
        ),
        axes=("step", "loss"),
        table=Table(caption=f"Loss, {each}", columns=("step", "loss"), rows=tuple(points)),
    )
