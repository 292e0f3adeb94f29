"""A training step of four paths on one batch: the largest, the smallest and two random ones.

    python -m benchmarks.speed.train_step --sizes 160 224 --batch 8
    python -m benchmarks.speed.train_step --device cuda --batch 8 64

Same space, same networks, cross-entropy and SGD on both sides; OFA's step is its own: for each path
`set_active_subnet`, forward, backward, and one step of the optimiser.
"""

import argparse
import itertools
import random
import time
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.speed import ofa
from benchmarks.speed.record import Row, print_rows
from benchmarks.speed.timing import compare
from detofa.arch import Arch
from detofa.data.loader import Batch
from detofa.presets import preset
from detofa.space import SearchSpace
from detofa.supernet.classifier import ClassifierSupernet
from detofa.train.classification import ClassificationObjective
from detofa.train.gradients import SandwichGradients
from detofa.train.ranks import ALONE

_RATE = 1e-3


def space_of(side: int) -> SearchSpace:
    """Return OFA's space of classifiers at one input size."""
    return preset("ofa-mbv3", num_classes=1000, image_sizes=((side, side),))


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """Return OFA's optimiser."""
    return torch.optim.SGD(
        network.parameters(), _RATE, momentum=0.9, nesterov=True, weight_decay=3e-5
    )


def step_of_ofa(
    images: torch.Tensor, labels: torch.Tensor, configs: list[ofa.Config]
) -> Callable[[], None]:
    """Return OFA's training step."""
    network = ofa.supernet().to(images.device).train()
    optimiser = sgd(network)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        for config in configs:
            network.set_active_subnet(**config)
            loss = nn.functional.cross_entropy(network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        _wait(images.device)

    return step


def step_of_detofa(
    images: torch.Tensor,
    labels: torch.Tensor,
    archs: list[Arch],
    memory_format: torch.memory_format,
) -> Callable[[], None]:
    """Return the gradients of detofa's trainer, with OFA's optimiser."""
    space = space_of(images.shape[2])
    torch.manual_seed(0)
    network = ClassifierSupernet(space).to(images.device).to(memory_format=memory_format).train()
    optimiser = sgd(network)
    gradients = SandwichGradients(
        network,
        ClassificationObjective(0.0),
        images.device,
        1,
        ALONE.means(len(archs)),
        memory_format=memory_format,
    )
    batch = Batch(
        images=images,
        boxes_xyxy=[torch.zeros(1, 4, device=images.device)] * len(images),
        labels=[label[None] for label in labels],
    )

    def step() -> None:
        _, found = gradients(batch, archs)
        for parameter, gradient in zip(network.parameters(), found, strict=True):
            parameter.grad = gradient
        optimiser.step()
        _wait(images.device)

    return step


def measure(side: int, batch: int, device: torch.device, rounds: int) -> list[Row]:
    """Compare steps of both sides, the paths the same."""
    rng = random.Random(0)
    configs = [ofa.LARGEST, ofa.SMALLEST, ofa.draw(rng), ofa.draw(rng)]
    space = space_of(side)
    archs = [ofa.arch_of(space, config) for config in configs]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator).to(device)
    labels = torch.randint(0, 1000, (batch,), generator=generator).to(device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    works = {"ofa": step_of_ofa(images, labels, configs)}
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    for name, memory_format in formats.items():
        works[name] = step_of_detofa(images, labels, archs, memory_format)
    found = compare(works, rounds=rounds, clock=clock)
    rows = []
    for name in formats:
        aim = 2.0 if device.type == "cuda" else 1.0 if name == "contiguous" else 1.2
        rows.append(
            Row.times(
                f"training step, {side} px, batch {batch}, {name}",
                f"{batch / found.median(name):.1f} images/s",
                f"{batch / found.median('ofa'):.1f} images/s (OFA)",
                found.ratio("ofa", name),
                aim,
            )
        )
    return rows


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[160, 224])
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for side, batch in itertools.product(options.sizes, options.batch):
        rows += measure(side, batch, options.device, options.rounds)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
