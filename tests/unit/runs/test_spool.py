"""Copies of what can be read only once: named by what they hold, private, and whole or not there."""

from __future__ import annotations

import gzip
import io
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from batchrun.errors import InputError, OutputError
from batchrun.prompts.sources import Source, SourceKind, find_sources
from batchrun.runs.spool import make_copy, remove_copies
from batchrun.state.records import SourceRecord
from tests.support.disks import files_of_at_most

if TYPE_CHECKING:
    from pathlib import Path

LINES = b'"a"\n"b"\n'
STDIN = Source("-", SourceKind.STDIN)


def copy(source: Source, state: Path, content: bytes = b"", number: int = 0) -> Path:
    return make_copy(source, number, state, io.BytesIO(content), [])


def test_a_copy_is_named_by_the_input_and_what_it_holds(tmp_path: Path):
    state = tmp_path / "new" / "r.state"
    one, same, other = copy(STDIN, state, LINES), copy(STDIN, state, LINES), copy(STDIN, state, LINES * 2)
    assert one == same != other
    assert one.read_bytes() == LINES
    assert one.name.startswith("r.state.0-")
    assert copy(STDIN, state, LINES, number=1) != one


def test_only_the_owner_may_read_what_was_piped_or_was_private(tmp_path: Path):
    os.umask(0o022)
    (tmp_path / "open.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "private.gz").write_bytes(gzip.compress(LINES * 2))
    (tmp_path / "private.gz").chmod(0o600)
    sources = find_sources([str(tmp_path / "open.gz"), str(tmp_path / "private.gz")])
    modes = [copy(source, tmp_path / "s", LINES * 3).stat().st_mode & 0o777 for source in (*sources, STDIN)]
    assert modes == [0o644, 0o600, 0o600]


def test_only_a_long_copy_tells_its_progress_and_less_and_less_often(tmp_path: Path):
    seconds, told = iter(range(1000)), list[str]()
    content = b"x" * (20 << 20)
    make_copy(STDIN, 0, tmp_path / "s", io.BytesIO(content), [], tell=told.append, clock=lambda: float(next(seconds)))
    assert told == [f"copying -: {size} MB so far" for size in (3, 6, 13)]
    make_copy(STDIN, 1, tmp_path / "s", io.BytesIO(content), [], tell=told.append, clock=lambda: 0.0)
    assert len(told) == 3


def test_what_a_crash_has_left_of_a_copy_is_gone_after_the_next(tmp_path: Path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        with os.fdopen(read, "rb") as stdin:
            make_copy(STDIN, 0, tmp_path / "r.state", stdin, [])
        os._exit(0)
    os.close(read)
    os.write(write, LINES)
    while not list(tmp_path.iterdir()):
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(write)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    copied = copy(STDIN, tmp_path / "r.state", LINES)
    assert list(tmp_path.iterdir()) == [copied]


@pytest.mark.parametrize(
    "content",
    [gzip.compress(LINES * 1000, mtime=0)[:-20], b"\x1f\x8bnonsense", b"plain text"],
    ids=["cut off", "nonsense", "plain text"],
)
def test_a_broken_gzip_file_leaves_no_copy(tmp_path: Path, content: bytes):
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    (source,) = find_sources([str(tmp_path / "x.jsonl.gz")])
    with pytest.raises(InputError, match="not a complete gzip file"):
        copy(source, tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl.gz"]


def test_a_copy_that_cannot_be_written_is_an_output_error_and_leaves_nothing(tmp_path: Path):
    with files_of_at_most(4096), pytest.raises(OutputError, match="cannot be written: File too large"):
        copy(STDIN, tmp_path / "s", LINES * 10_000)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_not_written_through_a_planted_link(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    made = copy(STDIN, tmp_path / "s", LINES)
    made.unlink()
    made.symlink_to(precious)
    copy(STDIN, tmp_path / "s", LINES)
    assert precious.read_bytes() == b"precious"


def test_only_what_is_beside_the_state_file_and_bears_its_name_is_removed(tmp_path: Path):
    state = tmp_path / "s"
    names = ("s.0-0123456789ab.jsonl", "other.jsonl", "s.1-0123456789ab.jsonl")
    for name in names:
        (tmp_path / name).write_bytes(LINES)
    before = [SourceRecord(n, "-", "-", str(tmp_path / name), "", 1) for n, name in enumerate(names)]
    remove_copies(before, before[2:], state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.jsonl", "s.1-0123456789ab.jsonl"]
