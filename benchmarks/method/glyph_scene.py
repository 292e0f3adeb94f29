"""Paint one scene of the glyph task: background, strokes, glyphs, and bars in front of them."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.method.glyph_shapes import INK, turned_glyph
from benchmarks.method.glyph_task import CLASSES, NO_CLASS, NO_CLASS_FONTS, GlyphTask

Box = tuple[int, int, int, int]
"""xyxy, whole pixels."""

_Colour = NDArray[np.float32]
_LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
_BACKGROUND_LUMA = (50.0, 205.0)
_TEXTURE_LUMA = (4.0, 22.0)  # without clutter, with all of it
_NOISE_LUMA = (1.0, 5.0)
_REFERENCE_AREA_PIXELS = 128 * 160  # the next two figures are for this area and clutter 1
_STROKES = 14.0
_NO_CLASS_SYMBOLS = 3.0
_STROKE_WIDTHS = (0.05, 0.16)  # of the size of a glyph
_MAX_OVERLAP = 0.05  # of the smaller box
_PLACING_TRIES = 30
_CROP_SIDES = (0.45, 0.9)  # of the crop
_BAR_MARGIN = 0.15  # of the longer side of a glyph
_OVERSAMPLING = 2


@dataclass(frozen=True, kw_only=True)
class PaintedGlyph:
    """A glyph in a scene.

    Attributes:
        label: Index into `CLASSES`.
        box_xyxy: Around all its ink, also where a bar hides it; inside the image.
        font: One of those given.
        rotation_degrees: Counter-clockwise.
        contrast_luma: Difference in luma from the mean of what was under it.
        hidden_share: Share of its inked pixels that something painted later hides.
    """

    label: int
    box_xyxy: Box
    font: str
    rotation_degrees: float
    contrast_luma: float
    hidden_share: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A painted scene.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        glyphs: Largest first.
        clutter_share: Share of the pixels that show strokes or symbols of no class.
    """

    pixels: NDArray[np.uint8]
    glyphs: tuple[PaintedGlyph, ...]
    clutter_share: float


def paint_scene(task: GlyphTask, fonts: Sequence[str], generator: np.random.Generator) -> Scene:
    """Paint a scene with glyphs of random classes; `generator` decides all that is random."""
    canvas = _Canvas(task, task.image_size, task.size_pixels, generator)
    canvas.add_strokes()
    fewest, most = task.objects_per_image
    count = int(generator.integers(fewest, most + 1))
    labels: list[int | None] = [int(n) for n in generator.integers(task.num_classes, size=count)]
    labels += [None] * canvas.number_of(_NO_CLASS_SYMBOLS)
    sides = [_even_in_log(task.size_pixels, generator) for _ in labels]
    for label, side in sorted(zip(labels, sides, strict=True), key=_large_first):
        canvas.add_glyph(label, side, fonts)
    return canvas.finished()


def paint_crop(
    task: GlyphTask,
    label: int,
    crop_pixels: int,
    fonts: Sequence[str],
    generator: np.random.Generator,
) -> Scene:
    """Paint a square with one glyph, of a given class, and no symbol of no class."""
    sides = (_CROP_SIDES[0] * crop_pixels, _CROP_SIDES[1] * crop_pixels)
    canvas = _Canvas(task, (crop_pixels, crop_pixels), sides, generator)
    canvas.add_strokes()
    canvas.add_glyph(label, _even_in_log(sides, generator), fonts)
    return canvas.finished()


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """What stands on a canvas: a glyph, or a symbol of no class (None)."""

    glyph: PaintedGlyph | None
    box_xyxy: Box
    num_inked: int


