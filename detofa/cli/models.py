"""`detofa export`, `eval` and `predict`: from subnet.json to files, figures and pictures."""

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import average_precision, show_table, shown_progress
from detofa.cli.options import ModelRuntime, RuntimeOfModel, Seed, SkipBad, Threads, parsed
from detofa.cli.runs import data_of_subnet
from detofa.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from detofa.data.evaluation import AveragePrecision
    from detofa.export.export import Exported, Judge
    from detofa.runtime.detector import Detector
    from detofa.subnet import Subnet
    from detofa.supernet.detector import StaticDetector

_IMAGES_TO_VERIFY = 8
_IMAGES_TO_JUDGE = 500
Model = Annotated[Path, typer.Argument(help="An .onnx file or a subnet.json.")]


class Target(StrEnum):
    """What to export to."""

    ONNX = "onnx"
    TENSORRT = "tensorrt"


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
) -> None:
    """Write a detector as one ONNX file, verified against PyTorch, with a manifest beside it.

    What is not as good as PyTorch is kept as NAME.onnx.rejected only; the exit code is then 1.
    """
    if to is Target.TENSORRT:
        from detofa.runtime.tensorrt_engine import import_tensorrt

        import_tensorrt()
    import numpy as np

    from detofa.blocks import NeckHead
    from detofa.export.export import export_subnet
    from detofa.export.precision import check_precision
    from detofa.supernet.decode import DecodedDetector
    from detofa.train.checkpoint import load_subnet

    wanted = parsed(check_precision, precision, "--precision")
    name = ".onnx" if wanted == "fp32" else f".{wanted}.onnx"
    target = output or subnet.with_suffix(name)
    if triton is not None:
        from detofa.export.triton import check_name

        check_name(target.stem)
    record, detector = load_subnet(_is_subnet(subnet))
    neck_head = record.space.blocks(record.arch)[-1]
    assert isinstance(neck_head, NeckHead)
    rng = np.random.default_rng(seed)
    root = data or data_of_subnet(record)
    with shown_progress() as on_progress:
        exported = export_subnet(
            DecodedDetector(detector, neck_head, record.postprocessing.top_k).eval(),
            record,
            target,
            images=_images_to_verify(root, rng),
            rng=rng,
            precision=wanted,
            batch=batch,
            pixels=input_kind is Input.UINT8,
            suppress=nms is Nms.IN_GRAPH,
            calibration=_images_to_calibrate(root, calibrate_on, rng) if wanted == "int8" else None,
            judge=_judge(detector, record, root, split, rng),
            on_progress=on_progress,
        )
    _show_export(exported)
    if app is not None:
        from detofa.export.bundle import make_app

        make_app(exported.model_path, app)
        print(f"wrote {app}; on the device: `python3 {app.name} predict IMAGES`")
    if to is Target.TENSORRT:
        from detofa.export.to_tensorrt import build_engine

        engine = exported.model_path.with_suffix(".engine")
        beside = build_engine(exported.model_path, engine)
        print(f"wrote {engine} and {beside}")
    if triton is not None:
        from detofa.export.triton import write_triton

        is_engine = to is Target.TENSORRT
        model = exported.model_path.with_suffix(".engine") if is_engine else exported.model_path
        print(f"wrote {write_triton(model, triton)}; `tritonserver --model-repository {triton}`")


def evaluate(
    model: Model,
    data: Annotated[
        Path | None, typer.Option(help="The data set's folder.  [default: that of the run]")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    threads: Threads = 1,
    runtime: RuntimeOfModel = ModelRuntime.ONNXRUNTIME,
    skip_bad: SkipBad = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a detector's COCO average precision on a split."""
    import json

    from detofa.data.dataset import Category, load_dataset
    from detofa.train.evaluate import evaluate_detector

    detector, subnet = open_model(model, threads, runtime)
    with detector:
        root = data or data_of_subnet(subnet)
        if root is None:
            raise UserError(
                f"the data set that {model} was trained on is not found from here; name its "
                "folder with --data"
            )
        expected = tuple(Category(id=number, name=name) for number, name in detector.categories)
        dataset = load_dataset(root, split, categories=expected, skip_bad=skip_bad)
        result, _ = evaluate_detector(detector, dataset)
    if as_json:
        about = {"model": str(model), "data": str(root), "split": dataset.split}
        figures = {"images": len(dataset.images), **dataclasses.asdict(result)}
        print(json.dumps({**about, **figures}, indent=1))
        return
    print(f"{model} on {root}, split {dataset.split}: {len(dataset.images)} images")
    _show_precision(result)


def predict(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("predictions"),
    score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Least score of a box.  [default: the model's own]"),
    ] = None,
    threads: Threads = 1,
    runtime: RuntimeOfModel = ModelRuntime.ONNXRUNTIME,
) -> None:
    """Find objects in images; writes pictures with boxes, and predictions.json in COCO's format."""
    from detofa.imaging import read_image
    from detofa.runtime.predictions import image_files, write_predictions

    paths = image_files(images)
    detector, _ = open_model(model, threads, runtime)
    with detector:
        # All images are read before anything is written: a broken one leaves nothing half done.
        found = [detector.detect([read_image(path)], score_threshold=score)[0] for path in paths]
    write_predictions(output, paths, found, detector)
    counts = dict.fromkeys(detector.class_names, 0)
    for detections in found:
        for label in detections.labels:
            counts[detector.class_names[int(label)]] += 1
    show_table("", ["class", "boxes"], [[name, str(count)] for name, count in counts.items()])
    print(f"{sum(counts.values())} boxes in {len(paths)} images; see {output}")


def open_model(
    path: Path, threads: int, runtime: ModelRuntime = ModelRuntime.ONNXRUNTIME
) -> "tuple[Detector, Subnet | None]":
    """Open an .onnx file (without PyTorch) or a subnet.json (with it).

    Returns:
        The detector, and the subnet it was made from where that is known.

    Raises:
        UserError: neither of both, missing, or damaged.
    """
    if path.suffix == ".onnx":
        from detofa.runtime.detector import open_detector
        from detofa.runtime.manifest import Manifest, manifest_path

        detector = open_detector(path, threads=threads, runtime=runtime.value)
        beside = manifest_path(path)
        return detector, Manifest.load(beside).subnet if beside.is_file() else None
    _is_subnet(path)
    if runtime is not ModelRuntime.ONNXRUNTIME:
        raise UserError(f"{path} is run by PyTorch; export it for {runtime.value}")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"running {path} needs PyTorch ({error}); install it with pip install "
            "'detofa[train]', or give an .onnx file"
        ) from error

    from detofa.train.checkpoint import load_subnet
    from detofa.train.evaluate import torch_detector

    torch.set_num_threads(threads)
    subnet, module = load_subnet(path)
    detector = torch_detector(
        module,
        subnet.space,
        subnet.arch,
        subnet.preprocessing,
        subnet.categories,
        subnet.postprocessing,
    )
    return detector, subnet


def _is_subnet(path: Path) -> Path:
    if path.suffix != ".json":
        raise UserError(
            f"{path} should be a subnet.json that `detofa search` wrote, or for eval, predict and "
            "bench an .onnx file that `detofa export` wrote"
        )
    return path


def _images_to_verify(
    root: Path | None, rng: "np.random.Generator"
) -> "dict[str, NDArray[np.uint8]]":
    """Return real images to compare on; noise, with a note, where none can be reached."""
    import numpy as np

    if root is None:
        print("the run's data set is not found from here: verified on noise only (see --data)")
        return {"noise": rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)}
    from detofa.runtime.predictions import image_files

    return _some_images(root, image_files([root]), _IMAGES_TO_VERIFY, rng)


