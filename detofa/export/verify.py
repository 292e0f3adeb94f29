"""Does an exported file do what the PyTorch module does?"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from detofa.export.to_onnx import OUTPUT_NAMES, RAW_OUTPUTS
from detofa.imaging import Preprocessing, letterbox
from detofa.runtime.gates import EXACT, FEWEST_BOXES, Tolerance
from detofa.runtime.matching import batches_of, made_images, match_boxes
from detofa.runtime.session import BOXES_NAME, SCORES_NAME, OnnxSession, open_onnx

Outputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class ParityCase:
    """What came of one batch.

    Attributes:
        images: Names of its images.
        finite: Whether every output is finite.
        head_relative_errors: Per raw head, largest difference over largest value.
        num_compared: Candidate boxes of PyTorch that had to be found again.
        num_matched: Those that were.
        worst_iou: Least intersection over union of the matched boxes; 1 without any.
        worst_score_difference: Largest difference of the matched boxes' scores.
    """

    images: tuple[str, ...]
    finite: bool
    head_relative_errors: Mapping[str, float]
    num_compared: int
    num_matched: int
    worst_iou: float
    worst_score_difference: float


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The comparison of an exported file with PyTorch."""

    tolerance: Tolerance
    cases: tuple[ParityCase, ...]

    @property
    def passed(self) -> bool:
        """Return whether the file may be shipped."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """Return what is wrong, each with the names of the images."""
        found = []
        for case in self.cases:
            where = f"batch of {len(case.images)} ({', '.join(case.images)})"
            if not case.finite:
                found.append(f"{where}: an output is not finite")
                continue
            for head, error in case.head_relative_errors.items():
                if not error <= self.tolerance.head_relative_error:
                    found.append(
                        f"{where}: {head} differs by {error:.1e} of its largest value, more than "
                        f"{self.tolerance.head_relative_error:.0e}"
                    )
            if case.num_matched < self.tolerance.found * case.num_compared:
                missing = case.num_compared - case.num_matched
                found.append(f"{where}: {missing} of {case.num_compared} boxes are not found again")
        matched = sum(case.num_matched for case in self.cases)
        if not found and matched < FEWEST_BOXES:
            found.append(f"only {matched} boxes were compared, {FEWEST_BOXES} are needed")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object: the verdict, the worst figures, and every case."""
        heads = {
            name: max(_number(case.head_relative_errors[name]) for case in self.cases)
            for name in self.cases[0].head_relative_errors
        }
        differences = [_number(case.worst_score_difference) for case in self.cases]
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "tolerance": dataclasses.asdict(self.tolerance),
            "head_relative_errors": heads,
            "num_compared": sum(case.num_compared for case in self.cases),
            "num_matched": sum(case.num_matched for case in self.cases),
            "worst_iou": min(case.worst_iou for case in self.cases),
            "worst_score_difference": max(differences),
            "batches": [list(case.images) for case in self.cases],
        }


def verify_onnx(
    module: nn.Module,
    model_file: Path | bytes,
    checked_model: bytes,
    *,
    images: Mapping[str, NDArray[np.uint8]],
    preprocessing: Preprocessing,
    rng: np.random.Generator,
    tolerance: Tolerance = EXACT,
) -> ParityReport:
    """Compare an exported file with PyTorch, on one image at a time and on batches.

    Every image alone goes through PyTorch. The file must give the same for it alone and in batches
    of 2 and 5 among others: raw heads closely, boxes as sets (near-tied boxes may change places).

    Args:
        module: Maps images (B, 3, H, W) to boxes_xyxy, scores, class_logits and side_logits.
        model_file: The written file, or its content; its boxes and scores are compared.
        checked_model: The same graph with the raw heads kept (`OnnxExport.checked_model`).
        images: Real images, (H, W, 3) uint8, by name; see `made_images` for what is added.
        preprocessing: How they become inputs.
        rng: Source of the noise.
        tolerance: How far the two may be apart.
    """
    assert images, "parity needs at least one real image"
    with OnnxSession(model_file) as session:
        named = dict(images) | made_images(images, session.image_size, rng)
        pixels = {
            name: letterbox(image, session.image_size, preprocessing.fill)[0]
            for name, image in named.items()
        }
        inputs = {name: preprocessing.normalise(image) for name, image in pixels.items()}
        expected = _run_module(module, inputs)
        raw = open_onnx(checked_model)
        fed: Mapping[str, NDArray[Any]] = pixels if session.takes_pixels else inputs
        cases = []
        for batch in batches_of(list(named), session.batch):
            stacked = np.stack([fed[name] for name in batch])
            boxes_xyxy, scores = session.run(stacked)
            heads = dict(zip(RAW_OUTPUTS, run_heads(raw, stacked), strict=True))
            found = heads | {BOXES_NAME: boxes_xyxy, SCORES_NAME: scores}
            cases.append(_compare(batch, [expected[name] for name in batch], found, tolerance))
    return ParityReport(tolerance=tolerance, cases=tuple(cases))


def _run_module(module: nn.Module, inputs: Mapping[str, NDArray[np.float32]]) -> dict[str, Outputs]:
    """Run PyTorch on each image alone, on the processor and in evaluation mode."""
    reference = copy.deepcopy(module).cpu().eval()
    expected: dict[str, Outputs] = {}
    with torch.inference_mode():
        for name, pixels in inputs.items():
            outputs = reference(torch.from_numpy(pixels)[None])
            arrays = [output[0].numpy() for output in outputs]
            expected[name] = dict(zip(OUTPUT_NAMES, arrays, strict=True))
    return expected


def run_heads(session: Any, images: NDArray[Any]) -> list[NDArray[np.float32]]:
    """Return the raw heads, as `RAW_OUTPUTS` lists them, from an `onnxruntime.InferenceSession`."""
    heads: list[NDArray[np.float32]] = session.run(
        list(RAW_OUTPUTS), {session.get_inputs()[0].name: images}
    )
    return heads


def _compare(
    batch: tuple[str, ...], expected: Sequence[Outputs], found: Outputs, tolerance: Tolerance
) -> ParityCase:
    errors = {
        name: max(
            _relative_error(wanted[name], found[name][row]) for row, wanted in enumerate(expected)
        )
        for name in RAW_OUTPUTS
    }
    finite = all(bool(np.isfinite(values).all()) for values in found.values())
    finite = finite and all(np.isfinite(v).all() for wanted in expected for v in wanted.values())
    matches = [
        match_boxes(
            (wanted[BOXES_NAME], wanted[SCORES_NAME]),
            (found[BOXES_NAME][row], found[SCORES_NAME][row]),
            tolerance,
        )
        for row, (name, wanted) in enumerate(zip(batch, expected, strict=True))
        if finite and tolerance.counts(name)
    ]
    return ParityCase(
        images=batch,
        finite=finite,
        head_relative_errors=errors,
        num_compared=sum(match.num_compared for match in matches),
        num_matched=sum(match.num_matched for match in matches),
        worst_iou=min((match.worst_iou for match in matches), default=float(finite)),
        worst_score_difference=max(
            (match.worst_score_difference for match in matches), default=float(not finite)
        ),
    )


def _relative_error(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return the largest difference over the largest expected value; NaN if anything is NaN."""
    largest = float(np.abs(expected).max())
    difference = float(np.abs(expected - found).max())
    return difference / largest if largest else difference


def _number(value: float) -> float:
    """Return a number that JSON can hold."""
    return value if np.isfinite(value) else float(np.finfo(np.float32).max)
