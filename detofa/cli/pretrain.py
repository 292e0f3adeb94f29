"""`detofa pretrain` and `detofa import`: backbones that classify images before they detect."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import print_record
from detofa.cli.options import (
    BatchSize,
    ImageSizes,
    Json,
    LearningRate,
    RunName,
    SkipBad,
    Space,
    Steps,
    TensorBoard,
    TrainDevice,
    TrainSeed,
    TrainThreads,
    image_sizes,
)
from detofa.cli.training import find_place, resolve, run_training, show_size, training_ranks

if TYPE_CHECKING:
    from detofa.train.classification import ClassificationTask
    from detofa.train.config import TrainConfig


def pretrain(
    data: Annotated[
        str | None,
        typer.Option(help="An image folder (train/CLASS/, val/CLASS/), or a tar.", metavar="DIR"),
    ] = None,
    name: RunName = None,
    recipe: Annotated[str, typer.Option(help="pretrain, or a TOML file of settings.")] = "pretrain",
    space: Space = None,
    image_size: ImageSizes = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="efficientnet-lite0, random, a once-for-all checkpoint, or an earlier run's "
            "classifier.safetensors."
        ),
    ] = None,
    seed: TrainSeed = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    device: TrainDevice = "auto",
    threads: TrainThreads = None,
    skip_bad: SkipBad = False,
    tensorboard: TensorBoard = False,
    _json: Json = False,
) -> None:
    """Train a supernet's backbone to classify images; the same command resumes it.

    Every path is trained, as in `detofa train`, and starts detection with
    `detofa train --init runs/NAME/classifier.safetensors`.
    """
    from detofa import recipes
    from detofa.data.image_folder import unpacked

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
        flags,
        {"pretrain": recipes.pretrain},
    )
    with training_ranks(device, threads) as (ranks, own_device):
        run = ranks.first(lambda: find_place(name, config))
        root = ranks.first(lambda: unpacked(Path(config.data), run.path / "data"))
        task = _load_task(config, root, skip_bad)
        run_training(task, run, ranks, own_device, tensorboard=tensorboard)
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
    _json: Json = False,
) -> None:
    """Turn published classification weights into a supernet that `detofa train --init` takes."""
    from detofa.errors import UserError
    from detofa.supernet.import_weights import import_classifier
    from detofa.train.checkpoint import save_supernet
    from detofa.train.supernet_record import SupernetRecord
    from detofa.train.task import preprocessing_of

    path = output or default_output(source)
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
    print_record("import", {"path": path, "space": space.name, "num_classes": space.num_classes})


def default_output(source: str) -> Path:
    """Return the file that imported weights go to; `w1.0` and `w1.2` stay apart."""
    return Path(f"{Path(source).name.removesuffix('.pth')}.safetensors")


def _load_task(config: "TrainConfig", root: Path, skip_bad: bool) -> "ClassificationTask":
    from detofa.data.image_folder import load_image_folder
    from detofa.train.classification import ClassificationTask

    training = load_image_folder(root, "train", skip_bad=skip_bad)
    validation = load_image_folder(root, "val", categories=training.categories, skip_bad=skip_bad)
    show_size(training, validation)
    return ClassificationTask(config, train=training, validation=validation)
