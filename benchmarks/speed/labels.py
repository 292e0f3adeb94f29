"""Labels of the path filter: average precision of many paths with the weights that they share.

    python -m benchmarks.speed.labels --run runs/BCCD-lite0 --data BCCD

Full labels are made as once-for-all makes its own: one path after another, recalibrated on the
whole training split, then judged on every image, decoded anew. Cheap labels are those of `detofa
filter`: statistics of few images, batch norms folded away. Both are of the same paths; tau says
whether they order them alike. The curve shows how many images recalibration needs, its end what
becomes of AP where they are not varied as in training.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau

from benchmarks.speed.record import Row, print_rows
from detofa.arch import Arch
from detofa.data.dataset import DetectionDataset, load_dataset
from detofa.data.transforms import NO_AUGMENTATION
from detofa.subnet import PostProcessing
from detofa.supernet.sharing import WeightSharing
from detofa.train.checkpoint import load_any_supernet
from detofa.train.evaluate import (
    Recalibration,
    evaluate_detector,
    evaluate_paths,
    extract_recalibrated,
    torch_detector,
)
from detofa.train.run import RunFolder

_CURVE = (4, 8, 16, 32, 64, 128)


def full_label(
    supernet: WeightSharing[Any], arch: Arch, recalibration: Recalibration, images: DetectionDataset
) -> float:
    """Return the AP of one path by itself."""
    network = extract_recalibrated(supernet, arch, recalibration)
    categories = [(category.id, category.name) for category in images.categories]
    detector = torch_detector(
        network,
        supernet.space,
        arch,
        recalibration.preprocessing,
        categories,
        PostProcessing(),
    )
    return evaluate_detector(detector, images)[0].ap


def measure(run: RunFolder, data: Path, paths: int, cheap_images: int) -> list[Row]:
    """Compare both kinds of labels, and follow recalibration over its images."""
    supernet, record = load_any_supernet(run.supernet)
    train = load_dataset(data, "train")
    images = load_dataset(data, "val", categories=train.categories)
    genes = supernet.space.sample_spread(np.random.default_rng(0), paths)
    archs = [supernet.space.arch(row) for row in genes]

    def recalibration(count: int) -> Recalibration:
        config = replace(run.load_config(), recalibration_images=count)
        return Recalibration.of_run(config, train, record.preprocessing)

    def judged(archs: list[Arch], recalibration: Recalibration) -> list[float]:
        found = evaluate_paths(supernet, archs, recalibration, images, PostProcessing())
        return [figures.ap for figures in found]

    def cheap(count: int, archs: list[Arch]) -> list[float]:
        return judged(archs, recalibration(count))

    begin = time.process_time()
    everything = len(train.images)
    full = [full_label(supernet, arch, recalibration(everything), images) for arch in archs]
    full_s = time.process_time() - begin
    begin = time.process_time()
    found = cheap(cheap_images, archs)
    cheap_s = time.process_time() - begin
    tau = float(kendalltau(full, found).statistic)
    rows = [
        Row.times(
            f"labels of {paths} paths, {len(images.images)} images",
            f"{paths / cheap_s:.2f} paths/s",
            f"{paths / full_s:.2f} paths/s (one by one, full recalibration)",
            [full_s / cheap_s] * 3,
            3,
        ),
        Row(
            work="Kendall's tau of cheap and full labels",
            detofa=f"{tau:.3f}",
            target="0.9",
            met=tau >= 0.9,
        ),
    ]
    few = archs[: max(2, paths // 4)]
    for count in _CURVE:
        aps = cheap(count, few)
        off = np.mean(np.abs(np.array(aps) - full[: len(few)]))
        rows.append(
            Row(
                work=f"AP of {len(few)} paths, recalibrated on {count} images",
                detofa=f"{np.mean(aps):.4f}, off by {off:.4f} a path",
                peer=f"{np.mean(full[: len(few)]):.4f} (all {everything})",
            )
        )
    plain = replace(recalibration(_CURVE[-1]), augmentation=NO_AUGMENTATION)
    rows.append(
        Row(
            work=f"AP of {len(few)} paths, recalibrated on {plain.count} plain images",
            detofa=f"{np.mean(judged(few, plain)):.4f}",
            peer=f"{np.mean(full[: len(few)]):.4f} (all {everything}, varied as in training)",
        )
    )
    spent = []
    for count in (1, 4, 16):
        begin = time.process_time()
        cheap(cheap_images, (archs * 2)[:count])
        spent.append(time.process_time() - begin)
    return [*rows, Row.grown("labels of 1, 4 and 16 paths", spent, "s", 1)]


def main() -> None:
    """Measure on a trained run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--paths", type=int, default=16)
    parser.add_argument("--recalibration-images", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(
        RunFolder(path=options.run), options.data, options.paths, options.recalibration_images
    )
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
