"""Gradients of a step: its paths on one batch, computed side by side."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from detofa.arch import Arch
from detofa.data.loader import Batch
from detofa.supernet.sharing import ArchModule, Leaf
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
        memory_format: Of the images; the weights' own is fastest.
    """

    def __init__(
        self,
        supernet: ArchModule[Any],
        objective: Objective,
        device: torch.device,
        threads: int,
        means: Sequence[Callable[[Tensor], Tensor]],
        *,
        memory_format: torch.memory_format = torch.channels_last,
    ) -> None:
        self._means, self._memory_format = means, memory_format
        self._supernet, self._objective, self._device = supernet, objective, device
        self._parameters = list(supernet.parameters())
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="path")

    def __call__(self, batch: Batch, archs: Sequence[Arch]) -> tuple[float, Gradients]:
        """Return the mean loss, and the summed gradients in the order of the parameters.

        The first path hands its targets and outputs to the others. A weight that no path uses has
        no gradient.
        """
        batch = Batch(
            images=batch.images.to(self._device, memory_format=self._memory_format),
            boxes_xyxy=[box.to(self._device) for box in batch.boxes_xyxy],
            labels=[label.to(self._device) for label in batch.labels],
        )
        lead: Future[Any] = Future()
        threads_each = max(1, self._threads // len(archs))
        paths = [
            self._pool.submit(self._path, batch, arch, lead, index, threads_each)
            for index, arch in enumerate(archs)
        ]
        results = [path.result() for path in paths]
        gradients = self._summed([parts for _, parts in results])
        return float(sum(loss for loss, _ in results)) / len(archs), gradients

    def _path(
        self, batch: Batch, arch: Arch, lead: "Future[Any]", index: int, threads: int
    ) -> tuple[Tensor, list[tuple[Leaf, Tensor]]]:
        torch.set_num_threads(threads)  # of this thread
        leads = index == 0
        wait = None if leads else lead.result
        try:
            batch = at_size(batch, arch.image_size)
            network, leaves = self._supernet.path(arch)
            outputs = network(batch.images)
            loss, handed_on = self._objective(outputs, batch, arch, wait, self._means[index])
            if leads:
                lead.set_result(handed_on)
        except BaseException as error:
            if leads:
                lead.set_exception(error)
            raise
        weights = [leaf.tensor for leaf in leaves]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        found = zip(leaves, gradients, strict=True)
        return loss.detach(), [(leaf, part) for leaf, part in found if part is not None]

    def _summed(self, paths: Sequence[Sequence[tuple[Leaf, Tensor]]]) -> Gradients:
        """Return the sum of the paths' parts, each at its place; None for a weight without any."""
        used = {leaf.weight for parts in paths for leaf, _ in parts}
        sums = {weight: torch.zeros_like(weight) for weight in used}
        for parts in paths:
            places = [sums[leaf.weight][leaf.place] for leaf, _ in parts]
            torch._foreach_add_(places, [part for _, part in parts])
        return [sums.get(weight) for weight in self._parameters]


def at_size(batch: Batch, image_size: tuple[int, int]) -> Batch:
    """Return the batch with its images and boxes at another input size, (height, width)."""
    height, width = batch.images.shape[2:]
    if (height, width) == image_size:
        return batch
    images = nn.functional.interpolate(batch.images, image_size, mode="bilinear", antialias=True)
    factor = images.new_tensor([image_size[1] / width, image_size[0] / height] * 2)
    boxes_xyxy = [box * factor for box in batch.boxes_xyxy]
    return Batch(images=images, boxes_xyxy=boxes_xyxy, labels=batch.labels)
