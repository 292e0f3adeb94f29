"""How cost grows, where no other benchmark tells: the path filter, training steps, loading.

    python -m benchmarks.speed.growth --data BCCD

Each work at 1, 4 and 16 times a size, the sizes in turn, over rounds: medians of processor time.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.record import Row, print_rows
from benchmarks.speed.timing import compare
from benchmarks.speed.train_step import space_of, step_of_detofa
from detofa.data.dataset import load_dataset
from detofa.data.loader import TrainingBatches
from detofa.data.transforms import Augmentation
from detofa.imaging import LITE
from detofa.path_filter.bins import BudgetBins
from detofa.path_filter.drawing import draw_per_bin
from detofa.path_filter.filter import PathFilter
from detofa.presets import preset
from detofa.profiling.cost import macs_cost


def filter_fit(bins: int, per_bin: int) -> Callable[[], PathFilter]:
    """Return the fit of a path filter on so many labels of each bin."""
    space = preset("lite0", num_classes=3)
    cost = macs_cost(space)
    low, high = cost(space.ends)
    budgets = BudgetBins.between(low, high, bins, kind="macs")
    rng = np.random.default_rng(0)
    genes = np.concatenate(
        draw_per_bin(space, cost, budgets, rng, np.full(bins, per_bin), distinct=True)
    )
    labels = space.encode_one_hot(genes) @ rng.normal(size=int(space.num_choices.sum()))
    costs = cost(genes)
    return lambda: PathFilter.fit(space, genes, labels, costs, budgets, seed=0, label="made up")


def filter_score(count: int) -> Callable[[], object]:
    """Return the scoring of so many archs."""
    path_filter = filter_fit(5, 20)()
    genes = path_filter.space.sample(np.random.default_rng(1), count)
    costs = macs_cost(path_filter.space)(genes)
    return lambda: path_filter.score_in_bin(genes, costs)


def train_step(batch: int) -> Callable[[], None]:
    """Return a training step of the largest and the smallest path on so many images."""
    space = space_of(96)
    images = torch.randn(batch, 3, 96, 96)
    labels = torch.arange(batch)
    return step_of_detofa(images, labels, [space.largest, space.smallest], torch.channels_last)


def loading(data: Path, batches: int) -> Callable[[], None]:
    """Return the loading of so many batches of 8 images, augmented, from files."""
    dataset = load_dataset(data, "train")
    loader = TrainingBatches(
        dataset,
        batch_size=8,
        image_sizes=[(256, 320)],
        augmentation=Augmentation(),
        preprocessing=LITE,
        seed=0,
        cache_limit_bytes=0,
    )

    def load() -> None:
        for step in range(batches):
            loader.batch(step)

    return load


def measure(data: Path | None, rounds: int) -> list[Row]:
    """Time every work at its three sizes."""
    works: dict[str, tuple[Callable[[int], Callable[[], object]], tuple[int, ...]]] = {
        "fit of the path filter, 5 bins of {} labels": (lambda n: filter_fit(5, n), (10, 40, 160)),
        "fit of the path filter, {} bins of 10 labels": (lambda n: filter_fit(n, 10), (2, 8, 32)),
        "path filter's scores of {} archs": (filter_score, (1_000, 4_000, 16_000)),
        "training step, 96 px, two paths, {} images": (train_step, (2, 8, 32)),
    }
    if data is not None:
        works["loading of {} batches of 8 images"] = (lambda n: loading(data, n), (2, 8, 32))
    rows = []
    for name, (make, sizes) in works.items():
        found = compare({str(size): make(size) for size in sizes}, rounds=rounds)
        spent = [found.median(str(size)) * 1e3 for size in sizes]
        rows.append(Row.grown(name.format(", ".join(f"{n:,}" for n in sizes)), spent, "ms", 0))
    return rows


def main() -> None:
    """Measure what there is data for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print_rows(measure(options.data, options.rounds), as_json=options.json)


if __name__ == "__main__":
    main()