class _Canvas:
    """A scene while it is painted.

    `_shown` says what each pixel shows: 0 the background, -1 a stroke, -2 a bar, n the n-th of
    `_placed`.
    """

    def __init__(
        self,
        task: GlyphTask,
        image_size: tuple[int, int],
        sides_pixels: tuple[float, float],
        generator: np.random.Generator,
    ):
        self._task = task
        self._sides_pixels = sides_pixels
        self._generator = generator
        self._pixels = _background(image_size, task.clutter, generator)
        self._shown = np.zeros(image_size, np.int16)
        self._placed: list[_Placed] = []

    def number_of(self, rate: float) -> int:
        """Draw how many pieces of clutter there are; `rate` is for the reference area."""
        expected = self._task.clutter * rate * self._shown.size / _REFERENCE_AREA_PIXELS
        return int(self._generator.poisson(expected))

    def add_strokes(self) -> None:
        """Paint lines, squiggles, polygons and dots, in the contrast that glyphs have."""
        height, width = self._shown.shape
        size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
        layer = Image.new("RGBA", size)
        drawing = ImageDraw.Draw(layer)
        for _ in range(self.number_of(_STROKES)):
            x, y = self._generator.uniform(0, width), self._generator.uniform(0, height)
            colour, _ = self._standing_out(self._pixels[int(y), int(x)])
            side = _even_in_log(self._sides_pixels, self._generator) * _OVERSAMPLING
            middle = np.array([x, y]) * _OVERSAMPLING
            fill = tuple(int(value) for value in colour)
            _draw_stroke(drawing, middle, side, (*fill, 255), self._generator)
        painted = np.asarray(layer.reduce(_OVERSAMPLING), np.float32)
        opacity = painted[..., 3:] / np.float32(255)
        self._pixels += (painted[..., :3] - self._pixels) * opacity
        self._shown[opacity[..., 0] >= INK] = -1

    def add_glyph(self, label: int | None, side_pixels: float, fonts: Sequence[str]) -> None:
        """Paint a glyph, and a bar over it, where there is room; a symbol if it has no label."""
        generator = self._generator
        if label is None:
            character = NO_CLASS[int(generator.integers(len(NO_CLASS)))]
            fonts = NO_CLASS_FONTS
        else:
            character = CLASSES[label].character
        font = fonts[int(generator.integers(len(fonts)))]
        most_degrees = self._task.rotation_degrees
        rotation_degrees = float(generator.uniform(-most_degrees, most_degrees))
        coverage = turned_glyph(character, font, side_pixels, rotation_degrees)
        box = self._free_box(coverage.shape)
        if box is None:
            return
        rows, columns = slice(box[1], box[3]), slice(box[0], box[2])
        under = self._pixels[rows, columns]
        mean = np.average(under, axis=(0, 1), weights=coverage).astype(np.float32)
        colour, contrast_luma = self._standing_out(mean)
        under += (colour - under) * coverage[..., None]
        inked = coverage >= INK
        glyph = None
        if label is not None:
            glyph = PaintedGlyph(
                label=label,
                box_xyxy=box,
                font=font,
                rotation_degrees=rotation_degrees,
                contrast_luma=contrast_luma,
                hidden_share=0.0,
            )
        self._placed.append(_Placed(glyph=glyph, box_xyxy=box, num_inked=int(inked.sum())))
        self._shown[rows, columns][inked] = len(self._placed)
        self._hide_part(box, inked, mean, contrast_luma)

    def finished(self) -> Scene:
        """Add noise and return the scene."""
        noise = self._generator.standard_normal(self._shown.shape, dtype=np.float32)
        noise *= np.float32(self._generator.uniform(*_NOISE_LUMA))
        pixels = np.clip(self._pixels + noise[..., None] + np.float32(0.5), 0, 255)
        visible = np.bincount(np.maximum(self._shown, 0).ravel(), minlength=len(self._placed) + 1)
        cluttered = int((self._shown == -1).sum())
        glyphs = []
        for number, placed in enumerate(self._placed, start=1):
            if placed.glyph is None:
                cluttered += int(visible[number])
            else:
                hidden_share = 1 - int(visible[number]) / placed.num_inked
                glyphs.append(dataclasses.replace(placed.glyph, hidden_share=hidden_share))
        return Scene(
            pixels=pixels.astype(np.uint8),
            glyphs=tuple(glyphs),
            clutter_share=cluttered / self._shown.size,
        )

    def _free_box(self, size: tuple[int, ...]) -> Box | None:
        """Return a box that hardly overlaps others, or None when none is found."""
        height, width = size
        for _ in range(_PLACING_TRIES):
            top = int(self._generator.integers(self._shown.shape[0] - height + 1))
            left = int(self._generator.integers(self._shown.shape[1] - width + 1))
            box = (left, top, left + width, top + height)
            if all(_overlap(box, other.box_xyxy) <= _MAX_OVERLAP for other in self._placed):
                return box
        return None

    def _standing_out(self, under: _Colour) -> tuple[_Colour, float]:
        """Return a colour that stands out from another by the task's contrast, and by how much."""
        generator = self._generator
        luma = float(under @ _LUMA_WEIGHTS)
        difference = float(generator.uniform(*self._task.contrast_luma))
        lighter, darker = luma + difference <= 255, luma - difference >= 0
        if lighter == darker:
            lighter = generator.random() < 0.5 if lighter else luma < 127.5
        target = min(max(luma + (difference if lighter else -difference), 0.0), 255.0)
        tint = _tint(0.5 * difference, generator)
        return _colour_of_luma(target, under - np.float32(luma) + tint), abs(target - luma)

    def _hide_part(
        self, box: Box, inked: NDArray[np.bool_], under: _Colour, contrast_luma: float
    ) -> None:
        """Paint a bar across the newest glyph that hides a random share of its inked pixels.

        The bar is nearer to the background in luma than to the glyph, and passes behind others.
        """
        luma = float(under @ _LUMA_WEIGHTS)
        shift = self._generator.uniform(-0.5, 0.5) * contrast_luma
        chroma = under - np.float32(luma) + _tint(0.5 * contrast_luma, self._generator)
        colour = _colour_of_luma(min(max(luma + shift, 0.0), 255.0), chroma)
        margin = math.ceil(_BAR_MARGIN * max(inked.shape))
        bar = _bar(inked, margin, self._task.occlusion, self._generator)
        height, width = self._shown.shape
        top, left = box[1] - margin, box[0] - margin
        bar = bar[max(0, -top) : height - top, max(0, -left) : width - left]
        top, left = max(0, top), max(0, left)
        shown = self._shown[top : top + bar.shape[0], left : left + bar.shape[1]]
        bar = bar & ((shown <= 0) | (shown == len(self._placed)))
        self._pixels[top : top + bar.shape[0], left : left + bar.shape[1]][bar] = colour
        shown[bar] = -2


