"""Export a subnet: write the file, compare it with PyTorch, and only then give it its name."""

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from detofa.errors import UserError
from detofa.export.in_graph import add_suppression, check_suppressible, take_pixels
from detofa.export.precision import Lowered, lower, most_harmed_first, share_kept
from detofa.export.to_onnx import OnnxExport, export_onnx, write_onnx
from detofa.export.verify import ParityReport, verify_onnx
from detofa.files import atomic_path, sha256_file, write_json
from detofa.imaging import letterbox, resize
from detofa.runtime.detector import Detector, metadata_of
from detofa.runtime.gates import (
    BARS,
    LEAST_SHARE,
    Bar,
    Judge,
    Precision,
    faults_of_ap,
    faults_of_share,
)
from detofa.runtime.manifest import Manifest, manifest_path
from detofa.runtime.matching import same_detections
from detofa.runtime.session import OnnxSession
from detofa.subnet import PostProcessing, Subnet

_LOW_SCORE = 0.01
_IMAGES_TO_HARM = 8  # on which it is looked for what suffers most
_LIBRARIES = ("detofa", "torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export left.

    Attributes:
        model_path: The .onnx file.
        manifest_path: Its manifest.
        manifest: The manifest's content.
        report: The comparison with PyTorch.
    """

    model_path: Path
    manifest_path: Path
    manifest: Manifest
    report: ParityReport


def onnx_path(subnet: Path, precision: Precision) -> Path:
    """Return where the file of a subnet.json goes: NAME.onnx, or NAME.int8.onnx, beside it."""
    return subnet.with_suffix(".onnx" if precision == "fp32" else f".{precision}.onnx")


def export_subnet(
    module: nn.Module,
    subnet: Subnet,
    path: Path,
    *,
    images: Mapping[str, NDArray[np.uint8]],
    rng: np.random.Generator,
    precision: Precision = "fp32",
    batch: int | None = None,
    pixels: bool = False,
    suppress: bool = False,
    calibration: Mapping[str, NDArray[np.uint8]] | None = None,
    judge: Judge | None = None,
    on_progress: Callable[[str, float], None] = lambda doing, done: None,
) -> Exported:
    """Write NAME.onnx and NAME.manifest.json, verified against PyTorch.

    In lower precision, what harms the detector most stays fp32, as much as it takes to pass, and
    no more than a tenth of the convolutions' multiply-accumulates.

    Args:
        module: The subnet with its outputs decoded: images (B, 3, H, W) to boxes_xyxy, scores,
            class_logits and side_logits.
        subnet: What it is; stored inside the file.
        path: The .onnx file to write.
        images: Real images, (H, W, 3) uint8, by name, on which both are compared.
        rng: Source of the noise that they are compared on as well.
        precision: Number format of the network.
        batch: Images of one call; any number if not given.
        pixels: Whether the file takes images as they are; see `take_pixels`.
        suppress: Whether it gives detections and not candidates; see `add_suppression`.
        calibration: Images by name that int8 is calibrated on; `images` if not given.
        judge: Compares average precision too.
        on_progress: Told how far it is.

    Raises:
        UserError: `path` is no .onnx file, there are no images, the module cannot be exported, or
            the file is not as good as PyTorch: it is then kept as NAME.onnx.rejected, and the
            message names the images, and NAME.onnx.rejected.json all that was found.
    """
    if path.suffix != ".onnx":
        raise UserError(f"the file to export to should end in .onnx, got {path}")
    if not images:
        raise UserError("an export is verified on real images, but none were given; name a folder")
    if precision == "int8" and judge is None:
        raise UserError(
            "int8 is judged by average precision, which needs images with true boxes; name a data "
            "set with --data"
        )
    if suppress:
        check_suppressible(subnet.postprocessing)
    with atomic_path(path) as temporary:
        on_progress("exporting", 0.0)
        export = export_onnx(
            module,
            temporary,
            image_size=subnet.arch.image_size,
            batch=batch,
            metadata=metadata_of(subnet),
        )
        known = images if calibration is None else calibration
        work = _Work(
            module=module,
            subnet=subnet,
            path=temporary,
            full=onnx.load_from_string(export.checked_model),
            images=images,
            inputs=_inputs(list(known.values()), subnet, batch or 1),
            rng=rng,
            precision=precision,
            pixels=pixels,
            judge=judge,
            on_progress=on_progress,
        )
        found = work.best()
        export, reasons = found.export, found.reasons
        if suppress and not reasons:
            on_progress("comparing suppression", 0.9)
            export, reasons = _suppressed(export.checked_model, temporary, subnet, images)
        verified = found.report.to_json() | {
            "average_precision": found.judged,
            "kept_fp32": list(found.lowered.kept),
            "share_of_macs": found.lowered.share,
            "calibrated_on": sorted(known) if precision == "int8" else [],
        }
        rejected = path.with_name(path.name + ".rejected")
        report_path = path.with_name(rejected.name + ".json")
        if reasons:
            temporary.replace(rejected)
            why = {"reasons": list(reasons), "most_harmed": [list(group) for group in found.harmed]}
            write_json(report_path, "rejected_export", verified | why)
            raise UserError(
                f"{path.name} does not do what PyTorch does, so it is kept as {rejected} and must "
                f"not be used; {report_path.name} says more. {_first(reasons)}"
            )
        manifest_path(path).unlink(missing_ok=True)  # an earlier one is not this file's
    rejected.unlink(missing_ok=True)
    report_path.unlink(missing_ok=True)
    manifest = Manifest(
        model_file=path.name,
        model_sha256=sha256_file(path),
        runtime="onnxruntime",
        precision=precision,
        opset=export.opset,
        convolutions=found.lowered.convolutions,
        inputs=export.inputs,
        outputs=export.outputs,
        subnet=subnet,
        parity=verified,
        versions={name: _version(name) for name in _LIBRARIES},
    )
    beside = manifest_path(path)
    manifest.save(beside)
    return Exported(model_path=path, manifest_path=beside, manifest=manifest, report=found.report)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Attempt:
    """A file written, and how it stands; without `reasons` it may be shipped.

    `harmed` are groups of nodes, first the one that suffers most, if that was looked for.
    """

    export: OnnxExport
    report: ParityReport
    judged: Mapping[str, Any] | None
    lowered: Lowered
    reasons: tuple[str, ...]
    harmed: Sequence[tuple[str, ...]] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """What attempts at one file have in common; see `export_subnet`."""

    module: nn.Module
    subnet: Subnet
    path: Path
    full: onnx.ModelProto
    images: Mapping[str, NDArray[np.uint8]]
    inputs: Sequence[NDArray[np.float32]]
    rng: np.random.Generator
    precision: Precision
    pixels: bool
    judge: Judge | None
    on_progress: Callable[[str, float], None]

    def best(self) -> _Attempt:
        """Return the first attempt that is good enough, or the last that could be made."""
        keep: list[str] = []
        attempt = self.attempt(keep)
        if not attempt.reasons or self.precision == "fp32":
            return attempt
        self.on_progress("looking for what suffers most", 0.7)
        harmed = most_harmed_first(self.full, self.precision, self.inputs[:_IMAGES_TO_HARM])
        for group in harmed:
            if share_kept(self.full, [*keep, *group]) > 1 - LEAST_SHARE:
                continue
            keep += group
            attempt = self.attempt(keep)
            if not attempt.reasons:
                break
        return replace(attempt, harmed=harmed)

    def attempt(self, keep: Sequence[str]) -> _Attempt:
        """Write the file with some nodes in fp32, and compare it with PyTorch."""
        bar = BARS[self.precision]
        self.on_progress(f"rewriting to {self.precision}", 0.3)
        lowered = lower(self.full, self.precision, self.inputs, keep=keep)
        export = write_onnx(self._taking(lowered.model), self.path)
        simulation = None
        if lowered.shown is not lowered.model:
            simulation = self._taking(lowered.shown).SerializeToString()
        self.on_progress("comparing with PyTorch", 0.5)
        report = verify_onnx(
            self.module,
            simulation or self.path,
            simulation or export.checked_model,
            images=self.images,
            preprocessing=self.subnet.preprocessing,
            rng=self.rng,
            tolerance=bar.tolerance,
        )
        judged = self._judged(simulation)
        return _Attempt(
            export=export,
            report=report,
            judged=judged,
            lowered=lowered,
            reasons=(
                *report.reasons,
                *_faults_of(judged, bar),
                *faults_of_share(lowered.share, self.precision),
            ),
        )

    def _taking(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a model that takes what the file is to take."""
        return take_pixels(model, self.subnet.preprocessing) if self.pixels else model

    def _judged(self, simulation: bytes | None) -> dict[str, Any] | None:
        """Return average precision of the file, of what shows its precision, and of PyTorch."""
        if self.judge is None:
            return None
        with OnnxSession(self.path) as session:
            file = self.judge.ap(session)
        found = {"file": file, "shown": file, "pytorch": self.judge.reference_ap}
        if simulation is not None:
            with OnnxSession(simulation) as session:
                found["shown"] = self.judge.ap(session)
        return found | dict(self.judge.about)


def _inputs(
    images: Sequence[NDArray[np.uint8]], subnet: Subnet, batch: int
) -> list[NDArray[np.float32]]:
    """Return inputs of the network, (batch, 3, H, W) each; the first images fill up."""
    preprocessing = subnet.preprocessing
    placed = [letterbox(one, subnet.arch.image_size, preprocessing.fill)[0] for one in images]
    whole = -(-len(placed) // batch) * batch
    normalised = preprocessing.normalise(np.stack((placed * batch)[:whole]))
    return [normalised[start : start + batch] for start in range(0, whole, batch)]


def _suppressed(
    candidates: bytes, path: Path, subnet: Subnet, images: Mapping[str, NDArray[np.uint8]]
) -> tuple[OnnxExport, tuple[str, ...]]:
    """Add suppression to a file, and compare it with the runtime's on images that fill the input.

    They are compared at the detector's own threshold, and at one so low that many boxes compete.

    Returns:
        The export, and what is wrong.
    """
    size, reasons, compared = subnet.arch.image_size, list[str](), 0
    filling = [resize(image, size) for image in images.values()]

    def written(postprocessing: PostProcessing) -> OnnxExport:
        model = onnx.load_from_string(candidates)
        add_suppression(model, postprocessing, size)
        return write_onnx(model, path)

    for threshold in (_LOW_SCORE, subnet.postprocessing.score_threshold):
        postprocessing = replace(subnet.postprocessing, score_threshold=threshold)
        judged = replace(subnet, postprocessing=postprocessing)
        written(postprocessing)
        with OnnxSession(path) as inside, OnnxSession(candidates) as outside:
            wanted, found = (
                Detector.of_subnet(session, judged).detect(filling, batch_size=len(filling))
                for session in (outside, inside)
            )
        for name, first, second in zip(images, wanted, found, strict=True):
            compared += len(first)
            if not same_detections(first, second):
                reasons.append(
                    f"suppression inside the graph finds {len(second)} boxes in {name} where the "
                    f"runtime finds {len(first)}, or others"
                )
    if not compared:
        reasons.append("suppression found nothing to compare on these images; give others")
    return written(subnet.postprocessing), tuple(reasons)


def _faults_of(judged: Mapping[str, Any] | None, bar: Bar) -> list[str]:
    """Return what is wrong with the average precision of the file, or else of what shows it."""
    if judged is None:
        return []
    faults = [faults_of_ap(judged[what], judged["pytorch"], bar) for what in ("file", "shown")]
    return faults[0] or faults[1]


def _first(reasons: tuple[str, ...], count: int = 5) -> str:
    """Return the first reasons and how many more there are."""
    rest = [f"and {len(reasons) - count} more"] if len(reasons) > count else []
    return "; ".join([*reasons[:count], *rest])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
