"""All benchmarks of speed, one after another, as one table.

    make bench
    python -m benchmarks.speed --data BCCD --run runs/BCCD-lite0 --table TABLE

Each runs in a process of its own. Without a data set or a trained run, what needs them is left out,
and said so. Leave the machine to it: figures are processor times and ratios within a run, but a
neighbour still shows in caches and memory.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.speed.record import Row, table
from detofa.files import write_text
from detofa.profiling.device import this_cpu

_LIBRARIES = ("torch", "numpy", "ofa")


def main() -> None:
    """Run what can run here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="BCCD")
    parser.add_argument("--run", type=Path, help="a run that was trained on it")
    parser.add_argument("--table", type=Path, help="a latency table of that run's space")
    parser.add_argument("--seeds", type=int, default=20, help="of the search")
    parser.add_argument("--output", type=Path, default=Path("performance.json"))
    options = parser.parse_args()
    suite: dict[str, list[str] | None] = {
        "search": ["--seeds", str(options.seeds)],
        "costs": [],
        "subnets": [],
        "train_step": [],
        "labels": None,
        "choose": None,
        "startup": [],
        "growth": [] if options.data is None else ["--data", str(options.data)],
        "memory": [] if options.data is None else ["--data", str(options.data)],
    }
    if options.data is not None and options.run is not None:
        trained = ["--data", str(options.data), "--run", str(options.run)]
        suite["labels"] = trained
        if options.table is not None:
            suite["choose"] = [*trained, "--table", str(options.table)]
    rows: list[Row] = []
    for name, arguments in suite.items():
        if arguments is None:
            needed = "--data and --run" + ("" if name == "labels" else " and --table")
            print(f"{name}: left out, it needs {needed}", file=sys.stderr)
            continue
        begin = time.monotonic()
        rows += _rows_of(name, arguments)
        _keep(rows, options.output)
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    print(table(rows))


def _keep(rows: Sequence[Row], output: Path) -> None:
    """Write what there is so far, so that a benchmark that fails takes no earlier one with it."""
    record: dict[str, Any] = {
        "machine": this_cpu().to_json(),
        "python": platform.python_version(),
        "libraries": {library: version(library) for library in _LIBRARIES},
        "date": time.strftime("%Y-%m-%d"),
        "rows": [vars(row) for row in rows],
    }
    write_text(output, json.dumps(record, indent=1) + "\n")


def _rows_of(name: str, arguments: list[str]) -> list[Row]:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.speed.{name}", *arguments, "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    records = json.loads(done.stdout.splitlines()[-1])
    return [
        Row(**{**record, "ratio": record["ratio"] and tuple(record["ratio"])}) for record in records
    ]


if __name__ == "__main__":
    main()
