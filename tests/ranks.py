"""Two processes that work together as torchrun's would, without torchrun, which ends both."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """What became of a process: its exit code, what it printed, what it said on stderr."""

    returncode: int
    printed: str
    said: str


def two_ranks(module: str, *arguments: str, folder: Path) -> list[Ended]:
    """Run a module as both ranks, in a folder; neither outlives the call.

    What each says on stderr is in the folder's `said0` and `said1` as it comes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    shared["OMP_NUM_THREADS"] = "1"
    with contextlib.ExitStack() as stack:
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=folder,
                env=shared | {"RANK": str(index), "LOCAL_RANK": str(index)},
                stdout=subprocess.PIPE,
                stderr=stack.enter_context((folder / f"said{index}").open("w")),
                text=True,
            )
            for index in range(2)
        ]
        try:
            printed = [rank.communicate(timeout=120)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    return [
        Ended(rank.wait(), printed[index], (folder / f"said{index}").read_text())
        for index, rank in enumerate(ranks)
    ]
