"""`detofa export`: from subnet.json to a verified file, and what goes with it to a device."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detofa.cli.display import print_record, shown_progress
from detofa.cli.models import check_subnet_path
from detofa.cli.options import Json, Seed, parsed
from detofa.cli.runs import data_of_subnet
from detofa.errors import UserError

if TYPE_CHECKING:
    from detofa.evidence import Evidence
    from detofa.export.export import Exported
    from detofa.runtime.tensorrt.build import BatchSizes


class Target(StrEnum):
    """What to export to."""

    ONNX = "onnx"
    TENSORRT = "tensorrt"


class Via(StrEnum):
    """What builds an engine."""

    PYTHON = "python"
    TRTEXEC = "trtexec"


class Input(StrEnum):
    """What a file takes."""

    FLOAT = "float"
    UINT8 = "uint8"


class Nms(StrEnum):
    """Where boxes that others cover are left out."""

    OUTSIDE = "outside"
    IN_GRAPH = "in-graph"


def export(
    subnet: Annotated[Path, typer.Argument(help="A subnet.json that `detofa search` wrote.")],
    output: Annotated[
        Path | None, typer.Option(help="The file to write.  [default: NAME.onnx beside it]")
    ] = None,
    to: Annotated[Target, typer.Option(help="ONNX, or a TensorRT engine beside it.")] = Target.ONNX,
    precision: Annotated[
        str, typer.Option(help="fp32, fp16 or int8; boxes are decoded in fp32 in any case.")
    ] = "fp32",
    input_kind: Annotated[
        Input,
        typer.Option(
            "--input",
            help="float: normalised, (batch, 3, H, W); uint8: letterboxed images as they are, "
            "(batch, H, W, 3).",
        ),
    ] = Input.FLOAT,
    nms: Annotated[
        Nms,
        typer.Option(help="in-graph: the file gives detections, padded, and how many they are."),
    ] = Nms.OUTSIDE,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Images of one call.  [default: any number]")
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="LEAST,TUNED,MOST",
            help="Batch sizes of a TensorRT engine.  [default: 1,1,8]",
        ),
    ] = None,
    builds: Annotated[
        int | None,
        typer.Option(min=1, help="Builds of a TensorRT engine; the fastest is kept.  [default: 3]"),
    ] = None,
    via: Annotated[
        Via,
        typer.Option(
            help="What builds it. trtexec: its command is printed, and run if it is here."
        ),
    ] = Via.PYTHON,
    data: Annotated[
        Path | None,
        typer.Option(help="Data set, or images, to verify on.  [default: the run's data set]"),
    ] = None,
    split: Annotated[str, typer.Option(help="Split whose average precision is compared.")] = "val",
    calibrate_on: Annotated[
        int, typer.Option(min=1, help="Images of the training split that int8 is calibrated on.")
    ] = 64,
    app: Annotated[
        Path | None,
        typer.Option(metavar="ZIP", help="Also pack it with all code that runs it on a device."),
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also put it into a repository of Triton's server."),
    ] = None,
    seed: Seed = 0,
    _json: Json = False,
) -> None:
    """Write a detector as one ONNX file, verified against PyTorch, with a manifest beside it.

    What is not as good as PyTorch is kept as NAME.onnx.rejected only; the exit code is then 1.
    """
    if to is Target.TENSORRT:
        _check_tensorrt(via, serves=triton is not None)
    elif batches is not None or builds is not None or via is not Via.PYTHON:
        raise typer.BadParameter("go with --to tensorrt", param_hint="--batches, --builds, --via")
    from detofa.runtime.tensorrt.build import UP_TO_EIGHT, BatchSizes

    sizes = UP_TO_EIGHT if batches is None else parsed(BatchSizes.parse, batches, "--batches")
    import numpy as np

    from detofa.evidence import gather_evidence
    from detofa.export.export import export_subnet, onnx_path
    from detofa.runtime.gates import check_precision
    from detofa.supernet.decode import DecodedDetector
    from detofa.train.checkpoint import load_subnet

    wanted = parsed(check_precision, precision, "--precision")
    target = output or onnx_path(subnet, wanted)
    if triton is not None:
        from detofa.export.triton import check_name

        check_name(target.stem)
    record, detector = load_subnet(check_subnet_path(subnet))
    rng = np.random.default_rng(seed)
    evidence = gather_evidence(
        record,
        detector,
        data or data_of_subnet(record),
        rng,
        split=split,
        calibrate_on=calibrate_on if wanted == "int8" else 0,
    )
    for note in evidence.notes:
        print(note)
    with shown_progress() as on_progress:
        exported = export_subnet(
            DecodedDetector.of_subnet(detector, record),
            record,
            target,
            images=evidence.images,
            rng=rng,
            precision=wanted,
            batch=batch,
            pixels=input_kind is Input.UINT8,
            suppress=nms is Nms.IN_GRAPH,
            calibration=evidence.calibration,
            judge=evidence.judge,
            on_progress=on_progress,
        )
    _show_export(exported)
    if app is not None:
        from detofa.export.bundle import make_app

        make_app(exported.model_path, app)
        print(f"wrote {app}; on the device: `python3 {app.name} predict IMAGES`")
    engine = None
    if to is Target.TENSORRT:
        engine = _to_tensorrt(exported, sizes, builds or 3, via, evidence)
    if triton is not None:
        from detofa.export.triton import write_triton

        served = write_triton(engine or exported.model_path, triton)
        print(f"wrote {served}; `tritonserver --model-repository {triton}`")
    print_record("export", {"engine": engine, "app": app, "triton": triton, **_record(exported)})


def _check_tensorrt(via: Via, *, serves: bool) -> None:
    """Raise UserError before the long work if what is to build an engine is not here."""
    import shutil

    from detofa.runtime.cuda import Cuda
    from detofa.runtime.tensorrt.build import import_tensorrt

    if via is Via.PYTHON:
        import_tensorrt()
    elif shutil.which("trtexec") is None:
        if serves:
            raise UserError("--triton needs the engine, and trtexec is not here to build it")
        return
    Cuda().gpu()


def _to_tensorrt(
    exported: "Exported",
    sizes: "BatchSizes",
    builds: int,
    via: Via,
    evidence: "Evidence",
) -> Path | None:
    """Build an engine beside an ONNX file; None where there is only its command to print."""
    import shutil

    from detofa.runtime.tensorrt.make import EnginePlan, make_engine

    engine = exported.model_path.with_suffix(".engine")
    plan = EnginePlan(
        onnx_path=exported.model_path,
        manifest=exported.manifest,
        batch_sizes=sizes,
        builds=builds,
        via=via.value,
    )
    if via is Via.TRTEXEC:
        print(shlex.join(plan.trtexec(engine, engine.parent).command))
        if shutil.which("trtexec") is None:
            print(
                "trtexec is not here: run this command on the machine that has the GPU. What it "
                "writes there is neither checked nor opened by detofa; `--app ZIP` makes what does "
                "both there: `python3 ZIP build IMAGES --via trtexec`"
            )
            return None
    with shown_progress() as on_progress:
        made = make_engine(
            plan, engine, images=evidence.images, judge=evidence.judge, on_progress=on_progress
        )
    print(f"wrote {engine}: {made.summary}")
    return engine


def _record(exported: "Exported") -> dict[str, Any]:
    return {
        "model": exported.model_path,
        "manifest": exported.manifest_path,
        "precision": exported.manifest.precision,
        "parity": exported.report.to_json(),
        "average_precision": exported.manifest.parity["average_precision"],
    }


def _show_export(exported: "Exported") -> None:
    report = exported.report.to_json()
    worst = max(report["head_relative_errors"].values())
    print(f"wrote {exported.model_path} and {exported.manifest_path}")
    print(
        f"verified against PyTorch: raw heads within {worst:.1e} relative; "
        f"{report['num_matched']} of {report['num_compared']} boxes found again, worst IoU "
        f"{report['worst_iou']:.4f}, worst score difference {report['worst_score_difference']:.1e}"
    )
    verified = exported.manifest.parity
    judged, kept = verified["average_precision"], verified["kept_fp32"]
    if judged is not None:
        simulated = ""
        if exported.manifest.precision == "fp16":
            simulated = f", {judged['shown']:.4f} with all its values rounded to fp16"
        print(
            f"AP on {judged['images']} images ({judged['split']}): {judged['file']:.4f} from the "
            f"file here{simulated}, {judged['pytorch']:.4f} from PyTorch"
        )
    if exported.manifest.precision != "fp32":
        print(
            f"{verified['share_of_macs']:.1%} of the convolutions' multiply-accumulates are in "
            f"{exported.manifest.precision}; {len(kept)} convolutions stay fp32"
        )
    if exported.manifest.precision == "int8":
        print(
            "note: int8 is not faster everywhere: compare `detofa bench` of this file and of the "
            "fp16 and fp32 ones where it is to run, and take the fastest"
        )
    print(f"next: `detofa predict {exported.model_path} IMAGES`")
