"""Shapes of glyphs: drawn once for each font, then turned and scaled; how far apart they are."""

import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from detofa.errors import UserError

Coverage = NDArray[np.float32]
"""(height, width), from 0 (none of a pixel is inked) to 1."""

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmti10",
    "cmtt10",
)
"""Files that the matplotlib package ships, each under a licence that lets anyone draw with it."""

INK = 0.25
"""Coverage from which a pixel belongs to a glyph's box."""

_UPRIGHT_SIDES_PIXELS = (32, 64, 128)
_MARGIN_PIXELS = 2
_GRID_PIXELS = 32
_GRID_MARGIN_PIXELS = 2
_ANGLE_STEP_DEGREES = 10


def turned_glyph(
    character: str, font: str, side_pixels: float, rotation_degrees: float
) -> Coverage:
    """Draw a character.

    Args:
        character: What to draw.
        font: One of `FONTS`.
        side_pixels: The longer side of the box around the turned glyph.
        rotation_degrees: Counter-clockwise.

    Returns:
        Its coverage, cut to the rows and columns that hold ink.

    Raises:
        UserError: matplotlib, which ships the fonts, is not installed.
    """
    wanted = (side for side in _UPRIGHT_SIDES_PIXELS if side >= side_pixels)
    upright, corners = _upright_glyph(character, font, next(wanted, _UPRIGHT_SIDES_PIXELS[-1]))
    cosine = math.cos(math.radians(rotation_degrees))
    sine = math.sin(math.radians(rotation_degrees))
    rotation = np.array([[cosine, sine], [-sine, cosine]])  # y points down
    reached = corners @ rotation.T
    low, high = reached.min(axis=0), reached.max(axis=0)
    scale = side_pixels / float((high - low).max())
    width, height = (math.ceil(extent * scale) + 2 for extent in high - low)
    backward = rotation.T / scale
    shift = rotation.T @ ((low + high) / 2) - backward @ np.array([width / 2, height / 2])
    turned = upright.transform(
        (width, height),
        Image.Transform.AFFINE,
        (*backward[0], shift[0], *backward[1], shift[1]),
        Image.Resampling.BILINEAR,
    )
    coverage = np.asarray(turned, np.float32) / np.float32(255)
    rows = np.flatnonzero((coverage >= INK).any(axis=1))
    columns = np.flatnonzero((coverage >= INK).any(axis=0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def shape_distances(
    characters: Sequence[str], fonts: Sequence[str], rotation_degrees: float
) -> NDArray[np.float64]:
    """Measure how far apart characters of one font are when each may be turned and scaled.

    The distance is Hausdorff's: how far the farthest inked point of either glyph lies from the
    other's ink, in units of the longer side that both are scaled to. So one missing stroke counts
    (E and F), the thickness of all strokes hardly does (S and s). It is the least over the angles
    that may lie between two glyphs (twice the rotation, either way) and over small shifts.

    Args:
        characters: N characters.
        fonts: F of `FONTS`.
        rotation_degrees: How far each glyph may be turned, either way.

    Returns:
        (F, N, N), 0 for the same shape; symmetric.
    """
    steps = math.floor(2 * rotation_degrees / _ANGLE_STEP_DEGREES)
    angles = [step * _ANGLE_STEP_DEGREES for step in range(-steps, steps + 1)]
    least = np.full((len(fonts), len(characters), len(characters)), np.inf)
    for number, font in enumerate(fonts):
        upright = np.stack([_on_grid(character, font, 0) for character in characters])
        to_upright = np.stack([distance_transform_edt(~inked) for inked in upright])
        shifted = [
            (np.roll(upright, shift, axis=(1, 2)), np.roll(to_upright, shift, axis=(1, 2)))
            for shift in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
        ]
        for row, character in enumerate(characters):
            for angle in angles:
                turned = _on_grid(character, font, angle)
                to_turned = distance_transform_edt(~turned)
                for others, to_others in shifted:
                    there = to_others[:, turned].max(axis=1)
                    back = np.where(others, to_turned, 0).max(axis=(1, 2))
                    least[number, row] = np.minimum(least[number, row], np.maximum(there, back))
    symmetric: NDArray[np.float64] = np.minimum(least, least.transpose(0, 2, 1))
    return symmetric / (_GRID_PIXELS - 2 * _GRID_MARGIN_PIXELS)


def _on_grid(character: str, font: str, angle: float) -> NDArray[np.bool_]:
    """Return a square with the glyph in its middle, True where it has ink."""
    inked = turned_glyph(character, font, _GRID_PIXELS - 2 * _GRID_MARGIN_PIXELS, angle) > 0.5
    grid = np.zeros((_GRID_PIXELS, _GRID_PIXELS), np.bool_)
    top, left = ((_GRID_PIXELS - side) // 2 for side in inked.shape)
    grid[top : top + inked.shape[0], left : left + inked.shape[1]] = inked
    return grid


@functools.cache
def _upright_glyph(
    character: str, font: str, side_pixels: int
) -> tuple[Image.Image, NDArray[np.float64]]:
    """Return a glyph with a margin, and (N, 2) corners of its outermost inked pixels, as x, y."""
    left, top, right, bottom = _face(font).getbbox(character)
    face = _face(font).font_variant(
        size=_face(font).size * side_pixels / max(right - left, bottom - top)
    )
    left, top, right, bottom = (round(side) for side in face.getbbox(character))
    size = (right - left + 2 * _MARGIN_PIXELS, bottom - top + 2 * _MARGIN_PIXELS)
    image = Image.new("L", size)
    where = (_MARGIN_PIXELS - left, _MARGIN_PIXELS - top)
    ImageDraw.Draw(image).text(where, character, fill=255, font=face)
    inked = np.asarray(image) >= INK * 255
    assert inked.any(), f"{font} draws nothing for {character!r}"
    rows = np.flatnonzero(inked.any(axis=1))
    first = inked[rows].argmax(axis=1)
    last = inked.shape[1] - inked[rows][:, ::-1].argmax(axis=1)
    corners = [(x, y + down) for x in (first, last) for y in (rows,) for down in (0, 1)]
    return image, np.concatenate([np.stack(pair, axis=1) for pair in corners]).astype(np.float64)


@functools.cache
def _face(font: str) -> ImageFont.FreeTypeFont:
    path = _font_folder() / f"{font}.ttf"
    return ImageFont.truetype(str(path), 100, layout_engine=ImageFont.Layout.BASIC)


@functools.cache
def _font_folder() -> Path:
    """Find matplotlib's fonts without importing it, which takes long and makes cache folders."""
    found = importlib.util.find_spec("matplotlib")
    if found is None or found.origin is None:
        raise UserError(
            "the glyph task draws with the fonts that matplotlib ships; install it with "
            "pip install 'detofa[demo]'"
        )
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf"
