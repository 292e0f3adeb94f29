"""The one image reader, the one letterbox and the one normalisation: pillow and numpy only."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detofa.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Ends of the names of files that are taken for images in a folder."""
MAX_PIXELS = 89_478_485
"""Images with more pixels are refused as decompression bombs (pillow's own default limit)."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# As a file may be named .jpg and be another. Not all that pillow knows: it has EPS drawn by a
# program, and rare formats are read by code that few have tried.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_COMPLETE_TAILS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file as upright RGB.

    EXIF orientation is applied, an invalid one is ignored; grayscale, palette, CMYK and 16-bit
    images are converted, and an alpha channel is left out.

    Returns:
        (H, W, 3) uint8, C-contiguous.

    Raises:
        UserError: missing, empty, truncated, corrupt, of an unsupported kind, or too large.
    """
    with _opened(path) as image:
        try:
            with _quiet():
                image.load()
                pixels = np.ascontiguousarray(_to_rgb(image, path))
        except UserError:
            raise
        except Exception as error:  # decoders raise many types; each means a broken file
            raise UserError(f"{path} is broken ({error}); replace the image or remove it") from None
        orientation = _orientation(image)
    if orientation in _TRANSPOSE_OF_ORIENTATION:
        upright = Image.fromarray(pixels).transpose(_TRANSPOSE_OF_ORIENTATION[orientation])
        pixels = np.array(upright)
    return pixels


