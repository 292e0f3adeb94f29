"""What the demo found: figures against targets, pictures, and what to try next."""

import resource
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detofa.arch import Arch
from detofa.data.dataset import DetectionDataset
from detofa.demo.detectors import Check, DetectorRow
from detofa.export.export import Exported
from detofa.export.verify import ParityReport
from detofa.files import read_json
from detofa.imaging import read_image
from detofa.profiling.table import LatencyTable
from detofa.report.pictures import comparison_sheet
from detofa.runtime.detector import open_detector
from detofa.train.config import TrainConfig
from detofa.train.run import RunFolder

_LEAST_AP50, _LEAST_RATIO, _MOST_SECONDS, _MOST_GIB = 0.70, 1.3, 360, 4.0


def measured_range(table: LatencyTable) -> tuple[float, float]:
    """Return the p50 of the fastest and of the slowest detector measured, milliseconds."""
    times = [float(entry["p50_ms"]) for entry in table.detectors]
    return min(times), max(times)


def evaluated_paths(run: RunFolder, table: LatencyTable) -> tuple[tuple[float, float], ...]:
    """Return (predicted ms, validation AP) of every path that was evaluated."""
    record = read_json(
        run.path / "path_evaluations.json", "path_evaluations", remake="`detofa demo`"
    )
    genes = np.stack([table.space.genes(Arch.from_json(path["arch"])) for path in record["paths"]])
    points = zip(table.predict(genes), record["paths"], strict=True)
    return tuple((float(latency_ms), float(path["ap"])) for latency_ms, path in points)


def sheet(
    exported: Mapping[str, Exported], test: DetectionDataset, count: int
) -> NDArray[np.uint8]:
    """Draw the first images of the test split, with the boxes of each detector."""
    records = test.images[:count]
    images = [read_image(record.path) for record in records]
    found = {}
    for name, item in exported.items():
        with open_detector(item.model_path) as detector:
            found[name] = detector.detect(images)
    names = [category.name for category in test.categories]
    return comparison_sheet(images, records, found, names)


def facts(
    config: TrainConfig,
    table: LatencyTable,
    test: DetectionDataset,
    slowdown: float,
    seconds: float,
) -> tuple[tuple[str, str], ...]:
    """Return what was done where, as (name, value)."""
    low, high = measured_range(table)
    sizes = ", ".join(f"{height}x{width}" for height, width in table.space.image_sizes)
    return (
        ("data", f"handwritten digits on textures; {len(test.images)} test images"),
        ("supernet", f"{config.space}, inputs {sizes}: {table.space.size:.2g} detectors, from "
                     f"{config.init} weights, {config.steps} steps of {config.batch_size} images"),
        ("device", f"{table.device.name}, {table.runtime} {table.runtime_version}, "
                   f"{table.precision}, {table.threads} thread, batch {table.batch}"),
        ("latency table", f"{low:.2f} to {high:.2f} ms measured; MAPE "
                          f"{table.held_out['mape']:.1%} and Kendall tau "
                          f"{table.held_out['kendall_tau']:.3f} on "
                          f"{table.held_out['count']:.0f} held-out detectors"),
        ("measured ms", f"{table.clock} time of the exported files, at the speed the machine had "
                        f"for the table; by then everything took {slowdown:.2f} times as long"),
        ("seed", str(config.seed)),
        ("date", table.date),
        ("took", f"{seconds:.0f} s"),
    )  # fmt: skip


def checks(
    rows: Sequence[DetectorRow], parity: Sequence[ParityReport], seconds: float
) -> tuple[Check, ...]:
    """Compare with the targets; nothing here is tuned to pass."""
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    ratios = [after.measured_ms / before.measured_ms for before, after in pairwise(rows)]
    worst_error = max(
        error for report in parity for error in report.to_json()["head_relative_errors"].values()
    )
    aps = [row.ap for row in rows]
    return (
        Check(
            name="wall time, two quiet cores",
            target=f"at most {_MOST_SECONDS} s",
            found=f"{seconds:.0f} s",
            passed=seconds <= _MOST_SECONDS,
        ),
        Check(
            name="peak memory",
            target=f"at most {_MOST_GIB:.0f} GiB",
            found=f"{peak_gib:.2f} GiB",
            passed=peak_gib <= _MOST_GIB,
        ),
        Check(
            name="AP50 of each, test split",
            target=f"at least {_LEAST_AP50:.2f}",
            found=", ".join(f"{row.ap50:.3f}" for row in rows),
            passed=all(row.ap50 >= _LEAST_AP50 for row in rows),
        ),
        Check(
            name="AP does not fall as the budget grows",
            target="rising",
            found=", ".join(f"{ap:.3f}" for ap in aps),
            passed=aps == sorted(aps),
        ),
        Check(
            name="each within its budget, measured",
            target="at most " + ", ".join(f"{row.budget_ms:.2f}" for row in rows) + " ms",
            found=", ".join(f"{row.measured_ms:.2f}" for row in rows) + " ms",
            passed=all(row.measured_ms <= row.budget_ms for row in rows),
        ),
        Check(
            name="measured latencies apart",
            target=f"at least {_LEAST_RATIO} times",
            found=", ".join(f"{ratio:.2f}" for ratio in ratios),
            passed=all(ratio >= _LEAST_RATIO for ratio in ratios),
        ),
        Check(
            name="ONNX against PyTorch, raw heads",
            target="within 1e-4, every box found again",
            found=f"{worst_error:.1e}",
            passed=all(report.passed for report in parity),
        ),
    )


def commands(folder: Path, table: LatencyTable) -> tuple[str, ...]:
    """Return two commands that work as they are, typed where the demo was."""
    low, high = measured_range(table)
    option = "" if folder.parent == Path("runs") else f" --run {shlex.quote(str(folder))}"
    return (
        f"detofa search --latency {low + 0.45 * (high - low):.1f}ms{option}",
        "detofa export subnet.json",
    )
