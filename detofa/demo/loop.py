"""The steps of the demo, in order."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detofa import recipes
from detofa.choose.chooser import Chooser
from detofa.choose.records import Budget, Choice
from detofa.data.dataset import DetectionDataset, load_dataset
from detofa.data.demo import make_demo_dataset
from detofa.data.evaluation import AveragePrecision
from detofa.demo.detectors import (
    DetectorRow,
    Summary,
    demo_section,
    markdown_table,
    trade_off_svg,
)
from detofa.demo.outcome import checks, commands, evaluated_paths, facts, measured_range, sheet
from detofa.demo.show import Show, Watcher
from detofa.errors import UserError
from detofa.export.export import Exported, export_subnet
from detofa.files import write_bytes, write_text
from detofa.imaging import read_image
from detofa.profiling.again import AGAIN, measure_again
from detofa.profiling.measure import ProfilePlan, measure_table
from detofa.profiling.table import LatencyTable
from detofa.report.gallery import jpeg_bytes
from detofa.report.page import write_page
from detofa.report.report import report_of
from detofa.report.source import Source
from detofa.runtime.detector import open_detector
from detofa.runtime.measuring import Schedule
from detofa.supernet.decode import DecodedDetector
from detofa.train.checkpoint import load_subnet
from detofa.train.detection import DetectionTask
from detofa.train.evaluate import evaluate_detector
from detofa.train.run import RunFolder, command_line
from detofa.train.trainer import Trainer

SHARES = {"small": 0.30, "medium": 0.55, "large": 0.80}
"""Budgets, as shares of the way from the fastest to the slowest detector measured."""

_IMAGES_TO_VERIFY = 8


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demo does; the defaults take minutes on two cores.

    Attributes:
        train_images: Images made for training.
        val_images: Images made for choosing.
        test_images: Images made for the final figures.
        steps: Training steps; the recipe's own if None.
        profile_seconds: Wall time of the profile.
        profile_passes: Most passes of it.
        labels: Paths evaluated to fit the predictor.
        top_k: Finalists evaluated for each budget.
        timing_passes: Passes over the exported files.
        picture_images: Images on the sheet of pictures.
    """

    train_images: int = 500
    val_images: int = 60
    test_images: int = 150
    steps: int | None = None
    profile_seconds: float = 45.0
    profile_passes: int = 400
    labels: int = 14
    top_k: int = 4
    timing_passes: int = 20
    picture_images: int = 3


def run_demo(
    folder: Path = Path("runs/demo"),
    *,
    seed: int = 0,
    size: DemoSize = DemoSize(),
    tables: Path = Path("latency_tables"),
) -> Summary:
    """Make data, train, profile, choose at three budgets, export, measure; print what came out.

    Everything goes to `folder`, a run like any other, but for the latency table; what an earlier
    demo left there is made anew.

    Args:
        folder: The run's folder.
        seed: Decides data, training, profile and search.
        size: How much is done.
        tables: Where the latency table goes.

    Returns:
        What came out.

    Raises:
        UserError: the folder holds another run, or something is not installed.
    """
    begin = time.monotonic()
    show = Show()
    run, data = fresh_run(folder), folder / "data"
    with show.stage("making handwritten digits to find"):
        make_demo_dataset(
            data,
            seed=seed,
            train=size.train_images,
            val=size.val_images,
            test=size.test_images,
        )
    _train(run, data, seed, size, show)
    table = _profile(run, seed, size, tables, show)
    choices = _choose(run, table, seed, size, show)
    test = load_dataset(data, "test")
    exported = _export(choices, data, seed, show)
    rows, slowdown = _rows(choices, exported, table, test, seed, size, show)
    seconds = time.monotonic() - begin
    summary = Summary(
        facts=facts(run.load_config(), table, test, slowdown, seconds),
        rows=rows,
        evaluated=evaluated_paths(run, table),
        sheet=sheet(exported, test, size.picture_images),
        checks=checks(rows, [item.report for item in exported.values()], seconds),
        commands=commands(folder, table),
    )
    _write(run, table, summary)
    show.outcome(folder, summary)
    return summary


# ---- the steps ----------------------------------------------------------------------------


