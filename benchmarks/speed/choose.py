"""`detofa search` from a cold start: to a predicted winner, and to one that was evaluated.

    python -m benchmarks.speed.choose --run runs/BCCD-lite0 --data BCCD --table TABLE

The predictor's labels are made before; each round is then a new process that knows no finalist.
Times are the wall's, from the end of the imports; 1, 4 and 16 finalists show how they grow.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.speed.record import Row, print_rows
from detofa.choose.chooser import Chooser
from detofa.choose.records import Budget
from detofa.profiling.table import load_table
from detofa.train.run import RunFolder

_SEED = 0


def search_once(run: Path, data: Path, table: Path, finalists: int) -> tuple[float, float]:
    """Search in this process.

    Returns:
        Seconds to the first predicted winner, and to the evaluated one that is written.
    """
    searched, first = False, math.inf
    begin = time.monotonic()

    def on_progress(doing: str, share: float) -> None:
        nonlocal searched, first
        if searched:
            first = min(first, time.monotonic() - begin)
        searched = searched or doing == "search"

    chooser = Chooser(
        RunFolder(path=run),
        table=load_table(table),
        seed=_SEED,
        data=data,
        on_progress=on_progress,
    )
    assert chooser.table is not None
    low, high = chooser.table.predict(chooser.space.ends)
    budget = Budget(kind="latency", limit=math.sqrt(low * high))
    chooser.choose(budget, run / "subnet.json", top_k=finalists)
    return first, time.monotonic() - begin


def in_new_process(
    run: Path, data: Path, table: Path, finalists: int, folder: Path
) -> tuple[float, float]:
    """Search a copy of a run in a process of its own."""
    copied = folder / "copy"
    shutil.copytree(run, copied)
    command = [sys.executable, "-m", "benchmarks.speed.choose", "--run", str(copied)]
    command += ["--data", str(data), "--table", str(table), "--once", str(finalists)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(copied)
    predicted, evaluated = json.loads(done.stdout.splitlines()[-1])
    return predicted, evaluated


def measure(run: Path, data: Path, table: Path, rounds: int) -> list[Row]:
    """Time searches with 5 finalists, and show how time grows with their number."""
    with tempfile.TemporaryDirectory(prefix="detofa-choose-") as work:
        labelled = Path(work) / "labelled"
        shutil.copytree(run, labelled)
        (labelled / "path_evaluations.json").unlink(missing_ok=True)
        chooser = Chooser(RunFolder(path=labelled), data=data, seed=_SEED)
        paths = chooser.ranking.paths_to_label(chooser.labels, np.random.default_rng([_SEED, 0]))
        chooser.evaluate(list(paths), "label")
        times = np.array(
            [in_new_process(labelled, data, table, 5, Path(work)) for _ in range(rounds)]
        )
        grown = [
            in_new_process(labelled, data, table, count, Path(work))[1] for count in (1, 4, 16)
        ]
    rows = []
    for column, (what, most) in enumerate(
        {"a predicted winner": 3.0, "the best of 5 finalists, evaluated": 60.0}.items()
    ):
        low, middle, high = np.percentile(times[:, column], [25, 50, 75])
        shown = f"{middle:.2f} s ({low:.2f} to {high:.2f})"
        rows.append(Row.within(f"`detofa search` to {what}", shown, middle, most, "s"))
    return [*rows, Row.grown("`detofa search`, 1, 4 and 16 finalists", grown, "s", 1)]


def main() -> None:
    """Measure a trained run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--table", type=Path, required=True, help="a latency table of its space")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(search_once(options.run, options.data, options.table, options.once)))
        return
    rows = measure(options.run, options.data, options.table, options.rounds)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
