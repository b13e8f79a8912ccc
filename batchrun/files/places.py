"""Reads many parts of files by their positions, those that are near each other at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_GAP_BYTES = 1 << 12
"""Reading over a gap of this size takes about as long as another call of the system."""
_MOST_BYTES = 1 << 16

Place = tuple[int, int, int]
"""The number of a file, an offset in it and a length, both in bytes."""


def read_places(places: Sequence[Place], read: Callable[[int, int, int], bytes]) -> list[bytes]:
    """The bytes at some places, in order.

    Args:
        places: The places, in any order; equal ones are allowed.
        read: Returns the bytes at one place, fewer if the file ends before; called for places that may contain several
            of the wanted ones, up to about 64 KiB of bytes that are not wanted alone.
    """
    found = [b""] * len(places)
    order = sorted(range(len(places)), key=places.__getitem__)
    first = 0
    while first < len(order):
        file, start, length = places[order[first]]
        end, last = start + length, first + 1
        while last < len(order):
            next_file, offset, length = places[order[last]]
            if next_file != file or offset > end + _GAP_BYTES or offset + length > start + _MOST_BYTES:
                break
            end = max(end, offset + length)
            last += 1
        block = read(file, start, end - start)
        if last == first + 1:
            found[order[first]] = block
        else:
            for index in order[first:last]:
                _, offset, length = places[index]
                found[index] = block[offset - start : offset - start + length]
        first = last
    return found
