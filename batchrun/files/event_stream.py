"""Read server-sent events: the JSON objects in the `data` lines of a text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, TypeGuard

from batchrun.files.exactjson import load

_DATA = re.compile(r"^data:[ \t]*(\{[^\n]*\})[ \t\r]*$", re.MULTILINE)
"""A line ends with a newline only: a line separator inside a JSON string is part of it."""
_AT_ONCE = 200
"""Events that are parsed together, which takes half the time; a broken one costs parsing these again."""


def is_all_text(output: Any) -> TypeGuard[list[str]]:
    """Whether an output is a list of strings: the pieces of a stream that was cut anywhere."""
    if not isinstance(output, list) or not output or not isinstance(output[0], str):
        return False
    return all(isinstance(part, str) for part in output)


def has_events(text: str) -> bool:
    """Whether a text begins with an event."""
    return text.startswith(("data:", "event:"))


def events(text: str, word: str = "") -> Iterator[dict[str, Any]]:
    """The objects in the data of a text's events that contain a word; anything else is skipped."""
    found = (match[1] for match in _DATA.finditer(text))
    if word:
        found = (data for data in found if word in data)
    while some := list(islice(found, _AT_ONCE)):
        yield from (event for event in _parsed(some) if isinstance(event, dict))


def _parsed(some: list[str]) -> Iterator[Any]:
    try:
        yield from load(f"[{','.join(some)}]".encode())
    except ValueError:
        for data in some:
            with suppress(ValueError):
                yield load(data.encode())
