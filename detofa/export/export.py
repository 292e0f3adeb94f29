"""Export a subnet: write the file, compare it with PyTorch, and only then give it its name."""

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from detofa.errors import UserError
from detofa.export.to_onnx import export_onnx
from detofa.export.verify import ParityReport, Tolerance, verify_onnx
from detofa.files import atomic_path, sha256_file
from detofa.runtime.detector import SUBNET_KEY
from detofa.runtime.manifest import Manifest, manifest_path
from detofa.subnet import Subnet

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


def export_subnet(
    module: nn.Module,
    subnet: Subnet,
    path: Path,
    *,
    images: Mapping[str, NDArray[np.uint8]],
    rng: np.random.Generator,
    tolerance: Tolerance = Tolerance(),  # noqa: B008 - frozen
) -> Exported:
    """Write NAME.onnx and NAME.manifest.json, verified against PyTorch.

    Args:
        module: The subnet with its outputs decoded: images (B, 3, H, W) to boxes_xyxy, scores,
            class_logits and side_logits.
        subnet: What it is; stored inside the file.
        path: The .onnx file to write.
        images: Real images, (H, W, 3) uint8, by name, on which both are compared.
        rng: Source of the noise that they are compared on as well.
        tolerance: How far both may be apart.

    Raises:
        UserError: `path` is no .onnx file, there are no images, the module cannot be exported, or
            the file is not as good as PyTorch: it is then kept as NAME.onnx.rejected, and the
            message names the images.
    """
    if path.suffix != ".onnx":
        raise UserError(f"the file to export to should end in .onnx, got {path}")
    if not images:
        raise UserError("an export is verified on real images, but none were given; name a folder")
    with atomic_path(path) as temporary:
        export = export_onnx(
            module,
            temporary,
            image_size=subnet.arch.image_size,
            metadata={SUBNET_KEY: json.dumps(subnet.to_json(), allow_nan=False)},
        )
        report = verify_onnx(
            module,
            temporary,
            export.checked_model,
            images=images,
            preprocessing=subnet.preprocessing,
            rng=rng,
            tolerance=tolerance,
        )
        if not report.passed:
            rejected = path.with_name(path.name + ".rejected")
            temporary.chmod(0o644)
            temporary.replace(rejected)
            raise UserError(
                f"{path.name} does not do what PyTorch does, so it is kept as {rejected} and must "
                f"not be used. {_first(report.reasons)}"
            )
    manifest = Manifest(
        model_file=path.name,
        model_sha256=sha256_file(path),
        runtime="onnxruntime",
        precision="fp32",
        opset=export.opset,
        inputs=export.inputs,
        outputs=export.outputs,
        subnet=subnet,
        parity=report.to_json(),
        versions={name: _version(name) for name in _LIBRARIES},
    )
    beside = manifest_path(path)
    manifest.save(beside)
    return Exported(model_path=path, manifest_path=beside, manifest=manifest, report=report)


def _first(reasons: tuple[str, ...], count: int = 5) -> str:
    """Return the first reasons and how many more there are."""
    rest = [f"and {len(reasons) - count} more"] if len(reasons) > count else []
    return "; ".join([*reasons[:count], *rest])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
