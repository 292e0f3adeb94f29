"""Files on disk survive kills, full disks and hands that edit them."""

import errno
import hashlib
import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detofa.errors import UserError
from detofa.files import (
    SCHEMA,
    atomic_path,
    check_companion,
    files_in,
    parse_json,
    read_json,
    sha256_file,
    sha256_json,
    write_bytes,
    write_json,
    write_text,
)

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.text().filter(lambda key: key not in ("schema", "kind"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(max_examples=60)
@given(record=st.dictionaries(KEYS, JSON_VALUES, max_size=5))
def test_a_record_reads_back_as_it_was_written(tmp_path, record):
    path = tmp_path / "record.json"
    write_json(path, "probe", record)
    assert read_json(path, "probe", remake="x") == {"schema": SCHEMA, "kind": "probe", **record}
    assert names_in(tmp_path) == ["record.json"]


@settings(max_examples=60)
@given(record=st.dictionaries(KEYS, JSON_VALUES, min_size=1, max_size=3), cut=st.floats(0, 0.999))
def test_a_file_cut_anywhere_is_refused_with_what_makes_it_again(tmp_path, record, cut):
    path = tmp_path / "record.json"
    write_json(path, "probe", record)
    whole = path.read_bytes().rstrip()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(UserError, match="truncated: make it again with `detofa probe`"):
        read_json(path, "probe", remake="`detofa probe`")


def test_a_record_that_was_read_can_be_written_again(tmp_path):
    write_json(tmp_path / "a.json", "probe", {"value": 1})
    write_json(tmp_path / "b.json", "probe", read_json(tmp_path / "a.json", "probe", remake="x"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("record", [{"kind": "other"}, {"schema": SCHEMA + 1}])
def test_a_record_of_another_kind_or_schema_is_not_written(tmp_path, record):
    with pytest.raises(AssertionError):
        write_json(tmp_path / "a.json", "probe", record)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, "probe", {"value": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, "probe", {"value": value})
    assert read_json(path, "probe", remake="x")["value"] == 1
    assert names_in(tmp_path) == ["a.json"]


def test_a_file_name_that_is_not_utf8_survives_in_a_record(tmp_path):
    name = os.fsdecode(b"caf\xe9/\xff.jpg")
    write_json(tmp_path / "a.json", "probe", {"image": name})
    assert read_json(tmp_path / "a.json", "probe", remake="x")["image"] == name


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "probe", {"value": 1})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_json(path, "probe", remake="x")["value"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"\xff\xfe\x00", "truncated"),
        (b"\x00" * 100, "truncated"),
        (b'{"schema": 1, "kind": "probe", "latency_ms": NaN}', "NaN is not a JSON number"),
        (b'{"schema": 1, "kind": "probe", "latency_ms": -Infinity}', "-Infinity is not"),
        (b'{"schema": 1, "kind": "probe", "n": ' + b"9" * 5000 + b"}", "make it again"),
        (b"[" * 100_000, "make it again"),
        (b'{"schema": 1, "kind": "probe"} {}', "make it again"),
        (b"[1, 2]", "its kind is 'list'"),
        (b"null", "its kind is 'NoneType'"),
        (b'{"schema": 1}', "its kind is None"),
        (b'{"schema": 1, "kind": "subnet"}', "should be a probe file, but its kind is 'subnet'"),
        (b'{"kind": "probe"}', "has schema None, this version reads 1"),
        (b'{"schema": 2, "kind": "probe"}', "has schema 2, this version reads 1"),
        (b'{"schema": "1", "kind": "probe"}', "has schema '1', this version reads 1"),
    ],
)
def test_a_file_of_another_content_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(path, "probe", remake="`detofa probe`")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "`detofa probe`" in str(caught.value)


def test_a_missing_file_is_answered_with_what_makes_it(tmp_path):
    with pytest.raises(UserError, match="does not exist; make it with `detofa probe`"):
        read_json(tmp_path / "none.json", "probe", remake="`detofa probe`")


def test_a_folder_or_a_path_through_a_file_is_not_a_readable_file(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "a.json"):
        with pytest.raises(UserError, match="cannot read"):
            read_json(path, "probe", remake="x")
        with pytest.raises(UserError, match="cannot read"):
            sha256_file(path)


def test_a_file_where_a_folder_is_needed_is_a_plain_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*a\.json: .*; choose a file name"):
        write_bytes(tmp_path / "file" / "a.json", b"x")
    assert names_in(tmp_path) == ["file"]


def test_a_folder_where_a_file_is_needed_is_a_plain_error_and_stays(tmp_path):
    (tmp_path / "a.json" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "a.json", b"x")
    assert names_in(tmp_path) == ["a.json"]
    assert names_in(tmp_path / "a.json") == ["inside"]


def test_missing_parent_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "text")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "text"


