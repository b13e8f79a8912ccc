"""Text on a terminal: how many columns it takes, and what would move the cursor is shown escaped.

Text from outside and file names may hold anything. Pure, and linear in the text.
"""

from __future__ import annotations

import json
import re
from unicodedata import category, combining, east_asian_width


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