def _bar(
    inked: NDArray[np.bool_], margin: int, most: float, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Return a bar across a glyph that covers a random share, up to `most`, of its inked pixels.

    The array has a margin around the glyph; it is empty where a bar would be less than a pixel
    wide.
    """
    share, start = generator.uniform(0, most), generator.uniform()
    angle = generator.uniform(0, math.pi)
    height, width = inked.shape
    y, x = np.mgrid[-margin : height + margin, -margin : width + margin]
    position = x * math.cos(angle) + y * math.sin(angle)
    of_ink = np.sort(position[margin : margin + height, margin : margin + width][inked])
    num_hidden = int(share * len(of_ink))
    if num_hidden == 0:
        return np.zeros(position.shape, np.bool_)
    first = int(start * (len(of_ink) - num_hidden + 1))
    low, high = of_ink[first], of_ink[first + num_hidden - 1]
    wide_enough = bool(high - low >= 1)
    covered: NDArray[np.bool_] = (position >= low) & (position <= high)
    return covered & wide_enough


def _draw_stroke(
    drawing: ImageDraw.ImageDraw,
    middle: NDArray[np.float64],
    side: float,
    fill: tuple[int, ...],
    generator: np.random.Generator,
) -> None:
    """Draw a piece of clutter of about a glyph's size; it looks like no letter."""
    line_width = max(1, round(side * generator.uniform(*_STROKE_WIDTHS)))
    match int(generator.integers(5)):
        case 0:  # a long line
            angle = generator.uniform(0, math.pi)
            along = np.array([math.cos(angle), math.sin(angle)]) * side * generator.uniform(1, 2.5)
            drawing.line(_flat([middle - along, middle + along]), fill, line_width)
        case 1:  # a squiggle
            steps = generator.normal(0, side / 3, (int(generator.integers(6, 10)), 2))
            points = middle + np.cumsum(steps, axis=0)
            drawing.line(_flat(points), fill, line_width, joint="curve")
        case 2:  # an outline
            corners = _polygon(middle, side * 0.6, generator)
            drawing.line(_flat([*corners, corners[0]]), fill, line_width, joint="curve")
        case 3:
            drawing.polygon(_flat(_polygon(middle, side * 0.4, generator)), fill)
        case _:
            for x, y in middle + generator.normal(0, side / 4, (int(generator.integers(3, 7)), 2)):
                radius = side * generator.uniform(0.04, 0.12)
                drawing.ellipse((x - radius, y - radius, x + radius, y + radius), fill)


def _polygon(
    middle: NDArray[np.float64], radius: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return (3 to 5, 2) corners around a point."""
    angles = np.sort(generator.uniform(0, 2 * math.pi, int(generator.integers(3, 6))))
    radii = generator.uniform(0.4, 1, len(angles)) * radius
    return middle + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def _flat(points: Sequence[NDArray[np.float64]] | NDArray[np.float64]) -> list[float]:
    return [float(value) for point in points for value in point]


def _overlap(first: Box, second: Box) -> float:
    """Return the shared area as a share of the smaller box."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return max(0, width) * max(0, height) / smaller


def _large_first(item: tuple[int | None, float]) -> tuple[bool, float]:
    """Sort glyphs by size, so that there is room, before symbols of no class."""
    label, side_pixels = item
    return label is None, -side_pixels


def _even_in_log(bounds: tuple[float, float], generator: np.random.Generator) -> float:
    return math.exp(generator.uniform(math.log(bounds[0]), math.log(bounds[1])))


def _tint(strength: float, generator: np.random.Generator) -> _Colour:
    """Return a random shift of RGB that leaves the luma as it is."""
    shift = generator.uniform(-strength, strength, 3).astype(np.float32)
    return shift - shift @ _LUMA_WEIGHTS


def _colour_of_luma(luma: float, chroma: _Colour) -> _Colour:
    """Return the RGB colour of this luma with as much of the chroma as 0 to 255 has room for."""
    room = np.where(chroma > 0, 255 - luma, luma)
    needed = np.maximum(np.abs(chroma), 1e-6)
    return (luma + chroma * min(1.0, float((room / needed).min()))).astype(np.float32)


def _background(
    image_size: tuple[int, int], clutter: float, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Return (H, W, 3): two near colours in smooth noise, one side of a random line lighter."""
    height, width = image_size
    texture = _TEXTURE_LUMA[0] + (_TEXTURE_LUMA[1] - _TEXTURE_LUMA[0]) * clutter
    luma = float(generator.uniform(*_BACKGROUND_LUMA))
    colour = _colour_of_luma(luma, _tint(60, generator))
    variation = texture * generator.uniform(-1, 1) + _tint(texture, generator)
    field = np.zeros(image_size, np.float32)
    for cells, weight in ((3, 0.5), (9, 0.3), (27, 0.2)):
        coarse = generator.standard_normal((cells, cells * width // height + 1), dtype=np.float32)
        octave = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        field += np.float32(weight) * np.asarray(octave)
    angle = generator.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    side = x * math.cos(angle) + y * math.sin(angle) > generator.uniform(-0.7, 0.7)
    field += side.astype(np.float32) * np.float32(generator.uniform(0, 1.5))
    painted: NDArray[np.float32] = colour + field[..., None] * variation.astype(np.float32)
    return painted.clip(0, 255)
