"""Train by DetOFA, by plain once-for-all, or in a space pruned by chance."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from detofa.arch import Arch
from detofa.data.dataset import DetectionDataset
from detofa.files import sha256_file
from detofa.path_filter.pruned_space import PrunedSpace, cut_space, random_cut
from detofa.profiling.table import LatencyTable, load_table
from detofa.space import Genes
from detofa.subnet import PostProcessing
from detofa.supernet.detector import Supernet
from detofa.train.detection import DetectionTask
from detofa.train.evaluate import PathFigures, evaluate_paths
from detofa.train.filtering import Budgets, draw_paths_to_label, evaluate_labels, fit_filter
from detofa.train.path_evaluations import PathEvaluations
from detofa.train.trainer import Observer, Trainer

Progress = Callable[[str, float], None]


def train_by_method(
    trainer: Trainer,
    observer: Observer,
    should_stop: Callable[[], bool],
    *,
    tell: Callable[[str], None] = lambda text: None,
    on_progress: Progress = lambda doing, share: None,
) -> bool:
    """Train to the last step by the method that the settings name.

    `ofa` draws every step's random paths from the whole space. `detofa` does so up to the end of
    the warm-up; then it evaluates labels, fits the path filter, prunes the space, and draws from
    what is left. `random-pruned` prunes by chance at the same point, as a control.

    Args:
        trainer: A run of the detection task; it may resume.
        observer: Told of every step and evaluation.
        should_stop: Asked after every step.
        tell: Given lines for the user.
        on_progress: Told of the labels' evaluation.

    Returns:
        Whether the last step was reached; if not, the same run resumes.

    Raises:
        UserError: as `fit_filter` and `cut_space`.
    """
    config = trainer.config
    if config.method == "ofa":
        return trainer.train(observer, should_stop)
    _check_before(trainer)
    warm_up_end = round(config.filter.warm_up * config.steps)
    if not trainer.train(observer, should_stop, until=warm_up_end):
        return False
    pruned = _pruned_space(trainer, tell, on_progress)
    sandwich = trainer.task.sandwich(trainer.space if pruned is None else pruned)
    return trainer.train(observer, should_stop, sandwich=sandwich)


def _written_last(trainer: Trainer) -> Path:
    """Return the path of what is there once the space has been looked at."""
    by_chance = trainer.config.method == "random-pruned"
    return trainer.run.pruned_space if by_chance else trainer.run.filter_report


def _check_before(trainer: Trainer) -> None:
    """Refuse what would stop the run after its warm-up: a table, bins or labels that do not fit."""
    config = trainer.config
    budgets = budgets_of(trainer)
    if config.method == "detofa" and not _written_last(trainer).is_file():
        draw_paths_to_label(trainer.space, budgets, config.filter.labels_per_bin, config.seed)


def budgets_of(trainer: Trainer) -> Budgets:
    """Return the cost and the bins that a run's settings name."""
    table: LatencyTable | None = None
    if trainer.config.filter.table:
        table = load_table(Path(trainer.config.filter.table), space=trainer.space)
    return Budgets.of(trainer.space, trainer.config.filter.bins, table)


def _pruned_space(
    trainer: Trainer, tell: Callable[[str], None], on_progress: Progress
) -> PrunedSpace | None:
    """Return what is trained after the warm-up, made once a run; None for the whole space."""
    config, run, ranks = trainer.config, trainer.run, trainer.ranks
    budgets = budgets_of(trainer)
    if not ranks.first(_written_last(trainer).is_file):
        begin = trainer.clock()
        if config.method == "random-pruned":
            ranks.first(lambda: _prune_by_chance(trainer, budgets))
        else:
            genes = draw_paths_to_label(
                trainer.space, budgets, config.filter.labels_per_bin, config.seed
            )
            tell(f"evaluating {len(genes)} paths for the path filter")
            evaluations, drawing = _evaluations(trainer), trainer.clock() - begin
            labels = evaluate_labels(genes, evaluations, on_progress)
            on_progress("fit the path filter", 0.0)
            ranks.first(lambda: _prune_by_filter(trainer, budgets, genes, labels, drawing, tell))
    if not ranks.first(run.pruned_space.is_file):
        return None
    return PrunedSpace.load(run.pruned_space, trainer.space, budgets.cost)


def _prune_by_chance(trainer: Trainer, budgets: Budgets) -> None:
    config = trainer.config
    pruned = random_cut(
        trainer.space, budgets.cost, budgets.bins, seed=config.seed, keep=config.filter.keep
    )
    pruned.save(trainer.run.pruned_space)


def _prune_by_filter(
    trainer: Trainer,
    budgets: Budgets,
    genes: Genes,
    labels: Sequence[PathFigures],
    drawing: float,
    tell: Callable[[str], None],
) -> None:
    """Fit the filter on labels, and write the space pruned by it if the settings say so."""
    config, run, space = trainer.config, trainer.run, trainer.space
    begin = trainer.clock()
    path_filter, report = fit_filter(space, genes, labels, budgets, seed=config.seed)
    tell(f"label {report.quality.label}: " + "; ".join(report.agreements()))
    tell(report.quality.advice())
    if config.filter.prune == "always" or report.quality.filter_is_worth_pruning_by:
        rng = np.random.default_rng([config.seed, 4])
        pruned = cut_space(space, path_filter, budgets.cost, rng, keep=config.filter.keep)
        pruned.save(run.pruned_space)
        tell(f"training goes on with the best {config.filter.keep:.0%} of every bin")
    else:
        path_filter.save(run.path_filter)
        tell("training goes on in the whole space")
    # All ranks wait while the first one works.
    count = trainer.ranks.count
    seconds = drawing + trainer.clock() - begin - report.assess_seconds
    dataclasses.replace(
        report, fit_seconds=seconds * count, assess_seconds=report.assess_seconds * count
    ).save(run.filter_report)


def _evaluations(trainer: Trainer) -> PathEvaluations:
    """Return the labels of the weights after the warm-up, kept apart from those of the last."""
    task, supernet = trainer.task, trainer.averaged_supernet
    assert isinstance(task, DetectionTask)
    assert isinstance(supernet, Supernet)
    images = _some(task.validation, trainer.config.filter.label_images)

    def evaluate(archs: Sequence[Arch], halves: bool) -> Iterator[PathFigures]:
        return trainer.ranks.spread(
            lambda some: evaluate_paths(
                supernet,
                some,
                task.recalibration,
                images,
                PostProcessing(),
                halves=halves,
            ),
            archs,
        )

    return PathEvaluations(
        path=trainer.run.path_filter / "labels.json",
        space=trainer.space,
        supernet_sha256=sha256_file(trainer.run.supernet),
        recalibration=task.recalibration.to_json(),
        evaluate=evaluate,
        saves=trainer.ranks.is_first,
    )


def _some(dataset: DetectionDataset, count: int) -> DetectionDataset:
    """Return a data set with at most so many of its images, the same ones for all labels."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(dataset.images))[:count])
    return dataclasses.replace(dataset, images=tuple(dataset.images[index] for index in chosen))
