"""What the tests of `Ranks` start twice: python -m tests.train.dying_rank CALL. The second dies."""

import os
import signal
import sys

import torch

from detofa.errors import UserError
from detofa.train.ranks import Ranks, join_ranks

_CALLS = 1000  # at most, until the death is noticed


def call(ranks: Ranks, name: str) -> None:
    """Meet the other rank, over and over, until one of both dies."""
    (mean,) = ranks.means(1)
    for number in range(_CALLS):
        match name:
            case "first":
                ranks.first(lambda: "x" * 10_000)
            case "gather":
                ranks.gather("x" * 10_000)
            case "mean":
                ranks.mean(0.0, [torch.zeros(10_000)], [torch.zeros(10_000)])
            case "means":
                mean(torch.zeros(1))
        if number == 5 and not ranks.is_first:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Say what the command line would."""
    torch.set_num_threads(1)
    try:
        with join_ranks(torch.device("cpu")) as (ranks, _):
            call(ranks, sys.argv[1])
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
