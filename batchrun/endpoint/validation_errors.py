"""Make one line of pydantic's complaints about an invalid request: which field, what is expected, what was sent.

vLLM answers with them (HTTP 400), and so do the handlers of many workers. A message without the field is useless, and
there may be 22 complaints about a single wrong field, one for each alternative that it could have been (observed with
vLLM 0.32). Pure, and nothing here raises on any input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

HEAD = re.compile(r"(\d{1,6}) validation errors?(?: for \S{1,200})?:?[ \t]*\n")
"""The first line, with the number of complaints."""

_MOST_READ = 50
_MAX_GOT_CHARS = 60
_MAX_PART_CHARS = 60
_MOST_PARTS = 20
_MAX_LINE_CHARS = 1000
_ALTERNATIVE = re.compile(r"(?:[A-Z][a-z0-9]+){2,}\w*|[^\[({]*[\[({].*", re.DOTALL)
"""A part of a place that is not a field, but a type that the value may have."""
_NATIVE = re.compile(r"[ \t]*(.+?) \[type=(\w{1,60}), input_value=(.*), input_type=(\w{1,60})\][ \t]*")
_NO_STRING = re.compile(r"<.*>|None|True|False|-?\d[\d.eE+-]*")
_OF_A_STRING = frozenset({"int_parsing", "float_parsing"})
_IN_JSON = {"None": "null", "True": "true", "False": "false"}
_UNABLE = re.compile(r", unable to (?:parse|interpret) [\w ]*$")


def complaints(text: str, literal: Callable[[str], Any]) -> Iterator[dict[str, Any]]:
    """The complaints in the lines below the head.

    Args:
        text: The lines. For each complaint: a Python repr (vLLM); or a place, what is wrong, and a link (pydantic).
        literal: Parses a Python repr; returns None for any other text.
    """
    place = ""
    for line in text.split("\n", _MOST_READ)[:_MOST_READ]:
        if line.lstrip().startswith("{"):
            found = literal(line.strip())
            if isinstance(found, dict) and is_complaint(found):
                yield found
        elif match := _NATIVE.fullmatch(line) if len(line) <= _MAX_LINE_CHARS else None:
            message, kind, given, given_type = match.groups()
            got = {"input": given} if given_type in ("str", "int", "float", "bool", "NoneType") else {}
            yield {"loc": place, "msg": message, "type": kind, "is_repr": True, **got}
        elif line.strip():
            place = line.strip()


def is_complaint(value: Any) -> bool:
    """Whether an object is one of pydantic's complaints, with a place and a message."""
    return isinstance(value, dict) and isinstance(value.get("loc"), (str, tuple, list)) and bool(value.get("msg"))


def said(found: Sequence[Mapping[str, Any]], count: int) -> str:
    """The most helpful complaint, and how many others there are.

    It is the first about something that was sent. If all are about missing fields, it is the first.

    Args:
        found: At least one complaint.
        count: The number of all complaints.
    """
    one = next((complaint for complaint in found if complaint.get("type") != "missing"), found[0])
    is_missing = one.get("type") == "missing"
    place = _place(one["loc"], cut=is_missing)
    message = _UNABLE.sub("", str(one["msg"]))
    got = "" if is_missing else _got(one)
    more = f" (and {count - 1} more)" if count > 1 else ""
    return f"{place}{': ' if place else ''}{message}{got}{more}"


def _place(loc: str | Sequence[Any], *, cut: bool) -> str:
    """A place as it is written in a program: `messages[0].content`.

    A field that is missing in one alternative may not belong to the one that was meant: `cut` omits it.
    """
    parts = loc.split(".", _MOST_PARTS) if isinstance(loc, str) else [str(part) for part in loc[:_MOST_PARTS]]
    parts = [part[:_MAX_PART_CHARS] for part in parts[:_MOST_PARTS]]
    if parts and parts[0] == "body":
        parts = parts[1:]
    place = ""
    for part in parts:
        if part.isdecimal():
            place += f"[{part}]"
        elif _ALTERNATIVE.fullmatch(part):
            if cut:
                break
        else:
            place += f".{part}" if place else part
    return place


def _got(complaint: Mapping[str, Any]) -> str:
    if "input" not in complaint:
        return ""
    value, kind = complaint["input"], str(complaint.get("type"))
    if isinstance(value, (dict, list, tuple)):
        value = f"<{type(value).__name__} of {len(value)} items>"
    # vLLM writes every value as text: '5' was a number, unless it was to be parsed.
    is_text = isinstance(value, str) and not complaint.get("is_repr")
    shown = str(value)[: 2 * _MAX_GOT_CHARS]
    if is_text and (kind in _OF_A_STRING or not _NO_STRING.fullmatch(shown)):
        shown = repr(shown)
    shown = _IN_JSON.get(shown, shown)
    return f" (got {shown if len(shown) <= _MAX_GOT_CHARS else shown[: _MAX_GOT_CHARS - 1] + '…'})"
