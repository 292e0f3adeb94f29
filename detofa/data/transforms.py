"""Training transforms: flips, zoom and shift, mosaic, colour; pixels by torchvision's v2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import Image

from detofa.errors import UserError

_MIN_SIDE_PIXELS = 2.0  # what is left of a cut box must be at least this wide and high

# Luma and chroma of NTSC television: hue turns, and saturation scales, the plane of (I, Q).
_YIQ_OF_RGB = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)
_RGB_OF_YIQ = np.linalg.inv(_YIQ_OF_RGB)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"augmentation {name} should be from {low:g} to {high:g}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied; part of a recipe.

    Attributes:
        horizontal_flip: Probability of mirroring left and right.
        vertical_flip: Probability of mirroring top and bottom; for images without an up.
        min_scale: Smallest zoom, relative to the letterboxed image; below 1 leaves a margin.
        max_scale: Largest zoom; above 1 cuts a part out.
        aspect: Largest stretch of one side against the other; 1 keeps the aspect.
        mosaic: Probability of making an image of four.
        brightness: Largest relative change of brightness.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        hue: Largest turn of hue, as a fraction of the full circle.
    """

    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    min_scale: float = 0.6
    max_scale: float = 1.4
    aspect: float = 1.1
    mosaic: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.3
    hue: float = 0.015

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: a setting is out of its range.
        """
        for name in ("horizontal_flip", "vertical_flip", "mosaic", "brightness", "contrast"):
            _check_range(name, getattr(self, name), 0.0, 1.0)
        _check_range("saturation", self.saturation, 0.0, 1.0)
        _check_range("hue", self.hue, 0.0, 0.5)
        _check_range("aspect", self.aspect, 1.0, 4.0)
        _check_range("min_scale", self.min_scale, 0.1, 10.0)
        _check_range("max_scale", self.max_scale, self.min_scale, 10.0)


NO_AUGMENTATION = Augmentation(
    horizontal_flip=0.0,
    min_scale=1.0,
    max_scale=1.0,
    aspect=1.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
)
"""Only letterboxes images, with the margin divided at random."""


class Sample(NamedTuple):
    """An image with its boxes.

    Attributes:
        image: (H, W, 3) uint8.
        boxes_xyxy: (N, 4) float32, pixels.
        labels: (N,) int64.
    """

    image: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]


def training_sample(
    image: NDArray[np.uint8],
    boxes_xyxy: NDArray[np.float32],
    labels: NDArray[np.int64],
    image_size: tuple[int, int],
    augmentation: Augmentation,
    generator: np.random.Generator,
    fill: int = 114,
) -> Sample:
    """Vary one image and bring it to the input's size.

    Boxes whose centre leaves the picture go; the others are clipped to it.

    Args:
        image: (H, W, 3) uint8.
        boxes_xyxy: (N, 4), pixels of the image.
        labels: (N,).
        image_size: (height, width) of the result.
        augmentation: The settings; mosaic is not done here, see `mosaic_sample`.
        generator: Source of randomness.
        fill: Value of the margin, 0 to 255; the preprocessing's.

    Returns:
        The new image of `image_size`, and the boxes left in it, in its pixels.
    """
    sample = _placed(Sample(image, boxes_xyxy, labels), image_size, augmentation, generator, fill)
    return sample._replace(image=_recoloured(sample.image, augmentation, generator))


def mosaic_sample(
    samples: Sequence[Sample],
    image_size: tuple[int, int],
    augmentation: Augmentation,
    generator: np.random.Generator,
    fill: int = 114,
) -> Sample:
    """Make one picture of four, which meet at a random point near the middle.

    Args:
        samples: Four images with boxes in their own pixels.
        image_size: (height, width) of the result.
        augmentation: Applied to each of the four; colours change as a whole.
        generator: Source of randomness.
        fill: Value of the margin, 0 to 255; the preprocessing's.
    """
    assert len(samples) == 4, len(samples)
    height, width = image_size
    middle_y = int(height * generator.uniform(0.35, 0.65))
    middle_x = int(width * generator.uniform(0.35, 0.65))
    canvas = np.empty((height, width, 3), np.uint8)
    boxes, labels = [], []
    corners = ((0, 0), (0, middle_x), (middle_y, 0), (middle_y, middle_x))
    for sample, (top, left) in zip(samples, corners, strict=True):
        bottom, right = (height if top else middle_y), (width if left else middle_x)
        part = _placed(sample, (bottom - top, right - left), augmentation, generator, fill)
        canvas[top:bottom, left:right] = part.image
        boxes.append(part.boxes_xyxy + np.array([left, top, left, top], np.float32))
        labels.append(part.labels)
    image = _recoloured(canvas, augmentation, generator)
    return Sample(image, np.concatenate(boxes), np.concatenate(labels))


def _placed(
    sample: Sample,
    image_size: tuple[int, int],
    augmentation: Augmentation,
    generator: np.random.Generator,
    fill: int,
) -> Sample:
    """Flip, zoom, stretch and shift an image into a canvas of `image_size`."""
    height, width = sample.image.shape[:2]
    scale = min(image_size[0] / height, image_size[1] / width)
    scale *= _log_uniform(generator, augmentation.min_scale, augmentation.max_scale)
    stretch = _log_uniform(generator, 1 / augmentation.aspect, augmentation.aspect) ** 0.5
    offset_y, offset_x = generator.random(2)
    flip_x = generator.random() < augmentation.horizontal_flip
    flip_y = generator.random() < augmentation.vertical_flip
    rows = _Axis.fit(height, image_size[0], scale * stretch, offset_y)
    columns = _Axis.fit(width, image_size[1], scale / stretch, offset_x)

    pixels = Image(torch.from_numpy(sample.image).permute(2, 0, 1))
    content = F.resized_crop(
        pixels,
        top=rows.source_start,
        left=columns.source_start,
        height=rows.source_size,
        width=columns.source_size,
        size=[rows.target_size, columns.target_size],
        interpolation=InterpolationMode.BILINEAR,
        antialias=True,
    )
    if flip_x:
        content = F.horizontal_flip(content)
    if flip_y:
        content = F.vertical_flip(content)
    canvas = np.full((*image_size, 3), fill, np.uint8)
    target_top = rows.mirrored_start(image_size[0]) if flip_y else rows.target_start
    target_left = columns.mirrored_start(image_size[1]) if flip_x else columns.target_start
    canvas[
        target_top : target_top + rows.target_size,
        target_left : target_left + columns.target_size,
    ] = content.permute(1, 2, 0).numpy()

    boxes = sample.boxes_xyxy.astype(np.float32, copy=True)
    boxes[:, 0::2] = columns.move(boxes[:, 0::2])
    boxes[:, 1::2] = rows.move(boxes[:, 1::2])
    if flip_x:
        boxes[:, 0::2] = image_size[1] - boxes[:, 2::-2]
    if flip_y:
        boxes[:, 1::2] = image_size[0] - boxes[:, 3::-2]
    boxes, kept = _visible(boxes, image_size)
    return Sample(canvas, boxes, sample.labels[kept])


class _Axis(NamedTuple):
    """How one axis of the source goes to one axis of the target, in whole pixels at both ends."""

    source_start: int
    source_size: int
    target_start: int
    target_size: int

    @staticmethod
    def fit(source: int, target: int, scale: float, offset: float) -> "_Axis":
        """Shift by `offset` (0 to 1 of the play there is); cut what does not fit."""
        scaled = max(1, round(source * scale))
        if scaled <= target:
            return _Axis(0, source, round((target - scaled) * offset), scaled)
        window = min(source, max(1, round(target / scale)))
        return _Axis(round((source - window) * offset), window, 0, target)

    def move(self, positions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Move positions on the source to the target."""
        factor = self.target_size / self.source_size
        return ((positions - self.source_start) * factor + self.target_start).astype(np.float32)

    def mirrored_start(self, target: int) -> int:
        """Return where the content starts after mirroring the whole target."""
        return target - self.target_start - self.target_size


