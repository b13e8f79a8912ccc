"""How much memory the answers may take that are held at once: those that arrive, and those that wait to be written.

An answer counts with what it takes once it is read, parsed and written, which is several times its bytes. One that
finds no room waits, with its connection, so fewer are read at once the larger they are.
"""

from __future__ import annotations

import asyncio
from itertools import count

BYTES_PER_BYTE = 10
"""What a byte of an answer takes at most: the body, its text, the line that has it twice, and the copies of that."""
_BYTES_PER_WIDE_BYTE = 10
"""What it takes besides where a text is not ASCII: up to four bytes a character in memory, and its UTF-8 beside it."""
_BYTES_PER_VALUE = 80
"""What a value of an answer takes besides: an empty list has 56 bytes, a dict 64, and each a place in another."""


def parsed_bytes(body: bytes) -> int:
    """What a body takes once it is parsed, besides `BYTES_PER_BYTE` for each of its bytes."""
    is_wide = not body.isascii() or b"\\u" in body
    values = sum(map(body.count, (b",", b":", b"[", b"{")))
    return _BYTES_PER_VALUE * values + (_BYTES_PER_WIDE_BYTE * len(body) if is_wide else 0)


class MemoryBudget:
    """The memory of all answers that are held.

    Args:
        size_bytes: How much there is. An answer that needs more by itself is let in when no other waits to be written.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._numbers = count(1)
        self._arriving: dict[int, int] = {}
        """What each answer has taken that is still arriving, oldest first."""
        self._complete_bytes = 0
        self._waiting: list[asyncio.Future[None]] = []
        self.held_bytes = 0
        """What is taken now."""

    async def room(self, size_bytes: int) -> int:
        """Room for an answer that has arrived, as soon as there is any; returns what is to be released."""
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
        """Give back what a complete answer took."""
        self.held_bytes -= size_bytes
        self._complete_bytes -= size_bytes
        if self._waiting:
            self._wake()

    def begin(self) -> int:
        """An answer begins to arrive; returns its number."""
        number = next(self._numbers)
        self._arriving[number] = 0
        return number

    def has_room(self, number: int, size_bytes: int) -> bool:
        """Whether an answer may take so much more now."""
        if self.held_bytes + size_bytes <= self._size_bytes:
            return True
        # What is complete goes by itself. Of those that arrive one must not wait, or each would wait for another.
        return not self._complete_bytes and next(iter(self._arriving)) == number

    async def grow(self, number: int, size_bytes: int) -> None:
        """An answer takes more, as soon as there is room."""
        while not self.has_room(number, size_bytes):
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
        self._arriving[number] += size_bytes
        self.held_bytes += size_bytes

    def complete(self, number: int) -> int:
        """An answer has arrived; returns what is to be released when it is not needed any more."""
        size_bytes = self._arriving.pop(number)
        self._complete_bytes += size_bytes
        self._wake()
        return size_bytes

    def abandon(self, number: int) -> None:
        """An answer will not arrive; does nothing when it has."""
        self.held_bytes -= self._arriving.pop(number, 0)
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)
