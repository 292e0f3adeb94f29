"""Options that several commands share, and reading what was typed into them."""

import importlib.util
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from detofa.cli.display import records_only
from detofa.errors import UserError
from detofa.units import parse_image_size

Value = TypeVar("Value")


def _check_tensorboard(wanted: bool) -> bool:
    """Refuse, before anything is read or written, what is not installed."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise ModuleNotFoundError(name="tensorboard")  # told as for any other extra
    return wanted


Run = Annotated[
    str | None,
    typer.Option(
        "--run", help="A run's name or folder.  [default: the newest finished one under runs/]"
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads that run the model.")]
TableRuntime = Annotated[
    str | None,
    typer.Option("--runtime", help="What ran the models, where there are tables of several."),
]
TablePrecision = Annotated[
    str | None,
    typer.Option("--precision", help="Number format, where there are tables of several."),
]
Batch = Annotated[int, typer.Option(min=1, help="Images of one call.")]


class ModelRuntime(StrEnum):
    """What runs an exported file."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"


RuntimeOfModel = Annotated[ModelRuntime, typer.Option("--runtime", help="What runs an .onnx file.")]
DataOfRun = Annotated[
    Path | None,
    typer.Option(help="The data set's folder.  [default: where the run was trained]"),
]
TensorBoard = Annotated[
    bool,
    typer.Option(
        "--tensorboard",
        callback=_check_tensorboard,
        help="Also write the metrics for TensorBoard, into the run.",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out faulty images instead of stopping.")
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]
ImageSizes = Annotated[
    list[str] | None,
    typer.Option(
        "--image-size",
        metavar="HEIGHTxWIDTH",
        help="Input size, such as 256x320; give it several times to choose between sizes.",
    ),
]

RunName = Annotated[
    str | None, typer.Option("--name", help="Name of the run.  [default: data and space]")
]
Space = Annotated[str | None, typer.Option(help="Search space; see `detofa space show`.")]
TrainSeed = Annotated[int | None, typer.Option(min=0, help="Decides weights and batches.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images a step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak rate of AdamW.")]
TrainDevice = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
TrainThreads = Annotated[int | None, typer.Option(min=1, help="Threads.  [default: all cores]")]


def _answer_in_json(context: typer.Context, wanted: bool) -> bool:
    if wanted and not context.resilient_parsing:  # that is what completion does
        # The outermost context is closed even if what follows on the command line is wrong.
        context.find_root().with_resource(records_only())
    return wanted


# Commands print their result by `print_record`, and need not look at this.
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        callback=_answer_in_json,
        help="Print the result as one JSON record; all else goes to the error stream.",
    ),
]


def parsed(parse: Callable[[str], Value], text: str, option: str) -> Value:
    """Return what `parse` makes of an option's text; what it refuses is wrong usage.

    Raises:
        typer.BadParameter: the text cannot be read; exits 2.
    """
    try:
        return parse(text)
    except UserError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def image_sizes(texts: Sequence[str] | None) -> tuple[tuple[int, int], ...] | None:
    """Return the (height, width) of each `--image-size`, or None if it was not given.

    Raises:
        typer.BadParameter: one cannot be read; exits 2.
    """
    if not texts:
        return None
    return tuple(parsed(parse_image_size, text, "--image-size") for text in texts)