@pytest.mark.parametrize("name", ["x" * 255, "\u00e9" * 127, "\U0001f600" * 63, "a b'\"\n.json"])
def test_every_name_the_file_system_takes_can_be_written(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert names_in(tmp_path) == [name]


def test_a_name_the_file_system_refuses_is_a_plain_error(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / ("x" * 300), b"x")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("call", "code", "mend"),
    [
        ("fsync", errno.ENOSPC, "free some space"),
        ("fsync", errno.EIO, "choose a file name"),
        ("open", errno.EROFS, "choose a file name"),
        ("open", errno.ENOSPC, "free some space"),
    ],
)
def test_a_disk_error_keeps_the_old_file_and_says_how_to_mend_it(
    tmp_path, monkeypatch, call, code, mend
):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*_arguments):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(f"detofa.files.os.{call}", fail)
        with pytest.raises(UserError, match=mend):
            write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


def test_a_disk_that_fills_in_the_middle_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fill_the_disk():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="free some space"):
        fill_the_disk()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError, UserError])
def test_an_interrupt_passes_through_and_leaves_nothing(tmp_path, fault):
    path = tmp_path / "a.bin"

    def interrupt():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise fault

    with pytest.raises(fault):
        interrupt()
    assert names_in(tmp_path) == []


def test_a_process_killed_while_it_writes_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "probe", {"value": "old"})
    program = (
        "import os, signal, sys; from pathlib import Path; from detofa.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_bytes(b'{\"schema\": 1, ')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_json(path, "probe", remake="x")["value"] == "old"
    # What the kill left is neither in the way nor found by those who look for JSON files.
    assert list(tmp_path.glob("*.json")) == [path]
    write_json(path, "probe", {"value": "new"})
    assert read_json(path, "probe", remake="x")["value"] == "new"


def test_readers_beside_many_writers_only_ever_see_whole_files(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, "probe", {"values": [0] * 2000})

    def write_often(number):
        for _ in range(15):
            write_json(path, "probe", {"values": [number] * 2000})

    writers = [threading.Thread(target=write_often, args=(number,)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    for _ in range(40):
        values = read_json(path, "probe", remake="x")["values"]
        assert len(values) == 2000
        assert len(set(values)) == 1
    for writer in writers:
        writer.join()
    assert names_in(tmp_path) == ["a.json"]


def test_permissions_follow_the_umask_of_the_user(tmp_path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a.bin", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o640


@given(st.binary(max_size=300))
def test_bytes_and_their_hash_are_those_given(tmp_path, data):
    write_bytes(tmp_path / "a.bin", data)
    assert (tmp_path / "a.bin").read_bytes() == data
    assert sha256_file(tmp_path / "a.bin") == hashlib.sha256(data).hexdigest()


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_the_hash_of_a_value_is_that_of_its_canonical_text(record):
    turned = dict(reversed(record.items()))
    assert sha256_json(turned) == sha256_json(record)
    assert sha256_json(json.loads(json.dumps(record))) == sha256_json(record)
    assert sha256_json({**record, "more": 1}) != sha256_json({**record, "more": 2})


@pytest.mark.parametrize(
    "text", ["[" * 101 + "]" * 101, '{"a":' * 9000, "[1e999]", "[NaN]", "\xff"]
)
def test_json_that_could_not_be_shown_or_written_again_is_refused(text):
    with pytest.raises(ValueError, match=r"nested|larger|not a JSON number|codec|Expecting"):
        parse_json(text.encode("latin-1"))


def test_json_nested_as_deep_as_is_allowed_is_read():
    assert parse_json("[" * 100 + "]" * 100)
    assert math.isinf(parse_json("[1e999]", finite=False)[0])


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "", ".."])
def test_a_companion_with_a_name_that_no_file_has_is_a_plain_error(tmp_path, name):
    with pytest.raises(UserError, match="does not exist"):
        check_companion(tmp_path / "a.json", tmp_path / name, "0" * 64, remake="`detofa search`")


def test_files_behind_links_to_folders_are_found_once_and_a_circle_ends(tmp_path):
    pictures, folder = tmp_path / "pictures", tmp_path / "folder"
    (pictures / "deep").mkdir(parents=True)
    folder.mkdir()
    for name in ("a.jpg", "deep/b.jpg"):
        (pictures / name).touch()
    (folder / "c.jpg").touch()
    (folder / "linked").symlink_to(pictures)
    (pictures / "deep" / "back").symlink_to(folder)
    found = sorted(path.relative_to(folder).as_posix() for path in files_in(folder))
    assert found == ["c.jpg", "linked/a.jpg", "linked/deep/b.jpg"]
    assert list(files_in(tmp_path / "missing")) == []
