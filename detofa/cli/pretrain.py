"""`detofa pretrain` and `detofa import`: backbones that classify images before they detect."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.options import ImageSizes, image_sizes
from detofa.cli.runs import saved_step
from detofa.cli.training import (
    STOPPED,
    find_place,
    resolve,
    run_training,
    torch_device,
    usable_cores,
)

if TYPE_CHECKING:
    from detofa.train.classification import ClassificationTask
    from detofa.train.config import TrainConfig


def pretrain(
    data: Annotated[
        str | None,
        typer.Option(help="An image folder (train/CLASS/, val/CLASS/), or a tar.", metavar="DIR"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run.  [default: data and space]")
    ] = None,
    recipe: Annotated[str, typer.Option(help="pretrain, or a TOML file of settings.")] = "pretrain",
    space: Annotated[
        str | None, typer.Option(help="Search space; see `detofa space show`.")
    ] = None,
    image_size: ImageSizes = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="efficientnet-lite0, random, a once-for-all checkpoint, or an earlier run's "
            "classifier.safetensors."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides weights and batches.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate of AdamW.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads.  [default: all cores]")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out broken images instead of stopping.")
    ] = False,
) -> None:
    """Train a supernet's backbone to classify images; the same command resumes it.

    Every path is trained, as in `detofa train`, and starts detection with
    `detofa train --init runs/NAME/classifier.safetensors`.
    """
    from detofa import recipes

    flags = {
        "data": data,
        "task": "classification",
        "space": space,
        "image_sizes": image_sizes(image_size),
        "init": init,
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    config = resolve(
        recipe,
        {key: value for key, value in flags.items() if value is not None},
        {"pretrain": recipes.pretrain},
    )

    import torch

    torch.set_num_threads(threads or usable_cores())
    run = find_place(name, config)
    task = _load_task(config, run.path / "data", skip_bad)
    if not run_training(config, task, run, torch_device(device)):
        print(f"stopped at step {saved_step(run)}; the same command resumes")
        raise typer.Exit(STOPPED)
    print(f"{run.path} is trained; next: `detofa train --init {run.classifier} --data DIR`")


def import_weights(
    source: Annotated[
        str,
        typer.Argument(
            help="efficientnet-lite0, or a once-for-all MobileNetV3 checkpoint.", metavar="CKPT"
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="File to write.  [default: the source's name, .safetensors]"),
    ] = None,
) -> None:
    """Turn published classification weights into a supernet that `detofa train --init` takes."""
    from detofa.errors import UserError
    from detofa.supernet.import_weights import import_classifier
    from detofa.train.checkpoint import SupernetRecord, save_supernet
    from detofa.train.task import preprocessing_of

    path = output or Path(f"{Path(source).stem}.safetensors")
    if path.suffix != ".safetensors":
        raise UserError(f"--output should end in .safetensors, got {path}")
    supernet = import_classifier(source)
    space = supernet.space
    record = SupernetRecord(
        space=space,
        categories=tuple((i, f"class {i}") for i in range(space.num_classes)),
        preprocessing=preprocessing_of(space.name),
        step=0,
        recalibration={},
        data=source,
    )
    save_supernet(path, supernet, record)
    print(f"wrote {path}: {space.num_classes} classes, space {space.name}")
    print(f"next: `detofa train --space {space.name} --init {path} --data DIR`")


def _load_task(config: "TrainConfig", folder: Path, skip_bad: bool) -> "ClassificationTask":
    from detofa.data.image_folder import load_image_folder, unpacked
    from detofa.train.classification import ClassificationTask

    root = unpacked(Path(config.data), folder)
    training = load_image_folder(root, "train", skip_bad=skip_bad)
    validation = load_image_folder(root, "val", categories=training.categories, skip_bad=skip_bad)
    print(
        f"{root}: {len(training.images)} training and {len(validation.images)} validation images, "
        f"{len(training.categories)} classes"
    )
    return ClassificationTask(config, train=training, validation=validation)
