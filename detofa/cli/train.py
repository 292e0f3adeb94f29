"""`detofa train`: settings from a recipe and flags, a run that resumes, progress as it goes."""

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
    from detofa.train.config import TrainConfig
    from detofa.train.detection import DetectionTask


def train(
    data: Annotated[str | None, typer.Option(help="The data set's folder.", metavar="DIR")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run.  [default: data and space]")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="default, bccd, demo, or a TOML file of settings.")
    ] = "default",
    space: Annotated[
        str | None, typer.Option(help="Search space; see `detofa space show`.")
    ] = None,
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
        typer.Option(help="ofa: all paths alike; detofa: those that the path filter keeps."),
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
        bool, typer.Option("--skip-bad", help="Leave out faulty images instead of stopping.")
    ] = False,
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
        {key: value for key, value in flags.items() if value is not None},
        {"default": recipes.default, "bccd": recipes.bccd, "demo": recipes.demo},
    )

    import torch

    torch.set_num_threads(threads or usable_cores())
    task = _load_task(config, skip_bad)
    run = find_place(name, config)
    finished = run_training(config, task, run, torch_device(device))
    if not finished:
        print(f"stopped at step {saved_step(run)}; the same command resumes")
        raise typer.Exit(STOPPED)
    print(f"{run.path} is trained; next: `detofa profile`, then `detofa search --latency 10ms`")


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
    print(
        f"{root}: {len(training.images)} training and {len(validation.images)} validation images, "
        f"{len(training.categories)} classes"
    )
    return DetectionTask(config, train=training, validation=validation)
