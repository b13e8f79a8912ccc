from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import InputError
from batchrun.prompts import lines as lines_module
from batchrun.prompts.lines import LineReader, LineTooLongError, iter_lines

if TYPE_CHECKING:
    from pathlib import Path


def test_blank_lines_count_but_are_skipped_and_line_ends_do_not_matter():
    content = b'\xef\xbb\xbf"a"\r\n\n  \t\n "b" \n"c"'
    found = list(iter_lines(io.BytesIO(content)))
    assert [(line.number, line.raw) for line in found] == [(1, b'"a"'), (4, b'"b"'), (5, b'"c"')]
    assert all(content[line.offset : line.offset + len(line.raw)] == line.raw for line in found)


@given(st.lists(st.binary(max_size=30)))
def test_the_position_of_a_line_leads_back_to_it(pieces):
    content = b"\n".join(pieces)
    for line in iter_lines(io.BytesIO(content)):
        assert content[line.offset : line.offset + len(line.raw)] == line.raw
        assert line.raw.strip() == line.raw != b""


class Endless(io.RawIOBase):
    """A file of one line that never ends."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_a_line_without_an_end_is_not_read_into_memory():
    with pytest.raises(LineTooLongError, match="1: longer than 64 MiB"):
        list(iter_lines(io.BufferedReader(Endless())))
    assert lines_module.MAX_LINE_BYTES == 64 << 20


def test_a_file_that_is_replaced_is_still_read_as_it_was(tmp_path: Path):
    path, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_bytes(b'"old"\n')
    with LineReader({3: path}) as reader:
        other.write_bytes(b'"new"\n')
        other.replace(path)
        assert reader.read(3, 0, 5) == b'"old"'


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.jsonl: No such file"):
        LineReader({0: tmp_path / "none.jsonl"})
