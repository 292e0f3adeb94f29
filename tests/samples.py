"""Small subnets and runs that several test modules share."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from detofa.arch import Arch
from detofa.data.dataset import load_dataset
from detofa.files import sha256_file
from detofa.imaging import IMAGENET
from detofa.presets import preset
from detofa.subnet import PostProcessing, Subnet
from detofa.supernet.detector import Supernet
from detofa.train.checkpoint import save_subnet_weights
from detofa.train.config import TrainConfig
from detofa.train.detection import DetectionTask
from detofa.train.evaluate import extract_recalibrated
from detofa.train.ranks import ALONE, Ranks
from detofa.train.run import RunFolder
from detofa.train.trainer import Trainer


def make_subnet(
    image_size: tuple[int, int] = (96, 128), space_name: str = "tiny", **postprocessing: Any
) -> Subnet:
    """Return the smallest subnet of a space; its weights file is only a name."""
    space = preset(space_name, num_classes=2, image_sizes=[image_size])
    return Subnet(
        space=space,
        arch=space.smallest,
        preprocessing=IMAGENET,
        postprocessing=PostProcessing(**postprocessing),
        categories=((7, "red cell"), (90, "platelet")),
        weights_file="a.safetensors",
        weights_sha256="0" * 64,
        supernet_sha256="1" * 64,
        recalibration={"images": 4, "seed": 0},
        figures={},
        device=None,
        table_sha256=None,
        command="detofa search",
    )


class Quiet:
    """An observer of training that checks and keeps what it is told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.evaluations: list[Mapping[str, Mapping[str, float]]] = []

    def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
        """Keep the loss."""
        assert 1 <= step <= steps
        assert images_per_s > 0
        self.losses.append(loss)

    def on_evaluation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Keep the results."""
        self.evaluations.append(results)


def config_of(data: Path, **changes: Any) -> TrainConfig:
    """Return settings of a run of seconds on the demo's digits."""
    config = TrainConfig(
        data=str(data),
        space="tiny",
        image_sizes=((64, 64), (64, 96)),
        steps=6,
        batch_size=4,
        largest_first=0.2,
        recalibration_images=8,
        evaluations=0,
        checkpoint_steps=2,
        distillation=0.5,
    )
    return dataclasses.replace(config, **changes)


def trainer_of(config: TrainConfig, folder: Path, ranks: Ranks = ALONE) -> Trainer:
    """Return a trainer on the CPU whose run is `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(config.data)
    train, validation = load_dataset(data, "train"), load_dataset(data, "val")
    task = DetectionTask(config, train=train, validation=validation)
    return Trainer(task, RunFolder(path=folder), torch.device("cpu"), ranks)


def save_subnet(trainer: Trainer, arch: Arch, path: Path) -> None:
    """Write a path of a trained supernet as subnet.json, its weights beside it."""
    supernet = trainer.averaged_supernet
    assert isinstance(supernet, Supernet)
    weights = path.with_suffix(".safetensors")
    save_subnet_weights(weights, extract_recalibrated(supernet, arch, trainer.task.recalibration))
    Subnet(
        space=trainer.space,
        arch=arch,
        preprocessing=trainer.task.preprocessing,
        postprocessing=PostProcessing(),
        categories=trainer.task.categories,
        weights_file=weights.name,
        weights_sha256=sha256_file(weights),
        supernet_sha256=sha256_file(trainer.run.supernet),
        recalibration=dict(trainer.task.recalibration.to_json()),
        figures={},
        device=None,
        table_sha256=None,
        command="detofa search",
    ).save(path)
