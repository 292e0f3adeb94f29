"""Classification as what a run teaches: pre-training of a supernet's backbone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detofa.arch import Arch
from detofa.data.loader import Batch, network_inputs
from detofa.supernet.classifier import ClassifierSupernet
from detofa.supernet.sharing import ArchModule
from detofa.train.evaluate import extract_recalibrated
from detofa.train.task import Task

_BATCH_SIZE = 32  # of the evaluation
_NOTHING_LEFT = -100  # label of an image whose centre the augmentation moved out of sight


class ClassificationTask(Task):
    """Name what is in an image; data are image folders."""

    def network(self) -> ClassifierSupernet:
        """Return a supernet of classifiers."""
        return ClassifierSupernet(self.space)

    def objective(self, device: torch.device) -> "ClassificationObjective":
        """Return the classification loss."""
        return ClassificationObjective(self.config.distillation)

    def evaluate(
        self, supernet: ArchModule[Any], archs: Sequence[Arch]
    ) -> Iterator[Mapping[str, float]]:
        """Yield the share of validation images that paths name rightly."""
        for arch in archs:
            yield {"accuracy": self.accuracy(supernet, arch)}

    @torch.inference_mode()
    def accuracy(self, supernet: ArchModule[Any], arch: Arch) -> float:
        """Return the share of validation images that one path names rightly, recalibrated."""
        classifier = extract_recalibrated(supernet, arch, self.recalibration)
        device = next(classifier.parameters()).device
        images = self.validation.images
        right = 0
        for start in range(0, len(images), _BATCH_SIZE):
            records = images[start : start + _BATCH_SIZE]
            inputs = network_inputs(records, arch.image_size, self.preprocessing)
            logits = classifier(inputs.to(device, memory_format=torch.channels_last))
            labels = torch.tensor([int(record.labels[0]) for record in records])
            right += int((logits.argmax(dim=1).cpu() == labels).sum())
        return right / len(images)


class ClassificationObjective:
    """Cross-entropy, and for all but the first path the first one's opinion as well.

    In-place distillation: the first path, which is the largest, teaches the others (arXiv
    1903.05134).

    Args:
        distillation: Weight of the divergence from the first path's classes.
    """

    def __init__(self, distillation: float) -> None:
        self._distillation = distillation

    def __call__(
        self,
        outputs: Tensor,
        batch: Batch,
        arch: Arch,
        lead: Callable[[], Tensor] | None,
        mean: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of a path, and its logits; see `detofa.train.task.Objective`."""
        numbers = [int(labels[0]) if len(labels) else _NOTHING_LEFT for labels in batch.labels]
        labels = torch.tensor(numbers, device=outputs.device)
        known = labels != _NOTHING_LEFT
        logits, labels = outputs[known], labels[known]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        loss = loss / max(1, len(labels))
        if lead is not None and self._distillation:
            target = lead()[known].softmax(dim=1)
            distilled = nn.functional.kl_div(logits.log_softmax(dim=1), target, reduction="sum")
            loss = loss + self._distillation * distilled / max(1, len(labels))
        return loss, outputs.detach()
