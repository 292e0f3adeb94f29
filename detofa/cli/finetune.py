"""`detofa finetune`: train a chosen detector alone, from the weights it inherited."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from detofa.cli.display import print_record
from detofa.cli.options import (
    DataOfRun,
    Json,
    RunName,
    SkipBad,
    TensorBoard,
    TrainDevice,
    TrainThreads,
)
from detofa.cli.runs import run_of_subnet
from detofa.cli.training import (
    find_place,
    show_size,
    stopped,
    training_in,
    training_ranks,
)
from detofa.errors import UserError

if TYPE_CHECKING:
    from detofa.subnet import Subnet
    from detofa.train.config import TrainConfig


def finetune(
    subnet: Annotated[Path, typer.Argument(help="A subnet.json that `detofa search` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The subnet.json to write.  [default: NAME-finetuned.json beside it]"),
    ] = None,
    data: DataOfRun = None,
    name: RunName = None,
    epochs: Annotated[float, typer.Option(min=0, help="Times that every image is seen.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak rate of AdamW.")] = 3e-4,
    seed: Annotated[int, typer.Option(min=0, help="Decides the batches.")] = 0,
    device: TrainDevice = "auto",
    threads: TrainThreads = None,
    skip_bad: SkipBad = False,
    tensorboard: TensorBoard = False,
    _json: Json = False,
) -> None:
    """Train a chosen detector alone for a few epochs; the same command resumes it.

    Once it is trained, the same command only evaluates it and writes it again. The latency stays,
    the network is the same; AP is measured anew on the validation split.
    """
    if epochs <= 0:
        raise typer.BadParameter("should be above 0", param_hint="--epochs")

    from detofa.data.dataset import Category, load_dataset
    from detofa.train.checkpoint import load_subnet
    from detofa.train.detection import FinetuneTask
    from detofa.train.finetune import finetune as finetune_subnet
    from detofa.train.run import command_line

    record, detector = load_subnet(subnet)
    target = output or subnet.with_name(f"{subnet.stem}-finetuned.json")
    if target.suffix != ".json" or target.resolve() == subnet.resolve():
        raise UserError(f"--output should be another .json file than {subnet}, got {target}")
    settings = _settings(record, subnet, data)
    categories = tuple(Category(id=number, name=name) for number, name in record.categories)
    with training_ranks(device, threads) as (ranks, own_device):
        training, validation = (
            load_dataset(Path(settings.data), split, categories=categories, skip_bad=skip_bad)
            for split in ("train", "val")
        )
        show_size(training, validation)
        config = _with_steps(
            settings, epochs, len(training.images), batch_size, learning_rate, seed
        )
        # Another detector of the same name gets a run of its own.
        wanted = name or f"finetune-{subnet.stem}-{record.weights_sha256[:8]}"
        run = ranks.first(lambda: find_place(wanted, config))
        task = FinetuneTask(config, record, detector, train=training, validation=validation)
        with training_in(task, run, ranks, own_device, tensorboard=tensorboard) as (
            trainer,
            watching,
            should_stop,
        ):
            done = finetune_subnet(
                trainer, record, target, watching, should_stop, command=command_line()
            )
        if done is None:
            stopped(run)
        print(
            f"AP on {validation.split} ({len(validation.images)} images): {done.before.ap:.3f} "
            f"before, {done.after.ap:.3f} after; AP50 {done.before.ap50:.3f}, "
            f"{done.after.ap50:.3f}"
        )
        if done.after.ap < done.before.ap:
            print(f"it did not gain: {subnet} is the better one; try a lower --learning-rate")
        print(f"wrote {target}; next: `detofa export {target}`")
        if ranks.is_first:
            about = {"run": run.path, "subnet": target, "split": validation.split}
            ap = {
                when: {"ap": figures.ap, "ap50": figures.ap50}
                for when, figures in (("before", done.before), ("after", done.after))
            }
            print_record("finetune", {**about, "images": len(validation.images), **ap})


def _settings(record: "Subnet", subnet: Path, data: Path | None) -> "TrainConfig":
    """Return the settings of the subnet's run where it is found, without what is for many paths."""
    from dataclasses import replace

    from detofa import recipes

    run = run_of_subnet(record)
    if run is None and data is None:
        raise UserError(
            f"the run that {subnet} was cut from is not found from here; name the data set's "
            "folder with --data"
        )
    base = recipes.default(Path(data or "")) if run is None else run.load_config()
    return replace(
        base,
        data=base.data if data is None else str(data),
        method="ofa",
        space=record.space.name,
        image_sizes=record.space.image_sizes,
        init=str(subnet),
        recalibration_images=int(record.recalibration["images"]),
        largest_first=0.0,
        random_paths=0,
        distillation=0.0,
        evaluations=0,
    )


def _with_steps(
    settings: "TrainConfig",
    epochs: float,
    num_images: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> "TrainConfig":
    from dataclasses import replace

    return replace(
        settings,
        seed=seed,
        steps=max(1, math.ceil(epochs * num_images / batch_size)),
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
