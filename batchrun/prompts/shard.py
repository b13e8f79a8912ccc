"""A part of the lines of a run's inputs, for one of several machines.

A line falls to a shard by what names it: its own id, or the one that is derived from what it asks for. So it does not
matter in which order or file it stands, and equal lines, which are told apart by their number, stay together. The rows
that a sweep makes of a line stay together too: each shard is a balanced sample.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from batchrun.errors import UsageError

MAX_SHARDS = 100_000
_DIGEST_BITS = 128


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` parts; `index` counts from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`3/8`.

        Raises:
            UsageError: it is no such pair, or the index is not within the count.
        """
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
        if match is None:
            raise UsageError(f"--shard {text!r} is not I/N, for example 3/8", "the shards are counted from 1")
        index, count = int(match[1]), int(match[2])
        if not 1 <= index <= count <= MAX_SHARDS:
            hint = "the shards are counted from 1: of an array that counts from 0 take $((INDEX + 1))"
            raise UsageError(f"--shard {text.strip()}: there is no such shard", hint)
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, line_id: str) -> bool:
        """Whether a line with this id falls to it."""
        digest = blake2b(line_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"shard").digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1


class LineSum:
    """Tells sets of lines apart, whatever their order: their number, and the sum of their digests.

    Args:
        lines: How many have been added before.
        total: Their sum, modulo 2^128.
    """

    def __init__(self, lines: int = 0, total: int = 0) -> None:
        self.lines = lines
        self._total = total

    def add(self, digest: bytes) -> None:
        """Add a line by the digest of its bytes."""
        self.lines += 1
        self._total = (self._total + int.from_bytes(digest, "big")) % (1 << _DIGEST_BITS)

    def __add__(self, other: LineSum) -> LineSum:
        return LineSum(self.lines + other.lines, (self._total + other._total) % (1 << _DIGEST_BITS))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LineSum) and (self.lines, self._total) == (other.lines, other._total)

    def __hash__(self) -> int:
        return hash((self.lines, self._total))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"lines": self.lines, "sum": f"{self._total:032x}"}

    @classmethod
    def from_json(cls, data: Any) -> LineSum:
        """The inverse of `to_json`."""
        return cls(int(data["lines"]), int(data["sum"], 16))
