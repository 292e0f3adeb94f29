"""Most memory that two kinds of work take, and how long one waits for data.

    python -m benchmarks.speed.memory --data BCCD

Training runs for a few steps and an evaluation, after which it takes no more; searching scores a
million networks with a linear score, so that what is counted is the search.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.speed.record import Row, print_rows
from detofa.presets import preset
from detofa.profiling.cost import macs_cost
from detofa.search import SearchConfig, search

_PEAK = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", *sys.argv[1:]], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)
sys.exit(done.returncode)
"""


def peak_of(*command: str, folder: Path | None = None) -> float:
    """Return the most memory, in GiB, that `python -m` a module takes; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *command],
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout)


def search_many(count: int) -> None:
    """Score so many networks."""
    space = preset("ofa-mbv3", num_classes=80)
    weights = np.random.default_rng(0).normal(size=int(space.num_choices.sum()))
    search(
        space,
        score=lambda genes: space.encode_one_hot(genes) @ weights,
        cost=macs_cost(space),
        budget=1.5e9,
        unit="MACs",
        rng=np.random.default_rng(0),
        config=SearchConfig(
            population=4000, parents=1000, generations=count, max_evaluations=count
        ),
    )


def measure(data: Path | None, count: int, steps: int) -> list[Row]:
    """Measure both; training only where there is a data set."""
    from detofa.train.run import RunFolder  # brings PyTorch, which the search does without

    rows = []
    peak = peak_of("benchmarks.speed.memory", "--only-search", "--count", str(count))
    rows.append(_row(f"searching {count:,} networks", peak, 1))
    if data is not None:
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--recipe", "bccd", "--data", str(data.resolve()), "--steps", str(steps)]
            peak = peak_of("detofa", "train", *flags, "--name", "bccd", folder=Path(folder))
            waited = RunFolder(path=Path(folder, "runs", "bccd")).share_waited()
        rows.append(_row(f"training on BCCD, two threads, {steps} steps", peak, 3))
        assert waited is not None
        rows.append(
            Row(work="share of that training's time waiting for data", detofa=f"{waited:.1%}")
        )
    return rows


def _row(work: str, peak: float, most: float) -> Row:
    return Row.within(f"memory, {work}", f"{peak:.2f} GiB", peak, most, "GiB")


def main() -> None:
    """Measure what there is data for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only-search", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.only_search:
        search_many(options.count)
        return
    print_rows(measure(options.data, options.count, options.steps), as_json=options.json)


if __name__ == "__main__":
    main()
