"""How training scales: over processes of this machine, and with the batch on one device.

    python -m benchmarks.scaling --processes 1 2 --work DIR
    python -m benchmarks.scaling --batches 8 32 128 --device cuda --image-size 320x320
    python -m benchmarks.scaling --loader DATA --image-size 320x320

The first trains the demo's digits with torchrun, the same batch shared by more processes of one
thread each, on as many cores, and prints images a second (median over steps). The second times
steps on images made up, so nothing is read: what a device does when data is never waited for. The
third makes training batches of a data set alone, on one core, and keeps no image decoded.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import tomli_w
import torch

from detofa.data.dataset import load_dataset
from detofa.data.demo import make_demo_dataset
from detofa.data.loader import Batch, TrainingBatches
from detofa.imaging import LITE
from detofa.presets import preset
from detofa.recipes import default, demo
from detofa.supernet.detector import Supernet
from detofa.train.detection import DetectionObjective
from detofa.train.gradients import SandwichGradients
from detofa.train.ranks import ALONE
from detofa.train.run import RunFolder
from detofa.train.sandwich import Sandwich
from detofa.units import parse_image_size

_WARM_STEPS = 5


def over_processes(counts: list[int], batch_size: int, steps: int, work: Path) -> None:
    """Train with each number of processes, and print images a second."""
    work.mkdir(parents=True, exist_ok=True)
    make_demo_dataset(work / "data", train=64, val=4, test=4, image_size=(192, 224))
    settings = replace(demo(work / "data"), steps=steps, batch_size=batch_size, evaluations=0)
    record = settings.to_json() | {"data": str(work / "data"), "checkpoint_steps": steps}
    (work / "recipe.toml").write_text(tomli_w.dumps(record), encoding="utf-8")
    print("| processes | images/s, median | over one | spread (25 to 75 %) |\n|" + " --- |" * 4)
    base = None
    cores = sorted(os.sched_getaffinity(0))
    for count in counts:
        os.sched_setaffinity(0, cores[:count])  # what torchrun starts inherits it
        name = f"with-{count}"
        subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(count), "-m", "detofa", "train"),
                *("--recipe", "recipe.toml", "--name", name, "--device", "cpu", "--threads", "1"),
            ],
            cwd=work,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            check=True,
            capture_output=True,
        )
        records = RunFolder(path=work / "runs" / name).read_metrics()
        rates = [one["images_per_s"] for one in records if "images_per_s" in one][_WARM_STEPS:]
        low, middle, high = np.percentile(rates, [25, 50, 75])
        base = middle if base is None else base
        print(
            f"| {count} | {middle:.1f} | {middle / base:.2f} | {low:.1f} to {high:.1f} |",
            flush=True,
        )


def on_one_device(
    batches: list[int], device: torch.device, size: tuple[int, int], space_name: str, steps: int
) -> None:
    """Time steps of a sandwich of four paths on images made up."""
    space = preset(space_name, num_classes=80, image_sizes=(size,))
    config = replace(default(Path()), random_paths=2, image_sizes=(size,))
    supernet = Supernet(space).to(device).to(memory_format=torch.channels_last).train()
    weights = sum(parameter.numel() for parameter in supernet.parameters())
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    gradients = SandwichGradients(
        supernet, DetectionObjective(space, config, device), device, threads, ALONE.means(4)
    )
    optimiser = torch.optim.AdamW(supernet.parameters(), lr=1e-4)
    sandwich = Sandwich(space, space, config.random_paths, 0)
    print(f"{space_name}, {size[0]}x{size[1]}, {weights / 1e6:.1f} M weights in the supernet")
    print("| batch | ms a step, median | images/s |\n|" + " --- |" * 3)
    for count in batches:
        batch = made_up(count, size)
        took = []
        for step in range(_WARM_STEPS + steps):
            begin = time.perf_counter()
            _, found = gradients(batch, sandwich(step))
            for parameter, gradient in zip(supernet.parameters(), found, strict=True):
                parameter.grad = gradient
            optimiser.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            took.append(time.perf_counter() - begin)
        middle = float(np.median(took[_WARM_STEPS:]))
        print(f"| {count} | {1000 * middle:.0f} | {count / middle:.0f} |", flush=True)


def of_loader(data: Path, size: tuple[int, int], batches: int) -> None:
    """Time training batches of a data set: images a second of one core."""
    config = replace(default(data), image_sizes=(size,))
    made = TrainingBatches(
        load_dataset(data, "train"),
        batch_size=config.batch_size,
        image_sizes=config.image_sizes,
        augmentation=config.augmentation,
        preprocessing=LITE,
        seed=0,
        cache_limit_bytes=0,
    )
    made.batch(0)
    took = []
    for step in range(1, 1 + batches):
        begin = time.process_time()
        made.batch(step)
        took.append((time.process_time() - begin) / config.batch_size)
    low, middle, high = 1 / np.percentile(took, [75, 50, 25])
    print(f"{middle:.0f} images/s of one core, from {low:.0f} to {high:.0f} (25 to 75 %)")


def made_up(count: int, size: tuple[int, int]) -> Batch:
    """Return images of noise, each with ten boxes."""
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 10, 2, generator=rng) * 0.7
    sides = 0.05 + 0.25 * torch.rand(count, 10, 2, generator=rng)
    scale = torch.tensor([size[1], size[0]] * 2)
    boxes = torch.cat([corners, corners + sides], dim=2) * scale
    return Batch(
        images=torch.randn(count, 3, *size, generator=rng),
        boxes_xyxy=list(boxes),
        labels=list(torch.randint(0, 80, (count, 10), generator=rng)),
    )


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("scaling"))
    parser.add_argument("--batches", type=int, nargs="+")
    parser.add_argument("--loader", type=Path, metavar="DATA")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--image-size", type=parse_image_size, default=(320, 320))
    parser.add_argument("--space", default="lite0")
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    if options.processes:
        over_processes(options.processes, options.batch_size, options.steps, options.work.resolve())
    if options.loader:
        of_loader(options.loader, options.image_size, options.steps)
    if options.batches:
        on_one_device(
            options.batches, options.device, options.image_size, options.space, options.steps
        )


if __name__ == "__main__":
    main()
