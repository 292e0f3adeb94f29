"""GlyphTask: the classes of the glyph task, and how hard its scenes are."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.method.glyph_shapes import FONTS
from detofa.errors import UserError

MAX_ROTATION_DEGREES = 30.0
"""The classes were chosen for turns up to this far; beyond it, some could not be told apart."""


class GlyphClass(NamedTuple):
    """A class: the name stands in annotations and names folders, so it is made of letters."""

    name: str
    character: str


_CHARACTERS = "ArJNOC7LPK2&V5mfBdXWnRU*h%gEe6qT#YMH@t3Ga41ZFbDQ8S"
_NAMES = {"&": "ampersand", "*": "star", "%": "percent", "#": "hash", "@": "at"}
CLASSES = tuple(
    GlyphClass(
        _NAMES.get(character, f"small_{character}" if character.islower() else character), character
    )
    for character in _CHARACTERS
)
"""The classes, coarse differences first.

Two characters are not both in where they are nearly one shape once turned and scaled at random.
Measured by `shape_distances` at the largest rotation, as a mean over all fonts, a capital and its
small letter are 0.07 to 0.10 apart (C, O, P, S, V, W, X, Z: the small ones are out), and no two
classes are closer than 0.12 (S and 5, 8 and 6, 8 and B). As close or closer were 9 to g, ? to 7
and 0 to O: the first of each is out. Out by eye are k, u and y, which differ little more from their
capitals; I, i, j, l, !, the slash and brackets, which are little more than a line, as clutter is
too; + and =, which are two lines; and characters that a font lacks or draws as another (the dollar
sign is a pound sign in an italic).

Their order is farthest first: each is the one that is farthest from all before it. So a task of
few classes has coarse differences (A, r, J, N), and each class more brings a finer one (E and B, Z
and 2, Q and O, S and 5).
"""

NO_CLASS = "ΨЖЯ§¶±¥€"
"""Symbols that are no class, and at 0.14 or more from every class."""

NO_CLASS_FONTS = tuple(font for font in FONTS if not font.startswith("cm"))
"""The fonts that have those symbols."""


@dataclass(frozen=True, kw_only=True)
class GlyphTask:
    """What scenes of glyphs look like.

    Attributes:
        num_classes: The first so many of `CLASSES`.
        image_size: (height, width) of a scene, in pixels.
        train_fonts: Fonts of the training scenes.
        val_fonts: Fonts of the validation scenes.
        test_fonts: Fonts of the test scenes.
        objects_per_image: (fewest, most); fewer where there is no room, but one at least.
        size_pixels: (least, most) of the longer side of a glyph's box; small ones are as frequent
            as large ones (even in the logarithm).
        rotation_degrees: How far a glyph may be turned, either way.
        clutter: From 0 to 1: texture of the background, strokes behind the glyphs, and symbols of
            no class among them.
        occlusion: Largest share of a glyph's ink that a bar in front of it hides.
        contrast_luma: (least, most) difference in luma (0 to 255) between a glyph and the mean of
            what is under it; strokes and symbols of no class have it too.
    """

    num_classes: int = 24
    image_size: tuple[int, int] = (128, 160)
    train_fonts: tuple[str, ...] = FONTS
    val_fonts: tuple[str, ...] = FONTS
    test_fonts: tuple[str, ...] = FONTS
    objects_per_image: tuple[int, int] = (2, 8)
    size_pixels: tuple[float, float]
    rotation_degrees: float
    clutter: float
    occlusion: float
    contrast_luma: tuple[float, float]

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: a field is out of its range; says which, and the range.
        """
        whole, real = (int,), (int, float)
        shorter = min(_numbers("image_size", self.image_size, 2, whole, (32, 4096)))
        _numbers("num_classes", (self.num_classes,), 1, whole, (2, len(CLASSES)))
        _numbers("rotation_degrees", (self.rotation_degrees,), 1, real, (0, MAX_ROTATION_DEGREES))
        _numbers("clutter", (self.clutter,), 1, real, (0, 1))
        _numbers("occlusion", (self.occlusion,), 1, real, (0, 0.5))
        for name, kind, bounds in (
            ("objects_per_image", whole, (1, 100)),
            ("size_pixels", real, (8, 0.9 * shorter)),
            ("contrast_luma", real, (5, 125)),
        ):
            least, most = _numbers(name, getattr(self, name), 2, kind, bounds)
            if least > most:
                raise UserError(f"{name} is (least, most), got {(least, most)}; swap them")
        for fonts in (self.train_fonts, self.val_fonts, self.test_fonts):
            if not isinstance(fonts, tuple) or not fonts or not set(fonts) <= set(FONTS):
                raise UserError(f"fonts should be some of {', '.join(FONTS)}; got {fonts!r}")

    @classmethod
    def at_difficulty(
        cls, difficulty: float, *, num_classes: int = 24, image_size: tuple[int, int] = (128, 160)
    ) -> "GlyphTask":
        """Return a task from an easy one (0) to a hard one (1); all images have all fonts.

        Sizes, rotation, clutter, occlusion and contrast change evenly with difficulty. The number
        of objects and of classes does not, so that an image teaches as much in each task.
        `dataclasses.replace` changes single fields.

        Raises:
            UserError: an argument is out of its range.
        """
        _numbers("difficulty", (difficulty,), 1, (int, float), (0, 1))

        def between(easy: float, hard: float) -> float:
            return round(easy + (hard - easy) * difficulty, 6)

        return cls(
            num_classes=num_classes,
            image_size=image_size,
            size_pixels=(between(20, 12), between(64, 56)),
            rotation_degrees=between(0, MAX_ROTATION_DEGREES),
            clutter=between(0, 1),
            occlusion=between(0, 0.35),
            contrast_luma=(between(80, 25), between(120, 80)),
        )

    def fonts(self, split: str) -> tuple[str, ...]:
        """Return the fonts of `train`, `val` or `test`."""
        return {"train": self.train_fonts, "val": self.val_fonts, "test": self.test_fonts}[split]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        record = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in record.items()
        }

    @classmethod
    def from_json(cls, record: Any) -> "GlyphTask":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing, unknown, or not what it should be.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(record, Mapping) or set(record) != names:
            got = sorted(record) if isinstance(record, Mapping) else type(record).__name__
            raise UserError(f"a glyph task is an object with the fields {sorted(names)}; got {got}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        return cls(**values)


def _numbers(
    name: str, values: Any, count: int, kinds: tuple[type, ...], bounds: tuple[float, float]
) -> tuple[float, ...]:
    """Return `values` if they are a tuple of so many numbers, each within the bounds."""
    numbers = isinstance(values, tuple) and all(type(value) in kinds for value in values)
    low, high = bounds
    if not numbers or len(values) != count or not all(low <= value <= high for value in values):
        what = "a number" if count == 1 else f"{count} numbers"
        whole = " (whole)" if kinds == (int,) else ""
        got = values[0] if count == 1 else values
        raise UserError(f"{name} should be {what}{whole} from {low:g} to {high:g}, got {got!r}")
    return tuple(values)
