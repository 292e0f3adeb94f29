"""What a test starts twice: python -m tests.pains.waiting_rank. The first rank takes its time."""

import time
from datetime import timedelta
from pathlib import Path

import torch

from detofa.train import ranks as module


def wait_until_told():
    """Return once the second rank has said something, after a minute in any case."""
    said, deadline = Path("said1"), time.monotonic() + 60
    while not said.read_text().endswith("\n") and time.monotonic() < deadline:
        time.sleep(0.05)
    return "done"


def main() -> None:
    """Let the second rank wait for the first."""
    with module.join_ranks(torch.device("cpu")) as (ranks, _):
        module._UNTIL_TOLD = timedelta(seconds=0.2)
        found = ranks.first(wait_until_told)
        assert found == "done"
        print(found)


if __name__ == "__main__":
    main()
