"""Recognize a line again: by its bytes, by its request, and by an id that survives reordering."""

from __future__ import annotations

from base64 import b32encode
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from zlib import crc32

import orjson

from batchrun.files.exactjson import dump
from batchrun.files.urls import place_in
from batchrun.prompts.shapes import LineError, Prompt

DIGEST_BYTES = 16
"""The length of a `line_digest`, with which that what a line is known by begins."""
_ID_BYTES = 10
"""80 bits in 16 letters: two of a million different requests share an id in one of 2.4 trillion runs."""
_ID_CHARS = 16
_ASKED_BYTES = 8
_ASKED_CHARS = 12
"""The letters of an id that depend on these bytes alone."""
_CARRIED_BYTES = 2
_SORTED = orjson.OPT_SORT_KEYS
_NOTHING_CARRIED = bytes(_CARRIED_BYTES)


def line_digest(raw: bytes) -> bytes:
    """16 bytes that change whenever the line does."""
    return blake2b(raw, digest_size=DIGEST_BYTES).digest()


def known_by(prompt: Prompt, raw: bytes) -> tuple[str, bytes]:
    """A line's id, and 26 bytes by which it is recognized, even if it is written differently.

    The first 16 are the `line_digest`; the next 8 change with its own id and its request; the last 2 with its carried
    fields. State files of earlier versions have only the first 16.
    """
    line_id = prompt.id
    if line_id is None:
        asked = _asked(prompt)
        line_id = _as_id(asked)
        asked = asked[:_ASKED_BYTES]
    else:
        asked = blake2b(dump([line_id, prompt.request], _SORTED), digest_size=_ASKED_BYTES).digest()
    carried = _NOTHING_CARRIED
    if prompt.carried:
        carried = (crc32(dump(prompt.carried, _SORTED)) & 0xFFFF).to_bytes(_CARRIED_BYTES, "big")
    return line_id, blake2b(raw, digest_size=DIGEST_BYTES).digest() + asked + carried


def given_id(row_id: str, known: bytes) -> tuple[str, bool]:
    """The id of a line and whether it is derived, from that of its row, which may have a number, and `known_by`."""
    if row_id[_ID_CHARS : _ID_CHARS + 1] in ("", "-") and len(row_id) >= _ID_CHARS:
        begin = _as_id(parts(known)[1])[:_ASKED_CHARS]
        if row_id.startswith(begin):
            return row_id[:_ID_CHARS], True
    return row_id, False


def is_written_so(raw: bytes, known: bytes) -> bool:
    """Whether a line has exactly the bytes of the line that `known_by` gave these for."""
    return line_digest(raw) == known[:DIGEST_BYTES]


def parts(known: bytes) -> tuple[bytes, bytes, bytes]:
    """The parts of `known_by`: for the bytes, the request, the carried fields. Earlier versions have only the first."""
    asked_to = DIGEST_BYTES + _ASKED_BYTES
    return known[:DIGEST_BYTES], known[DIGEST_BYTES:asked_to], known[asked_to:]


def request_key(request: Mapping[str, Any], *apart: object) -> bytes:
    """16 bytes that are the same for equal requests, whatever the order of their keys.

    Args:
        request: The `input` object that is sent.
        apart: Values that must be equal, too.
    """
    return blake2b(_canonical([request, *apart]), digest_size=DIGEST_BYTES).digest()


def whole_request(request: Mapping[str, Any]) -> bytes:
    """A request as JSON; equal for requests that mean the same to any worker.

    The order of parameters does not matter. That of all other keys does: the tools and the schema of a request become
    part of its prompt as they are.
    """
    ordered = {}
    for key in sorted(request):
        value = request[key]
        is_body = key in ("sampling_params", "openai_input") and isinstance(value, dict)
        ordered[key] = dict(sorted(value.items())) if is_body else value
    return dump(ordered)


def derived_id(prompt: Prompt) -> str:
    """An id for a line that has none, derived from its request.

    It does not depend on the order of keys, white space, `metadata`, unknown fields, or options such as `--set`: the
    same request has the same id in every run. Equal lines share it; if they meet in a run, they are also numbered.
    """
    return _as_id(_asked(prompt))


class SeenIds:
    """Finds ids that occur twice, by 8 bytes of their digests: about 150 bytes of memory for each id.

    Args:
        by_file: Whether each file may use an id once.
    """

    def __init__(self, *, by_file: bool = False) -> None:
        self._by_file = by_file
        self._files: dict[str, int] = {}
        self._seen: dict[int, tuple[int, int]] = {}

    def first(self, line_id: str, file: str, line: int) -> str | None:
        """Where an id occurred before, see `place_in`; None if it is new.

        Args:
            line_id: The id.
            file: The file of the line that has it.
            line: The number of that line, 1-based.
        """
        number = self._files.setdefault(file, len(self._files))
        name = f"{number}:{line_id}" if self._by_file else line_id
        key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
        first = self._seen.setdefault(key, (number, line))
        return None if first == (number, line) else place_in(list(self._files)[first[0]], first[1])

    def refuse_twice(self, line_id: str | None, file: str, line: int) -> None:
        """Refuse an id that occurred before, see `first`; None, for a line without one, is not refused.

        Raises:
            LineError: it occurred before.
        """
        if line_id is not None and (first := self.first(line_id, file, line)):
            raise LineError(f"duplicate id {line_id!r}, first at {first}")


def _asked(prompt: Prompt) -> bytes:
    return blake2b(_canonical(prompt.request), digest_size=_ID_BYTES).digest()


def _as_id(digest: bytes) -> str:
    return b32encode(digest).decode("ascii").lower()


def _canonical(value: Any) -> bytes:
    return dump(value, _SORTED)
