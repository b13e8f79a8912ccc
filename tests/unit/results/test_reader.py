from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batchrun.errors import StateError
from batchrun.results import reader
from batchrun.results.reader import LinesByPosition, StoredLine, in_groups, read_lines, size_of

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "r.jsonl").write_bytes(b"one\n\nthree\nfou")
    return tmp_path / "r.jsonl"


def test_lines_come_with_their_number_and_place(path: Path):
    assert list(read_lines(path, end=11)) == [(1, 0, b"one\n"), (2, 4, b"\n"), (3, 5, b"three\n")]
    assert list(read_lines(path, start=11, end=99, first=4)) == [(4, 11, b"fou")]


def test_a_line_that_reaches_beyond_the_end_is_cut_off_there(path: Path):
    assert list(read_lines(path, end=7))[-1] == (3, 5, b"th")


def test_a_line_is_read_again_by_its_place(path: Path, tmp_path: Path):
    (tmp_path / "other").write_bytes(b"x\n")
    with LinesByPosition({1: path, 2: tmp_path / "other"}) as placed:
        assert [placed.read(1, 5, 6), placed.read(2, 0, 2), placed.read(1, 0, 4)] == [b"three\n", b"x\n", b"one\n"]
        for place in ((1, 11, 4), (1, 0, 3)):
            with pytest.raises(StateError, match="was changed"):
                placed.read(*place)


def test_long_lines_come_in_small_groups(monkeypatch):
    monkeypatch.setattr(reader, "_GROUP_BYTES", 10)
    lines = [StoredLine(n, 0, b"x" * 6) for n in range(5)]
    assert [len(group) for group in in_groups(lines)] == [2, 2, 1]
    assert [len(group) for group in in_groups(StoredLine(n, 0, b"") for n in range(2500))] == [1000, 1000, 500]


def test_a_file_that_is_not_there_is_empty_and_a_folder_is_refused(tmp_path: Path):
    assert size_of(tmp_path / "none") == 0
    assert list(read_lines(tmp_path / "none", end=9)) == []
    with pytest.raises(StateError, match="is not a file"):
        size_of(tmp_path)


def test_groups_have_all_lines_wherever_a_block_ends(tmp_path: Path, monkeypatch):
    data = b"".join(b"x" * (n % 17) + b"\r" * (n % 3) + b"\n" for n in range(3000)) + b"no end"
    (tmp_path / "x").write_bytes(data)
    for block_bytes in (1, 16, 1 << 20):
        monkeypatch.setattr(reader, "_BLOCK_BYTES", block_bytes)
        groups = list(reader.read_groups(tmp_path / "x", end=len(data) - 3))
        lines = [line for group in groups for line in group]
        assert b"".join(line.raw for line in lines) == data[:-3]
        assert all(data[line.offset :].startswith(line.raw) for line in lines)
        assert [line.number for line in lines] == list(range(1, 3002))
        assert max(map(len, groups)) <= 1000
