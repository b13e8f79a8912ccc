"""JSON in and out with integers of any size. orjson reads one beyond 64 bits as a float, and writes none.

Seeds, hashes and ids of 128 bits are such integers. What has none, nearly everything, is read and written by orjson.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_LARGE_DIGITS = 19
"""-9223372036854775809 is the shortest that 64 bits do not hold."""
_SAMPLED = 4
"""Of every so many bytes one is looked at first: it costs a tenth of reading them."""
_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_SAMPLE = b"0" * (_LARGE_DIGITS // _SAMPLED)
_RUN = b"0" * _LARGE_DIGITS
_LARGE = re.compile(rb"(?:^|[\[,:\s])-?[0-9]{%d}[0-9]*(?:$|[\],}\s])" % _LARGE_DIGITS)


def load(raw: bytes) -> Any:
    """What JSON says, integers exactly as they are written.

    Raises:
        orjson.JSONDecodeError: it is not JSON, or has an integer of more than 4,300 digits.
    """
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if not has_large_integer(raw):
            raise
        # Beyond 308 digits orjson takes an integer for an infinite number.
        try:
            data = json.loads(raw.decode(), parse_constant=_refuse, parse_float=_finite)
            dump(data)
        except (ValueError, TypeError, RecursionError):
            raise error from None
        return data
    # As in `has_large_integer`: a call of it for each line and answer would cost as much as what it does.
    if raw[::_SAMPLED].translate(_ZEROS).find(_SAMPLE) < 0 or not has_large_integer(raw):
        return data
    try:
        return json.loads(raw)
    except RecursionError:
        return data


def dump(value: Any, option: int = 0) -> bytes:
    """A value as JSON, with orjson's options for the order of keys, indentation and the end of the line.

    Raises:
        TypeError: it cannot be written as JSON.
    """
    try:
        return orjson.dumps(value, option=option)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
        try:
            return _dump_large(value, option)
        except (ValueError, RecursionError):
            raise error from None


def on_one_line(data: bytes) -> bytes:
    """JSON in UTF-8 in which no character within a string ends a line, for readers that split at more than a newline.

    Those are U+0085, U+2028 and U+2029, as `str.splitlines` and JavaScript count; JSON escapes the others itself.
    """
    if not data.isascii():  # seen in no time, where a search takes longer than to write the line
        for raw, escaped in _LINE_ENDS:
            data = data.replace(raw, escaped)
    return data


_LINE_ENDS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))


def has_large_integer(raw: bytes) -> bool:
    """Whether a number may stand in JSON that 64 bits do not hold; a text that looks like one counts as well."""
    # `in` would first try to take the bytes for a number, which costs as much as the search.
    if raw[::_SAMPLED].translate(_ZEROS).find(_SAMPLE) < 0:
        return False
    return raw.translate(_ZEROS).find(_RUN) >= 0 and _LARGE.search(raw) is not None


def _dump_large(value: Any, option: int) -> bytes:
    is_indented = bool(option & orjson.OPT_INDENT_2)
    text = json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        indent=2 if is_indented else None,
        separators=(",", ": " if is_indented else ":"),
        sort_keys=bool(option & orjson.OPT_SORT_KEYS),
    )
    return text.encode() + b"\n" * bool(option & orjson.OPT_APPEND_NEWLINE)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return number
