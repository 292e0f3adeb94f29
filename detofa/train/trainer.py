"""The training loop of a supernet: sandwich rule, averaged weights, checkpoints that resume."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from detofa.arch import Arch
from detofa.data.loader import Batch
from detofa.errors import UserError
from detofa.supernet.sharing import ArchModule
from detofa.train.checkpoint import load_training_state, save_training_state
from detofa.train.config import TrainConfig
from detofa.train.gradients import SandwichGradients
from detofa.train.loss_guard import LossGuard
from detofa.train.memory import release_freed_memory, share_heap
from detofa.train.ranks import ALONE, Ranks
from detofa.train.run import RunFolder
from detofa.train.task import Task

_STEPS_BETWEEN_RELEASES = 5
_FIXED_PATHS = 2  # the largest and the smallest


class Observer(Protocol):
    """Who watches a training run."""

    def on_step(self, step: int, steps: int, loss: float, images_per_s: float) -> None:
        """Called after every step."""

    def on_evaluation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Called with the figures of the largest, the smallest and a random path."""


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
        task: What is learnt, from what, and with which settings.
        run: Where files go; a state found there is resumed.
        device: Where tensors live.
        ranks: The processes that share the work: each takes a part of every batch.

    Raises:
        UserError: a state of another run, or a batch that the ranks cannot share evenly.
    """

    def __init__(
        self, task: Task, run: RunFolder, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.task, self.run, self.device, self.ranks = task, run, device, ranks
        config = self.config = task.config
        self.space = task.space
        self.supernet = task.supernet.to(device).to(memory_format=torch.channels_last)
        self.averaged = AveragedModel(self.supernet, multi_avg_fn=_ramped_average(config.ema_decay))
        self.optimiser = _optimiser(self.supernet, config)
        self.batches = task.batches(part=(ranks.index, ranks.count))
        self.step, self.guard, self.note = 0, LossGuard(), ""
        self.sinks: list[Callable[[Mapping[str, Any]], None]] = []
        if run.states:
            self._restore()
        threads = 1
        if device.type == "cpu":
            share_heap()
            threads = torch.get_num_threads()
        self._gradients = SandwichGradients(
            self.supernet,
            task.objective(device),
            device,
            threads,
            ranks.means(_FIXED_PATHS + config.random_paths),
        )

    def begin(self, command: str) -> None:
        """Make the run's folder and write what the run is; the first rank alone does.

        A finished run stays as it is.

        Args:
            command: The command line, for the record.
        """
        if not self.ranks.is_first or self.step >= self.config.steps:
            return
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.config.save(self.run.config)
        self.run.write_environment(command)
        if self.step == 0 and self.run.metrics.is_file():
            self.run.forget_after(0)  # lines of a run that was killed before its first checkpoint

    def train(
        self,
        observer: Observer,
        should_stop: Callable[[], bool],
        *,
        sandwich: Callable[[int], Sequence[Arch]] | None = None,
        until: int | None = None,
    ) -> bool:
        """Train to the last step, or until `should_stop` says so between two steps.

        Checkpoints, metrics and the averaged supernet are written as it goes.

        Args:
            observer: Told of every step and evaluation.
            should_stop: Asked after every step.
            sandwich: Returns the paths of a step, the one that leads first; if not given, random
                ones come from the whole space.
            until: The step to stop after, instead of the run's last.

        Returns:
            Whether that step was reached; if not, the same run resumes.

        Raises:
            UserError: the loss explodes again and again; see `LossGuard`.
        """
        config = self.config
        sandwich = self.task.sandwich(self.space) if sandwich is None else sandwich
        until = config.steps if until is None else min(until, config.steps)
        while self.step < until:
            if not self._train_on(observer, should_stop, sandwich, until):
                return False
        return True

    def _train_on(
        self,
        observer: Observer,
        should_stop: Callable[[], bool],
        sandwich: Callable[[int], Sequence[Arch]],
        until: int,
    ) -> bool:
        """Train until a step is reached or training went back; return whether to go on."""
        config = self.config
        evaluate_at = {
            round(config.steps * (index + 1) / config.evaluations)
            for index in range(config.evaluations)
        }
        self.supernet.train()
        last, spent = time.perf_counter(), self.clock()
        for batch, waited in _timed(self.batches.prefetch(self.step, until)):
            loss, is_sound = self._train_step(batch, sandwich(self.step))
            if self.guard.should_return:
                self._go_back()
                return True
            self.step += 1
            if self.step % _STEPS_BETWEEN_RELEASES == 0:
                release_freed_memory()
            now = time.perf_counter()
            images_per_s, last = config.batch_size / (now - last), now
            seconds = (self.clock() - spent) * self.ranks.count
            observer.on_step(self.step, config.steps, loss, images_per_s)
            told = {"loss": loss} if is_sound else {"skipped": self.guard.skipped}
            figures = {"images_per_s": images_per_s, "seconds": seconds, "waited": waited}
            self._log({**told, **figures})
            if self.step in evaluate_at:
                self._evaluate(observer)
                last = time.perf_counter()
            spent = self.clock()
            stopping = self.step < until and any(self.ranks.gather(should_stop()))
            if stopping or self.step % config.checkpoint_steps == 0 or self.step == until:
                self.save()
            if stopping:
                return False
        return True

    def clock(self) -> float:
        """Return seconds: of all of this process's threads on a CPU, of the wall on a GPU."""
        return time.process_time() if self.device.type == "cpu" else time.perf_counter()

    def save(self) -> None:
        """Write the averaged supernet and the training state; all ranks wait for it."""
        self.ranks.first(self._write)

    def _write(self) -> None:
        self.task.save(self.run.weights(self.config.task), self.averaged_supernet, self.step)
        save_training_state(
            self.run.state, self.supernet, self.averaged, self.optimiser, self.step, self.guard
        )

    def _restore(self) -> None:
        """Take up the newest whole state of this run."""
        self.step, self.guard, self.note = load_training_state(
            self.run.state, self.supernet, self.averaged, self.optimiser
        )
        if self.ranks.is_first:
            self.run.forget_after(self.step)

    def _go_back(self) -> None:
        """Take up the last state that was saved, to go on at half the learning rate.

        Raises:
            UserError: there is none, or training went back too often.
        """
        step, before = self.step, self.guard
        if not self.run.states:
            raise UserError(
                f"the loss is not finite, or exploded, up to step {step + 1}, before anything was "
                f"saved; start again with a smaller --learning-rate than "
                f"{self.config.learning_rate:g}, and look at the data with `detofa data check`"
            )
        self._restore()
        self.guard.returned(before)
        self.save()
        self._log({"went_back_from": step, "skipped": self.guard.skipped})

    @property
    def averaged_supernet(self) -> ArchModule[Any]:
        """Return the supernet with the averaged weights."""
        module = self.averaged.module
        assert isinstance(module, ArchModule)
        return module

    def _train_step(self, batch: Batch, archs: Sequence[Arch]) -> tuple[float, bool]:
        """Train on a batch; return the loss, and whether it was sound enough to count."""
        config = self.config
        factor = self.guard.rate * learning_rate_factor(self.step, config)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak_rate"] * factor
        if self.step < config.largest_first * config.steps:
            archs = archs[:1]
        loss, gradients = self._gradients(batch, archs)
        parameters = list(self.supernet.parameters())
        loss, gradients = self.ranks.mean(loss, gradients, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        is_sound = self.guard.is_sound(loss, float(norm))
        if is_sound:
            self.optimiser.step()
            self.averaged.update_parameters(self.supernet)
        return loss, is_sound

    def _evaluate(self, observer: Observer) -> None:
        release_freed_memory()
        paths = self.task.paths_to_watch
        figures = self.ranks.spread(
            lambda archs: self.task.evaluate(self.averaged_supernet, archs), list(paths.values())
        )
        results = dict(zip(paths, figures, strict=True))
        observer.on_evaluation(self.step, results)
        names = next(iter(results.values()))
        by_figure = {
            figure: {path: result[figure] for path, result in results.items()} for figure in names
        }
        self._log(by_figure)

    def _log(self, record: Mapping[str, Any]) -> None:
        if self.ranks.is_first:
            line = {"step": self.step, **record}
            self.run.log(line)
            for sink in self.sinks:
                sink(line)


def _timed(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield batches, and how many seconds each was waited for."""
    begin = time.perf_counter()
    for batch in batches:
        yield batch, time.perf_counter() - begin
        begin = time.perf_counter()


def _optimiser(supernet: ArchModule[Any], config: TrainConfig) -> AdamW:
    """Return AdamW with groups for the backbone and the rest, with and without decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in supernet.named_parameters():
        backbone = name.startswith(("largest.backbone", "network.backbone", "kernel_transforms"))
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