def image_size(path: Path) -> tuple[int, int]:
    """Return an image's upright (height, width) and check that the file is whole, cheaply.

    JPEG and PNG files are judged by their header and their last bytes; any file that does not
    end as it should is decoded to be sure.

    Raises:
        UserError: as `read_image`.
    """
    with _opened(path) as image:
        width, height = image.size
        tail = _COMPLETE_TAILS.get(image.format or "")
        swapped = _orientation(image) in (5, 6, 7, 8)
    if tail is None or not _ends_with(path, tail):
        read_image(path)
    return (width, height) if swapped else (height, width)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How pixels become the network's input; training, evaluation and devices share one record.

    Attributes:
        mean: Subtracted from each channel, on the scale 0 to 255.
        std: Each channel is divided by it afterwards, on the scale 0 to 255.
        fill: Value of the padding around a letterboxed image, 0 to 255.
        channel_order: Order of the channels of the input.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fill: int = 114
    channel_order: Literal["rgb"] = "rgb"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: a value is out of its range.
        """
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(np.isfinite(values)):
                raise UserError(f"preprocessing {name} should be three numbers, got {values!r}")
        if min(self.std) <= 0:
            raise UserError(f"preprocessing std should be above zero, got {self.std!r}")
        if not 0 <= self.fill <= 255:
            raise UserError(f"preprocessing fill should be from 0 to 255, got {self.fill!r}")
        if self.channel_order != "rgb":
            raise UserError(f"preprocessing channel_order: rgb, got {self.channel_order!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "resize": "letterbox",
            "mean": list(self.mean),
            "std": list(self.std),
            "fill": self.fill,
            "channel_order": self.channel_order,
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> "Preprocessing":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing, unknown or out of its range.
        """
        expected = {"resize", "mean", "std", "fill", "channel_order"}
        if not isinstance(record, Mapping) or set(record) != expected:
            raise UserError(
                f"preprocessing should have the fields {', '.join(sorted(expected))}; "
                f"got {record!r}"
            )
        if record["resize"] != "letterbox":
            raise UserError(f"preprocessing resize should be letterbox, got {record['resize']!r}")
        if isinstance(record["fill"], bool) or not isinstance(record["fill"], int):
            raise UserError(f"preprocessing fill should be a whole number, got {record['fill']!r}")
        return Preprocessing(
            mean=_three_numbers(record["mean"], "mean"),
            std=_three_numbers(record["std"], "std"),
            fill=record["fill"],
            channel_order=record["channel_order"],
        )

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalise pixels and put the channels first.

        Args:
            images: (..., H, W, 3) uint8, RGB.

        Returns:
            (..., 3, H, W) float32, C-contiguous: (pixel - mean) / std.
        """
        assert images.dtype == np.uint8 and images.shape[-1] == 3, (images.dtype, images.shape)
        channels_first = np.moveaxis(images, -1, -3)
        output = np.empty(channels_first.shape, np.float32)
        for channel in range(3):
            plane = output[..., channel, :, :]
            np.subtract(
                channels_first[..., channel, :, :], np.float32(self.mean[channel]), out=plane
            )
            plane /= np.float32(self.std[channel])
        return output


IMAGENET = Preprocessing(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255), std=(0.229 * 255, 0.224 * 255, 0.225 * 255)
)
"""The usual statistics of ImageNet's training images; OFA's MobileNetV3 was trained with them."""

LITE = Preprocessing(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
"""EfficientNet-Lite's own input scale."""


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """Where an image lies inside the network's input.

    Attributes:
        scale: Input pixels per original pixel.
        pad_top: Rows of fill above the image.
        pad_left: Columns of fill to its left.
        original_size: (height, width) of the image.
        image_size: (height, width) of the input.
    """

    scale: float
    pad_top: int
    pad_left: int
    original_size: tuple[int, int]
    image_size: tuple[int, int]

    @property
    def content_size(self) -> tuple[int, int]:
        """(height, width) of the resized image inside the input, in whole pixels."""
        height, width = self.original_size
        return (
            min(self.image_size[0], max(1, round(height * self.scale))),
            min(self.image_size[1], max(1, round(width * self.scale))),
        )

    def to_input(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Move boxes from pixels of the original image to pixels of the input.

        Args:
            boxes_xyxy: (N, 4), pixels of the original image.

        Returns:
            (N, 4) float32, pixels of the input.
        """
        factor, offset = self._factor_and_offset()
        return (np.asarray(boxes_xyxy, np.float64) * factor + offset).astype(np.float32)

    def to_original(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Move boxes from pixels of the input to pixels of the original image, clipped to it.

        Args:
            boxes_xyxy: (N, 4), pixels of the input.

        Returns:
            (N, 4) float32, pixels of the original image.
        """
        factor, offset = self._factor_and_offset()
        boxes = (np.asarray(boxes_xyxy, np.float64) - offset) / factor
        height, width = self.original_size
        return np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)

    def _factor_and_offset(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # The resized image has whole pixels, so its two axes differ a little from `scale`.
        content_height, content_width = self.content_size
        factor_y = content_height / self.original_size[0]
        factor_x = content_width / self.original_size[1]
        factor = np.array([factor_x, factor_y, factor_x, factor_y])
        offset = np.array([self.pad_left, self.pad_top, self.pad_left, self.pad_top], np.float64)
        return factor, offset


def letterbox(
    image: NDArray[np.uint8], image_size: tuple[int, int], fill: int = 114
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Resize an image to fit inside `image_size`, keeping its aspect, and pad it evenly.

    Args:
        image: (H, W, 3) uint8.
        image_size: (height, width) of the result; smaller images are enlarged.
        fill: Value of the padding.

    Returns:
        The (height, width, 3) uint8 input, and where the image lies in it. Where the padding is
        odd, the bottom or the right has the extra pixel.
    """
    height, width = image.shape[:2]
    box = Letterbox(
        scale=min(image_size[0] / height, image_size[1] / width),
        pad_top=0,
        pad_left=0,
        original_size=(height, width),
        image_size=image_size,
    )
    content_height, content_width = box.content_size
    box = Letterbox(
        scale=box.scale,
        pad_top=(image_size[0] - content_height) // 2,
        pad_left=(image_size[1] - content_width) // 2,
        original_size=box.original_size,
        image_size=image_size,
    )
    canvas = np.full((*image_size, 3), fill, np.uint8)
    rows = slice(box.pad_top, box.pad_top + content_height)
    columns = slice(box.pad_left, box.pad_left + content_width)
    canvas[rows, columns] = resize(image, (content_height, content_width))
    return canvas, box


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an (H, W, 3) uint8 image to (height, width), bilinear, antialiased when shrinking."""
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _opened(path: Path) -> Image.Image:
    """Open an image file without decoding it."""
    if not os.path.isfile(path):  # Path's raises for a name that the system refuses
        raise UserError(
            f"image {path} does not exist" if not os.path.exists(path) else f"{path}: no image file"
        )
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); replace the image or remove it")
        with _quiet():
            image = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise UserError(_too_large(path)) from None
    except UserError:
        raise
    except Exception as error:  # decoders raise many types; each means a broken file
        raise UserError(
            f"{path} is not an image that can be read ({type(error).__name__}); replace it with "
            "a JPEG or PNG file, or remove it"
        ) from None
    if not 0 < image.width * image.height <= MAX_PIXELS:
        image.close()
        raise UserError(_too_large(path))
    return image


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence pillow's warnings: broken EXIF is ignored, and sizes are judged here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _too_large(path: Path) -> str:
    limit = f"{MAX_PIXELS / 1e6:.0f} million pixels"
    return f"{path} has no pixels, or more than {limit}; replace or shrink the image"


def _orientation(image: Image.Image) -> int:
    try:
        with _quiet():
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # EXIF comes from anywhere; an unreadable one means "upright"
        return 1


def _to_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        gray = np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.mode == "F":
        raise UserError(f"{path} has floating-point pixels; save it as an 8-bit PNG or JPEG")
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _ends_with(path: Path, tail: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(tail)))
        return file.read() == tail


def _three_numbers(values: Any, name: str) -> tuple[float, float, float]:
    if not (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    ):
        raise UserError(f"preprocessing {name} should be three numbers, got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])
