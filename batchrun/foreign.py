"""Text that comes from outside: secrets are taken out of it, and what would move a terminal's cursor is shown escaped.

A server, a proxy or a worker may repeat what it was sent, the API key included; and a file name may hold anything.
Pure, and linear in the text.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from typing import TYPE_CHECKING
from unicodedata import category, combining, east_asian_width
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK = "[redacted]"
"""What stands where a secret stood."""

_PART_CHARS = 12
"""A part of a secret of this length is as secret as the whole."""
_BLOCK_CHARS = 8
_STEP = _PART_CHARS - _BLOCK_CHARS + 1
"""Every part in a text covers a whole block that begins at a multiple of this: only these need to be looked up."""
_BLOCKS = re.compile(f"(?s)(?=(.{{{_BLOCK_CHARS}}})).{{{_STEP}}}")
_WORD_CHARS = 8
"""A shorter secret is only known as a word of its own: `key` is no secret in `monkey`."""


class Secrets:
    """What must not be written down or shown: the API key, and passwords.

    A text is hidden from in whole secrets and in parts of 12 characters and more, as they are, in base64 (also within
    that of a longer text, as in `base64("user:key")`), percent-encoded, and escaped as in JSON.

    Args:
        secrets: Each of them; None and an empty text are none.
    """

    def __init__(self, *secrets: str | None) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        self._parts = {part for form in forms for part in _pieces(form, _PART_CHARS)}
        self._blocks = {block for part in self._parts for block in _pieces(part, _BLOCK_CHARS)}
        short = sorted((form for form in forms if len(form) < _PART_CHARS), key=len, reverse=True)
        words = "|".join(re.escape(form) if len(form) >= _WORD_CHARS else _as_word(form) for form in short)
        self._short = re.compile(words) if short else None

    def hide(self, text: str) -> str:
        """The text with a mark in place of each secret, and of each part of one."""
        if self._short is not None:
            text = self._short.sub(MARK, text)
        if self._blocks.isdisjoint(_BLOCKS.findall(text)):
            return text
        kept: list[str] = []
        end = 0
        for start, stop in self._spans(text):
            if start > end or not kept:
                kept += [text[end:start], MARK]
            end = stop
        return "".join([*kept, text[end:]])

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the parts stand, in order; they may overlap."""
        blocks, parts = self._blocks, self._parts
        for block in range(0, len(text) - _BLOCK_CHARS + 1, _STEP):
            if text[block : block + _BLOCK_CHARS] not in blocks:
                continue
            for first in range(max(block - _STEP + 1, 0), block + 1):
                if text[first : first + _PART_CHARS] in parts:
                    # All between the first and the last is part of one of them.
                    last = block
                    while text[last : last + _PART_CHARS] not in parts:
                        last -= 1
                    yield first, last + _PART_CHARS
                    break


def _forms(secret: str) -> Iterator[str]:
    """How a secret may stand in a text."""
    yield secret
    yield quote(secret, safe="")
    escaped = json.dumps(secret)[1:-1]
    yield escaped
    yield escaped.replace("/", "\\/")
    data = secret.encode("utf-8", "surrogatepass")
    for ahead in range(3):
        # What follows or goes before the secret changes the characters that hold some of its bits.
        whole = b64encode(b"\0" * ahead + data).decode()[-(-ahead * 8 // 6) : (ahead + len(data)) * 8 // 6]
        if len(whole) >= _WORD_CHARS:
            yield whole
            yield whole.replace("+", "-").replace("/", "_")


def _pieces(text: str, chars: int) -> Iterator[str]:
    return (text[at : at + chars] for at in range(len(text) - chars + 1))


def _as_word(text: str) -> str:
    return rf"(?<![0-9A-Za-z]){re.escape(text)}(?![0-9A-Za-z])"


def url_secrets(url: str | None) -> tuple[str, ...]:
    """What is secret in a URL such as that of a proxy: its password, as it stands there and decoded."""
    try:
        parts = urlsplit(url or "")
        name, password = parts.username or "", parts.password
    except ValueError:
        return ()
    if not password:
        return ()
    return password, unquote(password), f"{unquote(name)}:{unquote(password)}"


def without_user(url: str) -> str:
    """A URL without the name and the password that it may carry."""
    scheme, slashes, rest = url.partition("//")
    place, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{place.rpartition('@')[2]}{slash}{path}"


def visible(text: str) -> str:
    r"""A text in which characters that cannot be seen, or change what is seen, stand as `\x1b` or `\u202e`.

    Line ends and tabs stay.
    """
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub(_escaped, text)


def visible_json(data: bytes, *, ascii_only: bool = False) -> str:
    """JSON text with such characters as JSON escapes: the same value, and nothing for a terminal to act on.

    Args:
        data: JSON in UTF-8.
        ascii_only: Whether to escape all that is not ASCII, so that it is JSON in any locale.
    """
    return (_NOT_ASCII if ascii_only else _UNSEEN).sub(_json_escaped, data.decode())


def on_one_line(data: bytes) -> bytes:
    """JSON in UTF-8 in which no character within a string ends a line, for readers that split at more than a newline.

    Those are U+0085, U+2028 and U+2029, as `str.splitlines` and JavaScript count; JSON escapes the others itself.
    """
    if not data.isascii():  # seen in no time, where a search takes longer than to write the line
        for raw, escaped in _LINE_ENDS:
            data = data.replace(raw, escaped)
    return data


_LINE_ENDS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))


def columns_of(text: str) -> int:
    """How many columns a text takes on a terminal: two for a wide character, none for a combining one."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def fitted(text: str, columns: int) -> str:
    """A text that takes this many columns: filled up with blanks, or cut."""
    text = clipped(text, columns)
    return text + " " * (columns - columns_of(text))


def clipped(text: str, columns: int, mark: str = "…") -> str:
    """A text that takes this many columns at most; where it is cut, with a mark at its end."""
    if columns_of(text) <= columns:
        return text
    room = columns - len(mark)
    for end, char in enumerate(text):
        room -= _columns_of(char)
        if room < 0:
            return text[:end] + mark
    return text


def _columns_of(char: str) -> int:
    if combining(char) or category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(char) in "WF" else 1


# Controls but for tab and line end, invisible and bidirectional formatting, line separators, lone surrogates, tags.
_UNSEEN_CHARS = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    r"\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff"
)
_UNSEEN = re.compile(f"[{_UNSEEN_CHARS}]")
_NOT_ASCII = re.compile(r"[^\n\x20-\x7e]")


def _escaped(match: re.Match[str]) -> str:
    point = ord(match[0])
    return f"\\x{point:02x}" if point <= 0xFF else f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"  # noqa: PLR2004


def _json_escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"
