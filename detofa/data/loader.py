"""Batches for training, evaluation and BN recalibration.

A training batch is a pure function of the seed and the step, so a resumed run sees the same
batches as a straight one.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detofa.data.dataset import DetectionDataset
from detofa.data.records import ImageRecord
from detofa.data.transforms import Augmentation, Sample, mosaic_sample, training_sample
from detofa.errors import UserError
from detofa.imaging import Preprocessing, letterbox, read_image, resize

_BATCHES_AHEAD = 2  # per worker
_SHUFFLE, _SIZE, _SAMPLE = 0, 1, 2  # separate streams of random numbers of one seed


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training images with their boxes.

    Attributes:
        images: (B, 3, H, W) float32, normalised.
        boxes_xyxy: B tensors (N, 4) float32, pixels of the input.
        labels: B tensors (N,) int64, indices into the categories.
    """

    images: Tensor
    boxes_xyxy: list[Tensor]
    labels: list[Tensor]


class TrainingBatches:
    """Endless training batches, shuffled in epochs, each a function of (seed, step) alone."""

    def __init__(
        self,
        dataset: DetectionDataset,
        *,
        batch_size: int,
        image_sizes: Sequence[tuple[int, int]],
        augmentation: Augmentation,
        preprocessing: Preprocessing,
        seed: int,
        workers: int = 0,
        class_balance: float = 0.0,
        cache_limit_bytes: int = 1 << 30,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare; images are read when they are first needed.

        Args:
            dataset: The training split; crowds are left out.
            batch_size: Images per batch.
            image_sizes: (height, width) of the inputs; each batch draws one.
            augmentation: How images are varied.
            preprocessing: How pixels are normalised; its fill goes into margins.
            seed: Not negative.
            workers: Threads that prepare batches ahead in `prefetch`; 0 prepares each when asked.
            class_balance: 0 shows each image once per epoch. Above 0, an image is repeated
                (f_max / f) ** class_balance times for its rarest class, where f is the share of
                images with that class; 0.5 is the repeat factor of LVIS (arXiv 1908.03195).
            cache_limit_bytes: Decoded images are kept in memory up to this size.
            part: (index, count): of every batch only this one of so many equal parts is made.

        Raises:
            UserError: a setting is out of its range.
        """
        if batch_size < 1 or seed < 0 or workers < 0 or not image_sizes:
            raise UserError(
                "batch size should be at least 1, seed and workers at least 0, with an image size; "
                f"got {batch_size}, {seed}, {workers}, {list(image_sizes)}"
            )
        if not 0 <= class_balance <= 1:
            raise UserError(f"class balance should be from 0 to 1, got {class_balance}")
        index, count = part
        if batch_size % count or not 0 <= index < count:
            raise UserError(
                f"a batch of {batch_size} images cannot be shared evenly by {count} processes; "
                f"choose a multiple of {count}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.part = part
        self.image_sizes = tuple(image_sizes)
        self.augmentation = augmentation
        self.preprocessing = preprocessing
        self.seed = seed
        self.workers = workers
        self._repeats = repeat_factors(dataset, class_balance)
        self._epoch_size = int(np.ceil(self._repeats.sum() - 1e-9))
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._images = _ImageCache(dataset.images, self.image_sizes, cache_limit_bytes)

    @property
    def epoch_size(self) -> int:
        """Images per epoch, repeats included."""
        return self._epoch_size

    @property
    def steps_per_epoch(self) -> float:
        """Batches per epoch; epochs follow each other without a gap, so it may be fractional."""
        return self._epoch_size / self.batch_size

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0."""
        size_generator = self._generator(_SIZE, step)
        image_size = self.image_sizes[int(size_generator.integers(len(self.image_sizes)))]
        index, count = self.part
        num_samples = self.batch_size // count
        first = step * self.batch_size + index * num_samples
        samples = [self._sample(first + place, image_size) for place in range(num_samples)]
        images = self.preprocessing.normalise(np.stack([sample.image for sample in samples]))
        return Batch(
            images=torch.from_numpy(images),
            boxes_xyxy=[torch.from_numpy(sample.boxes_xyxy) for sample in samples],
            labels=[torch.from_numpy(sample.labels) for sample in samples],
        )

    def prefetch(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """Yield the batches of steps start to stop - 1, prepared ahead by the workers."""
        if self.workers == 0:
            for step in range(start_step, stop_step):
                yield self.batch(step)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="batches")
        try:
            pending: deque[Future[Batch]] = deque()
            for step in range(start_step, stop_step):
                pending.append(pool.submit(self.batch, step))
                if len(pending) > self.workers * _BATCHES_AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _generator(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, number])

    def _sample(self, position: int, image_size: tuple[int, int]) -> Sample:
        generator = self._generator(_SAMPLE, position)
        fill = self.preprocessing.fill
        epoch, place = divmod(position, self._epoch_size)
        chosen = self._annotated(int(self._order(epoch)[place]))
        if generator.random() < self.augmentation.mosaic:
            others = generator.integers(len(self.dataset.images), size=3)
            four = [chosen, *(self._annotated(int(index)) for index in others)]
            return mosaic_sample(four, image_size, self.augmentation, generator, fill)
        return training_sample(*chosen, image_size, self.augmentation, generator, fill)

    def _annotated(self, index: int) -> Sample:
        record = self.dataset.images[index]
        image = self._images.get(index)
        factor = np.array(
            [image.shape[1] / record.width, image.shape[0] / record.height] * 2, np.float32
        )
        single = ~record.crowd
        return Sample(image, record.boxes_xyxy[single] * factor, record.labels[single])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the images of an epoch in their order."""
        order = self._orders.get(epoch)
        if order is None:
            order = _epoch_order(self._repeats, self._epoch_size, self._generator(_SHUFFLE, epoch))
            self._orders = {
                **{e: o for e, o in self._orders.items() if abs(e - epoch) <= 1},
                epoch: order,
            }
        return order


def repeat_factors(dataset: DetectionDataset, class_balance: float) -> NDArray[np.float64]:
    """Return how often each image is shown per epoch, at least 1; see `TrainingBatches`.

    Returns:
        (number of images,) float64.
    """
    present = np.zeros((len(dataset.images), len(dataset.categories)), bool)
    for row, image in zip(present, dataset.images, strict=True):
        row[image.labels[~image.crowd]] = True
    share = present.mean(axis=0)
    factors = np.ones(len(dataset.images))
    if class_balance > 0 and share.any():
        per_class = np.zeros(len(share))
        per_class[share > 0] = (share.max() / share[share > 0]) ** class_balance
        factors = np.maximum(factors, (present * per_class).max(axis=1))
    return factors


def calibration_images(
    dataset: DetectionDataset,
    image_size: tuple[int, int],
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    count: int,
    class_balance: float,
    seed: int,
) -> Tensor:
    """Return the fixed set for BN recalibration: images as training shows them.

    The weights have learned with the statistics of varied images, margins and all; those of plain
    images differ, and cost accuracy.

    Args:
        dataset: The training split.
        image_size: (height, width).
        augmentation: How training varies images.
        preprocessing: How pixels are normalised.
        count: Number of images; where there are fewer, they come again, varied otherwise.
        class_balance: As for `TrainingBatches`.
        seed: Chooses and varies them.

    Returns:
        (count, 3, H, W) float32.
    """
    batches = TrainingBatches(
        dataset,
        batch_size=count,
        image_sizes=[image_size],
        augmentation=augmentation,
        preprocessing=preprocessing,
        seed=seed,
        class_balance=class_balance,
    )
    return batches.batch(0).images


def network_inputs(
    records: Sequence[ImageRecord], image_size: tuple[int, int], preprocessing: Preprocessing
) -> Tensor:
    """Read images, letterboxed and normalised, not augmented: (N, 3, H, W) float32."""
    inputs = [
        letterbox(read_image(record.path), image_size, preprocessing.fill)[0] for record in records
    ]
    return torch.from_numpy(preprocessing.normalise(np.stack(inputs)))


def _epoch_order(
    repeats: NDArray[np.float64], size: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw an epoch: each image floor or ceil of its repeats, `size` in all, shuffled.

    Systematic sampling: equally spaced points on the cumulated repeats of shuffled images.
    """
    order = generator.permutation(len(repeats))
    if size == len(repeats):
        return order
    ends = np.cumsum(repeats[order])
    ends *= size / ends[-1]
    points = np.arange(size) + generator.random()
    drawn = order[np.searchsorted(ends, np.minimum(points, ends[-1] - 1e-9), side="right")]
    return generator.permutation(drawn)


class _ImageCache:
    """Decoded images in memory, shrunk to at most twice the largest input, up to a limit."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        image_sizes: Sequence[tuple[int, int]],
        limit_bytes: int,
    ) -> None:
        self._records = records
        self._largest = (
            2 * max(height for height, _ in image_sizes),
            2 * max(width for _, width in image_sizes),
        )
        self._free_bytes = limit_bytes
        self._images: dict[int, NDArray[np.uint8]] = {}

    def get(self, index: int) -> NDArray[np.uint8]:
        """Return (H, W, 3) uint8 pixels; read-only, shared between callers."""
        image = self._images.get(index)
        if image is None:
            image = read_image(self._records[index].path)
            height, width = image.shape[:2]
            scale = min(self._largest[0] / height, self._largest[1] / width)
            if scale < 1:
                size = (max(1, round(height * scale)), max(1, round(width * scale)))
                image = np.array(resize(image, size))
            if image.nbytes <= self._free_bytes and index not in self._images:
                self._free_bytes -= image.nbytes
                self._images[index] = image
        return image
