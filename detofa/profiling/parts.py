"""Which parts of a detector take its time: backbone, neck, head and decoding; and suppression."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detofa.imaging import Letterbox
from detofa.runtime.postprocess import detections_from_outputs
from detofa.runtime.session import open_onnx
from detofa.subnet import PostProcessing
from detofa.timer import measure

PARTS = ("backbone", "neck", "head", "decoding")

_RUNS = 12
_WARM_UP = 3  # runs at the start that are not counted
_BOXES_OF_AN_OBJECT = 15
_SCENES = 20


def time_shares(model: bytes, *, threads: int = 1, batch: int = 1) -> dict[str, float]:
    """Return the share of each of `PARTS` in a detector's time, by ONNX Runtime's own profile.

    What the runtime inserts between operators counts for the part before it.

    Args:
        model: As `detector_onnx` makes it: the first word of a node's name is its part.
        threads: Threads inside an operator.
        batch: Images of one call.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = open_onnx(model, threads=threads, profile_prefix=Path(folder) / "profile")
        entry = session.get_inputs()[0]
        image = np.random.default_rng(0).standard_normal((batch, *entry.shape[1:]), np.float32)
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, {entry.name: image})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes = [
        (str(event["name"]), float(event["dur"]))
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    nodes = nodes[len(nodes) * _WARM_UP // (_WARM_UP + _RUNS) :]
    took = dict.fromkeys(PARTS, 0.0)
    part = PARTS[0]
    for name, duration in nodes:
        first = name.partition("/")[0]
        part = first if first in took else part
        took[part] += duration
    total = sum(took.values())
    return {name: duration / total for name, duration in took.items()}


def mean_shares(models: Sequence[bytes], *, threads: int = 1, batch: int = 1) -> dict[str, float]:
    """Return the shares of neck, head and decoding in what the three take, over several models."""
    found = [time_shares(model, threads=threads, batch=batch) for model in models]
    means = {name: float(np.mean([shares[name] for shares in found])) for name in PARTS[1:]}
    total = sum(means.values())
    return {name: share / total for name, share in means.items()}


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
