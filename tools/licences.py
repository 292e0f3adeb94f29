"""Licences of what the demo and exports install: `make licences` writes docs/licences.md."""

import importlib.metadata
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution

from packaging.utils import canonicalize_name

from detofa.files import write_text
from tools.declared import ROOT, closure, declared

EXTRAS = ("demo",)
"""What the lock file is made for; exports are part of it."""
PAGE = ROOT / "docs" / "licences.md"
FORBIDDEN = re.compile(r"(?<![A-Z])A?GPL|(?<!Lesser )General Public|Affero", re.IGNORECASE)
"""Of licences that would bind detofa's users too; LGPL does not."""
_HEAD = """\
# Licences of dependencies
What `make demo LOCKED=1` installs, as the packages' own metadata tell it; `make licences` writes
this page. What starts with nvidia- comes with PyTorch for GPUs.

| package | version | licence | home page |
| --- | --- | --- | --- |
"""
_LONG = 60  # characters of a name


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What a package says of itself."""

    name: str
    version: str
    licence: str
    home: str

    @classmethod
    def of(cls, found: Distribution) -> "Licence":
        """Read a package's metadata."""
        return cls(
            name=canonicalize_name(found.metadata["Name"]),
            version=found.version,
            licence=_licence(found),
            home=_home(found),
        )


def licences() -> list[Licence]:
    """Return the licence of each package that the demo and exports need."""
    return [Licence.of(found) for found in closure(declared(EXTRAS)).values()]


def table(rows: Sequence[Licence]) -> str:
    """Return licences as the page shows them."""
    lines = (f"| {row.name} | {row.version} | {row.licence} | {row.home} |\n" for row in rows)
    return _HEAD + "".join(lines)


def _licence(found: Distribution) -> str:
    """Return what the metadata tell, best first: SPDX, a name, classifiers, the licence file."""
    metadata = found.metadata.json
    told, name = (str(metadata.get(key, "")) for key in ("license_expression", "license"))
    name = name.strip()
    classes = [
        text.rpartition("::")[2].strip()
        for text in metadata.get("classifier", ())
        if text.startswith("License ::") and text != "License :: OSI Approved"
    ]
    if name in ("UNKNOWN", "") or len(name) > _LONG or "\n" in name:  # some give the whole text
        name = ""
    text = told or name or ", ".join(classes) or _from_its_file(found) or "not told"
    return text.replace("|", "/")


def _from_its_file(found: Distribution) -> str:
    """Return the first line of the licence that a package brings, which mostly names it."""
    for file in found.files or ():
        if file.name.upper().startswith(("LICENSE", "LICENCE")):
            lines = file.read_text(encoding="utf-8").split("\n")
            return next((line.strip() for line in lines if line.strip()), "")[:_LONG]
    return ""


def _home(found: Distribution) -> str:
    metadata = found.metadata.json
    given = str(metadata.get("home_page", "UNKNOWN"))
    if given != "UNKNOWN":
        return given
    links = [text.partition(",") for text in metadata.get("project_url", ())]
    by_name = {name.strip().lower(): link.strip() for name, _, link in links}
    for name in ("homepage", "home", "repository", "source", "source code", "github"):
        if name in by_name:
            return by_name[name]
    return next(iter(by_name.values()), "")


def main() -> None:
    """Print the table and write the page."""
    try:
        text = table(licences())
    except importlib.metadata.PackageNotFoundError as error:
        sys.exit(f"{error.name} is not installed; run this as `make licences`")
    print(text, end="")
    write_text(PAGE, text)


if __name__ == "__main__":
    main()
