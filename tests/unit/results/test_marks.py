"""A results file read in parts, by several processes, gives the marks of the same lines as read as a whole."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given
from hypothesis import strategies as st

from batchrun.results import reader
from batchrun.results.marks import Mark, marks_between, placed_marks, read_marks
from batchrun.results.record import result_digest

lines = st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"\r"))


@given(st.lists(lines, max_size=30), lines, st.integers(0, 30), st.integers(1, 70), st.sampled_from((1, 8, 1 << 16)))
@example([b"a", b"b"], b"", 0, 2, 8)
@example([b"x" * 40], b"cut", 2, 1, 1)
def test_each_line_is_in_the_one_part_in_which_it_begins(
    whole: list[bytes], rest: bytes, cut: int, part_bytes: int, block_bytes: int
):
    data = b"".join(line + b"\n" for line in whole) + rest
    end = max(len(data) - cut, 0)
    before, reader._BLOCK_BYTES = reader._BLOCK_BYTES, block_bytes
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "r.jsonl"
            path.write_bytes(data)
            found: list[Mark] = []
            for start in range(0, end, part_bytes):
                part = marks_between(path, start, min(start + part_bytes, end), end)
                offset = found[-1].offset + found[-1].length if found else 0
                found += placed_marks(part, len(found) + 1, offset)
            expected = [mark for group in read_marks(path, end) for mark in group]
    finally:
        reader._BLOCK_BYTES = before
    assert found == expected
    assert sum(mark.length for mark in found) == end
    assert all(data[mark.offset :][: mark.length].count(b"\n") <= 1 for mark in found)


def test_a_mark_has_the_id_at_the_beginning_of_a_record_of_either_format_and_the_digest(tmp_path: Path):
    raws = {
        b'{"id":"r-1","status":"COMPLETED"}\n': "r-1",
        b'{"id":"batch_req_1","custom_id":"r 2","response":null}\n': "r 2",
        b'{"id":"\\u0041","status":"COMPLETED"}\n': None,
        b'["id"]\n': None,
        b'{"id":"cut off","status":"COMPL': None,
    }
    (tmp_path / "r.jsonl").write_bytes(b"".join(raws))
    (marks,) = read_marks(tmp_path / "r.jsonl", 1 << 20)
    assert [mark.likely_id for mark in marks] == list(raws.values())
    assert [mark.digest for mark in marks] == list(map(result_digest, raws))
    assert [mark.number for mark in marks] == [1, 2, 3, 4, 5]
