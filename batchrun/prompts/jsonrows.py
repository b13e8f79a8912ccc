"""Read a JSON array, or JSON values that go over several lines: each value becomes one JSON line, as it is written."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from batchrun.errors import InputError
from batchrun.prompts.formats import CONVERT_TO_UTF_8, refuse_binary
from batchrun.prompts.lines import MAX_LINE_BYTES, in_blocks

_READ_BYTES = 1 << 16
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_LINE_END = re.compile(r"[\r\n]\s*")
"""Between the tokens of a value: within a string there is none."""


def json_values(file: BinaryIO, path: str) -> Iterator[bytes]:
    """The values of a JSON file as JSON lines, in blocks.

    Args:
        file: The file, at its beginning.
        path: Its path in messages.

    Raises:
        InputError: it is not JSON, ends too early, or has a value of more than 64 MiB.
    """
    yield from in_blocks(
        (_LINE_END.sub("", text) if "\n" in text or "\r" in text else text).encode()
        for text in _Values(file, path).each()
    )


class _Values:
    """The values of a file. Only the one that is being read is in memory."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._read_value = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse).raw_decode
        self._text = ""
        self._at = 0
        self._line = 1
        self._rows = 0
        self._is_first = True
        self._is_over = False

    def each(self) -> Iterator[str]:
        """Each value as it is written."""
        is_array = self._next_char() == "["
        self._at += is_array
        if is_array and self._next_char() == "]":
            self._at += 1
        elif is_array:
            yield from self._elements()
        while self._next_char():
            if is_array:
                self._fail("there is more after the array")
            yield self._value()

    def _elements(self) -> Iterator[str]:
        while True:
            yield self._value()
            end = self._next_char()
            self._at += 1
            if end == "]":
                return
            if end != ",":
                self._at -= 1
                self._fail("expected `,` or `]` after it" if end else "the array does not end: the file is cut off")
            self._next_char()

    def _next_char(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None  # noqa: S101 - it matches nothing, too
            self._line += self._text.count("\n", self._at, found.end())
            self._at = found.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def _value(self) -> str:
        self._rows += 1
        self._next_char()
        while True:
            try:
                _, end = self._read_value(self._text, self._at)
                if end < len(self._text) or not self._read_more():
                    break
            except (json.JSONDecodeError, RecursionError) as error:
                if len(self._text) - self._at > MAX_LINE_BYTES or not self._read_more():
                    self._fail(self._reason(error))
        text = self._text[self._at : end]
        self._at = end
        self._line += text.count("\n")
        return text

    def _read_more(self) -> bool:
        """Read as much again as is left, so that a long value is not begun too often; False at the end."""
        if self._is_over:
            return False
        block = self._file.read(max(_READ_BYTES, len(self._text) - self._at))
        if self._is_first:
            refuse_binary(self._path, block[:64])
        self._is_first, self._is_over = False, not block
        try:
            more = self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            place = f"after row {self._rows} (line {self._line})" if self._rows else "before the first row"
            raise InputError(
                f"{self._path}: byte 0x{error.object[error.start]:02x} {place} is not UTF-8",
                CONVERT_TO_UTF_8,
            ) from error
        if block:
            self._text, self._at = self._text[self._at :] + more, 0
        return not self._is_over

    def _reason(self, error: json.JSONDecodeError | RecursionError) -> str:
        if isinstance(error, RecursionError):
            return "it is nested too deeply"
        line = self._line + self._text.count("\n", self._at, error.pos)
        return f"invalid JSON on line {line}: {error.msg}"

    def _fail(self, what: str) -> NoReturn:
        raise InputError(
            f"{self._path}: row {self._rows} (line {self._line}): {what}",
            "a .json file has an array of objects, or objects one after another",
        )


def _refuse(constant: str) -> NoReturn:
    raise json.JSONDecodeError(f"{constant} is not a JSON value", constant, 0)
