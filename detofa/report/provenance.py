"""Where everything came from: the machine, the versions, the settings, the hashes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detofa.files import read_json
from detofa.report.page import Section, Table
from detofa.report.source import Source

_TRAIN = "`detofa train`"


def provenance_section(source: Source) -> Section:
    """Return environment, settings and hashes."""
    name, title = "provenance", "Environment and provenance"
    path = source.run.path / "environment.json"
    hashes = [("supernet.safetensors", source.supernet_sha256)] if source.record else []
    hashes += [(f"latency table {table.file_name}", table.sha256) for table in source.tables]
    hashes += [(f"weights of {item.path}", item.subnet.weights_sha256) for item in source.written]
    commands = [(str(item.path), item.subnet.command) for item in source.written]
    tables = [Table(caption="Settings", columns=("setting", "value"), rows=_rows(
        source.config.to_json()
    ))]  # fmt: skip
    if path.is_file():
        tables.insert(
            0,
            Table(
                caption="Training",
                columns=("what", "value"),
                rows=_rows(read_environment(path)),
            ),
        )
    if hashes:
        tables.append(Table(caption="SHA-256", columns=("file", "hash"), rows=tuple(hashes)))
    if commands:
        tables.append(
            Table(caption="Commands", columns=("file", "written by"), rows=tuple(commands))
        )
    missing = None if path.is_file() else f"The machine was not written down: {_TRAIN} does that."
    return Section(name=name, title=title, missing=missing, tables=tuple(tables))


def read_environment(path: Path) -> dict[str, Any]:
    """Return what a run's environment.json says.

    Raises:
        UserError: missing or broken.
    """
    record = read_json(path, "environment", remake=_TRAIN)
    return {key: value for key, value in record.items() if key not in ("schema", "kind")}


def _rows(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(_flat(record, ""))


def _flat(record: Mapping[str, Any], before: str) -> Iterator[tuple[str, str]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", "–" if value is None else str(value)
