"""`detofa train`: settings from a recipe and flags, a run that resumes, progress as it goes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from detofa.cli.runs import named_run
from detofa.cli.training import find_place, resolve, run_training, show_size, training_ranks

if TYPE_CHECKING:
    from detofa.train.config import TrainConfig
    from detofa.train.detection import DetectionTask


def train(
    data: Annotated[str | None, typer.Option(help="The data set's folder.", metavar="DIR")] = None,
    name: RunName = None,
    recipe: Annotated[
        str, typer.Option(help="default, bccd, demo, or a TOML file of settings.")
    ] = "default",
    space: Space = None,
    image_size: ImageSizes = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="efficientnet-lite0, random, a once-for-all checkpoint, or an earlier run's "
            "supernet.safetensors."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="ofa: all paths alike; detofa: those that the path filter keeps; random-pruned: "
            "those that chance keeps."
        ),
    ] = None,
    cost_of: Annotated[
        str | None,
        typer.Option(
            help="A finished run by detofa: take as many steps as cost what it did, labels "
            "included.",
            metavar="RUN",
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
    """Train a supernet on your data; the same command resumes a run that was stopped.

    Settings come from the recipe; flags win over it. Everything goes to runs/NAME/.
    """
    from detofa import recipes

    flags = {
        "data": data,
        "space": space,
        "image_sizes": image_sizes(image_size),
        "init": init,
        "method": method,
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    config = resolve(
        recipe,
        flags,
        {"default": recipes.default, "bccd": recipes.bccd, "demo": recipes.demo},
    )
    if cost_of is not None:
        config = _of_equal_cost(config, cost_of, steps)
    with training_ranks(device, threads) as (ranks, own_device):
        task = _load_task(config, skip_bad)
        run = ranks.first(lambda: find_place(name, config))
        run_training(task, run, ranks, own_device, tensorboard=tensorboard)
        print(f"{run.path} is trained; next: `detofa profile` measures what its detectors take")


def _of_equal_cost(config: "TrainConfig", run: str, steps: int | None) -> "TrainConfig":
    from dataclasses import replace

    from detofa.train.equal_cost import steps_of_equal_cost

    if steps is not None:
        raise typer.BadParameter("give either --steps or --cost-of", param_hint="--cost-of")
    return replace(config, steps=steps_of_equal_cost(config, named_run(run)))


def _load_task(config: "TrainConfig", skip_bad: bool) -> "DetectionTask":
    from detofa.data.dataset import load_dataset
    from detofa.train.detection import DetectionTask

    root = Path(config.data)
    training = load_dataset(root, "train", skip_bad=skip_bad)
    validation = load_dataset(root, "val", categories=training.categories, skip_bad=skip_bad)
    faults = [*training.faults, *validation.faults]
    for fault in faults[:5]:
        print(f"{fault.severity}: {fault}")
    if len(faults) > 5:
        print(f"and {len(faults) - 5} more: `detofa data check {root}`")
    show_size(training, validation)
    return DetectionTask(config, train=training, validation=validation)
