"""The oldest versions that pyproject.toml allows, as constraints for pip: `make test-lowest`."""

from collections.abc import Iterator

from packaging.version import Version

from tools.declared import declared

EXTRAS = ("all", "dev")
"""What the tests need; TensorRT is of no use without a GPU."""
EXEMPT = frozenset({"torch", "torchvision"})
"""Tested as CI installs them: older builds are for other drivers and interpreters."""
COMPANIONS = ("click<8.5",)
"""What old versions would come with: Typer 0.19 calls what Click 8.5 warns of."""


def floors() -> dict[str, str]:
    """Return the oldest version allowed of each dependency that has one."""
    found: dict[str, str] = {}
    for requirement in declared(EXTRAS):
        for bound in requirement.specifier:
            if bound.operator == ">=" and requirement.name not in EXEMPT:
                versions = [bound.version, *filter(None, [found.get(requirement.name)])]
                found[requirement.name] = max(versions, key=Version)
    return found


def constraints() -> Iterator[str]:
    """Yield the lines of a constraints file."""
    yield from (f"{name}=={version}" for name, version in sorted(floors().items()))
    yield from COMPANIONS


if __name__ == "__main__":
    print(*constraints(), sep="\n")
