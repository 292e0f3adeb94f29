"""What a run teaches: what detection and classification have in common, and what each adds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from detofa.arch import Arch
from detofa.data.dataset import DetectionDataset
from detofa.data.loader import Batch, TrainingBatches
from detofa.imaging import IMAGENET, LITE, Preprocessing
from detofa.presets import preset
from detofa.space import SearchSpace
from detofa.supernet.import_weights import load_pretrained
from detofa.supernet.sharing import WeightSharing
from detofa.train.checkpoint import SupernetRecord, load_earlier_supernet, save_supernet
from detofa.train.config import TrainConfig
from detofa.train.evaluate import Recalibration


class Objective(Protocol):
    """What the outputs of a path lack on a batch."""

    def __call__(
        self, outputs: Any, batch: Batch, arch: Arch, lead: Callable[[], Any] | None
    ) -> tuple[Tensor, Any]:
        """Return the loss of one path.

        Args:
            outputs: Of the path, on the images of the batch.
            batch: At the path's input size.
            arch: The path.
            lead: Waits for what the step's first path hands on; None for that path itself.

        Returns:
            The loss, and what this path would hand on: detached targets and outputs.
        """


def preprocessing_of(space_name: str) -> Preprocessing:
    """Return how the images of a space are normalised: as its pre-trained weights expect."""
    return LITE if space_name == "lite0" else IMAGENET


class Task(ABC):
    """A data set, the networks that learn from it, and how good they are.

    Args:
        config: The settings of the run.
        train: Training split.
        validation: Split for progress and, later, for search.

    Raises:
        UserError: an unknown space.
    """

    def __init__(
        self, config: TrainConfig, *, train: DetectionDataset, validation: DetectionDataset
    ) -> None:
        self.config, self.train, self.validation = config, train, validation
        self.space: SearchSpace = preset(
            config.space, num_classes=len(train.categories), image_sizes=config.image_sizes
        )
        self.preprocessing = preprocessing_of(config.space)
        self.recalibration = Recalibration(
            dataset=train, preprocessing=self.preprocessing, count=config.recalibration_images
        )

    @abstractmethod
    def network(self) -> WeightSharing[Any]:
        """Return shared weights that know nothing yet."""

    @abstractmethod
    def objective(self, device: torch.device) -> Objective:
        """Return the loss, with its constants on a device."""

    @abstractmethod
    def evaluate(
        self, supernet: WeightSharing[Any], archs: Sequence[Arch]
    ) -> Iterator[Mapping[str, float]]:
        """Yield the figures of paths on the validation split, recalibrated, by name."""

    @property
    def categories(self) -> tuple[tuple[int, str], ...]:
        """Return (id, name) of each class, in label order."""
        return tuple((category.id, category.name) for category in self.train.categories)

    @cached_property
    def supernet(self) -> WeightSharing[Any]:
        """Return the weights that the run starts from, and trains.

        Raises:
            UserError: weights to start from are missing, or of another family.
        """
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            supernet = self.network()
        if config.init.endswith(".safetensors"):
            load_earlier_supernet(supernet, Path(config.init), self.categories)
        elif config.init != "random":
            load_pretrained(supernet, config.init)
        return supernet

    def batches(self, part: tuple[int, int] = (0, 1)) -> TrainingBatches:
        """Return the training batches, or a part of each, at the largest input size."""
        config = self.config
        return TrainingBatches(
            self.train,
            batch_size=config.batch_size,
            image_sizes=self.space.image_sizes[-1:],
            augmentation=config.augmentation,
            preprocessing=self.preprocessing,
            seed=config.seed,
            workers=config.workers,
            class_balance=config.class_balance,
            part=part,
        )

    def save(self, path: Path, supernet: WeightSharing[Any], step: int) -> None:
        """Write the supernet after so many steps, and what it is."""
        record = SupernetRecord(
            space=self.space,
            categories=self.categories,
            preprocessing=self.preprocessing,
            step=step,
            recalibration=dict(self.recalibration.to_json()),
            data=self.config.data,
        )
        save_supernet(path, supernet, record)
