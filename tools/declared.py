"""What pyproject.toml declares: `python -m tools.declared demo` prints it, a requirement a line."""

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "demo.txt"
"""Exact versions, with hashes, of all that the demo and exports need: `make lock`."""


def declared(extras: Sequence[str]) -> list[Requirement]:
    """Return what the base install and some extras ask for; an extra may name others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def of(texts: Sequence[str]) -> Iterator[Requirement]:
        for text in texts:
            requirement = Requirement(text)
            if requirement.name != project["name"]:
                yield requirement
            for extra in sorted(requirement.extras) if requirement.name == project["name"] else ():
                yield from of(project["optional-dependencies"][extra])

    return list(of([*project["dependencies"], f"{project['name']}[{','.join(extras)}]"]))


def locked() -> dict[str, str]:
    """Return the version of each package that the lock file names."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))


if __name__ == "__main__":
    print(*declared(sys.argv[1:]), sep="\n")
