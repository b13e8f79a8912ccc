"""Select a part of the lines of a run's inputs, for one of several machines.

The shard of a line depends only on its id: its own, or the one that is derived from its request. So its order and its
file do not matter, and equal lines, which differ only in their number, stay together. The rows that a sweep makes of a
line stay together, too: each shard is a balanced sample.
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
        """Parse a text such as `3/8`.

        Raises:
            UsageError: it is not such a pair, or the index is not between 1 and the count.
        """
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
        if match is None:
            raise UsageError(f"--shard {text!r} is not I/N, for example 3/8", "shards are counted from 1")
        index, count = int(match[1]), int(match[2])
        if not 1 <= index <= count <= MAX_SHARDS:
            hint = "shards are counted from 1: for a job array that counts from 0, use $((INDEX + 1))"
            raise UsageError(f"--shard {text.strip()}: there is no such shard", hint)
        return cls(index, count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, line_id: str) -> bool:
        """Whether a line with this id belongs to this shard."""
        digest = blake2b(line_id.encode("utf-8", "surrogatepass"), digest_size=8, person=b"shard").digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1


class LineSum:
    """Identifies a set of lines, in any order, by their number and the sum of their digests.

    Args:
        lines: The number of lines so far.
        total: The sum of their digests, modulo 2^128.
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
        """The sum as JSON values."""
        return {"lines": self.lines, "sum": f"{self._total:032x}"}

    @classmethod
    def from_json(cls, data: Any) -> LineSum:
        """The inverse of `to_json`."""
        return cls(int(data["lines"]), int(data["sum"], 16))
