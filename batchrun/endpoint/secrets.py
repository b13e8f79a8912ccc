"""Redact secrets in text from outside, before it reaches a file, a log or a screen.

A server, a proxy or a worker may repeat what it was sent, including the API key. Pure, and linear in the text.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit

MARK = "[redacted]"
"""Replaces a secret."""

_PART_CHARS = 12
"""A part of a secret of this length is as secret as the whole."""
_BLOCK_CHARS = 8
_STEP = _PART_CHARS - _BLOCK_CHARS + 1
"""Every part in a text contains a whole block that begins at a multiple of this: only these need to be looked up."""
_BLOCKS = re.compile(f"(?s)(?=(.{{{_BLOCK_CHARS}}})).{{{_STEP}}}")
_WORD_CHARS = 8
"""A shorter secret is only found as a separate word: `key` is not a secret in `monkey`."""


class Secrets:
    """The texts that must not be written or shown: the API key, and passwords.

    Whole secrets and parts of at least 12 characters are found as they are, in base64 (also within that of a longer
    text, as in `base64("user:key")`), percent-encoded, and escaped as in JSON.

    Args:
        secrets: The secrets; None and empty texts are ignored.
    """

    def __init__(self, *secrets: str | None) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        self._parts = {part for form in forms for part in _pieces(form, _PART_CHARS)}
        self._blocks = {block for part in self._parts for block in _pieces(part, _BLOCK_CHARS)}
        short = sorted((form for form in forms if len(form) < _PART_CHARS), key=len, reverse=True)
        words = "|".join(re.escape(form) if len(form) >= _WORD_CHARS else _as_word(form) for form in short)
        self._short = re.compile(words) if short else None

    def hide(self, text: str) -> str:
        """The text with a mark in place of each secret or part of one."""
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
        """The positions of the parts, in order; they may overlap."""
        blocks, parts = self._blocks, self._parts
        for block in range(0, len(text) - _BLOCK_CHARS + 1, _STEP):
            if text[block : block + _BLOCK_CHARS] not in blocks:
                continue
            for first in range(max(block - _STEP + 1, 0), block + 1):
                if text[first : first + _PART_CHARS] in parts:
                    # Everything between the first and the last belongs to one of them.
                    last = block
                    while text[last : last + _PART_CHARS] not in parts:
                        last -= 1
                    yield first, last + _PART_CHARS
                    break


def _forms(secret: str) -> Iterator[str]:
    """The forms that a secret may have in a text."""
    yield secret
    yield quote(secret, safe="")
    escaped = json.dumps(secret)[1:-1]
    yield escaped
    yield escaped.replace("/", "\\/")
    data = secret.encode("utf-8", "surrogatepass")
    for ahead in range(3):
        # The characters at its ends are cut off: they depend on what precedes and follows the secret.
        whole = b64encode(b"\0" * ahead + data).decode()[-(-ahead * 8 // 6) : (ahead + len(data)) * 8 // 6]
        if len(whole) >= _WORD_CHARS:
            yield whole
            yield whole.replace("+", "-").replace("/", "_")


def _pieces(text: str, chars: int) -> Iterator[str]:
    return (text[at : at + chars] for at in range(len(text) - chars + 1))


def _as_word(text: str) -> str:
    return rf"(?<![0-9A-Za-z]){re.escape(text)}(?![0-9A-Za-z])"


def url_secrets(url: str | None) -> tuple[str, ...]:
    """The secrets in a URL such as that of a proxy: its password, as written and decoded."""
    try:
        parts = urlsplit(url or "")
        name, password = parts.username or "", parts.password
    except ValueError:
        return ()
    if not password:
        return ()
    return password, unquote(password), f"{unquote(name)}:{unquote(password)}"
