"""Quantities as a user types them."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detofa.errors import UserError
from detofa.units import (
    format_count,
    parse_count,
    parse_image_size,
    parse_latency_ms,
    parse_rate,
)


@pytest.mark.parametrize(
    ("text", "latency_ms"),
    [("10ms", 10.0), ("1.5 ms", 1.5), ("0.01s", 10.0), ("900us", 0.9), (" .5MS ", 0.5)],
)
def test_a_latency_with_a_unit_is_milliseconds(text, latency_ms):
    assert parse_latency_ms(text) == pytest.approx(latency_ms, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10", "no unit; write it as 10ms"),
        ("1234567", "write it as 1234567ms"),
        ("10min", "the unit 'min'"),
        ("0ms", "above zero"),
        ("0.0s", "above zero"),
        ("0." + "0" * 400 + "1ms", "above zero"),
        ("9" * 400 + "ms", "below 1e+15"),
        ("-5ms", "is not a latency"),
        ("1,5ms", "is not a latency"),
        ("1e3ms", "is not a latency"),
        ("nanms", "is not a latency"),
        ("infs", "is not a latency"),
        ("\u0661\u0660ms", "is not a latency"),
        ("1_000ms", "is not a latency"),
        ("10ms\x00", "is not a latency"),
        ("ms", "is not a latency"),
        ("", "is not a latency"),
    ],
)
def test_a_latency_that_cannot_be_meant_is_refused(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_latency_ms(text)


def test_a_latency_without_unit_is_answered_with_one_that_parses():
    with pytest.raises(UserError) as caught:
        parse_latency_ms("1234567.125")
    hint = re.search(r"write it as (\S+)", str(caught.value))
    assert hint is not None
    assert parse_latency_ms(hint[1]) == 1234567.125


@given(
    st.decimals(min_value="0.001", max_value="100000", places=3),
    st.sampled_from([("us", "0.001"), ("ms", "1"), ("s", "1000")]),
)
def test_every_decimal_latency_is_read_as_its_value(number: Decimal, unit: tuple[str, str]):
    expected_ms = float(number * Decimal(unit[1]))
    assert parse_latency_ms(f"{number}{unit[0]}") == pytest.approx(expected_ms, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("300M", 300_000_000),
        ("1.2G", 1_200_000_000),
        ("250k", 250_000),
        ("300000000", 300_000_000),
        ("0.5 m", 500_000),
        ("1", 1),
        ("999999999999999", 999_999_999_999_999),
    ],
)
def test_a_count_with_or_without_unit_is_a_whole_number(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text",
    ["0", "0.4", "0.9", "0.0001k", "1000000G", "-3", "3T", "3MB", "1e6", "ten", "", "9" * 5000],
)
def test_a_count_below_one_or_of_no_known_form_is_refused(text):
    with pytest.raises(UserError, match="MACs"):
        parse_count(text, "MACs")


@given(st.integers(min_value=1, max_value=10**15 - 1))
def test_a_plain_whole_number_is_read_exactly(count):
    assert parse_count(str(count)) == count


@given(st.floats(min_value=1, max_value=9.99e14))
def test_a_formatted_count_parses_back_to_within_rounding(value):
    text = format_count(value)
    assert "e" not in text
    assert float(parse_count(text)) == pytest.approx(value, rel=5.001e-4, abs=0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999_949, "999.9k"),
        (999_950, "1M"),
        (999_999, "1M"),
        (312_400_000, "312.4M"),
        (1e13, "10000G"),
        (-2_500_000, "-2.5M"),
    ],
)
def test_a_count_is_written_with_the_unit_that_keeps_it_short(value, text):
    assert format_count(value) == text


@given(st.integers(2, 128), st.integers(2, 128))
def test_every_allowed_image_size_is_height_first(rows, columns):
    assert parse_image_size(f" {32 * rows}X{32 * columns}") == (32 * rows, 32 * columns)


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1))
def test_a_refused_image_size_comes_with_one_that_is_allowed(height, width):
    text = f"{height}x{width}"
    try:
        assert parse_image_size(text) == (height, width)
    except UserError as error:
        hint = re.search(r"such as (\S+)", str(error))
        assert hint is not None
        parse_image_size(hint[1])


@pytest.mark.parametrize(
    "text",
    ["", "256", "256x", "x320", "256*320", "256x320x3", "-64x64", "64.0x64", "9" * 5000 + "x64"],
)
def test_an_image_size_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="should be HEIGHTxWIDTH"):
        parse_image_size(text)


@given(st.text())
def test_any_text_gives_a_value_or_an_error_the_user_can_read(text):
    for parse in (parse_latency_ms, parse_count, parse_image_size):
        try:
            parse(text)
        except UserError as error:
            assert repr(text) in str(error)  # noqa: PT017 - most text is refused, some is not


@pytest.mark.parametrize("parse", [parse_latency_ms, parse_count, parse_rate, parse_image_size])
def test_a_hundred_thousand_spaces_are_refused_as_soon_as_one(parse):
    with pytest.raises(UserError):
        parse("1" + " " * 100_000 + "!")
