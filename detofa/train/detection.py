"""Detection as what a run teaches."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detofa.arch import Arch
from detofa.data.dataset import DetectionDataset
from detofa.data.loader import Batch
from detofa.space import SearchSpace
from detofa.subnet import PostProcessing, Subnet
from detofa.supernet.decode import anchor_points
from detofa.supernet.detector import StaticDetector, Supernet
from detofa.supernet.loss import Targets, assign, detection_loss, distillation_loss
from detofa.supernet.sharing import ArchModule, OneNetwork
from detofa.train.config import TrainConfig
from detofa.train.evaluate import evaluate_paths
from detofa.train.sandwich import PathSource
from detofa.train.task import Task


class DetectionTask(Task):
    """Find objects in images."""

    def network(self) -> Supernet:
        """Return a supernet of detectors."""
        return Supernet(self.space)

    def objective(self, device: torch.device) -> "DetectionObjective":
        """Return the detection loss."""
        return DetectionObjective(self.space, self.config, device)

    def evaluate(
        self, supernet: ArchModule[Any], archs: Sequence[Arch]
    ) -> Iterator[Mapping[str, float]]:
        """Yield AP and AP50 of paths on the validation split."""
        found = evaluate_paths(
            supernet, archs, self.recalibration, self.validation, PostProcessing()
        )
        for result in found:
            yield {"ap": result.ap, "ap50": result.ap50}


class DetectionObjective:
    """The detection loss of one path.

    The first path is the teacher of those at its input size, and they share its targets; a path
    at another size is assigned by itself.

    Args:
        space: For the anchor points.
        config: Its losses and distillation count here.
        device: Where tensors live.
    """

    def __init__(self, space: SearchSpace, config: TrainConfig, device: torch.device) -> None:
        self._space, self._config, self._device = space, config, device
        self._anchors: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(
        self,
        outputs: tuple[Tensor, Tensor],
        batch: Batch,
        arch: Arch,
        lead: "Callable[[], Lead] | None",
        mean: Callable[[Tensor], Tensor],
    ) -> "tuple[Tensor, Lead]":
        """Return the loss of a path; see `detofa.train.task.Objective`."""
        config = self._config
        points_xy, strides = self._points(arch)
        teacher = None if lead is None else lead()
        if teacher is not None and teacher.image_size == arch.image_size:
            targets = teacher.targets
        else:
            teacher = None
            own = assign(*outputs, points_xy, strides, batch.boxes_xyxy, batch.labels)
            targets = replace(own, normaliser=mean(own.weights.sum()).clamp_min(1.0))
        loss = detection_loss(*outputs, targets, points_xy, strides, config.losses)
        if teacher is not None and config.distillation:
            distilled = distillation_loss(outputs, teacher.outputs, targets)
            loss = loss + config.distillation * distilled
        detached = outputs[0].detach(), outputs[1].detach()
        return loss, Lead(image_size=arch.image_size, outputs=detached, targets=targets)

    def _points(self, arch: Arch) -> tuple[Tensor, Tensor]:
        if arch.image_size not in self._anchors:
            points_xy, strides = anchor_points(self._space.neck_head(arch))
            self._anchors[arch.image_size] = points_xy.to(self._device), strides.to(self._device)
        return self._anchors[arch.image_size]


@dataclass(frozen=True, kw_only=True)
class Lead:
    """What the first path hands to the others.

    Attributes:
        image_size: (height, width) of its input; only paths at this size can use the rest.
        outputs: Its class and side logits, detached.
        targets: What it was assigned.
    """

    image_size: tuple[int, int]
    outputs: tuple[Tensor, Tensor]
    targets: Targets


class FinetuneTask(DetectionTask):
    """Train one detector further, alone.

    Args:
        config: The settings of the run.
        subnet: What is known of the detector.
        detector: Its network, which stays as it is.
        train: Training split.
        validation: Split for progress.
    """

    def __init__(
        self,
        config: TrainConfig,
        subnet: Subnet,
        detector: StaticDetector,
        *,
        train: DetectionDataset,
        validation: DetectionDataset,
    ) -> None:
        super().__init__(config, train=train, validation=validation)
        self.space, self.arch = subnet.space, subnet.arch
        self.preprocessing = subnet.preprocessing
        self._detector = detector

    def inherited(self) -> OneNetwork[StaticDetector]:
        """Return the detector with the weights it came with."""
        return OneNetwork(self.space, self.arch, copy.deepcopy(self._detector))

    @cached_property
    def supernet(self) -> OneNetwork[StaticDetector]:
        """Return the detector that is trained."""
        return self.inherited()

    def sandwich(self, paths: PathSource) -> Callable[[int], Sequence[Arch]]:
        """Return what gives the one path of each step."""
        return lambda step: [self.arch]

    @property
    def paths_to_watch(self) -> dict[str, Arch]:
        """Return the one path."""
        return {"subnet": self.arch}

    @property
    def input_size(self) -> tuple[int, int]:
        """Return the detector's."""
        return self.arch.image_size

    def save(self, path: Path, supernet: ArchModule[Any], step: int) -> None:
        """Write nothing: the training state holds the averaged weights too."""
