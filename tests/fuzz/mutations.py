"""Strategies that change a valid file: its structure where that is known, else its bytes."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from hypothesis import strategies as st

DEEP = (90, 400, 940, 985, 50_000)
"""Levels of nesting, around the limits of the interpreter and far beyond."""

WORDS = (
    *("", " ", ".", "..", "../../escaped", "/escaped", "/etc/passwd", "a/b", "a\\..\\b", "C:\\x"),
    *("nan", "-inf", "1e999", "0x" + "f" * 5000, "9" * 5000, "-1", "0", "true", "null", "~"),
    *("a\0b", "\ud800", "\u202e\U0001f600", "x" * 300, "x" * 5000, "1" * 20_000 + "x"),
    *("café\n\r\t\x1b[31m", "%s{}$(id)`id`", "__class__", "\N{ARABIC-INDIC DIGIT THREE}"),
)
"""Texts that are often taken for something else."""

RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-400", "-0.0", "9" * 400, "9" * 5000),
    *('"\\ud800"', '"\\u0000"', "[]", "{}", "[[]]", '{"": null}', "true", "false", "null"),
    *("-1", "0", "1", "0.5", "2147483648", "9223372036854775808", "1e308", "65536", "[1,2,3]"),
    *("[" * depth + "]" * depth for depth in DEEP),
    *('{"a":' * depth + "1" + "}" * depth for depth in DEEP),
)
"""JSON texts that Python's own values have no form for, or that are of another type."""

Json = Any


def _placeholder(index: int) -> str:
    return f"@raw {index}@"


_VALUES: st.SearchStrategy[Json] = st.one_of(
    st.integers(0, len(RAW) - 1).map(_placeholder),
    st.sampled_from(WORDS),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.lists(st.integers(-9, 9) | st.none(), max_size=4),
)


@st.composite
def json_values(draw: st.DrawFn, valid: str) -> Json:
    """Draw a JSON value that is changed in up to three places; see `json_text`."""
    whole = {"root": json.loads(valid)}
    for _ in range(draw(st.integers(1, 3))):
        places = _places(whole)
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.integers(0, 7)):
            case 0 | 1 | 2:
                parent[key] = draw(_VALUES)
            case 3:
                other, other_key = places[draw(st.integers(0, len(places) - 1))]
                parent[key] = json.loads(json.dumps(other[other_key]))
            case 4 if parent is not whole:
                del parent[key]
            case 5 if isinstance(parent[key], dict):
                parent[key][draw(st.sampled_from(WORDS))] = draw(_VALUES)
            case 6 if isinstance(parent, dict) and parent is not whole:
                parent[draw(st.sampled_from(WORDS))] = parent.pop(key)
            case _ if isinstance(parent[key], list):
                parent[key] = parent[key] * draw(st.integers(0, 3)) + [draw(_VALUES)]
            case _:
                parent[key] = [parent[key]]
    return whole["root"]


def json_text(value: Json) -> str:
    """Return the text of a value that `json_values` drew."""
    text = json.dumps(value)
    for index, raw in enumerate(RAW):
        text = text.replace(json.dumps(_placeholder(index)), raw)
    return text


@st.composite
def json_files(
    draw: st.DrawFn, valid: str, sign: Callable[[Any], None] = lambda record: None
) -> bytes:
    """Draw a JSON file.

    Args:
        draw: Hypothesis's.
        valid: The text to change.
        sign: Mends the hashes of a changed record, in place, as someone who knows of them would.
    """
    if draw(st.integers(0, 9)) == 0:
        return draw(changed_bytes(valid.encode()))
    text = json_text(draw(json_values(valid)))
    if draw(st.integers(0, 9)):
        text = _signed(text, sign)
    if draw(st.integers(0, 9)) == 0 and text.startswith("{"):
        text = "{" + f'"{draw(st.sampled_from(_keys(valid)))}": 0, ' + text[1:]
        text = text[:-1] + f', "{draw(st.sampled_from(_keys(valid)))}": null' + "}"
    return text.encode()


def _signed(text: str, sign: Callable[[Any], None]) -> str:
    try:
        record = json.loads(text)
        sign(record)
        return json.dumps(record)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return text


def _keys(valid: str) -> list[str]:
    value = json.loads(valid)
    return list(value) if isinstance(value, dict) and value else ["a"]


