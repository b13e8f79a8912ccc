"""Text on a terminal: its width in columns, and the escaping of control characters.

Text from outside and file names may contain anything. Pure, and linear in the length of the text.
"""

from __future__ import annotations

import json
import re
from unicodedata import category, combining, east_asian_width


def visible(text: str) -> str:
    r"""Text with control characters and invisible characters escaped, as `\x1b` or `\u202e`.

    Newlines and tabs are kept.
    """
    return text if text.isascii() and text.isprintable() else _UNSEEN.sub(_escaped, text)


def visible_json(data: bytes, *, ascii_only: bool = False) -> str:
    """JSON text with such characters as JSON escapes: the same value, but safe for a terminal.

    Args:
        data: JSON in UTF-8.
        ascii_only: Whether to escape all characters outside ASCII, so that the JSON is valid in any locale.
    """
    return (_NOT_ASCII if ascii_only else _UNSEEN).sub(_json_escaped, data.decode())


def columns_of(text: str) -> int:
    """The width of a text in columns: two for a wide character, none for a combining one."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def fitted(text: str, columns: int) -> str:
    """A text padded or cut to this many columns."""
    text = clipped(text, columns)
    return text + " " * (columns - columns_of(text))


def clipped(text: str, columns: int, mark: str = "…") -> str:
    """A text cut to at most this many columns; `mark` shows that it was cut."""
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


# Controls except tab and newline, invisible and bidirectional formatting, line separators, lone surrogates, tags.
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
