"""Paths into a record, such as `variant.temperature` and `output.0.choices`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

_POSITION = re.compile(r"[0-9]{1,9}")


def values_at(value: Any, names: Sequence[str]) -> Iterator[Any]:
    """What a path may lead to, the likeliest first: the names of some fields, such as a variant's, contain dots.

    Args:
        value: Where the path begins.
        names: Its parts between dots: names of fields, and positions in lists.
    """
    if not names:
        yield value
    elif isinstance(value, dict):
        for count in range(len(names), 0, -1):
            key = ".".join(names[:count])
            if key in value:
                yield from values_at(value[key], names[count:])
    elif isinstance(value, list) and _POSITION.fullmatch(names[0]) and int(names[0]) < len(value):
        yield from values_at(value[int(names[0])], names[1:])
