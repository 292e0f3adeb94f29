"""From a supernet to a network that can be judged: extraction and recalibration.

    python -m benchmarks.speed.subnets

Against once-for-all's `get_active_subnet` and `set_running_statistics`, on the same networks and
images.
"""

import argparse
import random
from functools import partial
from typing import Any

import torch

from benchmarks.speed import ofa
from benchmarks.speed.record import Row, print_rows
from benchmarks.speed.timing import compare
from benchmarks.speed.train_step import space_of
from detofa.supernet.classifier import ClassifierSupernet
from detofa.supernet.recalibrate import recalibrate

_SIDE, _BATCH = 160, 16


def networks(count: int) -> dict[str, ofa.Config]:
    """Return the largest, the smallest and random networks, by name."""
    rng = random.Random(0)
    drawn = {f"random {index}": ofa.draw(rng) for index in range(count)}
    return {"largest": ofa.LARGEST, "smallest": ofa.SMALLEST} | drawn


def extraction(rounds: int) -> list[Row]:
    """Compare taking a network out of the shared weights."""
    space = space_of(_SIDE)
    own, other = ClassifierSupernet(space).eval(), ofa.supernet().eval()
    rows = []
    for name, config in networks(1).items():
        arch = ofa.arch_of(space, config)
        works = {"ofa": partial(_taken, other, config), "detofa": partial(own.extract, arch)}
        found = compare(works, rounds=rounds)
        rows.append(
            Row.times(
                f"extraction, {name}",
                f"{1000 * found.median('detofa'):.1f} ms",
                f"{1000 * found.median('ofa'):.1f} ms (OFA)",
                found.ratio("ofa", "detofa"),
                4,
            )
        )
    return rows


def _taken(supernet: Any, config: ofa.Config) -> Any:
    """Return a network that OFA takes out of its supernet."""
    supernet.set_active_subnet(**config)
    return supernet.get_active_subnet(preserve_weight=True)


def recalibration(images: int, rounds: int) -> list[Row]:
    """Compare statistics of one network from the same images, in batches of the same size."""
    from ofa.imagenet_classification.elastic_nn.utils import set_running_statistics

    space = space_of(_SIDE)
    config = networks(1)["random 0"]
    arch = ofa.arch_of(space, config)
    own, other = ClassifierSupernet(space).eval(), ofa.supernet().eval()
    taken = _taken(other, config)
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(images, 3, _SIDE, _SIDE, generator=generator)
    batches = [(part, torch.zeros(len(part))) for part in torch.split(made, _BATCH)]
    network = own.extract(arch).to(memory_format=torch.channels_last)
    laid_out = made.to(memory_format=torch.channels_last)
    works = {
        "ofa": lambda: set_running_statistics(taken, batches),
        "detofa": lambda: recalibrate(network, laid_out, batch_size=_BATCH),
    }
    found = compare(works, rounds=rounds)
    parts = {str(times): laid_out[: images * times // 16] for times in (1, 4, 16)}
    grown = compare(
        {times: partial(recalibrate, network, part) for times, part in parts.items()}, rounds=3
    )
    return [
        Row.times(
            f"recalibration, {_SIDE} px",
            f"{images / found.median('detofa'):.0f} images/s",
            f"{images / found.median('ofa'):.0f} images/s (OFA)",
            found.ratio("ofa", "detofa"),
            1.5,
        ),
        Row.grown(
            f"recalibration on {images // 16}, {images // 4} and {images} images",
            [1000 * grown.median(times) for times in parts],
            "ms",
            0,
        ),
    ]


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = extraction(options.rounds) + recalibration(options.images, options.rounds)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
