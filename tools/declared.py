"""What pyproject.toml declares: `python -m tools.declared demo` prints it, a requirement a line."""

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def closure(requirements: Sequence[Requirement]) -> dict[str, Distribution]:
    """Return all that some requirements install here, by canonical name.

    Raises:
        importlib.metadata.PackageNotFoundError: one is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(each, extra) for each in requirements for extra in ("", *each.extras)]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = distribution(name)
        for text in found[name].requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                waiting += [(needed, part) for part in ("", *needed.extras)]
    return dict(sorted(found.items()))


def locked() -> dict[str, str]:
    """Return the version of each package that the lock file names."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))


if __name__ == "__main__":
    print(*declared(sys.argv[1:]), sep="\n")
