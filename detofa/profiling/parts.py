"""Which parts of a detector take its time: backbone, neck, head and decoding; and suppression."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from detofa.imaging import Letterbox
from detofa.runtime.postprocess import detections_from_outputs
from detofa.subnet import PostProcessing
from detofa.timer import measure

AFTER_BACKBONE = ("neck", "head", "decoding")

_PLACE = re.compile(r"backbone/\d+|" + "|".join(AFTER_BACKBONE))
_BOXES_OF_AN_OBJECT = 15
_SCENES = 20


def time_of_places(operator_ms: Mapping[str, float]) -> dict[str, float]:
    """Return what each place in a detector takes, by what its operators take.

    Args:
        operator_ms: Of each operator, in the order they run; see `Runtime.operator_ms`. What the
            runtime inserts between operators counts for the place before it.

    Returns:
        Milliseconds of `backbone/0` and so on, one for each block in order, `neck`, `head` and
        `decoding`.
    """
    took: dict[str, float] = {}
    place = "backbone/0"
    for name, ms in operator_ms.items():
        found = _PLACE.search(name)
        place = place if found is None else found[0]
        took[place] = took.get(place, 0.0) + ms
    return took


def mean_shares(detectors: Sequence[Mapping[str, float]]) -> dict[str, float] | None:
    """Return the shares of neck, head and decoding in what the three take, over several detectors.

    Args:
        detectors: What the operators of each take; None comes back where that is not known, or
            where the runtime names none of the three.
    """
    found = [time_of_places(operator_ms) for operator_ms in detectors if operator_ms]
    if not found:
        return None
    sums = {part: sum(took.get(part, 0.0) for took in found) for part in AFTER_BACKBONE}
    total = sum(sums.values())
    return {part: took / total for part, took in sums.items()} if total else None


def suppression_ms(top_k: int, num_classes: int) -> float:
    """Return what threshold, clipping and suppression take here, for a crowded image.

    Every candidate reaches the threshold, and about fifteen lie on each object.

    Args:
        top_k: Candidates that leave the network.
        num_classes: Classes.
    """
    rng = np.random.default_rng(0)
    size = (320, 320)
    letterbox = Letterbox(scale=1.0, pad_top=0, pad_left=0, original_size=size, image_size=size)
    postprocessing = PostProcessing()
    scenes = []
    for _ in range(_SCENES):
        centres = rng.uniform(40, 280, (max(1, top_k // _BOXES_OF_AN_OBJECT), 2))
        places = rng.integers(len(centres), size=top_k)
        low = centres[places] - 20 + rng.normal(0, 3, (top_k, 2))
        boxes = np.concatenate([low, low + 40], axis=1).astype(np.float32)
        scores = np.zeros((top_k, num_classes), np.float32)
        labels = places % num_classes
        scores[np.arange(top_k), labels] = rng.uniform(postprocessing.score_threshold, 1, top_k)
        scenes.append((boxes, scores))

    def suppress() -> None:
        for boxes, scores in scenes:
            detections_from_outputs(boxes, scores, postprocessing, letterbox)

    return measure(suppress, runs=5, clock="thread").p50_ms / _SCENES
