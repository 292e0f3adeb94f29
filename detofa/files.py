"""Files on disk: atomic writers, versioned JSON, hashes."""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import secrets
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from detofa.errors import UserError

_EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file in a zip

SCHEMA = 1
_PART_BYTES = 1 << 20
_MAX_NESTING = 100
_TOO_LARGE = 1e300  # a few of these can be added without overflow


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield an empty temporary file beside `path`; on success sync it and rename it to `path`.

    Readers see the old file or the whole new one, never a part. On failure the temporary file
    is removed and `path` is left as it was; after a kill it may stay, hidden and named `*.part`.
    Its name does not end as that of `path` does, so a library that goes by the suffix must be
    told the format.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _create_beside(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _create_beside(path: Path) -> Path:
    # Not tempfile: its files are private whatever the user's umask says.
    name = f".{path.name[:40]}.{secrets.token_hex(8)}.part"  # shorter than the limit on names
    temporary = path.parent / name
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _cannot_write(path: Path, error: OSError) -> UserError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    mend = "free some space" if full else "choose a file name in a folder that is writable"
    return UserError(f"cannot write {path}: {error.strerror or error}; {mend}")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8.

    What UTF-8 has no form for (file names that are not UTF-8 hold such characters) is written as
    the escape that JSON has for it.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, kind: str, record: Mapping[str, Any]) -> None:
    """Write a versioned JSON file atomically: `{"schema": 1, "kind": kind, **record}`.

    Raises:
        UserError: the file cannot be written.
        ValueError: the record holds NaN or an infinity, which JSON has no form for.
    """
    assert record.get("kind", kind) == kind, f"a {kind} file is given a {record['kind']} record"
    assert record.get("schema", SCHEMA) == SCHEMA, f"the record has schema {record['schema']}"
    content = {"schema": SCHEMA, "kind": kind, **record}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, kind: str, *, remake: str) -> dict[str, Any]:
    """Read a file that `write_json` wrote.

    Args:
        path: The file.
        kind: What the file must be, as given to `write_json`.
        remake: What makes a new one, e.g. "`detofa search`"; part of the error messages.

    Raises:
        UserError: missing, unreadable, truncated, of another kind, or of an unknown schema.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; make it with {remake}") from None
    except OSError as error:
        raise _cannot_read(path, error) from error
    except ValueError as error:
        raise UserError(
            f"{path} is not whole JSON ({error}); it may be truncated: make it again with {remake}"
        ) from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} should be a {kind} file, but its kind is {found!r}; see {remake}")
    check_schema(content, str(path), remake=remake)
    return content


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """Return the value of a JSON text that anyone may have written.

    What comes back can be shown, copied and written again: it is nested `_MAX_NESTING` deep at
    most, and its numbers are finite.

    Args:
        text: Bytes may begin with a byte order mark, as some editors add one.
        finite: Refuse NaN and infinities; else they come back as such.

    Raises:
        ValueError: it is not such a text.
    """
    try:
        value = (
            json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
            if finite
            else json.loads(text)
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_NESTING} deep") from None
    refuse_deep(value)
    return value


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a number, and of a size that can be calculated with."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and bool(abs(value) < _TOO_LARGE)


def refuse_deep(value: Any) -> None:
    """Raise ValueError if lists and mappings in a value are nested more than `_MAX_NESTING` deep.

    What is nested deeper may not be shown, copied or written: all of these recurse.
    """
    level = [value]
    for _ in range(_MAX_NESTING):
        level = [
            item
            for outer in level
            if isinstance(outer, list | dict)
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, list | dict)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {_MAX_NESTING} deep")


def check_schema(record: Mapping[str, Any], what: str, *, remake: str) -> None:
    """Raise UserError unless a record is of the schema that this version reads.

    Args:
        record: What was read.
        what: Where from, as a user knows it.
        remake: What makes a new one; see `read_json`.
    """
    found = record.get("schema")
    if found != SCHEMA:
        raise UserError(
            f"{what} has schema {found!r}, this version reads {SCHEMA}; make it again with {remake}"
        )


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        digest = hashlib.sha256()  # not file_digest: packed code runs on Python 3.10 too
        with path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                digest.update(part)
        return digest.hexdigest()
    except OSError as error:
        raise _cannot_read(path, error) from error


def check_companion(path: Path, companion: Path, sha256: str, *, remake: str) -> None:
    """Check that the file named in another, beside it, is there and the one that was meant.

    Args:
        path: The file that names the other.
        companion: The other.
        sha256: Its hash as `path` gives it.
        remake: What makes both, e.g. "`detofa search`"; part of the error messages.

    Raises:
        UserError: the companion is missing or has another hash.
    """
    _check_there(path, companion, remake)
    _check_same(path, companion, sha256_file(companion), sha256, remake)


def read_companion(path: Path, companion: Path, sha256: str, *, remake: str) -> bytes:
    """Return the bytes of the file that `check_companion` checks: what is returned was checked.

    Raises:
        UserError: see `check_companion`.
    """
    _check_there(path, companion, remake)
    try:
        data = companion.read_bytes()
    except OSError as error:
        raise _cannot_read(companion, error) from error
    _check_same(path, companion, hashlib.sha256(data).hexdigest(), sha256, remake)
    return data


def _check_there(path: Path, companion: Path, remake: str) -> None:
    if not os.path.isfile(companion):  # Path's raises for a name that the system refuses
        raise UserError(
            f"{path} needs {companion}, which does not exist; copy it beside {path.name}, or make "
            f"both again with {remake}"
        )


def _check_same(path: Path, companion: Path, found: str, sha256: str, remake: str) -> None:
    if found != sha256:
        raise UserError(
            f"{companion} has SHA-256 {found[:12]}, but {path.name} was written for {sha256[:12]}: "
            f"it was changed, or is of another {remake}; make both again"
        )


def check_fields(
    record: Mapping[str, Any],
    fits: Mapping[str, Callable[[Any], bool]],
    path: Path,
    what: str,
    *,
    advice: str,
) -> None:
    """Raise UserError unless each field that `fits` names holds what it should.

    Args:
        record: The fields of a file.
        fits: Per field, whether a value is what it should be.
        path: The file.
        what: What it should be, e.g. "a latency table".
        advice: What to do otherwise.
    """
    for name, fit in fits.items():
        if not fit(record[name]):
            raise UserError(
                f"{name} in {path} is not what {what} holds: {record[name]!r}; {advice}"
            )


def fields_of(record: Any, names: Iterable[str], what: str, *, remake: str = "") -> dict[str, Any]:
    """Return the fields of a JSON object that has exactly those named.

    Args:
        record: What was read.
        names: Fields it should have.
        what: What it should be, e.g. "a search space".
        remake: What makes such a record, where one thing does.

    Raises:
        UserError: not an object, or a field is missing or unknown.
    """
    advice = f"; make it again with {remake}" if remake else ""
    if not isinstance(record, Mapping):
        raise UserError(f"{what} should be a JSON object, got {type(record).__name__}{advice}")
    expected, found = set(names), set(record)
    if found != expected:
        raise UserError(
            f"{what} has the fields {sorted(expected)}; missing {sorted(expected - found)}, "
            f"unknown {sorted(map(str, found - expected))}{advice}"
        )
    return dict(record)


def sha256_json(record: Any) -> str:
    """Return the SHA-256 of a JSON value's canonical text, in hexadecimal."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot read {path}: {error.strerror or error}; check that it is a file and may be read"
    )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is larger than any number can be here")
    return number


def zipped(entries: Mapping[str, bytes]) -> bytes:
    """Return a zip of files by name; equal entries make equal zips."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return data.getvalue()


def files_in(folder: Path) -> Iterator[Path]:
    """Yield the files anywhere in a folder, through links to folders as well, each folder once."""
    seen = set()
    for inside, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(inside)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(inside, name) for name in names)
