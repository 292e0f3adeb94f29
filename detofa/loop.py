"""The loop in Python: train, profile, search, export; each does what the command of its name does.

For notebooks and scripts; docs/notebook.md shows all four.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from detofa.choose.chooser import Chooser
from detofa.choose.records import Budget, Choice
from detofa.data.dataset import load_dataset
from detofa.errors import UserError
from detofa.evidence import gather_evidence
from detofa.export.export import Exported, export_subnet, onnx_path
from detofa.profiling.measure import ProfilePlan, measure_table
from detofa.profiling.table import LatencyTable
from detofa.runtime.gates import Precision
from detofa.supernet.decode import DecodedDetector
from detofa.train.checkpoint import load_subnet
from detofa.train.config import TrainConfig
from detofa.train.detection import DetectionTask
from detofa.train.method import train_by_method
from detofa.train.run import RunFolder, command_line
from detofa.train.trainer import Observer, Trainer


class Silent:
    """An observer of training that says nothing."""

    def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
        """Let a step pass."""

    def on_evaluation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Let an evaluation pass."""


def train(
    config: TrainConfig, folder: Path, *, observer: Observer | None = None, device: str = "cpu"
) -> RunFolder:
    """Train a supernet, or resume the run that lies in a folder, to its last step.

    Args:
        config: The settings; `detofa.recipes` has some to start from.
        folder: The run's folder; commands find it under `runs/`.
        observer: Told of every step and evaluation.
        device: Where tensors live, as PyTorch names it.

    Returns:
        The run.

    Raises:
        UserError: the data are faulty, or the folder holds a run with other settings, or one that
            another process trains.
    """
    run = RunFolder(path=folder)
    root = Path(config.data)
    training = load_dataset(root, "train")
    validation = load_dataset(root, "val", categories=training.categories)
    with run.claimed():
        if run.config.is_file() and run.load_config() != config:
            raise UserError(
                f"{folder} holds a run with other settings; use the same ones to resume it, or "
                "choose another folder"
            )
        task = DetectionTask(config, train=training, validation=validation)
        trainer = Trainer(task, run, torch.device(device))
        trainer.begin(command_line())
        train_by_method(trainer, observer or Silent(), lambda: False)
    return run


def profile(
    run: RunFolder,
    *,
    seconds: float | None = None,
    tables: Path = Path("latency_tables"),
    seed: int = 0,
) -> LatencyTable:
    """Measure the space of a run on this machine's processor, on one thread; writes the table.

    Args:
        run: A trained run.
        seconds: Wall time to stay within, about; all passes if not given.
        tables: The folder of tables.
        seed: Chooses the detectors that are measured.

    Raises:
        UserError: the run has no supernet, or ONNX Runtime is missing.
    """
    table = measure_table(ProfilePlan.draw(Chooser(run).space, seed=seed), budget_seconds=seconds)
    table.save_beside_earlier(tables)
    return table


def search(
    run: RunFolder,
    output: Path = Path("subnet.json"),
    *,
    latency_ms: float | None = None,
    macs: float | None = None,
    table: LatencyTable | None = None,
    labels: int = 24,
    top_k: int = 5,
    seed: int = 0,
) -> Choice:
    """Find the best detector within a budget; writes subnet.json and the weights beside it.

    Args:
        run: A trained run.
        output: The subnet.json to write.
        latency_ms: Budget in milliseconds, on the device of `table`.
        macs: Budget in multiply-accumulates; give one of the two.
        table: A latency table of the run's space.
        labels: Paths evaluated to fit the predictor of AP.
        top_k: Finalists evaluated for real.
        seed: Same seed, same result.

    Raises:
        UserError: no budget or two, no table for a latency, or a budget that the space cannot meet.
    """
    if latency_ms is not None and macs is None:
        if table is None:
            raise UserError("a latency needs a table; make one with `profile`, or give macs")
        budget = Budget(kind="latency", limit=latency_ms)
    elif macs is not None and latency_ms is None:
        budget = Budget(kind="macs", limit=macs)
    else:
        raise UserError("give either latency_ms or macs")
    chooser = Chooser(run, table=table, seed=seed, labels=labels)
    return chooser.choose(budget, output, top_k=top_k, command=command_line())


def export(
    subnet: Path,
    data: Path,
    output: Path | None = None,
    *,
    precision: Precision = "fp32",
    calibrate_on: int = 64,
    seed: int = 0,
) -> Exported:
    """Write a detector as an ONNX file, its boxes and average precision compared with PyTorch's.

    Args:
        subnet: A subnet.json, its weights beside it.
        data: The data set's folder, whose validation split judges; or a folder of images.
        output: The file to write; NAME.onnx beside it, or NAME.fp16.onnx, if not given.
        precision: fp32, fp16 or int8.
        calibrate_on: Images of the training split that int8 is calibrated on.
        seed: Decides on which images, and on which noise, both are compared.

    Raises:
        UserError: no image can be read, int8 has nothing to be calibrated on, or the file does not
            do what PyTorch does.

    Warns:
        UserWarning: something cannot be compared, such as average precision without true boxes.
    """
    if precision == "int8" and calibrate_on < 1:
        raise UserError(f"int8 is calibrated on one image or more, got {calibrate_on}")
    record, detector = load_subnet(subnet)
    rng = np.random.default_rng(seed)
    calibrated = calibrate_on if precision == "int8" else 0
    evidence = gather_evidence(record, detector, data, rng, calibrate_on=calibrated)
    for note in evidence.notes:
        warnings.warn(note, stacklevel=2)
    return export_subnet(
        DecodedDetector.of_subnet(detector, record),
        record,
        output or onnx_path(subnet, precision),
        images=evidence.images,
        rng=rng,
        precision=precision,
        calibration=evidence.calibration,
        judge=evidence.judge,
    )
