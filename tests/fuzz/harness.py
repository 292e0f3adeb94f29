"""What every reader must do with any file: answer, in time, and touch nothing else."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

from detofa.errors import UserError

LIMIT_SECONDS = 10


class Answer(Enum):
    """How a file was answered."""

    ACCEPTED = "accepted"
    REFUSED = "refused"


class Hang(BaseException):
    """A reader did not answer in time; no reader may take it for a broken file."""


def survives(call: Callable[[], object], folder: Path) -> Answer:
    """Call a reader, and check that it returns or raises `UserError`.

    Args:
        call: Reads something inside `folder`.
        folder: The only place where it may write. What lies beside it must stay as it is; the call
            is made from there, so that what it writes to a relative path is seen as well.

    Raises:
        AssertionError: it wrote elsewhere, or its error says nothing.
        Hang: it took longer than `LIMIT_SECONDS`.
        Exception: what else the reader raised.
    """
    before = _beside(folder)
    try:
        with contextlib.chdir(folder.parent), _watched():
            call()
    except UserError as error:
        said = str(error).strip()
        answer = Answer.REFUSED
    else:
        said, answer = "", Answer.ACCEPTED
    assert said or answer is Answer.ACCEPTED, "the error says nothing"
    assert _beside(folder) == before, f"files beside the folder changed: {_beside(folder)}"
    return answer


def _beside(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return name, kind, size and time of what lies beside a folder."""
    found = {}
    with os.scandir(folder.parent) as entries:
        for entry in entries:
            if entry.name != folder.name:
                status = entry.stat(follow_symlinks=False)
                found[entry.name] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise Hang(f"no answer within {LIMIT_SECONDS} seconds")

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
