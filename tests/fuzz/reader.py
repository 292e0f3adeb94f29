"""Reader: one way into the package for a file, a valid one, and how it is changed."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.harness import Answer, survives

Files = Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """What reads a file, and what it is given.

    Attributes:
        files: Valid files by their paths in the folder; all of them are accepted.
        changed: Files that take the place of some of them, or come to them.
        read: Reads them, and uses what it got as far as that is cheap.
        target: The file that bytes found by a coverage-guided fuzzer go to, if there is a point.
    """

    files: Files = field(repr=False)
    changed: st.SearchStrategy[Files] = field(repr=False)
    read: Callable[[Path], object]
    target: str | None = None

    def answer(self, folder: Path, changed: Files) -> Answer:
        """Write files into a folder, read them, and check the answer; see `survives`."""
        lay_out(folder, {**self.files, **changed})
        return survives(lambda: self.read(folder), folder)


def lay_out(folder: Path, files: Files) -> None:
    """Make a folder hold just these files."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
