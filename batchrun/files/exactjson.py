"""JSON with integers of any size. orjson reads an integer beyond 64 bits as a float, and cannot write one.

Seeds, hashes and 128-bit ids are such integers. JSON without them, nearly all of it, is read and written by orjson.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

_LARGE_DIGITS = 19
"""The digits of -9223372036854775809: no shorter integer exceeds 64 bits."""
_SAMPLED = 4
"""Every fourth byte is looked at first: that takes a tenth of the time to read them all."""
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_SAMPLE = b"0" * (_LARGE_DIGITS // _SAMPLED)
_RUN = b"0" * _LARGE_DIGITS
_LARGE = re.compile(rb"(?:^|[\[,:\s])-?[0-9]{%d}[0-9]*(?:$|[\],}\s])" % _LARGE_DIGITS)


def load(raw: bytes) -> Any:
    """Parse JSON; integers of any size are exact.

    Raises:
        orjson.JSONDecodeError: it is not JSON, or has an integer of more than 4,300 digits.
    """
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if not has_large_integer(raw):
            raise
        # orjson takes an integer of more than 308 digits for infinity.
        try:
            data = json.loads(raw.decode(), parse_constant=_refuse, parse_float=_finite)
            dump(data)
        except (ValueError, TypeError, RecursionError):
            raise error from None
        return data
    if not has_large_integer(raw):
        return data
    try:
        return json.loads(raw)
    except RecursionError:
        return data


def load_all(raws: Sequence[bytes]) -> list[Any]:
    """Parse several JSON texts, see `load`."""
    return list(map(load if any(map(has_large_integer, raws)) else orjson.loads, raws))


def dump(value: Any, option: int = 0, default: Callable[[Any], Any] | None = None) -> bytes:
    """A value as JSON.

    Args:
        value: Any value that JSON has a type for.
        option: orjson's options for the order of keys, indentation and the end of the line.
        default: Called with any other value; returns what is written for it, or raises a TypeError.

    Raises:
        TypeError: it cannot be written as JSON.
    """
    try:
        return orjson.dumps(value, default, option)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
        try:
            return _dump_large(value, option, default)
        except (ValueError, RecursionError):
            raise error from None


def on_one_line(data: bytes) -> bytes:
    """Escape the characters in UTF-8 JSON that some readers take for line ends, besides the newline.

    They are U+0085, U+2028 and U+2029, which `str.splitlines` and JavaScript count; JSON itself escapes the others.
    """
    if not data.isascii():  # a check that takes no time; a search would take longer than writing the line
        for raw, escaped in _LINE_ENDS:
            data = data.replace(raw, escaped)
    return data


_LINE_ENDS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))


def has_large_integer(raw: bytes) -> bool:
    """Whether JSON may contain an integer that exceeds 64 bits; text that looks like one counts as well."""
    # `in` would first try to convert its operand to an integer, which costs as much as the search.
    if raw[::_SAMPLED].translate(_ZEROS).find(_SAMPLE) < 0:
        return False
    return raw.translate(_ZEROS).find(_RUN) >= 0 and _LARGE.search(raw) is not None


def _dump_large(value: Any, option: int, default: Callable[[Any], Any] | None) -> bytes:
    is_indented = bool(option & orjson.OPT_INDENT_2)
    text = json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        indent=2 if is_indented else None,
        separators=(",", ": " if is_indented else ":"),
        sort_keys=bool(option & orjson.OPT_SORT_KEYS),
        default=default,
    )
    return text.encode() + b"\n" * bool(option & orjson.OPT_APPEND_NEWLINE)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return number
