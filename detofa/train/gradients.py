"""Gradients of a step: its paths on one batch, computed side by side."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from detofa.arch import Arch
from detofa.data.loader import Batch
from detofa.supernet.sharing import ArchModule
from detofa.train.task import Objective

Gradients = list[Tensor | None]


class SandwichGradients:
    """Losses and gradients of a step's paths on one batch.

    Paths run on threads of their own: a second thread inside such small layers gains little, and
    paths depend on each other only through what the first one hands on. Gradients are added in
    the order of the paths, so the sum does not depend on which ends first.

    Args:
        supernet: The shared weights.
        objective: The loss of one path.
        device: Where tensors live.
        threads: Processor threads to use in all.
        means: For each path of a step, what returns the mean of a number over all ranks.
    """

    def __init__(
        self,
        supernet: ArchModule[Any],
        objective: Objective,
        device: torch.device,
        threads: int,
        means: Sequence[Callable[[Tensor], Tensor]],
    ) -> None:
        self._means = means
        self._supernet, self._objective, self._device = supernet, objective, device
        self._parameters = list(supernet.parameters())
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="path")

    def __call__(self, batch: Batch, archs: Sequence[Arch]) -> tuple[float, Gradients]:
        """Return the mean loss, and the summed gradients in the order of the parameters.

        The first path hands its targets and outputs to the others. A weight that no path uses has
        no gradient.
        """
        batch = _on_device(batch, self._device)
        lead: Future[Any] = Future()
        threads_each = max(1, self._threads // len(archs))
        paths = [
            self._pool.submit(self._path, batch, arch, lead, index, threads_each)
            for index, arch in enumerate(archs)
        ]
        results = [path.result() for path in paths]
        gradients = [_sum(parts) for parts in zip(*(part for _, part in results), strict=True)]
        return sum(loss for loss, _ in results) / len(archs), gradients

    def _path(
        self, batch: Batch, arch: Arch, lead: "Future[Any]", index: int, threads: int
    ) -> tuple[float, Gradients]:
        torch.set_num_threads(threads)  # of this thread
        leads = index == 0
        wait = None if leads else lead.result
        try:
            batch = at_size(batch, arch.image_size)
            outputs = self._supernet(batch.images, arch)
            loss, handed_on = self._objective(outputs, batch, arch, wait, self._means[index])
            if leads:
                lead.set_result(handed_on)
        except BaseException as error:
            if leads:
                lead.set_exception(error)
            raise
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        return float(loss.detach()), list(gradients)


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


def at_size(batch: Batch, image_size: tuple[int, int]) -> Batch:
    """Return the batch with its images and boxes at another input size, (height, width)."""
    height, width = batch.images.shape[2:]
    if (height, width) == image_size:
        return batch
    images = nn.functional.interpolate(batch.images, image_size, mode="bilinear", antialias=True)
    factor = images.new_tensor([image_size[1] / width, image_size[0] / height] * 2)
    boxes_xyxy = [box * factor for box in batch.boxes_xyxy]
    return Batch(images=images, boxes_xyxy=boxes_xyxy, labels=batch.labels)
