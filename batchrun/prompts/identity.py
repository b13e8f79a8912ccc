"""How a line is known again: by its bytes, and by a name that survives reordering."""

from __future__ import annotations

from base64 import b32encode
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from batchrun.exactjson import dump

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchrun.prompts.shapes import Prompt

_DIGEST_BYTES = 16
_ID_BYTES = 10
"""80 bits in 16 letters: two of a million different requests share an id once in 2.4 million million runs."""


def line_digest(raw: bytes) -> bytes:
    """16 bytes that change when the line does."""
    return blake2b(raw, digest_size=_DIGEST_BYTES).digest()


def request_key(request: Mapping[str, Any], *apart: object) -> bytes:
    """16 bytes that two requests share when they ask for the same, whatever the order of their keys.

    Args:
        request: The `input` object that is sent.
        apart: What else must be equal.
    """
    return blake2b(dump([request, *apart], orjson.OPT_SORT_KEYS), digest_size=_DIGEST_BYTES).digest()


def derived_id(prompt: Prompt) -> str:
    """An id for a line that has none, from what it asks for.

    It does not depend on the order of keys, on white space, on `metadata` or unknown fields, nor on options such as
    `--set`: the same question has the same id in every run. Equal lines share it, and are numbered where they meet.
    """
    canonical = dump(prompt.request, orjson.OPT_SORT_KEYS)
    return b32encode(blake2b(canonical, digest_size=_ID_BYTES).digest()).decode("ascii").lower()
