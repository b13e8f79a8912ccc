"""Limit the memory of the answers that are held at once: those that are arriving, and those waiting to be written.

An answer counts with the memory that it takes when it is read, parsed and written, which is several times its size. If
there is no room, it waits, and so does its connection: the larger the answers are, the fewer are read at once.
"""

from __future__ import annotations

import asyncio
from itertools import count

BYTES_PER_BYTE = 10
"""The most memory for a byte of an answer: the body, its text, the line that has it twice, and copies of the line."""
_BYTES_PER_WIDE_BYTE = 10
"""Added if the text is not ASCII: Python may use four bytes for a character, and keeps its UTF-8 form, too."""
_BYTES_PER_VALUE = 80
"""Added for each value: an empty list has 56 bytes, a dict 64, and each has a reference in its parent."""


def parsed_bytes(body: bytes) -> int:
    """The memory that a parsed body takes in addition to `BYTES_PER_BYTE` for each of its bytes."""
    is_wide = not body.isascii() or b"\\u" in body
    values = sum(map(body.count, (b",", b":", b"[", b"{")))
    return _BYTES_PER_VALUE * values + (_BYTES_PER_WIDE_BYTE * len(body) if is_wide else 0)


class MemoryBudget:
    """The memory for all answers that are held.

    Args:
        size_bytes: The limit. An answer that exceeds it alone is let in when no other is waiting to be written.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._numbers = count(1)
        self._arriving: dict[int, int] = {}
        """Number of each arriving answer -> bytes that it holds, oldest first."""
        self._complete_bytes = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.held_bytes = 0
        """The bytes that are held now."""

    async def room(self, size_bytes: int) -> int:
        """Take memory for an answer that has arrived, as soon as there is room; returns the bytes to release later."""
        if self.held_bytes + size_bytes > self._size_bytes:
            number = self.begin()
            try:
                await self.grow(number, size_bytes)
                return self.complete(number)
            finally:
                self.abandon(number)
        self.held_bytes += size_bytes
        self._complete_bytes += size_bytes
        return size_bytes

    def release(self, size_bytes: int) -> None:
        """Give back the memory of a complete answer."""
        self.held_bytes -= size_bytes
        self._complete_bytes -= size_bytes
        if self._waiting:
            self._wake()

    def begin(self) -> int:
        """Record that an answer begins to arrive; returns its number."""
        number = next(self._numbers)
        self._arriving[number] = 0
        return number

    def has_room(self, number: int, size_bytes: int) -> bool:
        """Whether an answer may take `size_bytes` more now."""
        if self.held_bytes + size_bytes <= self._size_bytes:
            return True
        # Complete answers will be released. If there are none, the oldest must go on, or all would wait for each other.
        return not self._complete_bytes and next(iter(self._arriving)) == number

    async def grow(self, number: int, size_bytes: int) -> None:
        """Take more memory for an arriving answer, as soon as there is room."""
        while not self.has_room(number, size_bytes):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._arriving[number] += size_bytes
        self.held_bytes += size_bytes

    def complete(self, number: int) -> int:
        """Record that an answer has arrived; returns the bytes to release when it is no longer needed."""
        size_bytes = self._arriving.pop(number)
        self._complete_bytes += size_bytes
        self._wake()
        return size_bytes

    def abandon(self, number: int) -> None:
        """Record that an answer will not arrive; does nothing if it already has."""
        self.held_bytes -= self._arriving.pop(number, 0)
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
