"""Conditions on the fields of a record: `finish_reason=length`, `variant.temperature!=0`, `text~(?i)sorry`. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

from batchrun.errors import UsageError, shown
from batchrun.files.exactjson import dump, load
from batchrun.results.paths import values_at

_WRITTEN = re.compile(r"([^=!~]+)(!=|=|~)(.*)", re.DOTALL)
_ABSENT = object()


class Conditions:
    """Conditions that a record must all meet.

    Args:
        written: Each as `PATH=VALUE`, `PATH!=VALUE` or `PATH~REGEX`. PATH is a field, or fields and positions in lists
            with dots between them. VALUE is read as JSON if possible, and is else text; an absent field is null, and an
            empty VALUE stands for null and for empty text. REGEX is searched in text, and in the JSON of other values.

    Raises:
        UsageError: one cannot be read.
    """

    def __init__(self, written: Sequence[str]) -> None:
        self._conditions = [_Condition(text) for text in written]
        self._has_looked = False

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._conditions)

    def hold(self, record: dict[str, Any]) -> bool:
        """Whether a record meets all of them."""
        self._has_looked = True
        # Each is evaluated, because each notes whether its field exists.
        held = [condition.holds(record) for condition in self._conditions]
        return all(held)

    def unknown_fields(self) -> list[str]:
        """The paths that none of the records so far has had; empty without records."""
        return [condition.path for condition in self._conditions if self._has_looked and not condition.is_known]


class _Condition:
    def __init__(self, written: str) -> None:
        parts = _WRITTEN.fullmatch(written)
        path = parts[1].strip() if parts else ""
        if parts is None or not all(path.split(".")):
            raise UsageError(
                f"--where {shown(written)} is not a condition",
                "give PATH=VALUE, PATH!=VALUE or PATH~REGEX, for example finish_reason=length",
            )
        self.path = path
        self.is_known = False
        self._names = path.split(".")
        self._operator, self._text = parts[2], parts[3]
        if self._operator != "~":
            self._text = self._text.strip()
            self._value = _read(self._text)
            return
        try:
            self._pattern = re.compile(self._text)
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(
                f"--where {shown(written)}: {shown(self._text)} is not a regular expression: {error}",
                "a special character is taken literally after a backslash",
            ) from error

    def holds(self, record: dict[str, Any]) -> bool:
        found = next(values_at(record, self._names), _ABSENT)
        self.is_known = self.is_known or found is not _ABSENT
        value = None if found is _ABSENT else found
        if self._operator == "~":
            return value is not None and self._pattern.search(_as_text(value)) is not None
        return self._equals(value) == (self._operator == "=")

    def _equals(self, value: Any) -> bool:
        if not self._text:
            return value is None or value == ""
        if isinstance(value, str) and value == self._text:
            return True
        # In Python, true equals 1.
        return isinstance(value, bool) == isinstance(self._value, bool) and bool(value == self._value)


def _read(text: str) -> Any:
    try:
        return load(text.encode())
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        return text


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return dump(value).decode()
    except TypeError:  # nested too deeply for any writer
        return str(value)
