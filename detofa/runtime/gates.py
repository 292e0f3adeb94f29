"""Gates: what an exported file or engine must reach in its precision before it gets its name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from detofa.errors import UserError
from detofa.runtime.session import Session

SHOW_NOTHING = ("(blank)", "(noise)")
"""Names of the images that are compared though they show nothing; see `made_images`."""
Precision = Literal["fp32", "fp16", "int8"]

LEAST_SHARE = 0.9
"""Part of the convolutions' multiply-accumulates that must really be in the precision named."""
FEWEST_BOXES = 100
"""Boxes that must be found again for a comparison to say anything."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far an exported file may be from PyTorch.

    Attributes:
        head_relative_error: Largest difference of a raw head over its largest value.
        box_iou: Least intersection over union of two boxes that count as the same.
        corner_pixels: Boxes whose corners are no further apart are the same even without area.
        score: Largest difference of their scores.
        found: Part of the boxes that must be found again.
        tie: Boxes whose best score is no more than this above the last candidate's need not be
            found: the cut to the top candidates may have taken others.
        on_nothing: Whether boxes count on images that show nothing, too (`SHOW_NOTHING`).
    """

    head_relative_error: float = 1e-4
    box_iou: float = 0.99
    corner_pixels: float = 0.01
    score: float = 1e-3
    found: float = 1.0
    tie: float = 1e-3
    on_nothing: bool = True

    def counts(self, image: str) -> bool:
        """Return whether boxes on an image of that name count."""
        return self.on_nothing or image not in SHOW_NOTHING


EXACT = Tolerance()
"""What fp32 in another runtime must keep to."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What a file of some precision must reach.

    Attributes:
        tolerance: How far it may be from PyTorch.
        ap_loss: By how much its average precision may be lower, from 0 to 1.
        ap_gain: By how much it may be higher.
    """

    tolerance: Tolerance
    ap_loss: float
    ap_gain: float


BARS: Mapping[Precision, Bar] = {
    "fp32": Bar(tolerance=EXACT, ap_loss=0.001, ap_gain=0.001),
    "fp16": Bar(
        tolerance=Tolerance(
            head_relative_error=0.02,
            box_iou=0.95,
            corner_pixels=0.5,
            score=0.02,
            found=0.99,
            tie=0.01,
        ),
        ap_loss=0.002,
        ap_gain=0.002,
    ),
    "int8": Bar(
        tolerance=Tolerance(
            head_relative_error=10.0,
            box_iou=0.5,
            corner_pixels=8.0,
            score=0.3,
            found=0.8,
            tie=0.3,
            on_nothing=False,
        ),
        ap_loss=0.007,
        ap_gain=1.0,
    ),
}
"""Of int8 the average precision decides: its ranges are those of true images, so its heads may be
far off on what is none, and its best boxes need only be recognisable."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Tells how good a detector is on labelled images.

    Attributes:
        ap: Gives the average precision of an opened detector, from 0 to 1.
        reference_ap: That of PyTorch.
        about: The images, for the record.
    """

    ap: Callable[[Session], float]
    reference_ap: float
    about: Mapping[str, Any]


def check_precision(name: str) -> Precision:
    """Return the name of a precision as such.

    Raises:
        UserError: there is none of that name.
    """
    for known in BARS:
        if known == name:
            return known
    raise UserError(f"no precision is called {name!r}; there are {', '.join(BARS)}")


def faults_of_ap(found: float, reference: float, bar: Bar) -> list[str]:
    """Return what is wrong with an average precision, in words; nothing if it is near enough."""
    if -bar.ap_loss <= found - reference <= bar.ap_gain:
        return []
    return [f"its AP is {found:.4f}, PyTorch's {reference:.4f}: more than {bar.ap_loss:.3f} apart"]


def faults_of_share(share: float, precision: Precision) -> list[str]:
    """Return what is wrong with the part of the multiply-accumulates that is in a precision."""
    if share >= LEAST_SHARE:
        return []
    return [
        f"only {share:.0%} of the convolutions' multiply-accumulates are in {precision}, at least "
        f"{LEAST_SHARE:.0%} should be"
    ]
