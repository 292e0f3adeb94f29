"""The training loop of a supernet: sandwich rule, averaged weights, checkpoints that resume."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from detofa.data.dataset import DetectionDataset
from detofa.data.evaluation import AveragePrecision
from detofa.data.loader import Batch, TrainingBatches
from detofa.errors import UserError
from detofa.imaging import IMAGENET, LITE, Preprocessing
from detofa.presets import preset
from detofa.space import SearchSpace
from detofa.subnet import PostProcessing
from detofa.supernet.detector import Supernet
from detofa.supernet.import_weights import load_pretrained
from detofa.train.checkpoint import (
    SupernetRecord,
    load_earlier_supernet,
    load_training_state,
    save_supernet,
    save_training_state,
)
from detofa.train.config import TrainConfig
from detofa.train.evaluate import Recalibration, evaluate_paths
from detofa.train.memory import release_freed_memory
from detofa.train.run import RunFolder
from detofa.train.sandwich import SandwichGradients, sandwich

_STEPS_BETWEEN_RELEASES = 5


class Observer(Protocol):
    """Who watches a training run."""

    def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
        """Called after every step."""

    def on_evaluation(self, step: int, results: dict[str, AveragePrecision]) -> None:
        """Called with the AP of the largest, the smallest and a random path."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run trains on.

    Attributes:
        train: Training split.
        validation: Split for progress and, later, for search.
    """

    train: DetectionDataset
    validation: DetectionDataset

    @property
    def categories(self) -> tuple[tuple[int, str], ...]:
        """Return (id, name) of each class, in label order."""
        return tuple((category.id, category.name) for category in self.train.categories)


def preprocessing_of(space_name: str) -> Preprocessing:
    """Return how the images of a space are normalised: as its pre-trained weights expect."""
    return LITE if space_name == "lite0" else IMAGENET


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Return the rate of a step as a multiple of its peak: linear rise, cosine fall to 2 %."""
    rise = max(1, round(config.warm_up * config.steps))
    if step < rise:
        return (step + 1) / rise
    progress = (step - rise) / max(1, config.steps - rise)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """One training run.

    Args:
        config: The settings.
        task: The data.
        run: Where files go; a state found there is resumed.
        device: Where tensors live.

    Raises:
        UserError: an unknown space, pre-trained weights of another family, a state of another run.
    """

    def __init__(
        self, config: TrainConfig, task: Task, run: RunFolder, device: torch.device
    ) -> None:
        self.config, self.task, self.run, self.device = config, task, run, device
        self.space = preset(
            config.space, num_classes=len(task.categories), image_sizes=config.image_sizes
        )
        self.preprocessing = preprocessing_of(config.space)
        self.supernet = _initial_supernet(self.space, config, task).to(device)
        self.averaged = AveragedModel(self.supernet, multi_avg_fn=_ramped_average(config.ema_decay))
        self.optimiser = _optimiser(self.supernet, config)
        self.recalibration = Recalibration(
            dataset=task.train,
            preprocessing=self.preprocessing,
            count=config.recalibration_images,
        )
        self.batches = TrainingBatches(
            task.train,
            batch_size=config.batch_size,
            image_sizes=self.space.image_sizes[-1:],
            augmentation=config.augmentation,
            preprocessing=self.preprocessing,
            seed=config.seed,
            workers=config.workers,
            class_balance=config.class_balance,
        )
        self.step = 0
        if run.state.is_file():
            self.step = load_training_state(run.state, self.supernet, self.averaged, self.optimiser)
            run.forget_after(self.step)
        on_cpu = device.type == "cpu"
        self._gradients = SandwichGradients(
            self.supernet, config, device, torch.get_num_threads() if on_cpu else 1
        )

    def train(self, observer: Observer, should_stop: Callable[[], bool]) -> bool:
        """Train to the last step, or until `should_stop` says so between two steps.

        Checkpoints, metrics and the averaged supernet are written as it goes.

        Returns:
            Whether the last step was reached; if not, the same run resumes.
        """
        config = self.config
        evaluate_at = {
            round(config.steps * (index + 1) / config.evaluations)
            for index in range(config.evaluations)
        }
        self.supernet.train()
        last = time.perf_counter()
        for batch in self.batches.prefetch(self.step, config.steps):
            loss = self._train_step(batch)
            self.step += 1
            if self.step % _STEPS_BETWEEN_RELEASES == 0:
                release_freed_memory()
            now = time.perf_counter()
            images_per_s, last = config.batch_size / (now - last), now
            observer.on_step(self.step, config.steps, loss, images_per_s)
            self.run.log({"step": self.step, "loss": loss, "images_per_s": images_per_s})
            if self.step in evaluate_at:
                self._evaluate(observer)
                last = time.perf_counter()
            stopping = self.step < config.steps and should_stop()
            if stopping or self.step % config.checkpoint_steps == 0 or self.step == config.steps:
                self.save()
            if stopping:
                return False
        return True

    def save(self) -> None:
        """Write the averaged supernet and the training state."""
        record = SupernetRecord(
            space=self.space,
            categories=self.task.categories,
            preprocessing=self.preprocessing,
            step=self.step,
            recalibration=dict(self.recalibration.to_json()),
            data=self.config.data,
        )
        save_supernet(self.run.supernet, self.averaged_supernet, record)
        save_training_state(self.run.state, self.supernet, self.averaged, self.optimiser, self.step)

    @property
    def averaged_supernet(self) -> Supernet:
        """Return the supernet with the averaged weights."""
        module = self.averaged.module
        assert isinstance(module, Supernet)
        return module

    def _train_step(self, batch: Batch) -> float:
        config = self.config
        factor = learning_rate_factor(self.step, config)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak_rate"] * factor
        archs = sandwich(self.space, config.random_paths, config.seed, self.step)
        if self.step < config.largest_first * config.steps:
            archs = archs[:1]
        loss, gradients = self._gradients(batch, archs)
        for parameter, gradient in zip(self.supernet.parameters(), gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(self.supernet.parameters(), config.clip_norm)
        if not math.isfinite(loss) or not bool(norm.isfinite()):
            raise UserError(
                f"the loss became {loss} at step {self.step + 1}; start again with a smaller "
                f"--learning-rate than {config.learning_rate:g}"
            )
        self.optimiser.step()
        self.averaged.update_parameters(self.supernet)
        return loss

    def _evaluate(self, observer: Observer) -> None:
        rng = np.random.default_rng(0)
        paths = {
            "largest": self.space.largest,
            "smallest": self.space.smallest,
            "random": self.space.arch(self.space.sample(rng, 1)[0]),
        }
        found = evaluate_paths(
            self.averaged_supernet,
            list(paths.values()),
            self.recalibration,
            self.task.validation,
            PostProcessing(),
        )
        results = dict(zip(paths, found, strict=True))
        observer.on_evaluation(self.step, results)
        self.run.log(
            {
                "step": self.step,
                "ap": {name: result.ap for name, result in results.items()},
                "ap50": {name: result.ap50 for name, result in results.items()},
            }
        )


def _initial_supernet(space: SearchSpace, config: TrainConfig, task: Task) -> Supernet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        supernet = Supernet(space)
    if config.init.endswith(".safetensors"):
        load_earlier_supernet(supernet, Path(config.init), task.categories)
    elif config.init != "random":
        load_pretrained(supernet, config.init)
    return supernet.to(memory_format=torch.channels_last)


def _optimiser(supernet: Supernet, config: TrainConfig) -> AdamW:
    """Return AdamW with groups for the backbone and the rest, with and without decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in supernet.named_parameters():
        backbone = not name.startswith(("largest.neck", "largest.head"))
        decays = parameter.dim() > 1 and not name.startswith("kernel_transforms")
        groups.setdefault((backbone, decays), []).append(parameter)
    return AdamW(
        [
            {
                "params": parameters,
                "peak_rate": config.learning_rate * (config.backbone_rate if backbone else 1.0),
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (backbone, decays), parameters in groups.items()
        ],
        lr=config.learning_rate,
    )


def _ramped_average(
    decay: float,
) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Average exponentially, with a decay that grows from a tenth, to forget the start."""

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        number = int(count)
        weight = 1 - min(decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(list(averaged), list(current), weight)

    return update
