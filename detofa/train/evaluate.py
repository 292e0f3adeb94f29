"""Evaluate paths of a supernet: extract, recalibrate, detect, AP. One road for all who ask."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detofa.arch import Arch
from detofa.data.dataset import DetectionDataset
from detofa.data.evaluation import AveragePrecision, evaluate_detections, evaluate_parts
from detofa.data.loader import calibration_images
from detofa.data.records import ImageRecord
from detofa.data.transforms import Augmentation
from detofa.imaging import Letterbox, Preprocessing, letterbox, read_image
from detofa.runtime.detections import Detections
from detofa.runtime.detector import Detector
from detofa.space import SearchSpace
from detofa.subnet import PostProcessing, Subnet
from detofa.supernet.decode import anchor_points
from detofa.supernet.detector import StaticDetector
from detofa.supernet.loss import LossWeights, assign, detection_loss
from detofa.supernet.recalibrate import fuse_batch_norms, recalibrate
from detofa.supernet.session import TorchSession
from detofa.supernet.sharing import ArchModule, Network
from detofa.train.config import TrainConfig
from detofa.train.ranks import ALONE, Ranks

_BATCH_SIZE = 8  # of the evaluation
_KEPT_BYTES = 1 << 30  # of images that paths share
EVALUATION_THRESHOLD = 0.001
"""Score below which boxes do not enter AP; low, so that the whole curve is seen."""


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """The fixed set of images for BN recalibration, the same for every path.

    Attributes:
        dataset: Training split.
        augmentation: How training varies its images.
        preprocessing: How pixels are normalised.
        count: Number of images.
        class_balance: How much training favours rare classes; see `TrainingBatches`.
        seed: Chooses and varies them.
    """

    dataset: DetectionDataset
    augmentation: Augmentation
    preprocessing: Preprocessing
    count: int
    class_balance: float = 0.0
    seed: int = 0
    _images: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def of_run(
        cls, config: TrainConfig, dataset: DetectionDataset, preprocessing: Preprocessing
    ) -> "Recalibration":
        """Return the set of a run with these settings, from its training split."""
        return cls(
            dataset=dataset,
            augmentation=config.augmentation,
            preprocessing=preprocessing,
            count=config.recalibration_images,
            class_balance=config.class_balance,
        )

    def images(self, image_size: tuple[int, int]) -> Tensor:
        """Return the set at one input size: (count, 3, H, W); kept in memory.

        Images are brought to that very size, as those to detect in will be; training shrinks what
        it drew at the largest size.
        """
        if image_size not in self._images:
            images = calibration_images(
                self.dataset,
                image_size,
                self.augmentation,
                self.preprocessing,
                self.count,
                self.class_balance,
                self.seed,
            )
            self._images[image_size] = images.contiguous(memory_format=torch.channels_last)
        return self._images[image_size]

    def to_json(self) -> dict[str, object]:
        """Return what a subnet.json says of it."""
        return {
            "images": self.count,
            "seed": self.seed,
            "split": self.dataset.split,
            "class_balance": self.class_balance,
            "augmentation": dataclasses.asdict(self.augmentation),
        }


def extract_recalibrated(
    supernet: ArchModule[Network], arch: Arch, recalibration: Recalibration
) -> Network:
    """Return the network of `arch` with statistics of its own, in evaluation mode."""
    network = supernet.extract(arch).to(memory_format=torch.channels_last)
    device = next(network.parameters()).device
    recalibrate(network, recalibration.images(arch.image_size).to(device))
    return network


def torch_detector(
    detector: StaticDetector,
    space: SearchSpace,
    arch: Arch,
    preprocessing: Preprocessing,
    categories: Sequence[tuple[int, str]],
    postprocessing: PostProcessing,
) -> Detector:
    """Return the runtime's detector around a PyTorch one."""
    return Detector(
        session=TorchSession(detector, space.neck_head(arch), postprocessing.top_k),
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        categories=tuple(categories),
    )


