"""What a run teaches: what detection and classification have in common, and what each adds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from detofa.arch import Arch
from detofa.data.dataset import DetectionDataset
from detofa.data.loader import Batch, TrainingBatches
from detofa.imaging import IMAGENET, LITE, Preprocessing
from detofa.presets import preset
from detofa.space import SearchSpace
from detofa.supernet.import_weights import load_pretrained
from detofa.supernet.sharing import ArchModule, WeightSharing
from detofa.train.checkpoint import load_earlier_supernet, save_supernet
from detofa.train.config import TrainConfig
from detofa.train.evaluate import Recalibration
from detofa.train.sandwich import PathSource, Sandwich
from detofa.train.supernet_record import SupernetRecord


class Objective(Protocol):
    """What the outputs of a path lack on a batch."""

    def __call__(
        self,
        outputs: Any,
        batch: Batch,
        arch: Arch,
        lead: Callable[[], Any] | None,
        mean: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Any]:
        """Return the loss of one path.

        Args:
            outputs: Of the path, on the images of the batch.
            batch: At the path's input size.
            arch: The path.
            lead: Waits for what the step's first path hands on; None for that path itself.
            mean: Returns the mean of a number over all ranks. Each must call it as often, whatever
                its images show.

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
        self.recalibration = Recalibration.of_run(config, train, self.preprocessing)

    @abstractmethod
    def network(self) -> WeightSharing[Any]:
        """Return shared weights that know nothing yet."""

    @abstractmethod
    def objective(self, device: torch.device) -> Objective:
        """Return the loss, with its constants on a device."""

    @abstractmethod
    def evaluate(
        self, supernet: ArchModule[Any], archs: Sequence[Arch]
    ) -> Iterator[Mapping[str, float]]:
        """Yield the figures of paths on the validation split, recalibrated, by name."""

    def sandwich(self, paths: PathSource) -> Callable[[int], Sequence[Arch]]:
        """Return what gives the paths of each step, random ones from a source."""
        return Sandwich(self.space, paths, self.config.random_paths, self.config.seed)

    @property
    def paths_to_watch(self) -> dict[str, Arch]:
        """Return the paths that are evaluated as training goes on, by name."""
        rng = np.random.default_rng(0)
        return {
            "largest": self.space.largest,
            "smallest": self.space.smallest,
            "random": self.space.arch(self.space.sample(rng, 1)[0]),
        }

    @property
    def input_size(self) -> tuple[int, int]:
        """Return the (height, width) that batches are made at; paths shrink it to their own."""
        return self.space.image_sizes[-1]

    @property
    def categories(self) -> tuple[tuple[int, str], ...]:
        """Return (id, name) of each class, in label order."""
        return tuple((category.id, category.name) for category in self.train.categories)

    @cached_property
    def supernet(self) -> ArchModule[Any]:
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
        """Return the training batches, or a part of each."""
        config = self.config
        return TrainingBatches(
            self.train,
            batch_size=config.batch_size,
            image_sizes=[self.input_size],
            augmentation=config.augmentation,
            preprocessing=self.preprocessing,
            seed=config.seed,
            workers=config.workers,
            class_balance=config.class_balance,
            part=part,
        )

    def save(self, path: Path, supernet: ArchModule[Any], step: int) -> None:
        """Write the supernet after so many steps, and what it is."""
        assert isinstance(supernet, WeightSharing)
        record = SupernetRecord(
            space=self.space,
            categories=self.categories,
            preprocessing=self.preprocessing,
            step=step,
            recalibration=dict(self.recalibration.to_json()),
            data=self.config.data,
        )
        save_supernet(path, supernet, record)
