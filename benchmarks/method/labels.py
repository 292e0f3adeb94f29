"""Cheap labels for a path filter: how well few images rank paths by AP on the test split.

    python -m benchmarks.method.labels --work DIR --run ofa-4
    python -m benchmarks.method.labels --work DIR --run detofa-4 --fits

Evaluates paths of a trained run once as well as the data allow (AP on the test split), and again
on a few validation images with a few images to recalibrate by. Prints the in-bin Kendall tau
between the cheap labels and the dear ones, and the processor time that a label takes.

`--fits` takes the labels that a filtered run has, fits filters on AP and on the loss, and prints
how well each orders AP in cross-validation, and how well the labels of one half of the images order
AP on the other.
"""

import argparse
import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.method.run import machine
from detofa.data.dataset import Category, DetectionDataset, load_dataset
from detofa.path_filter.agreement import Comparisons, draw_within_bins, estimate
from detofa.path_filter.filter import PathFilter
from detofa.path_filter.rank_quality import folds
from detofa.path_filter.reliability import split_half_reliability
from detofa.subnet import PostProcessing
from detofa.supernet.detector import Supernet
from detofa.train.checkpoint import load_supernet
from detofa.train.evaluate import PathFigures, Recalibration, evaluate_paths
from detofa.train.filtering import Budgets, draw_paths_to_label, half_labels, labels_of
from detofa.train.path_evaluations import stored_evaluations
from detofa.train.run import RunFolder

_FOLDS, _DIVISIONS = 5, 6  # of the cross-validation


def figures_of(
    supernet: Supernet,
    genes: NDArray[np.int8],
    recalibration: Recalibration,
    dataset: DetectionDataset,
) -> list[PathFigures]:
    """Return the figures of (N, num_genes) paths on all images of a data set, and on halves."""
    archs = [supernet.space.arch(row) for row in genes]
    return list(
        evaluate_paths(supernet, archs, recalibration, dataset, PostProcessing(), halves=True)
    )


def show_fits(run: RunFolder, seed: int) -> None:
    """Print how well filters fitted on either label order AP that they did not see."""
    record = load_supernet(run.supernet)[1]
    space, budgets = record.space, Budgets.of(record.space, run.load_config().filter.bins)
    stored = stored_evaluations(run.path_filter / "labels.json", space)
    genes = stored.best_first()
    figures = stored.of(list(genes), lambda share: None, halves=True)
    costs = budgets.cost(genes)
    bins, ap = budgets.bins.index(costs), labels_of(figures, "ap")
    for name in ("ap", "loss"):
        rng = np.random.default_rng(seed)  # the same divisions for both
        labels, halves = labels_of(figures, name), half_labels(figures, name)
        found = split_half_reliability(halves, half_labels(figures, "ap"), bins, rng)
        agreed, made = 0.0, 0.0
        for test in folds(bins, _FOLDS, _DIVISIONS, rng):
            train = np.setdiff1d(np.arange(len(genes)), test)
            fitted = PathFilter.fit(
                space,
                genes[train],
                labels[train],
                costs[train],
                budgets.bins,
                seed=seed,
                label=name,
                noise=found.noise,
            )
            scores = fitted.score_in_bin(genes[test], costs[test])
            compared = Comparisons.of(scores, ap[test], bins[test])
            agreed, made = agreed + compared.agreed.sum(), made + compared.made.sum()
        print(
            f"{run.path.name}: fitted on {name}, AP is ordered with in-bin tau {agreed / made:.2f};"
            f" {name} of one half orders AP of the other with {found.tau_with_ap}, itself with "
            f"{found.tau}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.method.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of an experiment")
    parser.add_argument("--run", required=True, help="a finished run of it")
    parser.add_argument("--images", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--recalibration", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--labels-per-bin", type=int, default=12)
    parser.add_argument("--bins", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="decides the paths")
    parser.add_argument("--fits", action="store_true", help="compare fits on AP and on the loss")
    options = parser.parse_args()
    os.chdir(options.work)
    torch.set_num_threads(1)

    run = RunFolder(path=Path("runs") / options.run)
    if options.fits:
        show_fits(run, options.seed)
        return
    supernet, record = load_supernet(run.supernet)
    config = run.load_config()
    categories = tuple(Category(id=key, name=name) for key, name in record.categories)
    train, validation, test = (
        load_dataset(Path(config.data), split, categories=categories)
        for split in ("train", "val", "test")
    )
    budgets = Budgets.of(record.space, options.bins)
    genes = draw_paths_to_label(record.space, budgets, options.labels_per_bin, options.seed)
    bins = budgets.bins.index(budgets.cost(genes))
    draws = draw_within_bins(bins, np.random.default_rng(0))
    order = np.random.default_rng(0).permutation(len(validation.images))

    def recalibration(count: int) -> Recalibration:
        changed = dataclasses.replace(config, recalibration_images=count)
        return Recalibration.of_run(changed, train, record.preprocessing)

    dear = figures_of(supernet, genes, recalibration(max(options.recalibration)), test)
    truth = labels_of(dear, "ap")
    spread = np.mean([truth[bins == index].std() for index in range(budgets.bins.count)])

    print(f"{len(genes)} paths of {options.run}, {options.bins} bins; {machine()}")
    print(
        f"AP on {len(test.images)} test images: {100 * truth.mean():.1f} on average, standard "
        f"deviation inside a bin {100 * spread:.1f}; {np.mean([p.seconds for p in dear]):.2f} s"
    )
    print("\n| recalibration images | images | tau of AP | tau of loss | s per label |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for count in options.recalibration:
        fixed = recalibration(count)
        for images in options.images:
            chosen = tuple(validation.images[index] for index in sorted(order[:images]))
            part = dataclasses.replace(validation, images=chosen)
            cheap = figures_of(supernet, genes, fixed, part)
            taus = []
            for name in ("ap", "loss"):
                compared = Comparisons.of(labels_of(cheap, name), truth, bins)
                taus.append(str(estimate(compared.tau(), compared.resampled(draws))))
            seconds = np.mean([path.seconds for path in cheap])
            print(f"| {count} | {len(chosen)} | {taus[0]} | {taus[1]} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