def torch_detector_of(detector: StaticDetector, subnet: Subnet) -> Detector:
    """Return the runtime's detector around the PyTorch one that a subnet describes."""
    return torch_detector(
        detector,
        subnet.space,
        subnet.arch,
        subnet.preprocessing,
        subnet.categories,
        subnet.postprocessing,
    )


def evaluate_detector(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    batch_size: int = _BATCH_SIZE,
    ranks: Ranks = ALONE,
) -> tuple[AveragePrecision, list[Detections]]:
    """Run a detector over a split.

    Args:
        detector: An opened detector.
        dataset: The split.
        batch_size: Images that go through it together.
        ranks: The processes that share the images.

    Returns:
        Its AP, and the detections of every image, on every rank.
    """
    own = replace(dataset, images=dataset.images[ranks.index :: ranks.count])
    parts = ranks.gather(_detect(detector, own, batch_size))
    found = [parts[row % ranks.count][row // ranks.count] for row in range(len(dataset.images))]
    return evaluate_detections(dataset, found), found


def _detect(detector: Detector, dataset: DetectionDataset, batch_size: int) -> list[Detections]:
    found: list[Detections] = []
    for start in range(0, len(dataset.images), batch_size):
        images = [read_image(record.path) for record in dataset.images[start : start + batch_size]]
        found += detector.detect(
            images, score_threshold=EVALUATION_THRESHOLD, batch_size=batch_size
        )
    return found


@dataclass(frozen=True, kw_only=True)
class HalfFigures:
    """How good a path is on one half of the validation images, taken in turn.

    Attributes:
        ap: COCO's AP, from 0 to 1.
        loss: The detection loss; less is better.
    """

    ap: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class PathFigures:
    """How good a path is on a split, with inherited weights, recalibrated.

    Attributes:
        ap: COCO's AP, from 0 to 1.
        ap50: AP at IoU 0.50.
        seconds: What finding out took: processor time, or on a GPU the wall's; of several paths
            side by side what went by since the one before, so that only their sum has a meaning.
        halves: The figures of every other image and of the rest, where they were asked for.
    """

    ap: float
    ap50: float
    seconds: float = field(compare=False)
    halves: tuple[HalfFigures, HalfFigures] | None = None


def evaluate_paths(
    supernet: ArchModule[StaticDetector],
    archs: Sequence[Arch],
    recalibration: Recalibration,
    dataset: DetectionDataset,
    postprocessing: PostProcessing,
    *,
    halves: bool = False,
) -> Iterator[PathFigures]:
    """Yield the figures of paths on a split, in their order.

    On a CPU paths are evaluated side by side, one a thread: a second thread inside such small
    layers gains little.
    """
    on_cpu = next(supernet.parameters()).device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    begin = clock()
    inputs = _Inputs(recalibration.preprocessing.fill)

    def evaluate(arch: Arch) -> PathFigures:
        torch.set_num_threads(1)  # of this thread
        network = extract_recalibrated(supernet, arch, recalibration)
        fuse_batch_norms(network)
        detector = torch_detector(
            network,
            supernet.space,
            arch,
            recalibration.preprocessing,
            [(category.id, category.name) for category in dataset.categories],
            postprocessing,
        )
        of_halves = None
        if halves:
            ap, ap50, of_halves = _judge_halves(detector, dataset, inputs)
        else:
            found, _ = _detect_and_lose(detector, dataset, inputs, with_loss=False)
            ((ap, ap50),) = evaluate_parts(dataset, found, [slice(None)])
        return PathFigures(ap=ap, ap50=ap50, seconds=0.0, halves=of_halves)

    for image_size in {arch.image_size for arch in archs}:
        recalibration.images(image_size)  # made once, not by each thread
    pool = ThreadPoolExecutor(torch.get_num_threads() if on_cpu else 1, "evaluate")
    try:
        for figures in pool.map(evaluate, archs):
            # Of all threads since the path before: libraries have threads of their own.
            now = clock()
            yield dataclasses.replace(figures, seconds=now - begin)
            begin = clock()
    finally:
        pool.shutdown(cancel_futures=True)


class _Inputs:
    """Images as networks of some input size see them, decoded and resized once, up to a limit.

    Args:
        fill: Value of the margins.
    """

    def __init__(self, fill: int) -> None:
        self._fill = fill
        self._kept: dict[tuple[Path, tuple[int, int]], tuple[NDArray[np.uint8], Letterbox]] = {}
        self._free_bytes = _KEPT_BYTES

    def batches(
        self, dataset: DetectionDataset, image_size: tuple[int, int]
    ) -> Iterator[tuple[Sequence[ImageRecord], NDArray[np.uint8], list[Letterbox]]]:
        """Yield images, their pixels (B, H, W, 3) at an input size, and where they lie in it."""
        for start in range(0, len(dataset.images), _BATCH_SIZE):
            records = dataset.images[start : start + _BATCH_SIZE]
            pairs = [self._get(record.path, image_size) for record in records]
            yield records, np.stack([pixels for pixels, _ in pairs]), [where for _, where in pairs]

    def _get(self, path: Path, image_size: tuple[int, int]) -> tuple[NDArray[np.uint8], Letterbox]:
        found = self._kept.get((path, image_size))
        if found is None:
            found = letterbox(read_image(path), image_size, self._fill)
            if found[0].nbytes <= self._free_bytes:
                self._free_bytes -= found[0].nbytes
                self._kept[path, image_size] = found
        return found


def _judge_halves(
    detector: Detector, dataset: DetectionDataset, inputs: _Inputs
) -> tuple[float, float, tuple[HalfFigures, HalfFigures]]:
    """Run a detector over every other image, then over the rest; return AP, AP50, and of each."""
    parts = [slice(start, None, 2) for start in (0, 1)]
    halves = [dataclasses.replace(dataset, images=dataset.images[part]) for part in parts]
    (first, first_loss), (second, second_loss) = (
        _detect_and_lose(detector, half, inputs, with_loss=True) for half in halves
    )
    found = first + second
    found[parts[0]], found[parts[1]] = first, second
    (ap, ap50), (first_ap, _), (second_ap, _) = evaluate_parts(
        dataset, found, [slice(None), *parts]
    )
    return (
        ap,
        ap50,
        (HalfFigures(ap=first_ap, loss=first_loss), HalfFigures(ap=second_ap, loss=second_loss)),
    )


def _detect_and_lose(
    detector: Detector, dataset: DetectionDataset, inputs: _Inputs, *, with_loss: bool
) -> tuple[list[Detections], float]:
    """Return the detections of each image, and the mean loss, or 0 where it is not asked for."""
    session = detector.session
    assert isinstance(session, TorchSession)
    points_xy, strides = (t.to(session.device) for t in anchor_points(session.neck_head))
    found: list[Detections] = []
    total = 0.0
    for records, pixels, placed in inputs.batches(dataset, session.image_size):
        boxes_xyxy, scores, *outputs = session.run_all(detector.preprocessing.normalise(pixels))
        found += detector.finish(
            boxes_xyxy.cpu().numpy(), scores.cpu().numpy(), placed, EVALUATION_THRESHOLD
        )
        if not with_loss:
            continue
        truth = [
            torch.from_numpy(where.to_input(record.boxes_xyxy[~record.crowd])).to(session.device)
            for where, record in zip(placed, records, strict=True)
        ]
        labels = [
            torch.from_numpy(record.labels[~record.crowd]).to(session.device) for record in records
        ]
        class_logits, side_logits = outputs
        targets = assign(class_logits, side_logits, points_xy, strides, truth, labels)
        loss = detection_loss(class_logits, side_logits, targets, points_xy, strides, LossWeights())
        total += float(loss) * len(records)
    return found, total / max(1, len(dataset.images))
