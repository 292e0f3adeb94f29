"""The command line: thin commands over the library; what is heavy is imported inside each."""

import atexit
import gc
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from detofa import __version__
from detofa.cli import (
    bench,
    data,
    doctor,
    export,
    filter,
    finetune,
    measure,
    models,
    pretrain,
    report,
    runs,
    search,
    space,
    train,
)
from detofa.cli.display import print_record
from detofa.cli.options import Json
from detofa.errors import UserError

_EPILOG = (
    "Exit codes: 0 done; 1 something you can mend, named in the message; 2 wrong usage; "
    "130 stopped by Ctrl-C."
)
# What the base install leaves out, by the extra that has it.
_EXTRA_OF = dict.fromkeys(("torch", "torchvision", "faster_coco_eval", "fvcore", "yaml"), "train")
_EXTRA_OF |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "onnx")
_EXTRA_OF |= dict.fromkeys(("jinja2", "plotly"), "report")
_EXTRA_OF |= dict.fromkeys(("sklearn", "matplotlib"), "demo")
_EXTRA_OF["tensorboard"] = "tensorboard"

app = typer.Typer(
    name="detofa",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data.app, name="data")
app.add_typer(space.app, name="space")
app.command("train", short_help="Train a supernet on your data, or resume a run.")(train.train)
app.command("pretrain", short_help="Train a backbone to classify images.")(pretrain.pretrain)
app.command("import", short_help="Take published classification weights.")(pretrain.import_weights)
app.command("filter", short_help="Fit a run's path filter, and say what it is worth.")(filter.fit)
app.command("profile", short_help="Measure a space on a device; writes a latency table.")(
    measure.profile
)
app.command("devices", short_help="List devices and latency tables.")(measure.devices)
app.command("search", short_help="Find the best detector for a budget.")(search.search)
app.command("finetune", short_help="Train a chosen detector further, alone.")(finetune.finetune)
app.command("export", short_help="Write a verified ONNX file or a TensorRT engine.")(export.export)
app.command("eval", short_help="Measure a detector's average precision.")(models.evaluate)
app.command("predict", short_help="Find objects in images; draws boxes.")(models.predict)
app.command("bench", short_help="Measure a detector's latency.")(bench.bench)
app.command("report", short_help="Write what a run found as one HTML file.")(report.report)
app.command("doctor", short_help="Say what is here, what is missing, and what mends it.")(
    doctor.doctor
)
app.add_typer(runs.app, name="runs")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process.

    When the process ends, what is left is not searched for garbage: with all of PyTorch loaded,
    that alone would take a second or two.

    Args:
        arguments: What follows the program's name; that of this process if not given.

    Raises:
        SystemExit: always, with the exit code.
    """
    atexit.register(gc.freeze)
    try:
        app(args=arguments, prog_name="detofa")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"error: this command needs {error.name}, which is not installed; get it with pip "
            f"install 'detofa[{extra}]'",
            file=sys.stderr,
        )
    sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"detofa {__version__}")
        raise typer.Exit


@app.callback()
def _detofa(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Train one detection supernet on your data; get a detector for every latency budget."""


@app.command("demo", short_help="The whole loop on a built-in data set, in minutes.")
def demo(
    output: Annotated[
        str, typer.Option(help="The run's folder; everything goes there.")
    ] = "runs/demo",
    seed: Annotated[int, typer.Option(help="Decides data, training and search.", min=0)] = 0,
    _json: Json = False,
) -> None:
    """Show the whole loop on a small built-in data set, in minutes on a CPU."""
    from dataclasses import asdict
    from pathlib import Path

    from detofa.demo import run_demo

    found = run_demo(Path(output), seed=seed)
    rows = [asdict(row) for row in found.rows]
    checks = [asdict(check) for check in found.checks]
    facts = dict(found.facts)
    print_record("demo", {"run": output, "facts": facts, "detectors": rows, "checks": checks})
