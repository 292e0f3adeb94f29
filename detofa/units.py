"""Quantities as a user types them: durations, counts, sizes of images."""

import re

from detofa.errors import UserError

_DURATIONS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_LARGEST = 1e15  # counts below it are exact as float


def parse_latency_ms(text: str) -> float:
    """Parse a duration with its unit: `10ms`, `1.5 ms`, `0.01s`, `900us`.

    Returns:
        Milliseconds, above zero.

    Raises:
        UserError: no unit, an unknown unit, not a number, or not above zero.
    """
    number, unit = _split(text, "a latency such as 10ms or 0.01s")
    if unit.lower() not in _DURATIONS_MS:
        came = f"the unit {unit!r}" if unit else "no unit"
        raise UserError(f"latency {text!r} has {came}; write it as {number}ms (or us, s)")
    latency_ms = float(number) * _DURATIONS_MS[unit.lower()]
    if not 0 < latency_ms < _LARGEST:
        raise UserError(f"a latency must be above zero and below {_LARGEST:g} ms, got {text!r}")
    return latency_ms


def parse_rate(text: str) -> float:
    """Parse images per second: `200/s`, `0.5 / s`.

    Returns:
        Images per second, above zero.

    Raises:
        UserError: not of that form, or not above zero.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*/\s*[sS]\s*", text, re.ASCII)
    rate = float(match[1]) if match else 0.0
    if not 0 < rate < _LARGEST:
        raise UserError(f"a throughput should be images per second such as 200/s, got {text!r}")
    return rate


def parse_count(text: str, what: str = "a count") -> int:
    """Parse a count with an optional unit: `300M`, `1.2G`, `250k`, `300000000`.

    Returns:
        The nearest whole number, at least 1.

    Raises:
        UserError: an unknown unit, not a number, or less than 1.
    """
    number, unit = _split(text, f"{what} such as 300M or 1.2G")
    if unit.lower() not in _COUNTS:
        raise UserError(f"{what} {text!r} has the unit {unit!r}; use k, M or G, as in {number}M")
    count = float(number) * _COUNTS[unit.lower()]
    if not 1 <= count < _LARGEST:
        raise UserError(f"{what} must be at least 1 and below {_LARGEST:g}, got {text!r}")
    return round(count)


def parse_image_size(text: str) -> tuple[int, int]:
    """Parse an input size, height first: `256x320`.

    Returns:
        (height, width), multiples of 32.

    Raises:
        UserError: not of the form HEIGHTxWIDTH, or not multiples of 32 from 64 to 4096.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX]\s*(\d{1,9})\s*", text, re.ASCII)
    if match is None:
        raise UserError(f"image size {text!r} should be HEIGHTxWIDTH, such as 256x320")
    height, width = int(match[1]), int(match[2])
    if any(side % 32 or not 64 <= side <= 4096 for side in (height, width)):
        raise UserError(
            f"image size {text!r}: height and width must be multiples of 32 from 64 to 4096, "
            f"such as {_nearest(height)}x{_nearest(width)}"
        )
    return height, width


def format_count(value: float) -> str:
    """Write a count with a unit, to four digits or more: 312400000 gives `312.4M`.

    `parse_count` reads it back, to within 0.05 %, for counts from 1 to 1e15.
    """
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.99995 * factor:  # what rounds to 1000k is 1M
            return f"{_four_digits(value / factor)}{unit}"
    return _four_digits(value)


def _four_digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 9999.5 else f"{value:.4g}"


def _split(text: str, expected: str) -> tuple[str, str]:
    # Stripped beforehand: two places that take spaces side by side would share them out in turn.
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    if match is None:
        raise UserError(f"{text!r} is not {expected}")
    return match[1], match[2]


def _nearest(side: int) -> int:
    return min(4096, max(64, round(side / 32) * 32))