def _images_to_calibrate(
    root: Path | None, count: int, rng: "np.random.Generator"
) -> "dict[str, NDArray[np.uint8]]":
    """Return images of the training split, or of a plain folder.

    Raises:
        UserError: there are none.
    """
    from detofa.data.dataset import load_dataset
    from detofa.runtime.predictions import image_files

    if root is None:
        raise UserError(
            "int8 is calibrated on images, and the run's data set is not found from here; name a "
            "data set or a folder of images with --data"
        )
    if _is_data_set(root):
        paths = [one.path for one in load_dataset(root, "train", skip_bad=True).images]
    else:
        paths = image_files([root])  # a folder of images will do
    return _some_images(root, paths, count, rng)


def _some_images(
    root: Path, paths: Sequence[Path], count: int, rng: "np.random.Generator"
) -> "dict[str, NDArray[np.uint8]]":
    """Return some images that can be read, by their path from a folder."""
    from detofa.data.dataset import image_name
    from detofa.imaging import read_image

    images = {}
    for index in rng.permutation(len(paths)):
        try:
            images[image_name(root, paths[index])] = read_image(paths[index])
        except UserError:
            continue  # a broken image of the data set; others will do
        if len(images) == count:
            break
    if not images:
        raise UserError(f"no image under {root} can be read; name another folder with --data")
    return images


def _is_data_set(root: Path) -> bool:
    from detofa.data.dataset import find_layout

    try:
        find_layout(root)
    except UserError:
        return False
    return True


def _judge(
    module: "StaticDetector",
    subnet: "Subnet",
    root: Path | None,
    split: str,
    rng: "np.random.Generator",
) -> "Judge | None":
    """Return what compares average precision; None, with a note, where there are no true boxes.

    Raises:
        UserError: the data set has no such split, or other classes.
    """
    from detofa.data.dataset import Category, load_dataset
    from detofa.export.export import Judge
    from detofa.runtime.detector import Detector
    from detofa.train.evaluate import evaluate_detector, torch_detector

    expected = tuple(Category(id=number, name=name) for number, name in subnet.categories)
    if root is None or not _is_data_set(root):
        lacking = "the data set" if root is None else f"true boxes in {root}"
        print(f"average precision is not compared, for want of {lacking}; name one with --data")
        return None
    dataset = load_dataset(root, split, categories=expected, skip_bad=True)
    if len(dataset.images) > _IMAGES_TO_JUDGE:
        rows = sorted(rng.permutation(len(dataset.images))[:_IMAGES_TO_JUDGE].tolist())
        dataset = dataclasses.replace(dataset, images=tuple(dataset.images[row] for row in rows))

    def ap(detector: Detector) -> float:
        return evaluate_detector(detector, dataset)[0].ap

    reference = torch_detector(
        module,
        subnet.space,
        subnet.arch,
        subnet.preprocessing,
        subnet.categories,
        subnet.postprocessing,
    )
    return Judge(
        ap=lambda session: ap(Detector.of_subnet(session, subnet)),
        reference_ap=ap(reference),
        about={"split": dataset.split, "images": len(dataset.images)},
    )


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
    print(f"next: `detofa predict {exported.model_path} IMAGES`")


def _show_precision(result: "AveragePrecision") -> None:
    sizes = {"small": result.ap_small, "medium": result.ap_medium, "large": result.ap_large}
    print(f"AP {result.ap:.4f}, AP50 {result.ap50:.4f}, AP75 {result.ap75:.4f}")
    print("AP by size: " + ", ".join(f"{k} {average_precision(v)}" for k, v in sizes.items()))
    rows = [
        [item.name, average_precision(item.ap), average_precision(item.ap50)]
        for item in result.per_class
    ]
    show_table("", ["class", "AP", "AP50"], rows)
