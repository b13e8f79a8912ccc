from __future__ import annotations

from pathlib import Path

import pytest

from batchrun.errors import OutputError, StateError
from batchrun.results.writer import ResultsFile, recover, truncate, write_errors
from tests.support.disks import files_of_at_most


def write(path: Path, *batches: list[bytes], committed: int = 0) -> int:
    file = ResultsFile(path, committed)
    for batch in batches:
        file.append(batch)
        file.sync()
    file.close()
    return file.size_bytes


def test_lines_are_appended_behind_the_committed_length(tmp_path: Path):
    path = tmp_path / "new" / "r.jsonl"
    size = write(path, [b"a\n", b"b\n"])
    assert write(path, [b"c\n"], committed=size) == 6
    assert path.read_bytes() == b"a\nb\nc\n"


def test_a_failed_append_leaves_whole_lines_only(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    file = ResultsFile(path, 0)
    file.append([b"x" * 79 + b"\n"])
    with files_of_at_most(100), pytest.raises(OutputError, match="cannot be written: File too large"):
        file.append([b"y" * 79 + b"\n"])
    assert path.read_bytes() == b"x" * 79 + b"\n"
    assert file.size_bytes == 80
    file.close()


@pytest.mark.parametrize("torn_at", range(1, 9))
def test_whole_lines_beyond_the_committed_length_are_found_and_a_torn_one_is_measured(tmp_path: Path, torn_at: int):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"done\n" + b"whole\n" + b"torn line"[:torn_at])
    tail = recover(path, 5)
    assert (tail.lines, tail.cut_bytes) == ([b"whole\n"], torn_at)
    truncate(path, 11)
    assert path.read_bytes() == b"done\nwhole\n"


def test_a_file_that_lost_committed_lines_is_refused(tmp_path: Path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"a\n")
    with pytest.raises(StateError, match="10 bytes shorter"):
        recover(path, 12)
    with pytest.raises(StateError, match="12 bytes shorter"):
        recover(tmp_path / "gone.jsonl", 12)
    assert recover(tmp_path / "gone.jsonl", 0).lines == []


def test_an_error_file_is_whole_or_as_it_was(tmp_path: Path):
    path = tmp_path / "r.errors.jsonl"
    assert write_errors(path, [b"one\n", b"two\n"]) == 2
    with files_of_at_most(100), pytest.raises(OutputError):
        write_errors(path, [b"x" * 60 + b"\n"] * 3)
    assert path.read_bytes() == b"one\ntwo\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.errors.jsonl"]


def test_without_failures_an_old_error_file_goes(tmp_path: Path):
    path = tmp_path / "r.errors.jsonl"
    write_errors(path, [b"one\n"])
    assert write_errors(path, []) == 0
    assert not path.exists()


@pytest.mark.parametrize("obstacle", ["folder", "file-as-folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, obstacle: str):
    if obstacle == "folder":
        (tmp_path / "r.jsonl").mkdir()
        path = tmp_path / "r.jsonl"
    else:
        (tmp_path / "x").write_text("")
        path = tmp_path / "x" / "r.jsonl"
    with pytest.raises(OutputError, match=r"r\.jsonl: results cannot be written"):
        ResultsFile(path, 0)


def test_files_are_not_left_open(tmp_path: Path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    write(tmp_path / "r.jsonl", [b"a\n"])
    recover(tmp_path / "r.jsonl", 0)
    truncate(tmp_path / "r.jsonl", 0)
    write_errors(tmp_path / "e.jsonl", [b"a\n"])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
