"""Multiply-accumulates and latency of a million networks, on one core.

    python -m benchmarks.speed.costs

OFA's exact count goes network by network: a few are timed, and the rest is multiplied.
"""

import argparse
import random
import resource
import time
from pathlib import Path

import numpy as np

from benchmarks.speed import ofa
from benchmarks.speed.record import Row, print_rows
from benchmarks.speed.timing import exponent
from detofa.presets import preset
from detofa.profiling.cost import arch_macs, macs_cost
from detofa.profiling.table import load_table

_TARGET_S = 5.0
_TABLES = Path(__file__).parents[2] / "latency_tables"


def measure(count: int) -> list[Row]:
    """Time both, and check a thousand figures block by block."""
    rows = []
    space = preset("ofa-mbv3", num_classes=80)
    cost = macs_cost(space)
    rng = np.random.default_rng(0)
    genes = space.sample(rng, count)
    spent, macs = [], cost(genes[:1000])
    for size in (count // 16, count // 4, count):
        begin = time.process_time()
        cost(genes[:size])
        spent.append(time.process_time() - begin)
    exact = all(macs[row] == arch_macs(space, space.arch(genes[row])) for row in range(1000))
    rows.append(
        Row(
            work=f"multiply-accumulates of {count:,} networks",
            detofa=f"{spent[-1]:.2f} s, {'exact' if exact else 'NOT exact'} in 1000 of them; "
            f"exponent {exponent([1, 4, 16], spent):.2f}",
            peer=f"{_of_ofa() * count:.0f} s (OFA's exact count)",
            target=f"{_TARGET_S:g} s",
            met=exact and spent[-1] <= _TARGET_S,
        )
    )
    table = load_table(next(_TABLES.glob("*onnxruntime-cpu-fp32-t1*")))
    genes = table.space.sample(rng, count)
    begin = time.process_time()
    table.predict(genes)
    seconds = time.process_time() - begin
    rows.append(
        Row.within(f"latency of {count:,} networks", f"{seconds:.2f} s", seconds, _TARGET_S, "s")
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows.append(Row(work="memory of this process, all libraries", detofa=f"{peak:.2f} GiB"))
    return rows


def _of_ofa(rounds: int = 50) -> float:
    """Return the seconds that OFA's exact count of one network takes."""
    from ofa.nas.efficiency_predictor import Mbv3FLOPsModel

    model = Mbv3FLOPsModel(ofa.supernet())
    rng = random.Random(0)
    configs = [ofa.draw(rng) | {"image_size": 224} for _ in range(rounds)]
    begin = time.process_time()
    for config in configs:
        model.get_efficiency(config)
    return (time.process_time() - begin) / rounds


def main() -> None:
    """Measure a million, or as many as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print_rows(measure(options.count), as_json=options.json)


if __name__ == "__main__":
    main()
