"""What a subnet.json says of the detector that was chosen: each figure with where it came from."""

from datetime import UTC, datetime

from detofa.choose.records import Finalist
from detofa.data.dataset import DetectionDataset
from detofa.profiling.table import LatencyTable
from detofa.subnet import Figure


def figures_of(
    winner: Finalist,
    validation: DetectionDataset,
    table: LatencyTable | None,
    slowdown: float,
) -> dict[str, Figure]:
    """Return the named figures of a finalist.

    Args:
        winner: The finalist.
        validation: The split that it was evaluated on.
        table: The latency table that its budget went by, if any.
        slowdown: How much longer this machine takes now than for its table.
    """
    split = {"split": validation.split, "images": len(validation.images)}
    figures = {
        "ap": Figure(value=winner.ap, unit="AP", source="measured", conditions=split),
        "ap50": Figure(value=winner.ap50, unit="AP50", source="measured", conditions=split),
        "ap_predicted": Figure(value=winner.predicted_ap, unit="AP", source="predicted"),
        "macs": Figure(value=winner.macs, unit="MACs", source="exact"),
        "num_params": Figure(value=winner.num_params, unit="parameters", source="exact"),
    }
    if table is None or winner.predicted_ms is None:
        return figures
    conditions = {
        "device": table.device.name,
        "runtime": table.runtime,
        "runtime_version": table.runtime_version,
        "precision": table.precision,
        "batch": table.batch,
        "threads": table.threads,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    figures["latency_predicted"] = Figure(
        value=winner.predicted_ms,
        unit="ms",
        source="predicted",
        conditions=conditions | {"date": table.date},
        low=winner.low_ms,
        high=winner.high_ms,
    )
    if winner.measured_ms is not None:
        figures["latency"] = Figure(
            value=winner.measured_ms,
            unit="ms",
            source="measured",
            conditions=conditions | {"slowdown_since_table": round(slowdown, 4)},
        )
    if table.batch > 1:
        told = figures.get("latency", figures["latency_predicted"])
        figures["throughput"] = Figure(
            value=1000 * table.batch / told.value,
            unit="images/s",
            source=told.source,
            conditions=told.conditions,
        )
    return figures