def _visible(
    boxes_xyxy: NDArray[np.float32], image_size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Clip boxes and keep those whose centre was inside and that are still of some size."""
    limits = np.array([image_size[1], image_size[0]], np.float32)
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    clipped = np.clip(boxes_xyxy, 0, np.tile(limits, 2))
    inside = ((centres >= 0) & (centres < limits)).all(axis=1)
    large = (clipped[:, 2:] - clipped[:, :2] >= _MIN_SIDE_PIXELS).all(axis=1)
    kept = np.logical_and(inside, large)
    return clipped[kept], kept


def _recoloured(
    image: NDArray[np.uint8], augmentation: Augmentation, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and hue by one matrix, which keeps it cheap."""
    brightness, contrast, saturation = (
        1 + limit * generator.uniform(-1, 1)
        for limit in (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    )
    angle = 2 * math.pi * augmentation.hue * generator.uniform(-1, 1)
    if brightness == contrast == saturation == 1 and angle == 0:
        return image
    cosine, sine = math.cos(angle) * saturation, math.sin(angle) * saturation
    chroma = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    matrix = brightness * contrast * (_RGB_OF_YIQ @ chroma @ _YIQ_OF_RGB)
    # Contrast turns about the middle of the brightened image; every 8th row is enough to find it.
    middle = float(image[::8].mean()) * brightness
    shift = np.float32(middle * (1 - contrast) + 0.5)
    pixels = image.reshape(-1, 3).astype(np.float32) @ matrix.T.astype(np.float32)
    pixels += shift
    np.clip(pixels, 0, 255, out=pixels)
    recoloured: NDArray[np.uint8] = pixels.astype(np.uint8).reshape(image.shape)
    return recoloured


def _log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    return math.exp(generator.uniform(math.log(low), math.log(high)))
