"""Export a subnet: write the file, compare it with PyTorch, and only then give it its name."""

import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from detofa.errors import UserError
from detofa.export.precision import (
    BARS,
    LEAST_SHARE,
    Bar,
    Precision,
    lower,
    most_harmed_first,
    share_kept,
)
from detofa.export.to_onnx import export_onnx, write_onnx
from detofa.export.verify import ParityReport, verify_onnx
from detofa.files import atomic_path, sha256_file
from detofa.imaging import letterbox
from detofa.runtime.detector import SUBNET_KEY
from detofa.runtime.manifest import Manifest, manifest_path
from detofa.runtime.session import OnnxSession, Session
from detofa.subnet import Subnet

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


def export_subnet(
    module: nn.Module,
    subnet: Subnet,
    path: Path,
    *,
    images: Mapping[str, NDArray[np.uint8]],
    rng: np.random.Generator,
    precision: Precision = "fp32",
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
        calibration: Images by name that int8 is calibrated on; `images` if not given.
        judge: Compares average precision too.
        on_progress: Told how far it is.

    Raises:
        UserError: `path` is no .onnx file, there are no images, the module cannot be exported, or
            the file is not as good as PyTorch: it is then kept as NAME.onnx.rejected, and the
            message names the images.
    """
    if path.suffix != ".onnx":
        raise UserError(f"the file to export to should end in .onnx, got {path}")
    if not images:
        raise UserError("an export is verified on real images, but none were given; name a folder")
    bar = BARS[precision]
    with atomic_path(path) as temporary:
        on_progress("exporting", 0.0)
        export = export_onnx(
            module,
            temporary,
            image_size=subnet.arch.image_size,
            metadata={SUBNET_KEY: json.dumps(subnet.to_json(), allow_nan=False)},
        )
        full, keep = onnx.load_from_string(export.checked_model), list[str]()
        known = calibration or images
        inputs = [_input(image, subnet)[None] for image in known.values()]
        groups: list[tuple[str, ...]] | None = None
        while True:
            share = 1.0
            if precision != "fp32":
                on_progress(f"rewriting to {precision}", 0.3)
                lowered = lower(full, precision, inputs, keep=keep)
                export, share = write_onnx(lowered.model, temporary), lowered.share
            on_progress("comparing with PyTorch", 0.5)
            report = verify_onnx(
                module,
                temporary,
                export.checked_model,
                images=images,
                preprocessing=subnet.preprocessing,
                rng=rng,
                tolerance=bar.tolerance,
            )
            judged = None if judge is None else _judged(judge, temporary)
            reasons = [*report.reasons, *_too_far(judged, bar), *_too_little(share, precision)]
            if not reasons or precision == "fp32":
                break
            if groups is None:
                on_progress("looking for what suffers most", 0.7)
                groups = most_harmed_first(full, precision, inputs[:_IMAGES_TO_HARM])
            fitting = [one for one in groups if share_kept(full, [*keep, *one]) <= 1 - LEAST_SHARE]
            if not fitting:
                break
            keep += fitting[0]
            groups.remove(fitting[0])
        if reasons:
            rejected = path.with_name(path.name + ".rejected")
            temporary.chmod(0o644)
            temporary.replace(rejected)
            raise UserError(
                f"{path.name} does not do what PyTorch does, so it is kept as {rejected} and must "
                f"not be used. {_first(tuple(reasons))}"
            )
    verified = report.to_json() | {
        "average_precision": judged,
        "kept_fp32": sorted(keep),
        "share_of_macs": share,
        "calibrated_on": sorted(known) if precision == "int8" else [],
    }
    manifest = Manifest(
        model_file=path.name,
        model_sha256=sha256_file(path),
        runtime="onnxruntime",
        precision=precision,
        opset=export.opset,
        inputs=export.inputs,
        outputs=export.outputs,
        subnet=subnet,
        parity=verified,
        versions={name: _version(name) for name in _LIBRARIES},
    )
    beside = manifest_path(path)
    manifest.save(beside)
    return Exported(model_path=path, manifest_path=beside, manifest=manifest, report=report)


def _input(image: NDArray[np.uint8], subnet: Subnet) -> NDArray[np.float32]:
    placed = letterbox(image, subnet.arch.image_size, subnet.preprocessing.fill)[0]
    return subnet.preprocessing.normalise(placed)


def _judged(judge: Judge, path: Path) -> dict[str, Any]:
    with OnnxSession(path) as session:
        return {"file": judge.ap(session), "pytorch": judge.reference_ap, **judge.about}


def _too_far(judged: Mapping[str, Any] | None, bar: Bar) -> list[str]:
    if judged is None:
        return []
    gain = judged["file"] - judged["pytorch"]
    if -bar.ap_loss <= gain <= bar.ap_gain:
        return []
    return [
        f"its AP is {judged['file']:.4f}, PyTorch's {judged['pytorch']:.4f}: more than "
        f"{bar.ap_loss:.3f} apart"
    ]


def _too_little(share: float, precision: Precision) -> list[str]:
    if share >= LEAST_SHARE:
        return []
    return [
        f"only {share:.0%} of the convolutions' multiply-accumulates are in {precision}, at least "
        f"{LEAST_SHARE:.0%} should be"
    ]


def _first(reasons: tuple[str, ...], count: int = 5) -> str:
    """Return the first reasons and how many more there are."""
    rest = [f"and {len(reasons) - count} more"] if len(reasons) > count else []
    return "; ".join([*reasons[:count], *rest])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
