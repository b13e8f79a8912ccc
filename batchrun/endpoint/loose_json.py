"""Parse JSON as Python workers write it: a strict parser refuses some, and no finished job may be lost for that.

NaN and infinite numbers become null, half a surrogate pair a question mark, and bytes that are not UTF-8 the
replacement character (old workers cut streams at any byte). What is nested too deeply for any parser is replaced by a
text that says so. Every step takes time in proportion to the text.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from typing import Any

import orjson

from batchrun.files.exactjson import load as load_exactly

_MAX_DEPTH = 500
_TOO_DEEP = '"nested too deeply to be read"'
_MARK = re.compile(r'"[^"]*"?|[\[{]+|[\]}]+')


def load(body: bytes) -> Any:
    """Parse a body as leniently as Python does.

    Raises:
        ValueError: it is not JSON even so.
    """
    text = body.decode("utf-8-sig", "replace")
    try:
        return _parsed(text)
    except RecursionError:
        marks = _without_escapes(text)
        if not _is_balanced(marks):
            raise ValueError("a bracket is not closed") from None
        return _parsed(_flattened(text, marks))


def _parsed(text: str) -> Any:
    try:
        data = json.loads(text, parse_constant=lambda _: None)
    except json.JSONDecodeError:
        raise
    except ValueError:
        pass  # a number has more digits than Python converts
    else:
        with suppress(ValueError):
            return _as_orjson(data)
    # A number exceeds a double, or has too many digits. Only then is each looked at, which takes longer.
    return _as_orjson(json.loads(text, parse_constant=lambda _: None, parse_int=_int_or_none, parse_float=_finite))


def _as_orjson(data: Any) -> Any:
    raw = json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    try:
        return load_exactly(raw)
    except orjson.JSONDecodeError:  # from Python 3.12 on, the standard library accepts deeper nesting than orjson
        raise RecursionError from None


def _without_escapes(text: str) -> str:
    """JSON text with its escapes blanked: every quote begins or ends a string, so none is searched twice."""
    return text.replace("\\\\", "  ").replace('\\"', "  ")


def _is_balanced(marks: str) -> bool:
    outside = "".join(marks.split('"')[::2])
    return all(outside.count(opening) == outside.count(closing) for opening, closing in ("[]", "{}"))


def _flattened(text: str, marks: str) -> str:
    """JSON text in which everything that is nested too deeply is replaced by a string that says so."""
    kept, start, depth = [], 0, 0
    for match in _MARK.finditer(marks):
        run = match[0]
        if run[0] == '"':
            continue
        opens = run[0] in "[{"
        before, depth = depth, depth + (len(run) if opens else -len(run))
        if opens and before < _MAX_DEPTH <= depth:
            kept += [text[start : match.start() + _MAX_DEPTH - 1 - before], _TOO_DEEP]
            start = len(text)
        elif not opens and depth < _MAX_DEPTH <= before:
            start = match.start() + before - _MAX_DEPTH + 1
    return "".join([*kept, text[start:]])


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _int_or_none(digits: str) -> int | None:
    try:
        return int(digits)
    except ValueError:
        return None
