"""Evaluate paths of a supernet: extract, recalibrate, detect, AP. One road for all who ask."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from detofa.arch import Arch
from detofa.blocks import NeckHead
from detofa.data.dataset import DetectionDataset
from detofa.data.evaluation import AveragePrecision, evaluate_detections
from detofa.data.loader import calibration_images
from detofa.imaging import Preprocessing, read_image
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector
from detofa.space import SearchSpace
from detofa.subnet import PostProcessing
from detofa.supernet.detector import StaticDetector, Supernet
from detofa.supernet.recalibrate import recalibrate
from detofa.supernet.session import TorchSession

EVALUATION_THRESHOLD = 0.001
"""Score below which boxes do not enter AP; low, so that the whole curve is seen."""


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """The fixed set of images for BN recalibration, the same for every path.

    Attributes:
        dataset: Training split.
        preprocessing: How images are prepared.
        count: Number of images.
        seed: Chooses them.
    """

    dataset: DetectionDataset
    preprocessing: Preprocessing
    count: int
    seed: int = 0
    _images: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    def images(self, image_size: tuple[int, int]) -> Tensor:
        """Return the set at one input size: (count, 3, H, W); kept in memory."""
        if image_size not in self._images:
            images = calibration_images(
                self.dataset, image_size, self.preprocessing, self.count, self.seed
            )
            self._images[image_size] = images.contiguous(memory_format=torch.channels_last)
        return self._images[image_size]

    def to_json(self) -> dict[str, object]:
        """Return what a subnet.json says of it."""
        count = min(self.count, len(self.dataset.images))
        return {"images": count, "seed": self.seed, "split": self.dataset.split}


def extract_recalibrated(
    supernet: Supernet, arch: Arch, recalibration: Recalibration
) -> StaticDetector:
    """Return the detector of `arch` with statistics of its own, in evaluation mode."""
    detector = supernet.extract(arch).to(memory_format=torch.channels_last)
    device = next(detector.parameters()).device
    recalibrate(detector, recalibration.images(arch.image_size).to(device))
    return detector


def torch_detector(
    detector: StaticDetector,
    space: SearchSpace,
    arch: Arch,
    preprocessing: Preprocessing,
    categories: Sequence[tuple[int, str]],
    postprocessing: PostProcessing,
) -> Detector:
    """Return the runtime's detector around a PyTorch one."""
    neck_head = space.blocks(arch)[-1]
    assert isinstance(neck_head, NeckHead)
    return Detector(
        session=TorchSession(detector, neck_head, postprocessing.top_k),
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        categories=tuple(categories),
    )


def evaluate_detector(
    detector: Detector, dataset: DetectionDataset, *, batch_size: int = 8
) -> tuple[AveragePrecision, list[Detections]]:
    """Run a detector over a split.

    Returns:
        Its AP, and the detections of every image.
    """
    found: list[Detections] = []
    for start in range(0, len(dataset.images), batch_size):
        images = [read_image(record.path) for record in dataset.images[start : start + batch_size]]
        found += detector.detect(
            images, score_threshold=EVALUATION_THRESHOLD, batch_size=batch_size
        )
    return evaluate_detections(dataset, found), found


def evaluate_paths(
    supernet: Supernet,
    archs: Sequence[Arch],
    recalibration: Recalibration,
    dataset: DetectionDataset,
    postprocessing: PostProcessing,
) -> Iterator[AveragePrecision]:
    """Yield the AP of paths on a split, with inherited weights, recalibrated, in their order.

    On a CPU paths are evaluated side by side, one a thread: a second thread inside such small
    layers gains little.
    """

    def evaluate(arch: Arch) -> AveragePrecision:
        torch.set_num_threads(1)  # of this thread
        detector = torch_detector(
            extract_recalibrated(supernet, arch, recalibration),
            supernet.space,
            arch,
            recalibration.preprocessing,
            [(category.id, category.name) for category in dataset.categories],
            postprocessing,
        )
        return evaluate_detector(detector, dataset)[0]

    for image_size in {arch.image_size for arch in archs}:
        recalibration.images(image_size)  # made once, not by each thread
    on_cpu = next(supernet.parameters()).device.type == "cpu"
    pool = ThreadPoolExecutor(torch.get_num_threads() if on_cpu else 1, "evaluate")
    try:
        yield from pool.map(evaluate, archs)
    finally:
        pool.shutdown(cancel_futures=True)
