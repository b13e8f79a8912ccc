"""Parts of files are the same whether they are read one by one or together, in whatever order they are asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchrun.files.places import read_places

FILES = {number: bytes((number + index * 7) % 251 for index in range(20_000)) for number in (1, 2)}
places = st.tuples(st.sampled_from((1, 2)), st.integers(0, 21_000), st.integers(0, 3_000))


@given(st.lists(places, max_size=30))
def test_each_place_has_its_own_bytes(wanted: list[tuple[int, int, int]]):
    def read(file: int, offset: int, length: int) -> bytes:
        return FILES[file][offset : offset + length]

    assert read_places(wanted, read) == [read(*place) for place in wanted]


def test_lines_that_follow_one_another_are_read_at_once_but_never_much_more():
    calls = []

    def read(_: int, offset: int, length: int) -> bytes:
        calls.append((offset, length))
        return bytes(length)

    read_places([(1, 1000 * n, 1000) for n in range(3000)], read)
    assert len(calls) == 47
    assert max(length for _, length in calls) <= 1 << 16