def fresh_run(folder: Path) -> RunFolder:
    """Return the run, without what an earlier demo left that would be resumed."""
    run = RunFolder(path=folder)
    if run.config.is_file() and run.load_config().data != str(folder / "data"):
        raise UserError(f"{folder} holds another run, not a demo's; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*run.states, run.metrics, run.supernet):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error
    return run


def _train(run: RunFolder, data: Path, seed: int, size: DemoSize, show: Show) -> None:
    config = dataclasses.replace(recipes.demo(data), seed=seed)
    if size.steps is not None:
        config = dataclasses.replace(config, steps=size.steps)
    train = load_dataset(data, "train")
    validation = load_dataset(data, "val", categories=train.categories)
    task = DetectionTask(config, train=train, validation=validation)
    with show.stage("training one supernet") as progress:
        trainer = Trainer(task, run, torch.device("cpu"))
        trainer.begin(command_line())
        trainer.train(Watcher(progress, show), lambda: False)


def _profile(run: RunFolder, seed: int, size: DemoSize, tables: Path, show: Show) -> LatencyTable:
    space = Chooser(run).space
    with show.stage(f"measuring this machine for {size.profile_seconds:.0f} s") as progress:
        table = measure_table(
            ProfilePlan.draw(space, seed=seed),
            schedule=Schedule(passes=size.profile_passes, seed=seed),
            budget_seconds=size.profile_seconds,
            on_progress=progress,
        )
        path = table.save(tables)
    low, high = measured_range(table)
    show.line(
        f"{table.device.name}: detectors of this space take {low:.2f} to {high:.2f} ms; table "
        f"error {table.held_out['mape']:.1%} (MAPE) on {table.held_out['count']:.0f} held out; "
        f"wrote {path}"
    )
    return table


def _choose(
    run: RunFolder, table: LatencyTable, seed: int, size: DemoSize, show: Show
) -> dict[str, Choice]:
    low, high = measured_range(table)
    choices = {}
    with show.stage("choosing detectors for three budgets") as progress:
        chooser = Chooser(run, table=table, seed=seed, labels=size.labels, on_progress=progress)
        for name, share in SHARES.items():
            choices[name] = chooser.choose(
                Budget(kind="latency", limit=low + share * (high - low)),
                run.subnets / f"{name}.json",
                top_k=size.top_k,
                command=command_line(),
            )
    return choices


def _export(
    choices: Mapping[str, Choice], data: Path, seed: int, show: Show
) -> dict[str, Exported]:
    validation = load_dataset(data, "val")
    images = {
        record.path.name: read_image(record.path)
        for record in validation.images[:_IMAGES_TO_VERIFY]
    }
    exported = {}
    with show.stage("exporting to ONNX, and comparing with PyTorch") as progress:
        for index, (name, choice) in enumerate(choices.items()):
            progress(f"exporting {name}", index / len(choices))
            subnet, detector = load_subnet(choice.subnet_path)
            exported[name] = export_subnet(
                DecodedDetector.of_subnet(detector, subnet),
                subnet,
                choice.subnet_path.with_suffix(".onnx"),
                images=images,
                rng=np.random.default_rng(seed),
            )
    return exported


def _rows(
    choices: Mapping[str, Choice],
    exported: Mapping[str, Exported],
    table: LatencyTable,
    test: DetectionDataset,
    seed: int,
    size: DemoSize,
    show: Show,
) -> tuple[tuple[DetectorRow, ...], float]:
    """Measure and evaluate the exported files themselves.

    Returns:
        A row for each, and how many times as long as for the table everything takes by now.
    """
    low, high = measured_range(table)
    with show.stage("measuring and testing the exported detectors") as progress:
        progress("measuring", 0.0)
        now = measure_again(
            table,
            {name: item.model_path.read_bytes for name, item in exported.items()},
            schedule=dataclasses.replace(AGAIN, passes=size.timing_passes, seed=seed),
        )
        results: dict[str, AveragePrecision] = {}
        for index, (name, item) in enumerate(exported.items()):
            progress(f"testing {name}", (index + 1) / (len(exported) + 1))
            with open_detector(item.model_path) as detector:
                results[name] = evaluate_detector(detector, test)[0]
    rows = []
    for name, choice in choices.items():
        winner = choice.finalists[0]
        assert winner.predicted_ms is not None
        assert winner.low_ms is not None
        assert winner.high_ms is not None
        rows.append(
            DetectorRow(
                name=name,
                budget_ms=low + SHARES[name] * (high - low),
                measured_ms=now.p50_ms[name],
                predicted_ms=winner.predicted_ms,
                low_ms=winner.low_ms,
                high_ms=winner.high_ms,
                ap=results[name].ap,
                ap50=results[name].ap50,
                macs=winner.macs,
                num_params=winner.num_params,
                file_bytes=exported[name].model_path.stat().st_size,
                image_size=winner.arch.image_size,
                path=str(exported[name].model_path),
            )
        )
    return tuple(rows), now.slowdown


def _write(run: RunFolder, table: LatencyTable, summary: Summary) -> None:
    pictures = run.path / "pictures"
    try:
        pictures.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {pictures}: {error.strerror or error}") from error
    write_bytes(pictures / "detections.jpg", jpeg_bytes(summary.sheet))
    write_text(pictures / "trade_off.svg", trade_off_svg(summary.rows, summary.evaluated))
    write_text(run.path / "detectors.md", markdown_table(summary.rows))
    report = report_of(Source.of(run, [table]), first=(demo_section(summary),))
    write_page(run.path / "report.html", report)
