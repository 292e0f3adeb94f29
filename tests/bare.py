"""An interpreter that has a few packages and nothing else, as on a device."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

from packaging.requirements import Requirement

from tools.declared import closure

_NEWER = {"Self", "UTC", "StrEnum", "tomllib", "ExceptionGroup", "Never", "assert_never"}


def only_packages(folder: Path, *names: str) -> Path:
    """Fill a folder with some packages and what they need; return it."""
    folder.mkdir(exist_ok=True)
    for found in closure([Requirement(name) for name in names]).values():
        for file in found.files or ():
            top = PurePosixPath(file).parts[0]
            if not top.startswith(("..", "__pycache__")) and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))))
    return folder


def run_bare(
    program: Path, packages: Path, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a program where no other package is: -S leaves site-packages out."""
    return subprocess.run(
        [sys.executable, "-S", str(program), *options],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def newer_than_python_3_10(packed: Path) -> list[str]:
    """Return what the modules of a zip import, or use, that Python 3.10 has not."""
    found = []
    with zipfile.ZipFile(packed) as archive:
        for name in archive.namelist():
            if not name.endswith(".py"):
                continue
            tree = ast.parse(archive.read(name), name, feature_version=(3, 10))
            imported = {
                alias.name
                for node in tree.body
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names
            }
            found += [f"{name}: {word}" for word in sorted(_NEWER & imported)]
    return found
