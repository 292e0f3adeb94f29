"""Checks of the package's JSON records as they are read."""

from collections.abc import Iterable, Mapping
from typing import Any

from detofa.errors import UserError

REMAKE = "`detofa filter`"
"""What makes the package's files; part of the error messages."""


def fields_of(record: Any, names: Iterable[str], what: str) -> dict[str, Any]:
    """Return the fields of a JSON object that has exactly those named.

    Args:
        record: What was read.
        names: Fields it should have.
        what: What it should be, e.g. "a record of budget bins".

    Raises:
        UserError: not an object, or a field is missing or unknown.
    """
    if not isinstance(record, Mapping):
        raise UserError(
            f"{what} should be a JSON object, got {type(record).__name__}; make it with {REMAKE}"
        )
    expected, found = set(names), set(record)
    if found != expected:
        raise UserError(
            f"{what} has the fields {sorted(expected)}; missing {sorted(expected - found)}, "
            f"unknown {sorted(map(str, found - expected))}; make it again with {REMAKE}"
        )
    return dict(record)


def tuple_of(value: Any) -> Any:
    """Return a JSON list as a tuple, and anything else as it is, for its owner to refuse."""
    return tuple(value) if isinstance(value, list) else value
