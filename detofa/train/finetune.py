"""Train a chosen subnet alone, from the weights it inherited."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detofa.files import sha256_file
from detofa.subnet import Figure, Subnet
from detofa.supernet.detector import StaticDetector
from detofa.supernet.sharing import ArchModule
from detofa.train.checkpoint import save_subnet_weights
from detofa.train.detection import FinetuneTask
from detofa.train.evaluate import PathFigures, evaluate_paths, extract_recalibrated
from detofa.train.trainer import Observer, Trainer


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What fine-tuning did, on the validation split.

    Attributes:
        before: AP and AP50 with inherited weights.
        after: AP and AP50 with its own.
        subnet: What was written.
    """

    before: PathFigures
    after: PathFigures
    subnet: Subnet


def finetune(
    trainer: Trainer,
    subnet: Subnet,
    output: Path,
    observer: Observer,
    should_stop: Callable[[], bool],
    *,
    command: str = "",
) -> Finetuned | None:
    """Train a subnet to the last step, and write it with figures of its own.

    Args:
        trainer: Of a `FinetuneTask` for the subnet; it may resume.
        subnet: The record to start from.
        output: The subnet.json to write; weights go beside it.
        observer: Told of every step and evaluation.
        should_stop: Asked after every step.
        command: The command line, for the record.

    Returns:
        What came of it; None if it was stopped, and the same run resumes.
    """
    task = trainer.task
    assert isinstance(task, FinetuneTask)
    if not trainer.train(observer, should_stop):
        return None
    tuned = trainer.averaged_supernet

    def evaluate(networks: Sequence[ArchModule[StaticDetector]]) -> Iterator[PathFigures]:
        for network in networks:
            yield from evaluate_paths(
                network,
                [subnet.arch],
                task.recalibration,
                task.validation,
                subnet.postprocessing,
            )

    inherited = task.inherited().to(trainer.device)
    before, after = trainer.ranks.spread(evaluate, [inherited, tuned])
    detector: StaticDetector = extract_recalibrated(tuned, subnet.arch, task.recalibration)
    weights = output.with_suffix(".safetensors")
    conditions = {
        "split": task.validation.split,
        "images": len(task.validation.images),
        "finetune_steps": trainer.step,
    }
    figures = {name: kept for name, kept in subnet.figures.items() if name != "ap_predicted"}
    for name, value in {"ap": after.ap, "ap50": after.ap50}.items():
        figures[name] = Figure(
            value=value, unit=name.upper(), source="measured", conditions=conditions
        )

    def write() -> Subnet:
        save_subnet_weights(weights, detector)
        record = dataclasses.replace(
            subnet,
            weights_file=weights.name,
            weights_sha256=sha256_file(weights),
            recalibration=dict(task.recalibration.to_json()),
            figures=figures,
            command=command,
        )
        record.save(output)
        return record

    return Finetuned(before=before, after=after, subnet=trainer.ranks.first(write))
