"""Timing of works against each other: in turn, in one process, as ratios."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """How long works took, in turn.

    Attributes:
        seconds: By work, one figure a round.
    """

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, work: str) -> float:
        """Return the median seconds of a work."""
        return float(np.median(self.seconds[work]))

    def ratio(self, slower: str, faster: str) -> tuple[float, float, float]:
        """Return how many times as long one took as the other: quartiles over the rounds."""
        ratios = np.array(self.seconds[slower]) / np.array(self.seconds[faster])
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        return float(low), float(middle), float(high)


def compare(
    works: Mapping[str, Work], *, rounds: int, clock: Callable[[], float] = time.process_time
) -> Compared:
    """Time works in turn, after one round that does not count.

    Args:
        works: What to time, by name.
        rounds: How often.
        clock: Process time, since machines are shared, unless a device does the work.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            begin = clock()
            work()
            if number:
                seconds[name].append(clock() - begin)
    return Compared(seconds={name: tuple(found) for name, found in seconds.items()})


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of time over size, both as logarithms: 1 where cost grows in proportion."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
