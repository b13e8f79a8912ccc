"""Write a value as one line of JSON, however deeply it is nested."""

from __future__ import annotations

import json
from typing import Any

import orjson

from batchrun.files.exactjson import dump, load, on_one_line

TOO_DEEP = "nested too deeply to be written as JSON"
_AROUND = 8
"""The levels of nesting that a record adds around a value."""


def write_line(record: dict[str, Any]) -> bytes:
    """A record as a line with its line end; a field nested too deeply for any JSON writer is replaced by `TOO_DEEP`."""
    try:
        line = dump(record, orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        line = orjson.dumps({key: _deep(value) for key, value in record.items()}, option=orjson.OPT_APPEND_NEWLINE)
    return on_one_line(line)


def _deep(value: Any) -> Any:
    try:
        return orjson.Fragment(deep_json(value))
    except RecursionError:
        return TOO_DEEP


def deep_json(value: Any) -> str:
    """A value as JSON text that can be read back inside a record.

    orjson reads 1,024 levels and writes 254; the standard library writes nearly 1,000, and more from Python 3.12 on.

    Raises:
        RecursionError: it is nested too deeply.
    """
    text = json.dumps(value)
    try:
        load(b"[" * _AROUND + text.encode() + b"]" * _AROUND)
    except orjson.JSONDecodeError:
        raise RecursionError from None
    return text
