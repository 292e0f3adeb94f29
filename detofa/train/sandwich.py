"""The sandwich rule: which paths a step trains, and their gradients, computed side by side."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from detofa.arch import Arch
from detofa.blocks import NeckHead
from detofa.data.loader import Batch
from detofa.space import SearchSpace
from detofa.supernet.decode import anchor_points
from detofa.supernet.detector import Supernet
from detofa.supernet.loss import Targets, assign, detection_loss, distillation_loss
from detofa.train.config import TrainConfig

Gradients = tuple[Tensor | None, ...]


def sandwich(space: SearchSpace, random_paths: int, seed: int, step: int) -> list[Arch]:
    """Return the distinct paths of a step: the largest, the smallest, and random ones.

    A pure function of the seed and the step. Source: arXiv 1903.05134.
    """
    rng = np.random.default_rng([seed, step, 1])
    drawn = [space.arch(genes) for genes in space.sample(rng, random_paths)]
    return list(dict.fromkeys([space.largest, space.smallest, *drawn]))


class SandwichGradients:
    """Losses and gradients of a step's paths on one batch.

    Paths run on threads of their own: a second thread inside such small layers gains little, and
    paths depend on each other only through the first one's targets. Gradients are added in the
    order of the paths, so the sum does not depend on which ends first.

    Args:
        supernet: The shared weights.
        config: Its losses and distillation count here.
        device: Where tensors live.
        threads: Processor threads to use in all.
    """

    def __init__(
        self, supernet: Supernet, config: TrainConfig, device: torch.device, threads: int
    ) -> None:
        self._supernet, self._config, self._device = supernet, config, device
        self._parameters = list(supernet.parameters())
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="path")
        self._anchors: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, batch: Batch, archs: Sequence[Arch]) -> tuple[float, Gradients]:
        """Return the mean loss, and the summed gradients in the order of the parameters.

        The first path is the teacher of those at its input size, and they share its targets; a
        path at another size is assigned by itself. A weight that no path uses has no gradient.
        """
        batch = _on_device(batch, self._device)
        lead: Future[_Lead] = Future()
        threads_each = max(1, self._threads // len(archs))
        paths = [
            self._pool.submit(self._path, batch, arch, lead, index == 0, threads_each)
            for index, arch in enumerate(archs)
        ]
        results = [path.result() for path in paths]
        gradients = [_sum(parts) for parts in zip(*(part for _, part in results), strict=True)]
        return sum(loss for loss, _ in results) / len(archs), tuple(gradients)

    def _path(
        self, batch: Batch, arch: Arch, lead: "Future[_Lead]", leads: bool, threads: int
    ) -> tuple[float, Gradients]:
        torch.set_num_threads(threads)  # of this thread
        try:
            loss = self._loss(batch, arch, lead, leads)
        except BaseException as error:
            if leads:
                lead.set_exception(error)
            raise
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return float(loss.detach()), gradients

    def _loss(self, batch: Batch, arch: Arch, lead: "Future[_Lead]", leads: bool) -> Tensor:
        config = self._config
        images, boxes_xyxy = _at_size(batch, arch.image_size)
        points_xy, strides = self._points(arch)
        outputs: tuple[Tensor, Tensor] = self._supernet(images, arch)
        if not leads and lead.result().image_size == arch.image_size:
            targets, teacher = lead.result().targets, lead.result().outputs
            loss = detection_loss(*outputs, targets, points_xy, strides, config.losses)
            if config.distillation:
                loss = loss + config.distillation * distillation_loss(outputs, teacher, targets)
            return loss
        targets = assign(*outputs, points_xy, strides, boxes_xyxy, batch.labels)
        if leads:
            detached = outputs[0].detach(), outputs[1].detach()
            lead.set_result(_Lead(image_size=arch.image_size, outputs=detached, targets=targets))
        return detection_loss(*outputs, targets, points_xy, strides, config.losses)

    def _points(self, arch: Arch) -> tuple[Tensor, Tensor]:
        if arch.image_size not in self._anchors:
            neck_head = self._supernet.space.blocks(arch)[-1]
            assert isinstance(neck_head, NeckHead)
            points_xy, strides = anchor_points(neck_head)
            self._anchors[arch.image_size] = points_xy.to(self._device), strides.to(self._device)
        return self._anchors[arch.image_size]


@dataclass(frozen=True, kw_only=True)
class _Lead:
    """What the first path hands to the others at its input size."""

    image_size: tuple[int, int]
    outputs: tuple[Tensor, Tensor]
    targets: Targets


def _sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    if not present:
        return None
    total = present[0]
    for part in present[1:]:
        total = total + part
    return total


def _on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch where the weights are, its images channels last."""
    return Batch(
        images=batch.images.to(device, memory_format=torch.channels_last),
        boxes_xyxy=[box.to(device) for box in batch.boxes_xyxy],
        labels=[label.to(device) for label in batch.labels],
    )


def _at_size(batch: Batch, image_size: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """Return the batch's images and boxes at another input size."""
    height, width = batch.images.shape[2:]
    if (height, width) == image_size:
        return batch.images, batch.boxes_xyxy
    images = nn.functional.interpolate(batch.images, image_size, mode="bilinear", antialias=True)
    factor = images.new_tensor([image_size[1] / width, image_size[0] / height] * 2)
    return images, [box * factor for box in batch.boxes_xyxy]