def _places(whole: Json) -> list[tuple[Any, Any]]:
    """Return (container, key) of every value inside, breadth first."""
    places: list[tuple[Any, Any]] = []
    todo = [whole]
    for container in todo:
        keys: Sequence[Any] = (
            list(container) if isinstance(container, dict) else range(len(container))
        )
        for key in keys:
            places.append((container, key))
            if isinstance(container[key], dict | list):
                todo.append(container[key])
    return places


_PIECES = st.sampled_from((b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80", b"\n"))


@st.composite
def changed_bytes(draw: st.DrawFn, valid: bytes) -> bytes:
    """Draw bytes that are cut, flipped, overwritten, inserted or repeated in a few places."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 6)):
            case 0:
                del data[place:]
            case 1 if place < len(data):
                data[place] ^= 1 << draw(st.integers(0, 7))
            case 2:
                piece = draw(_PIECES | st.binary(min_size=1, max_size=8))
                data[place : place + len(piece)] = piece
            case 3:
                data[place:place] = draw(_PIECES | st.binary(min_size=1, max_size=40))
            case 4:
                del data[place : place + draw(st.integers(1, 64))]
            case 5:
                other = draw(st.integers(0, len(data)))
                data[place:place] = data[other : other + draw(st.integers(1, 200))]
            case _ if place < len(data):
                data[place] = draw(st.integers(0, 255))
    return bytes(data)


@st.composite
def changed_lines(draw: st.DrawFn, valid: str, pieces: Sequence[str] = ()) -> bytes:
    """Draw text whose lines or words are replaced, repeated, removed or joined.

    Args:
        draw: Hypothesis's.
        valid: The text to change.
        pieces: Lines of that kind of text that are put in.
    """
    if draw(st.integers(0, 7)) == 0:
        return draw(changed_bytes(valid.encode()))
    lines = valid.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        words = lines[place].split(" ")
        at = draw(st.integers(0, len(words) - 1))
        match draw(st.integers(0, 5)):
            case 0 | 1:
                words[at] = draw(st.sampled_from(WORDS) | st.text(max_size=9))
                lines[place] = " ".join(words)
            case 2:
                lines[place] = " ".join(words * draw(st.integers(0, 3)))
            case 3 if pieces:
                lines.insert(place, draw(st.sampled_from(pieces)))
            case 4 if len(lines) > 1:
                del lines[place]
            case _:
                lines.insert(place, lines[draw(st.integers(0, len(lines) - 1))])
    return "\n".join(lines).encode(errors="surrogatepass")


_XML_HEADS = (
    b"",
    b'<?xml version="1.0" encoding="utf-16"?>',
    b'<?xml version="1.0" encoding="no-such"?>',
    b'<?xml version="1.0" encoding="big5"?>',
    b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
    b"<!DOCTYPE a [<!ENTITY b0 'ha'>"
    + b"".join(b"<!ENTITY b%d '%s'>" % (n, b"&b%d;" % (n - 1) * 9) for n in range(1, 12))
    + b"]>",
)


@st.composite
def changed_xml(draw: st.DrawFn, valid: str) -> bytes:
    """Draw XML whose elements hold other texts, are moved, repeated or removed."""
    if draw(st.integers(0, 4)) == 0:
        return draw(changed_bytes(valid.encode()))
    tree = ElementTree.fromstring(valid)
    for _ in range(draw(st.integers(1, 3))):
        elements = list(tree.iter())
        element = elements[draw(st.integers(0, len(elements) - 1))]
        other = elements[draw(st.integers(0, len(elements) - 1))]
        match draw(st.integers(0, 4)):
            case 0 | 1:
                element.text = draw(st.sampled_from(WORDS) | st.text(max_size=9))
            case 2:
                element.tag = other.tag
            case 3 if element is not other and element not in other.iter():
                element.append(other)
            case _:
                element.clear()
    data = ElementTree.tostring(tree, encoding="unicode").encode(errors="surrogatepass")
    if draw(st.integers(0, 9)) == 0:
        depth = draw(st.sampled_from(DEEP))
        data = b"<a>" * depth + data + b"</a>" * depth
    return draw(st.sampled_from(_XML_HEADS)) + data.replace(b"ha", b"&b11;", 1)


def files(**drawn: st.SearchStrategy[bytes]) -> st.SearchStrategy[Mapping[str, bytes]]:
    """Draw files by their names, in which `__` stands for a dot and `___` for a slash."""
    return st.fixed_dictionaries({_path(name): strategy for name, strategy in drawn.items()})


def _path(name: str) -> str:
    return name.replace("___", "/").replace("__", ".")
