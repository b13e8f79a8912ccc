from __future__ import annotations

import gzip
import io
import os
import resource
from typing import TYPE_CHECKING

import pytest

from batchrun.errors import InputError, OutputError
from batchrun.prompts.sources import Source, SourceKind, find_sources, iter_source, spool

if TYPE_CHECKING:
    from pathlib import Path

LINES = b'"a"\n"b"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jsonl", "a.jsonl", "a.results.jsonl", "a.errors.jsonl", "notes.txt"):
        (tmp_path / name).write_bytes(LINES)
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "sub.jsonl").mkdir()
    return tmp_path


def test_a_folder_means_its_prompt_files_in_name_order_without_our_own(folder: Path):
    found = find_sources([str(folder)])
    assert [(source.name, source.kind) for source in found] == [
        ("a.jsonl", SourceKind.FILE),
        ("b.jsonl", SourceKind.FILE),
        ("c.jsonl.gz", SourceKind.GZIP),
    ]


def test_an_error_file_that_is_named_is_taken(folder: Path):
    assert find_sources([str(folder / "a.errors.jsonl")])[0].name == "a.errors.jsonl"


def test_gzip_is_known_by_its_content_and_stdin_by_its_dash(folder: Path):
    (folder / "packed").write_bytes(gzip.compress(LINES))
    kinds = [source.kind for source in find_sources([str(folder / "packed"), "-"])]
    assert kinds == [SourceKind.GZIP, SourceKind.STDIN]


def test_a_fifo_is_read_once_like_stdin(tmp_path: Path):
    os.mkfifo(tmp_path / "fifo")
    assert find_sources([str(tmp_path / "fifo")])[0].kind is SourceKind.STDIN


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["none.jsonl"], "none.jsonl: there is no such file or folder"),
        (["a.jsonl", "./a.jsonl"], "is given twice"),
        (["-", "-"], "- is given twice"),
        (["empty"], "the folder has no"),
        (["a.jsonl/x"], "check|Not a directory"),
    ],
)
def test_wrong_inputs_are_named(folder: Path, monkeypatch, names, message):
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message):
        find_sources(names)


@pytest.mark.parametrize("kind", ["plain", "gzip", "stdin"])
def test_every_kind_gives_the_same_lines(folder: Path, kind: str):
    source = {
        "plain": Source(str(folder / "a.jsonl"), SourceKind.FILE),
        "gzip": Source(str(folder / "c.jsonl.gz"), SourceKind.GZIP),
        "stdin": Source("-", SourceKind.STDIN),
    }[kind]
    assert [line.raw for line in iter_source(source, io.BytesIO(LINES))] == [b'"a"', b'"b"']
    target = folder / "spool" / "copy.jsonl"
    spool(source, target, io.BytesIO(LINES))
    assert target.read_bytes() == LINES


@pytest.mark.parametrize(
    "content",
    [gzip.compress(LINES * 1000, mtime=0)[:-20], b"\x1f\x8bnonsense", b"plain text"],
    ids=["cut off", "nonsense", "plain text"],
)
def test_a_broken_gzip_file_is_refused_and_leaves_no_copy(tmp_path: Path, content: bytes):
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    (source,) = find_sources([str(tmp_path / "x.jsonl.gz")])
    with pytest.raises(InputError, match="no whole gzip file"):
        list(iter_source(source, io.BytesIO()))
    with pytest.raises(InputError, match="no whole gzip file"):
        spool(source, tmp_path / "copy.jsonl", io.BytesIO())
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl.gz"]


def test_a_copy_that_cannot_be_written_is_an_output_error_and_leaves_nothing(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            spool(Source("-", SourceKind.STDIN), tmp_path / "copy.jsonl", io.BytesIO(LINES * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
