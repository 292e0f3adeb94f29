"""Processor time of commands that a user waits for without doing anything yet.

    python -m benchmarks.speed.startup

Each is a new process, with everything cached that the system caches.
"""

import argparse
import os
import subprocess
import sys

import numpy as np

from benchmarks.speed.record import Row, print_rows

_TARGETS: dict[tuple[str, ...], float | None] = {
    ("--help",): 0.3,
    ("devices",): 0.5,
    ("doctor",): None,
}


def seconds_of(arguments: tuple[str, ...]) -> float:
    """Return the processor time of one command, children included."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "detofa", *arguments], check=False, capture_output=True)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def measure(rounds: int) -> list[Row]:
    """Time each command, in turn."""
    spent: dict[tuple[str, ...], list[float]] = {command: [] for command in _TARGETS}
    for _ in range(rounds):
        for command, seconds in spent.items():
            seconds.append(seconds_of(command))
    rows = []
    for command, seconds in spent.items():
        low, middle, high = np.percentile(seconds, [25, 50, 75])
        work = f"`detofa {' '.join(command)}`, processor time"
        shown = f"{middle:.2f} s ({low:.2f} to {high:.2f})"
        most = _TARGETS[command]
        rows.append(
            Row(work=work, detofa=shown)
            if most is None
            else Row.within(work, shown, middle, most, "s")
        )
    return rows


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    print_rows(measure(options.rounds), as_json=options.json)


if __name__ == "__main__":
    main()
