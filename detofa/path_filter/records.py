"""Checks of the package's JSON records as they are read."""

from functools import partial
from typing import Any

from detofa import files

REMAKE = "`detofa filter`, or `detofa train` where a run was trained by it"
"""What makes the package's files; part of the error messages."""

fields_of = partial(files.fields_of, remake=REMAKE)
"""Return the fields of one of the package's records; see `detofa.files.fields_of`."""


def tuple_of(value: Any) -> Any:
    """Return a JSON list as a tuple, and anything else as it is, for its owner to refuse."""
    return tuple(value) if isinstance(value, list) else value
