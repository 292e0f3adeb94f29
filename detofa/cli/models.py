"""`detofa eval` and `predict`: figures and pictures of a detector."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import average_precision, print_record, show_table
from detofa.cli.options import Json, ModelRuntime, RuntimeOfModel, SkipBad, Threads
from detofa.cli.runs import data_of_subnet
from detofa.errors import UserError

if TYPE_CHECKING:
    from detofa.data.evaluation import AveragePrecision
    from detofa.runtime.detector import Detector
    from detofa.subnet import Subnet

Model = Annotated[Path, typer.Argument(help="An .onnx or .engine file, or a subnet.json.")]


def evaluate(
    model: Model,
    data: Annotated[
        Path | None, typer.Option(help="The data set's folder.  [default: that of the run]")
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    threads: Threads = 1,
    runtime: RuntimeOfModel = ModelRuntime.ONNXRUNTIME,
    skip_bad: SkipBad = False,
    _json: Json = False,
) -> None:
    """Measure a detector's COCO average precision on a split; under torchrun, shared."""
    import torch

    from detofa.data.dataset import Category, load_dataset
    from detofa.train.evaluate import evaluate_detector
    from detofa.train.ranks import join_ranks

    detector, subnet = open_model(model, threads, runtime)
    with detector, join_ranks(torch.device("cpu")) as (ranks, _):
        root = data or data_of_subnet(subnet)
        if root is None:
            raise UserError(
                f"the data set that {model} was trained on is not found from here; name its "
                "folder with --data"
            )
        expected = tuple(Category(id=number, name=name) for number, name in detector.categories)
        dataset = load_dataset(root, split, categories=expected, skip_bad=skip_bad)
        result, _ = evaluate_detector(detector, dataset, ranks=ranks)
        if not ranks.is_first:
            return
        weights = None if subnet is None else subnet.weights_sha256
        about = {"model": model, "weights_sha256": weights}
        about |= {"data": root, "split": dataset.split}
        figures = {"images": len(dataset.images), **dataclasses.asdict(result)}
        print_record("eval", {**about, **figures})
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
    _json: Json = False,
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
    written = {"output": output, "predictions": output / "predictions.json"}
    print_record("predict", {**written, "images": len(paths), "boxes_per_class": counts})
    show_table("", ["class", "boxes"], [[name, str(count)] for name, count in counts.items()])
    print(f"{sum(counts.values())} boxes in {len(paths)} images; see {output}")


def open_model(
    path: Path, threads: int, runtime: ModelRuntime = ModelRuntime.ONNXRUNTIME
) -> "tuple[Detector, Subnet | None]":
    """Open an .onnx or .engine file (without PyTorch) or a subnet.json (with it).

    Returns:
        The detector, and the subnet it was made from where that is known.

    Raises:
        UserError: none of these, missing, or damaged; or an engine for another machine.
    """
    if path.suffix == ".engine":
        if runtime is not ModelRuntime.ONNXRUNTIME:
            raise UserError(f"{path} is run by TensorRT; --runtime is for .onnx files")
        from detofa.runtime.detector import open_detector
        from detofa.runtime.tensorrt.record import EngineRecord

        return open_detector(path), EngineRecord.load(path).subnet
    if path.suffix == ".onnx":
        from detofa.runtime.detector import open_detector
        from detofa.runtime.manifest import Manifest, manifest_path

        detector = open_detector(path, threads=threads, runtime=runtime.value)
        beside = manifest_path(path)
        return detector, Manifest.load(beside).subnet if beside.is_file() else None
    check_subnet_path(path)
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
    from detofa.train.evaluate import torch_detector_of

    torch.set_num_threads(threads)
    subnet, module = load_subnet(path)
    return torch_detector_of(module, subnet), subnet


def check_subnet_path(path: Path) -> Path:
    """Return a path that may be that of a subnet.json.

    Raises:
        UserError: it ends otherwise.
    """
    if path.suffix != ".json":
        raise UserError(
            f"{path} should be a subnet.json that `detofa search` wrote, or for eval, predict and "
            "bench an .onnx or .engine file that `detofa export` wrote"
        )
    return path


def _show_precision(result: "AveragePrecision") -> None:
    sizes = {"small": result.ap_small, "medium": result.ap_medium, "large": result.ap_large}
    print(f"AP {result.ap:.4f}, AP50 {result.ap50:.4f}, AP75 {result.ap75:.4f}")
    print("AP by size: " + ", ".join(f"{k} {average_precision(v)}" for k, v in sizes.items()))
    rows = [
        [item.name, average_precision(item.ap), average_precision(item.ap50)]
        for item in result.per_class
    ]
    show_table("", ["class", "AP", "AP50"], rows)
